//! Texts too large to be taken apart at once: their rules are read in pieces, on several processors, and each piece is
//! forgotten when its rules are known.
//!
//! A piece ends before a line that begins with `[[`, and is TOML by itself or an error. That it means the same alone as in its
//! place holds because no string goes over several lines here, which [`Pieces::of`] sees to: such a line then is a header, or
//! the piece before it is not closed, which is an error in either reading.

use std::ops::Range;

use toml::de::DeTable;

use crate::fault::Faults;
use crate::language::{RULE, TOP};
use crate::names::Names;
use crate::outside::Outsides;
use crate::rule::{self, Placed};
use crate::table::Table;

/// The shortest text that is read so, in bytes.
pub(crate) const LARGE: usize = 4 << 20;
/// Pieces are about as long, in bytes: the parser's own memory for one is a small multiple of that.
const PIECE: usize = 128 << 10;
/// The most threads.
const THREADS_MAX: usize = 8;
/// The header of what is read in pieces.
const HEADER: &str = "[[rule]]";

/// A text in pieces.
#[derive(Debug)]
pub(crate) struct Pieces<'t> {
    text: &'t str,
    /// The text with spaces in the place of its rules.
    pub(crate) rest: String,
    /// Where rules are, in order.
    rules: Vec<Range<usize>>,
}

impl<'t> Pieces<'t> {
    /// None if the text has strings that may go over several lines, which was reported.
    pub(crate) fn of(text: &'t str, faults: &mut Faults<'_>) -> Option<Self> {
        if let Some(at) = ["\"\"\"", "'''"].into_iter().filter_map(|quotes| text.find(quotes)).min() {
            let limit = format!("in a policy of more than {LARGE} bytes no string goes over several lines");
            faults.wrong(at, format!("{limit}; write it in one line"));
            return None;
        }
        let mut rules: Vec<Range<usize>> = Vec::new();
        let mut begun = None;
        let headers = text.match_indices("\n[[").map(|(at, _)| at + 1);
        for at in text.starts_with("[[").then_some(0).into_iter().chain(headers).chain([text.len()]) {
            let is_rule = text.get(at..).is_some_and(|line| line.starts_with(HEADER));
            if let Some(start) = begun.take_if(|start| !is_rule || at - *start >= PIECE) {
                rules.push(start..at);
            }
            if is_rule {
                begun.get_or_insert(at);
            }
        }
        let mut rest = text.as_bytes().to_vec();
        for piece in &rules {
            let Some(piece) = rest.get_mut(piece.clone()) else { continue };
            piece.fill(b' ');
            piece.last_mut().into_iter().for_each(|last| *last = b'\n');
        }
        // Whole characters were replaced: pieces begin and end beside line ends.
        Some(Self { text, rest: String::from_utf8(rest).ok()?, rules })
    }

    /// Reads the rules, without holding their names against each other.
    pub(crate) fn rules(&self, names: &Names<'_>, outsides: &Outsides, faults: &mut Faults<'_>) -> Vec<Placed> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX));
        let share = self.rules.len().div_ceil(threads).max(1);
        let read = |pieces: &[Range<usize>]| {
            let mut faults = Faults::in_text("");
            let mut rules = Vec::new();
            pieces.iter().for_each(|piece| rules.extend(self.piece(piece, names, outsides, &mut faults)));
            (rules, faults)
        };
        let shares: Vec<(Vec<Placed>, Faults<'static>)> = std::thread::scope(|scope| {
            let begun: Vec<_> = self.rules.chunks(share).map(|pieces| scope.spawn(|| read(pieces))).collect();
            // A thread that panicked takes this one with it.
            begun.into_iter().map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
        });
        let mut rules = Vec::with_capacity(shares.iter().map(|(rules, _)| rules.len()).sum());
        for (share, found) in shares {
            rules.extend(share);
            faults.absorb(found);
        }
        rules
    }

    fn piece(
        &self,
        piece: &Range<usize>,
        names: &Names<'_>,
        outsides: &Outsides,
        faults: &mut Faults<'_>,
    ) -> Vec<Placed> {
        faults.in_piece(piece.start);
        let text = self.text.get(piece.clone()).unwrap_or_default();
        let document = match DeTable::parse(text) {
            Ok(document) => document.into_inner(),
            Err(e) => {
                faults.syntax(e.span().map_or(0, |span| span.start), format!("not TOML: {}", e.message()));
                return Vec::new();
            }
        };
        // What is no rule stands outside of pieces; a header within one, like [x], is none that is known.
        let top = Table::open(TOP, 0, &document, faults);
        if let Some(stranger) = document.keys().find(|key| AsRef::<str>::as_ref(key.get_ref()) != "rule") {
            faults.wrong(stranger.span().start, "this stands behind a [[rule]]; write it before the first table");
        }
        let tables = top.tables(RULE, "rule", faults);
        rule::read_alone(&tables, piece.start, names, outsides, faults)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use crate::{Policy, Subject};

    /// A policy of more than [`super::LARGE`] bytes.
    fn text(rules: usize, more: &str) -> String {
        let mut text = "mode = 'enforce'\n".to_owned();
        for i in 0..100 {
            let _ = writeln!(text, "[[workload]]\nname = 'w{i}'\nexe = '/w{i}'");
        }
        for i in 0..rules {
            let (from, to) = (i % 100, i / 100 % 100);
            let _ = writeln!(
                text,
                "[[rule]] # {i}\nname = 'rule {i}'\nfrom = 'w{from}'\nto = ['w{to}']\nports = [{}]\naction = 'allow'",
                1 + i / 10_000
            );
            if i == rules / 2 {
                text.push_str("[[workload]]\nname = 'between'\nexe = '/x'\n");
                // A header in another place than where pieces begin.
                text.push_str(" [[rule]]\nname = 'aside'\nfrom = 'between'\nto = 'w1'\naction = 'allow'\n");
                text.push_str("[[rule]]\nname = 'too late'\nfrom = 'between'\nto = 'w1'\naction = 'deny'\n");
                text.push_str(more);
            }
        }
        assert!(text.len() > super::LARGE, "{}", text.len());
        text
    }

    const RULES: usize = 60_000;

    #[test]
    fn a_large_text_means_what_a_small_one_does() {
        let text = text(
            RULES,
            "[[group]]\nname = 'all'\nmembers = ['w1', 'between']\n[[guard]]\nname = 'g'\nfrom = 'w1'\nto = 'w2'\n",
        );
        let policy = Policy::parse("p", &text).unwrap_or_else(|e| panic!("{e}"));
        let decided = |from: usize, to: usize, port: u16| {
            let [from, to] = [from, to].map(|i| format!("w{i}").parse().unwrap());
            policy.decide(&Subject::Workload(&from), &Subject::Workload(&to), port).rule().map(str::to_owned)
        };
        assert_eq!(decided(1, 2, 1), Some("g".into()));
        for i in [0, 99, 100, 9_999, 10_000, RULES / 2, RULES - 1] {
            assert_eq!(
                decided(i % 100, i / 100 % 100, u16::try_from(1 + i / 10_000).unwrap()),
                Some(format!("rule {i}"))
            );
        }
        assert_eq!(decided(0, 0, 7), None);
        let [between, to] = ["between", "w1"].map(|name| name.parse().unwrap());
        let verdict = policy.decide(&Subject::Workload(&between), &Subject::Workload(&to), 80);
        assert_eq!(verdict.rule(), Some("aside"), "rules are tried in the order in which they are written");
        assert!(policy.responsible("rule 7").is_none() && policy.knows(&"between".parse().unwrap()));
    }

    #[test]
    fn mistakes_in_large_texts_have_their_places() {
        let line = |text: &str, at: &str| text.find(at).map(|at| text[..at].lines().count() + 1).unwrap();
        for (more, said) in [
            (
                "[[rule]]\nname = 'rule 7'\nfrom = 'w1'\nto = 'w2'\naction = 'allow'\n",
                "the rule name \"rule 7\" is already the name of",
            ),
            (
                "[[rule]]\nname = 'x'\nfrom = 'w1000'\nto = 'w2'\naction = 'allow'\n",
                "no [[workload]], [[group]] or [[outside]] is named \"w1000\"",
            ),
            ("[[rule]]\nname = 'x'\nfrom = [\n", "not TOML: "),
            ("[[rule]]\nname = 'x'\nfrm = 'w1'\nto = 'w2'\naction = 'allow'\n", "unknown field \"frm\""),
            ("[[rule]]\nname = 'x'\nfrom = 'w1'\nto = 'w2'\naction = 'allow'\n[x]\n", "this stands behind a [[rule]]"),
            ("[[group]]\nname = 'x'\nmembers = ['w1', 'w1000']\n", "is named \"w1000\""),
            ("[[group]]\nname = '''x'''\nmembers = ['w1']\n", "no string goes over several lines"),
            ("[[rulex]]\nname = 'x'\n", "unknown field \"rulex\""),
        ] {
            let text = text(RULES, more);
            let errors = Policy::parse("p", &text).unwrap_err();
            let errors = errors.errors();
            assert!(errors.iter().any(|e| e.message.contains(said)), "{more}: {:?}", errors.first());
            let (first, last) = (line(&text, more), line(&text, more) + more.lines().count());
            let here = errors.iter().any(|e| e.message.contains(said) && (first..=last + 1).contains(&e.line));
            assert!(here, "{more}: {errors:?}, not in {first} to {last}");
        }
    }
}
