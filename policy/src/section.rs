//! A policy of several files, as it travels: one text, in which a line of its own begins each file after the first.
//!
//! ```text
//! include = ["teams/payments.toml"]
//! …
//! #@ file teams/payments.toml
//! [[rule]]
//! …
//! ```
//! Such a line is only ever written by [`assemble`]: a file that has one is refused, so no file can pass for another.

use toml::de::DeTable;

use crate::fault::{Faults, PolicyError, PolicyErrors};
use crate::language::TOP;
use crate::large::LARGE;
use crate::policy::POLICY_MAX;

/// Begins the line that begins a file.
pub(crate) const MARK: &str = "#@ file ";
/// Begins every line that is kept for this.
const KEPT: &str = "#@";
/// The most files, and the longest name of one, in bytes.
const FILES_MAX: usize = 1000;
const NAME_MAX: usize = 255;
/// The most entries of a directory that is included. Whoever lists one reads one more, so that it is known if there are.
pub const ENTRIES_MAX: usize = 10_000;

/// Where a file begins in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    /// The byte after its line.
    pub(crate) at: usize,
    /// The number of its line, from 1.
    pub(crate) line: usize,
    pub(crate) name: String,
}

/// The files after the first, in the order of the text.
pub(crate) fn sections(text: &str) -> Vec<Section> {
    let mut at = 0;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        at += line.len();
        if let Some(name) = line.strip_prefix(MARK) {
            found.push(Section { at, line: number, name: name.trim_end().to_owned() });
        }
    }
    found
}

/// The names of the files that a text was put together of, after the first.
#[must_use]
pub fn files(text: &str) -> Vec<String> {
    sections(text).into_iter().map(|section| section.name).collect()
}

/// The file that holds this byte; none if it is the first.
pub(crate) fn section(sections: &[Section], at: usize) -> Option<&Section> {
    let after = sections.partition_point(|section| section.at <= at);
    sections.get(after.checked_sub(1)?)
}

/// Puts files together. `read` gives the text of a file that the first one includes, by the name it is included by; `list` the
/// names of what is in a directory, which are included in their order if they end with `.toml` and do not begin with a dot.
///
/// # Errors
/// Every mistake that keeps the files from being put together, with file, line and column; what is wrong with the policy
/// itself is told when it is parsed.
pub fn assemble(
    file: &str,
    text: &str,
    mut read: impl FnMut(&str) -> Result<String, String>,
    mut list: impl FnMut(&str) -> Result<Vec<String>, String>,
) -> Result<String, PolicyErrors> {
    let wrong =
        |line: usize, message: String| PolicyErrors::one(file, PolicyError { file: None, line, column: 1, message });
    let mut names: Vec<(usize, String)> = Vec::new();
    for (line, name) in included(file, text)? {
        let files =
            if name.ends_with('/') { below(&name, &mut list).map_err(|why| wrong(line, why))? } else { vec![name] };
        names.extend(files.into_iter().map(|name| (line, name)));
    }
    if let Some((line, name)) = twice(&names) {
        return Err(wrong(*line, format!("\"{name}\" is included twice")));
    }
    if names.len() > FILES_MAX {
        return Err(wrong(1, format!("{} files are included; the limit is {FILES_MAX}", names.len())));
    }
    let mut whole = text.to_owned();
    for (line, name) in names {
        let part = read(&name).map_err(|why| wrong(line, format!("\"{name}\" is included, and {why}")))?;
        check_part(&name, &part)?;
        if whole.len().saturating_add(part.len()) > POLICY_MAX {
            let message = format!("with \"{name}\" the policy is longer than {POLICY_MAX} bytes");
            return Err(wrong(line, message));
        }
        if !whole.ends_with('\n') {
            whole.push('\n');
        }
        whole.push_str(MARK);
        whole.push_str(&name);
        whole.push('\n');
        whole.push_str(&part);
    }
    Ok(whole)
}

/// The file and the line in it that a line of a text is, which was put together of several files; `file` is the first.
#[must_use]
pub fn line_in<'t>(file: &'t str, text: &'t str, line: usize) -> (&'t str, usize) {
    let marks =
        (1..).zip(text.lines()).take(line).filter_map(|(number, text)| Some((number, text.strip_prefix(MARK)?)));
    marks.last().map_or((file, line), |(number, name)| (name.trim_end(), line.saturating_sub(number)))
}

/// A text with more tables in its first file: behind the last file they would be that one's.
pub(crate) fn with(text: &str, more: &str) -> String {
    let at = sections(text).first().map_or(text.len(), |first| {
        // Back over its line.
        text.get(..first.at).and_then(|before| before.trim_end_matches('\n').rfind('\n')).map_or(0, |end| end + 1)
    });
    let (first, rest) = text.split_at_checked(at).unwrap_or((text, ""));
    let end = if more.ends_with('\n') || rest.is_empty() { "" } else { "\n" };
    format!("{first}\n{more}{end}{rest}")
}

/// The policies in a directory. That there are none is no policy, but a mistake.
fn below(directory: &str, list: &mut impl FnMut(&str) -> Result<Vec<String>, String>) -> Result<Vec<String>, String> {
    let there = list(directory).map_err(|why| format!("\"{directory}\" is included, and {why}"))?;
    if there.len() > ENTRIES_MAX {
        return Err(format!("\"{directory}\" is included, and has more than {ENTRIES_MAX} entries"));
    }
    let mut names: Vec<String> =
        there.into_iter().filter(|name| is_policy(name)).map(|name| format!("{directory}{name}")).collect();
    names.sort_unstable();
    match names.iter().find_map(|name| Some((name, problem(name)?))) {
        Some((name, problem)) => Err(format!("the file {} {problem}", crate::fault::quoted(name))),
        None if names.is_empty() => Err(format!("\"{directory}\" is included, and no file in it ends with .toml")),
        None => Ok(names),
    }
}

fn is_policy(name: &str) -> bool {
    name.ends_with(".toml") && !name.starts_with('.') && !name.contains('/')
}

/// Whether this file is included by this name, which may be a directory's.
pub(crate) fn includes(name: &str, file: &str) -> bool {
    name == file || name.ends_with('/') && file.strip_prefix(name).is_some_and(is_policy)
}

fn twice(names: &[(usize, String)]) -> Option<&(usize, String)> {
    let mut seen = std::collections::HashSet::new();
    names.iter().find(|(_, name)| !seen.insert(name))
}

/// The names in `include`, each with its line.
fn included(file: &str, text: &str) -> Result<Vec<(usize, String)>, PolicyErrors> {
    let mut faults = Faults::in_text(text);
    kept(text, &mut faults);
    // What else is wrong is told when it is parsed.
    let Ok(document) = DeTable::parse(head(text)) else { return faults.verdict(file, Some(Vec::new())) };
    let document = document.into_inner();
    let Some(value) = document.get(INCLUDE) else { return faults.verdict(file, Some(Vec::new())) };
    let list = value.get_ref().as_array();
    let mut names: Vec<(usize, String)> = Vec::new();
    for item in list.into_iter().flatten() {
        let at = item.span().start;
        match item.get_ref().as_str() {
            None => {
                faults.wrong(at, format!("include is a list of names of files; for example {}", TOP.example(INCLUDE)))
            }
            Some(name) => match problem(name.strip_suffix('/').unwrap_or(name)) {
                Some(problem) => faults.wrong(at, format!("the file {} {problem}", crate::fault::quoted(name))),
                None if names.iter().any(|(_, other)| other == name) => {
                    faults.wrong(at, format!("\"{name}\" is included twice"));
                }
                None => names.push((faults.line(at), name.to_owned())),
            },
        }
    }
    if list.is_none() || names.len() > FILES_MAX {
        let right = format!("a list of at most {FILES_MAX} names of files; for example {}", TOP.example(INCLUDE));
        faults.wrong(value.span().start, format!("include is {right}"));
    }
    faults.verdict(file, Some(names))
}

/// Where `include` can stand: above the first table. Short texts are small enough to be read as a whole.
fn head(text: &str) -> &str {
    let end = if text.len() > LARGE { text.find("\n[").map(|at| at + 1) } else { None };
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

pub(crate) const INCLUDE: &str = "include";

/// A name below the directory of the first file.
fn problem(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    let strange = name.chars().find(|c| !plain(*c));
    match strange {
        Some(c) => Some(format!("contains '{}'; names are letters, digits, '.', '-', '_' and '/'", c.escape_default())),
        None if name.is_empty() || name.len() > NAME_MAX => {
            Some(format!("has {} bytes; 1 to {NAME_MAX} are right", name.len()))
        }
        None if name.split('/').any(|part| part.is_empty() || part == "..") => {
            Some("is not below the directory of the policy; write it from there, without \"..\"".to_owned())
        }
        None => None,
    }
}

/// An included file holds tables and nothing else: what stood above them would belong to the last table of the file before.
fn check_part(name: &str, text: &str) -> Result<(), PolicyErrors> {
    let mut faults = Faults::in_text(text);
    kept(text, &mut faults);
    if text.len() > LARGE {
        faults.wrong(0, format!("an included file has at most {LARGE} bytes; split it"));
        return faults.verdict(name, Some(()));
    }
    match DeTable::parse(text) {
        Err(e) => faults.syntax(e.span().map_or(0, |span| span.start), format!("not TOML: {}", e.message())),
        Ok(document) => {
            for (key, value) in document.get_ref() {
                let (at, field): (usize, &str) = (key.span().start, key.get_ref());
                let tables =
                    value.get_ref().as_array().is_some_and(|list| list.iter().all(|item| item.get_ref().is_table()));
                if field == "team" || !tables {
                    let only =
                        "an included file has [[workload]], [[group]], [[outside]], [[rule]] and [[test]] tables only";
                    faults.wrong(at, format!("{field} belongs into the file that includes this one; {only}"));
                }
            }
        }
    }
    faults.verdict(name, Some(()))
}

fn kept(text: &str, faults: &mut Faults<'_>) {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with(KEPT) {
            faults.wrong(at, format!("lines that begin with {KEPT} are kept for putting files together; change it"));
        }
        at += line.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "mode = 'enforce'\ninclude = ['b', 'c']\n#@ file b\n[[rule]]\n#@ file c\n\n[[rule]]\n";

    #[test]
    fn lines_are_those_of_their_files() {
        let places = [1, 2, 4, 6, 7].map(|line| line_in("a", WHOLE, line));
        assert_eq!(places, [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("c", 2)]);
        let sections = sections(WHOLE);
        let names = [0, 37, 48, 58, 68].map(|at| section(&sections, at).map(|section| section.name.as_str()));
        assert_eq!(names, [None, None, Some("b"), Some("b"), Some("c")]);
    }

    #[test]
    fn more_tables_come_into_the_first_file() {
        let more = with(WHOLE, "[[workload]]\n");
        assert_eq!(more, WHOLE.replacen("#@ file b", "\n[[workload]]\n#@ file b", 1));
        assert_eq!(with("mode = 'enforce'\n", "[[rule]]\n"), "mode = 'enforce'\n\n[[rule]]\n");
    }

    #[test]
    fn files_are_put_together_in_the_order_of_their_names_in_include() {
        let main = "mode = 'enforce'\ninclude = ['b', 'c']\n";
        let whole =
            assemble("a", main, |name| Ok(if name == "b" { "[[rule]]" } else { "\n[[rule]]\n" }.into()), nothing)
                .unwrap();
        assert_eq!(whole, WHOLE);
        assert_eq!(assemble("a", "mode = 3", |_| Err("never asked".into()), nothing).unwrap(), "mode = 3");
    }

    fn nothing(_: &str) -> Result<Vec<String>, String> {
        Err("nothing is here".to_owned())
    }

    #[test]
    fn a_directory_is_its_policies_in_the_order_of_their_names() {
        let main = "mode = 'enforce'\ninclude = ['x.toml', 'd/']\n";
        let list = |names: &'static [&str]| move |_: &str| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        let read = |name: &str| Ok(format!("# {name}\n"));
        let whole = assemble("a", main, read, list(&["b.toml", ".c.toml", "a.toml", "a.toml~", "README"])).unwrap();
        let names: Vec<&str> = whole.lines().filter_map(|line| line.strip_prefix(MARK)).collect();
        assert_eq!(names, ["x.toml", "d/a.toml", "d/b.toml"]);
        crate::Policy::parse("a", &whole).unwrap_or_else(|e| panic!("{e}"));
        for (include, names, said) in [
            ("['d/']", &["x"][..], "a:2:1: \"d/\" is included, and no file in it ends with .toml"),
            ("['d/']", &["\u{e4}.toml"], "a:2:1: the file \"d/\\u{e4}.toml\" contains"),
            ("['d/a.toml', 'd/']", &["a.toml"], "\"d/a.toml\" is included twice"),
            ("['/']", &[], "has 0 bytes"),
            ("['../']", &[], "is not below the directory"),
        ] {
            let errors = assemble("a", &main.replace("['x.toml', 'd/']", include), read, list(names)).unwrap_err();
            assert!(errors.to_string().contains(said), "{errors}");
        }
        let many = |_: &str| Ok(vec!["x".to_owned(); ENTRIES_MAX + 1]);
        let errors = assemble("a", &main.replace("'x.toml', ", ""), read, many).unwrap_err().to_string();
        assert!(errors.contains("has more than 10000 entries"), "{errors}");
        // Whoever puts them together otherwise leaves none out.
        let lost = crate::Policy::parse("a", "mode = 'enforce'\ninclude = ['d/']\n").unwrap_err().to_string();
        assert!(lost.contains("\"d/\" is included and not here"), "{lost}");
        let stray = crate::Policy::parse("a", "mode = 'enforce'\ninclude = ['d/']\n#@ file d/e/a.toml\n").unwrap_err();
        assert!(stray.to_string().contains("\"d/e/a.toml\" is here and not included"), "{stray}");
    }
}
