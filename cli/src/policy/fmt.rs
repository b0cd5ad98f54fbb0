//! `bonafide policy fmt`: one way to write a policy, so that changes show in reviews and habits do not.
//!
//! Comments stay, rules keep their order, and the meaning is the same: that is checked each time, before a file is touched.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use bonafide_policy::{LANGUAGE, TableKind};
use toml_edit::{Array, DocumentMut, Item, Key, RawString, Table, Value};

use crate::exit::{Exit, Failure};
use crate::policy::check;
use crate::printable::printable;
use crate::replace::replace;
use crate::screen::{Screen, tell};

/// A list is on one line where that is no longer than this, in characters.
const WIDTH: usize = 100;

/// What to format.
#[derive(Debug, clap::Args)]
pub struct FmtArgs {
    /// Policy files; - reads standard input and writes standard output
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Change nothing; name the files that are written otherwise
    #[arg(long)]
    pub check: bool,
}

/// Exit code 3 if a file would change and only that was asked.
pub(crate) fn fmt(args: &FmtArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let mut otherwise = false;
    for file in &args.files {
        let stdin = file.as_os_str() == "-";
        let before = if stdin { from_stdin()? } else { check::raw(file).map_err(|e| bad(&e))? };
        let after = formatted(&before).map_err(|e| bad(&format!("{}: {e}", file.display())))?;
        match (args.check, after == before) {
            (true, true) => {}
            (true, false) => {
                otherwise = true;
                tell(&printable(&format!("{}: not formatted; bonafide policy fmt does it", file.display())));
            }
            (false, _) if stdin => after.lines().try_for_each(|line| screen.line(line))?,
            (false, true) => {}
            (false, false) => rewrite(file, &before, &after)?,
        }
    }
    Ok(if otherwise { Exit::Refused } else { Exit::Done })
}

fn bad(why: &str) -> Failure {
    Failure::BadInput(why.lines().map(printable).collect::<Vec<_>>().join("\n"))
}

fn from_stdin() -> Result<String, Failure> {
    check::raw(Path::new("/dev/stdin")).map_err(|e| bad(&e))
}

fn rewrite(file: &Path, before: &str, after: &str) -> Result<(), Failure> {
    replace(file, before, after)?;
    tell(&printable(&format!("{}: formatted", file.display())));
    std::io::stderr().flush().map_err(Failure::Print)
}

/// The text as it should be written.
///
/// # Errors
/// It is no TOML; or it cannot be written otherwise without losing something, which is a mistake of this program.
pub(crate) fn formatted(text: &str) -> Result<String, String> {
    let text = text.replace("\r\n", "\n");
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| format!("not TOML: {e}"))?;
    let head = take_head(document.as_table_mut());
    table(document.as_table_mut(), kind("the policy"));
    put_head(document.as_table_mut(), &head);
    for (name, item) in document.as_table_mut().iter_mut() {
        let kind = LANGUAGE.iter().copied().find(|kind| kind.name == format!("[[{}]]", name.get()));
        if let Item::ArrayOfTables(tables) = item {
            tables.iter_mut().for_each(|each| table(each, kind));
        }
    }
    let trailing = comments(raw(document.trailing()));
    document.set_trailing(if trailing.is_empty() { String::new() } else { format!("\n{trailing}") });
    headers(document.as_table_mut());
    let written = document.to_string();
    let written = written.trim_start_matches('\n').to_owned();
    if same(&text, &written) {
        Ok(written)
    } else {
        Err("it cannot be formatted without changing it; leave it as it is".to_owned())
    }
}

/// The same values and the same comments.
fn same(before: &str, after: &str) -> bool {
    let values = |text: &str| toml::from_str::<toml::Table>(text).ok();
    let said = |text: &str| {
        let mut said: Vec<String> = text
            .split('\n')
            .filter_map(|line| line.split_once('#'))
            .map(|(_, said)| said.trim_end().to_owned())
            .collect();
        said.sort();
        said
    };
    values(before).is_some() && values(before) == values(after) && said(before) == said(after)
}

fn kind(name: &str) -> Option<&'static TableKind> {
    LANGUAGE.iter().copied().find(|kind| kind.name == name)
}

/// What stands at the top of the file, apart from the first field: it is about the file, wherever that field goes.
fn take_head(root: &mut Table) -> String {
    let Some((mut key, Item::Value(_))) = root.iter_mut().next() else { return String::new() };
    let above = raw_or(key.leaf_decor().prefix()).to_owned();
    let lines: Vec<&str> = above.split('\n').collect();
    // The last piece is the indentation of the field itself.
    let gap = lines.iter().rev().skip(1).position(|line| line.trim().is_empty());
    let Some(head) = gap.and_then(|gap| lines.len().checked_sub(2)?.checked_sub(gap)) else { return String::new() };
    let (head, rest) = lines.split_at(head);
    key.leaf_decor_mut().set_prefix(rest.join("\n"));
    comments(&head.join("\n"))
}

fn put_head(root: &mut Table, head: &str) {
    if let Some((mut key, Item::Value(_))) = root.iter_mut().next().filter(|_| !head.is_empty()) {
        let above = raw_or(key.leaf_decor().prefix()).to_owned();
        key.leaf_decor_mut().set_prefix(format!("{}\n\n{above}", head.trim_end()));
    }
}

/// Fields in the language's order, one space around `=`.
fn table(table: &mut Table, kind: Option<&'static TableKind>) {
    let place = |key: &Key| {
        let known = kind.and_then(|kind| kind.fields.iter().position(|(name, _)| *name == key.get()));
        known.unwrap_or(usize::MAX)
    };
    table.sort_values_by(|a, _, b, _| place(a).cmp(&place(b)));
    for (mut key, item) in table.iter_mut() {
        let Item::Value(value) = item else { continue };
        let above = comments(raw_or(key.leaf_decor().prefix()));
        let width = key.get().chars().count() + 3;
        *key.leaf_decor_mut() = toml_edit::Decor::new(above, " ");
        self::value(value, width);
    }
}

fn value(value: &mut Value, before: usize) {
    let beside = beside(raw_or(value.decor().suffix()));
    let plain = match value {
        Value::String(text) => plain(text.value()),
        _ => None,
    };
    if let Some(plain) = plain {
        *value = plain;
    }
    if let Value::Array(list) = value {
        array(list, before);
    }
    *value.decor_mut() = toml_edit::Decor::new(" ", beside);
}

/// In double quotes, where nothing has to be escaped for that.
fn plain(text: &str) -> Option<Value> {
    let simple = !text.contains(['"', '\\']) && !text.chars().any(char::is_control);
    simple.then(|| format!("\"{text}\"").parse().ok()).flatten()
}

/// On one line if it fits there, else one item a line; as it is, if there are comments in it.
fn array(list: &mut Array, before: usize) {
    let has_comment = |raw: &str| raw.contains('#');
    let commented = list
        .iter()
        .any(|item| has_comment(raw_or(item.decor().prefix())) || has_comment(raw_or(item.decor().suffix())));
    if commented || has_comment(raw(list.trailing())) {
        return;
    }
    for item in list.iter_mut() {
        if let Value::String(text) = item
            && let Some(plain) = plain(text.value())
        {
            *item = plain;
        }
    }
    arrange(list, "", " ", "");
    list.set_trailing_comma(false);
    if before + list.to_string().trim().chars().count() > WIDTH {
        arrange(list, "\n    ", "\n    ", "\n");
        list.set_trailing_comma(true);
    }
}

fn arrange(list: &mut Array, first: &str, others: &str, last: &str) {
    for (position, item) in list.iter_mut().enumerate() {
        *item.decor_mut() = toml_edit::Decor::new(if position == 0 { first } else { others }, "");
    }
    list.set_trailing(last);
    *list.decor_mut() = toml_edit::Decor::default();
}

/// One empty line above each header, and its comments between.
fn headers(root: &mut Table) {
    for (_, item) in root.iter_mut() {
        let Item::ArrayOfTables(tables) = item else { continue };
        for each in tables.iter_mut() {
            let above = comments(raw_or(each.decor().prefix()));
            let beside = beside(raw_or(each.decor().suffix()));
            *each.decor_mut() = toml_edit::Decor::new(format!("\n{above}"), beside);
        }
    }
}

/// Comments above something: one a line, groups of them still apart.
fn comments(raw: &str) -> String {
    let mut out = String::new();
    let mut gap = false;
    for line in raw.split('\n').map(str::trim) {
        if line.is_empty() {
            gap = !out.is_empty();
        } else {
            if gap {
                out.push('\n');
            }
            gap = false;
            out.push_str(line);
            out.push('\n');
        }
    }
    // A comment that stands apart from what follows stays apart.
    let apart = raw.rsplit('\n').nth(1).is_some_and(|line| line.trim().is_empty()) && !out.is_empty();
    if apart { out + "\n" } else { out }
}

/// A comment behind something; where it stands is the author's.
fn beside(raw: &str) -> String {
    if raw.contains('#') { raw.trim_end().to_owned() } else { String::new() }
}

fn raw(raw: &RawString) -> &str {
    raw.as_str().unwrap_or_default()
}

fn raw_or(given: Option<&RawString>) -> &str {
    given.map(raw).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSY: &str = "# What this is.\n\n\n  mesh =['10.0.0.0/8' ,   \"fd00::/8\"]\nmode= 'enforce'   \n# about web\n[[workload]]\n\
        exe = '/web'   # its program\n  # its name\n  name = 'web'\n[[rule]]\naction='allow'\nto = 'web'\nfrom = 'web'\n\n\n\nname = 'a \"b\"'\n\
        # the end";

    #[test]
    fn there_is_one_way_to_write_it() {
        let expected = "# What this is.\n\nmode = \"enforce\"\nmesh = [\"10.0.0.0/8\", \"fd00::/8\"]\n\n# about web\n[[workload]]\n\
            # its name\nname = \"web\"\nexe = \"/web\"   # its program\n\n[[rule]]\nname = 'a \"b\"'\nfrom = \"web\"\nto = \"web\"\n\
            action = \"allow\"\n\n# the end\n";
        let once = formatted(MESSY).unwrap();
        assert_eq!(once, expected);
        assert_eq!(formatted(&once).unwrap(), once);
    }

    #[test]
    fn long_lists_have_an_item_a_line() {
        let names: Vec<String> = (0..30).map(|n| format!("'workload-{n}'")).collect();
        let text = format!("mode = 'enforce'\nmesh = [{}]\n", names.join(","));
        let once = formatted(&text).unwrap();
        assert!(
            once.contains("mesh = [\n    \"workload-0\",\n    \"workload-1\",\n")
                && once.ends_with("\"workload-29\",\n]\n"),
            "{once}"
        );
        assert_eq!(formatted(&once).unwrap(), once);
    }

    #[test]
    fn every_example_is_formatted() {
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../policy-examples");
        let mut tried = 0;
        for path in std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|extension| extension == "toml") {
                let text = std::fs::read_to_string(&path).unwrap();
                let once = formatted(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                assert_eq!(once, text, "{}: bonafide policy fmt", path.display());
                tried += 1;
            }
        }
        assert!(tried >= 5);
    }

    /// A fuzz target: whatever is TOML is formatted once and for all, with its meaning and its comments, or left alone.
    #[test]
    fn formatting_again_changes_nothing() {
        let seeds = [
            MESSY,
            include_str!("../../../policy-examples/guards.toml"),
            include_str!("../../../policy-examples/spiffe.toml"),
        ];
        bolero::check!()
            .with_type::<(u8, Vec<(u16, u8, u8)>)>()
            .with_iterations(100_000)
            .with_test_time(std::time::Duration::from_secs(1))
            .for_each(|(seed, edits)| {
                let mut text: Vec<char> = seeds[usize::from(*seed) % seeds.len()].chars().collect();
                for (at, cut, put) in edits.iter().take(8) {
                    let at = usize::from(*at) % (text.len() + 1);
                    let end = (at + usize::from(*cut % 16)).min(text.len());
                    let put = ["", "\n", "#", " ", "'", "[", "\"", ",", "\t# x\n", "\n\n"][usize::from(*put) % 10];
                    text.splice(at..end, put.chars());
                }
                let text: String = text.into_iter().collect();
                if let Ok(once) = formatted(&text) {
                    assert_eq!(formatted(&once).as_deref(), Ok(once.as_str()), "of:\n{text}\n--- once:\n{once}");
                    assert!(once.is_empty() || once.ends_with('\n'), "{once:?}");
                }
            });
    }

    #[test]
    fn what_is_no_toml_is_left_alone() {
        assert!(formatted("mode = ").unwrap_err().starts_with("not TOML"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::fs::write(&file, MESSY).unwrap();
        let run = |check| {
            fmt(&FmtArgs { files: vec![file.clone()], check }, &mut Screen::on(crate::screen::tests::Kept::default()))
        };
        assert_eq!(run(true).unwrap(), Exit::Refused);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), MESSY);
        assert_eq!((run(false).unwrap(), run(true).unwrap()), (Exit::Done, Exit::Done));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), formatted(MESSY).unwrap());
    }
}
