//! Mistakes in a policy text, collected while it is read, each with its place and a remedy.

use std::cell::OnceCell;
use std::fmt;

use crate::section::{Section, section, sections};

/// How many errors are listed; the rest are counted.
pub const ERRORS_MAX: usize = 1000;
/// How many errors may search for a similar name: searching compares with every known one.
const SUGGESTIONS_MAX: usize = 20;
/// The longest piece of the policy that a message quotes, in characters.
const QUOTE_MAX: usize = 80;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The included file that it is in; none for the first file.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what would be right. Printable ASCII, whatever the text holds.
    pub message: String,
}

/// Every mistake of a text, in the order of the text. Displayed as `file:line:column: message` lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors {
    file: String,
    errors: Vec<PolicyError>,
    left_out: usize,
}

impl PolicyErrors {
    /// A single mistake.
    pub(crate) fn one(file: &str, error: PolicyError) -> Self {
        Self { file: file.to_owned(), errors: vec![error], left_out: 0 }
    }

    /// The file's name as given to the parser.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The mistakes, at most [`ERRORS_MAX`]; never empty.
    #[must_use]
    pub fn errors(&self) -> &[PolicyError] {
        &self.errors
    }

    /// How many more there are.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let end_of_previous = if index == 0 { "" } else { "\n" };
            let file = error.file.as_ref().unwrap_or(&self.file);
            write!(f, "{end_of_previous}{file}:{}:{}: {}", error.line, error.column, error.message)?;
        }
        match self.left_out {
            0 => Ok(()),
            more => write!(f, "\n{}: and {more} more errors", self.file),
        }
    }
}

impl std::error::Error for PolicyErrors {}

#[derive(Debug)]
struct Fault {
    at: usize,
    message: String,
    /// It may be the consequence of a syntax error elsewhere, which swallowed a line or a table's header.
    if_whole: bool,
}

/// The mistakes found so far in one text.
#[derive(Debug)]
pub(crate) struct Faults<'t> {
    text: &'t str,
    /// Found when the first is asked for: a text without mistakes needs none.
    line_starts: OnceCell<Vec<usize>>,
    /// Where the piece begins that is being read.
    begins: usize,
    syntax: Vec<Fault>,
    meaning: Vec<Fault>,
    left_out: usize,
    sections: Vec<Section>,
}

impl<'t> Faults<'t> {
    pub(crate) fn in_text(text: &'t str) -> Self {
        let (line_starts, syntax, meaning, sections) = (OnceCell::new(), Vec::new(), Vec::new(), sections(text));
        Self { text, line_starts, begins: 0, syntax, meaning, left_out: 0, sections }
    }

    /// From now on places are those in a piece of the text that begins there.
    pub(crate) fn in_piece(&mut self, begins: usize) {
        self.begins = begins;
    }

    /// Takes over what was found in pieces of the text.
    pub(crate) fn absorb(&mut self, found: Faults<'_>) {
        self.left_out = self.left_out.saturating_add(found.left_out);
        found.syntax.into_iter().for_each(|fault| push(&mut self.syntax, &mut self.left_out, fault));
        found.meaning.into_iter().for_each(|fault| push(&mut self.meaning, &mut self.left_out, fault));
    }

    fn line_starts(&self) -> &[usize] {
        self.line_starts
            .get_or_init(|| std::iter::once(0).chain(self.text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// The files after the first.
    pub(crate) fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Where this byte is, in words: `line 7`, or `line 7 of teams/payments.toml`.
    pub(crate) fn place(&self, at: usize) -> String {
        match section(&self.sections, at) {
            Some(section) => format!("line {} of {}", self.line(at) - section.line, section.name),
            None => format!("line {}", self.line(at)),
        }
    }

    /// The text is no TOML here.
    pub(crate) fn syntax(&mut self, at: usize, message: String) {
        let fault = Fault { at: self.begins + at, message, if_whole: false };
        push(&mut self.syntax, &mut self.left_out, fault);
    }

    /// What is written at this byte is wrong.
    pub(crate) fn wrong(&mut self, at: usize, message: impl Into<String>) {
        let fault = Fault { at: self.begins + at, message: message.into(), if_whole: false };
        push(&mut self.meaning, &mut self.left_out, fault);
    }

    /// What is written at this byte is wrong, provided that the rest of the text was understood.
    pub(crate) fn wrong_if_whole(&mut self, at: usize, message: impl Into<String>) {
        let fault = Fault { at: self.begins + at, message: message.into(), if_whole: true };
        push(&mut self.meaning, &mut self.left_out, fault);
    }

    /// The line that holds this byte, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.line_starts().partition_point(|start| *start <= at)
    }

    /// `; did you mean "…"?`, or the given remedy where no known name is similar.
    pub(crate) fn did_you_mean<'n>(
        &self,
        seen: &str,
        known: impl Iterator<Item = &'n str>,
        otherwise: impl FnOnce() -> String,
    ) -> String {
        let similar = if self.meaning.len() < SUGGESTIONS_MAX { nearest(seen, known) } else { None };
        match similar {
            Some(name) => format!("did you mean {}?", quoted(name)),
            None => otherwise(),
        }
    }

    /// The text's value if there was no mistake, else all mistakes.
    pub(crate) fn verdict<T>(mut self, file: &str, value: Option<T>) -> Result<T, PolicyErrors> {
        self.drop_consequences_of_syntax();
        let mut found = std::mem::take(&mut self.syntax);
        found.append(&mut self.meaning);
        match value {
            Some(value) if found.is_empty() => Ok(value),
            _ => Err(self.sorted(file, found)),
        }
    }

    fn drop_consequences_of_syntax(&mut self) {
        if self.syntax.is_empty() {
            return;
        }
        let broken: std::collections::HashSet<usize> = self.syntax.iter().map(|f| self.line(f.at)).collect();
        let mut meaning = std::mem::take(&mut self.meaning);
        meaning.retain(|f| !f.if_whole && !broken.contains(&self.line(f.at)));
        self.meaning = meaning;
    }

    fn sorted(&self, file: &str, mut found: Vec<Fault>) -> PolicyErrors {
        if found.is_empty() {
            // Unreachable unless a reader forgot to say why it gave up: still a refusal, and it says so.
            let message = "the policy was refused without a reason".to_owned();
            found.push(Fault { at: 0, message, if_whole: false });
        }
        found.sort_by_key(|f| f.at);
        let left_out = self.left_out + found.len().saturating_sub(ERRORS_MAX);
        found.truncate(ERRORS_MAX);
        let errors = found
            .into_iter()
            .map(|f| {
                let section = section(&self.sections, f.at);
                let line = self.line(f.at) - section.map_or(0, |section| section.line);
                let file = section.map(|section| section.name.clone());
                PolicyError { file, line, column: self.column(f.at), message: f.message }
            })
            .collect();
        PolicyErrors { file: file.to_owned(), errors, left_out }
    }

    fn column(&self, at: usize) -> usize {
        let start = self.line_starts().get(self.line(at).saturating_sub(1)).copied().unwrap_or(0);
        self.text.get(start..at).map_or(1, |before| before.chars().count() + 1)
    }
}

fn push(list: &mut Vec<Fault>, left_out: &mut usize, fault: Fault) {
    if list.len() < ERRORS_MAX { list.push(fault) } else { *left_out += 1 }
}

/// A piece of the policy, quoted for a message: printable ASCII whatever it holds, and of bounded length.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars().take(QUOTE_MAX) {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            other => out.extend(other.escape_default()),
        }
    }
    out.push_str(if text.chars().nth(QUOTE_MAX).is_some() { "...\"" } else { "\"" });
    out
}

/// The known name most like the one seen, if one is near enough to be a slip.
fn nearest<'n>(seen: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let allowed = (seen.len() / 3).clamp(1, 3);
    known
        .filter(|name| name.len() <= 64 && name.len().abs_diff(seen.len()) <= allowed)
        .map(|name| (strsim::osa_distance(seen, name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_printable_and_bounded() {
        assert_eq!(quoted("a\"b\\c"), r#""a\"b\\c""#);
        assert_eq!(quoted("w\u{0435}b\u{1b}"), r#""w\u{435}b\u{1b}""#);
        assert_eq!(quoted(&"x".repeat(81)), format!("\"{}...\"", "x".repeat(80)));
    }

    #[test]
    fn only_slips_are_suggested() {
        let known = ["shop/web", "shop/db"];
        assert_eq!(nearest("shop/wbe", known.into_iter()), Some("shop/web"));
        assert_eq!(nearest("shop/d", known.into_iter()), Some("shop/db"));
        assert_eq!(nearest("mail/relay", known.into_iter()), None);
        assert_eq!(nearest("", known.into_iter()), None);
    }

    #[test]
    fn columns_count_characters() {
        let mut faults = Faults::in_text("ab\näöü x");
        faults.wrong("ab\näöü ".len(), "here");
        let errors = faults.verdict("p", Some(())).unwrap_err();
        assert_eq!(errors.to_string(), "p:2:5: here");
    }

    #[test]
    fn consequences_of_broken_syntax_are_not_reported() {
        let mut faults = Faults::in_text("a\nb\nc");
        faults.syntax(0, "syntax".into());
        faults.wrong(0, "same line");
        faults.wrong_if_whole(2, "consequence");
        faults.wrong(4, "another line");
        assert_eq!(faults.verdict("p", Some(())).unwrap_err().to_string(), "p:1:1: syntax\np:3:1: another line");
    }

    #[test]
    fn errors_beyond_the_limit_are_counted() {
        let mut faults = Faults::in_text("a");
        for _ in 0..ERRORS_MAX + 7 {
            faults.wrong(0, "x");
        }
        let errors = faults.verdict("p", Some(())).unwrap_err();
        assert_eq!((errors.errors().len(), errors.left_out()), (ERRORS_MAX, 7));
        assert!(errors.to_string().ends_with("p: and 7 more errors"));
    }
}
