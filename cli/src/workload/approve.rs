//! `bonafide workload approve`: a new digest becomes one that the policy lists, and those before it retire.

use std::path::{Path, PathBuf};

use bonafide_policy::{Policy, files};
use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::WorkloadName;
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

use super::pending;
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::policy::{check, fmt};
use crate::printable::printable;
use crate::replace::replace;
use crate::screen::{Screen, tell};

/// The selectors that change from release to release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
#[clap(rename_all = "snake_case")]
pub enum Selector {
    /// The executable
    Sha256,
    /// The script
    ScriptSha256,
    /// Everything else it has loaded
    Libraries,
    /// The container's image
    Image,
}

impl Selector {
    fn field(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::ScriptSha256 => "script_sha256",
            Self::Libraries => "libraries",
            Self::Image => "image",
        }
    }
}

/// What to approve.
#[derive(Debug, clap::Args)]
pub struct ApproveArgs {
    /// The workload
    pub name: WorkloadName,
    /// Digests [default: the ones that wait on this node, if there is no choice]
    pub digests: Vec<Digest>,
    /// The policy file
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// What the digests are of, if this node does not know them
    #[arg(long, value_enum, requires = "digests")]
    pub of: Option<Selector>,
    /// Let the digests that are listed already retire at no time
    #[arg(long)]
    pub keep: bool,
}

/// A digest, and the field that is to list it.
type Approved = (String, Digest);

/// Writes it into the policy.
pub(crate) fn approve(args: &ApproveArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let approved = approved(args, layout)?;
    let bad = |why: String| Failure::BadInput(why.lines().map(printable).collect::<Vec<_>>().join("\n"));
    let now = SystemClock.unix();
    let (file, before) = file_of(&args.policy, &args.name).map_err(bad)?;
    let after = edited(&before, &args.name, &approved, args.keep, now).map_err(bad)?;
    if after == before {
        screen.line(&printable(&format!("{}: {} lists that already", file.display(), args.name)))?;
        return Ok(Exit::Done);
    }
    let whole = check::text_with(&args.policy, Some((&file, &after))).map_err(bad)?;
    let policy = Policy::parse(&args.policy.display().to_string(), &whole).map_err(|e| bad(e.to_string()))?;
    if let Some((_, digest)) = approved.iter().find(|(_, digest)| !policy.lists(&args.name, *digest)) {
        return Err(Failure::Failed(format!("{digest} would not be listed; nothing was changed")));
    }
    replace(&file, &before, &after)?;
    for (field, digest) in &approved {
        tell(&printable(&format!("{}: {field} of {} lists {digest}", file.display(), args.name)));
    }
    Ok(Exit::Done)
}

/// What is approved: what is named, or what waits.
fn approved(args: &ApproveArgs, layout: &Layout) -> Result<Vec<Approved>, Failure> {
    if let Some(of) = args.of {
        return Ok(args.digests.iter().map(|digest| (of.field().to_owned(), *digest)).collect());
    }
    let told = pending::told(layout)?;
    let known = told.iter().filter(|one| one.workload == args.name.as_str());
    let known: Vec<Approved> =
        known.map(|one| Ok((one.selector.clone(), pending::digest(one)?))).collect::<Result<_, Failure>>()?;
    choose(&known, &args.digests)
        .map_err(|why| Failure::BadInput(printable(&format!("{}: {why}", args.name)).into_owned()))
}

fn choose(known: &[Approved], named: &[Digest]) -> Result<Vec<Approved>, String> {
    if let Some(stranger) = named.iter().find(|named| !known.iter().any(|(_, digest)| digest == *named)) {
        return Err(format!("{stranger} does not wait on this node; say by --of what it is the digest of"));
    }
    if !named.is_empty() {
        return Ok(known.iter().filter(|(_, digest)| named.contains(digest)).cloned().collect());
    }
    if known.is_empty() {
        return Err("no new digest waits on this node".to_owned());
    }
    let choice = known.iter().find(|(field, _)| known.iter().filter(|(other, _)| other == field).count() > 1);
    match choice {
        Some((field, _)) => {
            Err(format!("several digests wait for {field}; name those that you mean (bonafide workload pending)"))
        }
        None => Ok(known.to_vec()),
    }
}

/// The file that declares the workload, of the policy's, and its text.
fn file_of(policy: &Path, name: &WorkloadName) -> Result<(PathBuf, String), String> {
    let beside = policy.parent().map(Path::to_owned).unwrap_or_default();
    let whole = check::text(policy)?;
    let included = files(&whole).into_iter().map(|part| beside.join(part));
    for file in std::iter::once(policy.to_owned()).chain(included) {
        let text = check::raw(&file)?;
        let document: DocumentMut = text.parse().map_err(|e| format!("{}: not TOML: {e}", file.display()))?;
        let has = |table: &Table| table.get("name").and_then(Item::as_str) == Some(name.as_str());
        if document.get("workload").and_then(Item::as_array_of_tables).is_some_and(|all| all.iter().any(has)) {
            return Ok((file, text));
        }
    }
    Err(format!("{}: no [[workload]] is named {name}", policy.display()))
}

/// The text with these digests listed; those that were, and do not retire yet, retire when `releases` says so, counted from
/// `now`, and those that have are gone.
fn edited(text: &str, name: &WorkloadName, approved: &[Approved], keep: bool, now: i64) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| format!("not TOML: {e}"))?;
    let tables = document.get_mut("workload").and_then(Item::as_array_of_tables_mut);
    let named = |table: &&mut Table| table.get("name").and_then(Item::as_str) == Some(name.as_str());
    let table = tables.and_then(|tables: &mut ArrayOfTables| tables.iter_mut().find(named));
    let table = table.ok_or_else(|| format!("no [[workload]] is named {name}"))?;
    let mut retires = retires(table);
    let gone: Vec<Digest> = retires.iter().filter(|(_, until)| *until <= now).map(|(digest, _)| *digest).collect();
    let mut changed = false;
    for field in ["sha256", "script_sha256", "libraries", "image"] {
        let Some(mut listed) = listed(table, field)? else { continue };
        let new: Vec<Digest> =
            approved.iter().filter(|(of, digest)| of == field && !listed.contains(digest)).map(|(_, d)| *d).collect();
        if new.is_empty() {
            // Approved again, it does not retire.
            let again = |digest: &Digest| approved.iter().any(|(of, other)| of == field && other == digest);
            changed |= listed.iter().any(|digest| again(digest) && retires.iter().any(|(other, _)| other == digest));
            retires.retain(|(digest, _)| !again(digest));
            continue;
        }
        changed = true;
        listed.retain(|digest| !gone.contains(digest));
        if !keep {
            let until = now.saturating_add(retirement(table));
            let lasting = listed.iter().filter(|digest| !retires.iter().any(|(other, _)| other == *digest));
            let more: Vec<(Digest, i64)> = lasting.map(|digest| (*digest, until)).collect();
            retires.extend(more);
        }
        listed.extend(new);
        put(table, field, Value::Array(listed.iter().map(ToString::to_string).collect::<Array>()));
    }
    if let Some((field, _)) = approved.iter().find(|(field, _)| table.get(field).is_none()) {
        return Err(format!("{name} has no {field}, so that any would do"));
    }
    if !changed {
        return Ok(text.to_owned());
    }
    retires.retain(|(digest, _)| !gone.contains(digest));
    write_retires(table, &retires)?;
    fmt::formatted(&document.to_string())
}

/// In the place of what was there, with its comments.
fn put(table: &mut Table, field: &str, mut value: Value) {
    match table.get_mut(field) {
        Some(item) => {
            if let Some(before) = item.as_value() {
                *value.decor_mut() = before.decor().clone();
            }
            *item = Item::Value(value);
        }
        None => drop(table.insert(field, Item::Value(value))),
    }
}

fn listed(table: &Table, field: &str) -> Result<Option<Vec<Digest>>, String> {
    let texts: Vec<&str> = match table.get(field).and_then(Item::as_value) {
        None => return Ok(None),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        Some(value) => value.as_str().into_iter().collect(),
    };
    texts
        .into_iter()
        .map(|text| text.parse::<Digest>().map_err(|e| format!("{field}: {text} {e}")))
        .collect::<Result<_, _>>()
        .map(Some)
}

/// Digests with their last moments, unix seconds; what is no moment is found when the policy is parsed.
fn retires(table: &Table) -> Vec<(Digest, i64)> {
    let entries = table.get("retires").and_then(Item::as_table_like).into_iter().flat_map(|table| table.iter());
    let moment = |item: &Item| {
        let text = item.as_datetime()?.to_string();
        let format = &time::format_description::well_known::Rfc3339;
        Some(time::OffsetDateTime::parse(&text.replace(' ', "T"), format).ok()?.unix_timestamp())
    };
    entries.filter_map(|(digest, until)| Some((digest.parse().ok()?, moment(until)?))).collect()
}

fn write_retires(table: &mut Table, retires: &[(Digest, i64)]) -> Result<(), String> {
    if retires.is_empty() {
        table.remove("retires");
        return Ok(());
    }
    let mut written = InlineTable::new();
    for (digest, until) in retires {
        let until = time::OffsetDateTime::from_unix_timestamp(*until).map_err(|e| e.to_string())?;
        let (date, (hour, minute, second)) = (until.date(), until.time().as_hms());
        let until: toml_edit::Datetime =
            format!("{date}T{hour:02}:{minute:02}:{second:02}Z").parse().map_err(|e| format!("{e}"))?;
        written.insert(digest.to_string(), until.into());
    }
    put(table, "retires", Value::InlineTable(written));
    Ok(())
}

/// Seconds; a week where nothing, or nothing that can be read, is written.
fn retirement(table: &Table) -> i64 {
    let written = table.get("releases").and_then(Item::as_table_like).and_then(|releases| releases.get("retire"));
    let seconds = written.and_then(Item::as_str).and_then(|text| {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit = [("m", 60), ("h", 3600), ("d", 86_400)].into_iter().find(|(name, _)| *name == unit)?.1;
        number.parse::<i64>().ok()?.checked_mul(unit)
    });
    seconds.unwrap_or(7 * 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn text(more: &str) -> String {
        format!(
            "# ours\nmode = \"enforce\"\n\n[[workload]]\nname = \"w\"\n# as built by us\nsha256 = \"{}\"\n{more}",
            digest(1)
        )
    }

    fn after(text: &str, approved: &[(&str, u8)], keep: bool, now: i64) -> String {
        let approved: Vec<Approved> = approved.iter().map(|(field, n)| ((*field).to_owned(), digest(*n))).collect();
        let after = edited(text, &"w".parse().unwrap(), &approved, keep, now).unwrap();
        Policy::parse("p", &after).unwrap_or_else(|e| panic!("{e}\n{after}"));
        after
    }

    #[test]
    fn what_is_approved_is_listed_and_what_was_listed_retires() {
        let first = after(&text("releases = { retire = \"1d\" }\n"), &[("sha256", 2)], false, NOW);
        assert!(first.contains("# as built by us\nsha256 = [") && first.contains("# ours\n"), "{first}");
        let policy = Policy::parse("p", &first).unwrap();
        assert!([1, 2].iter().all(|n| policy.lists(&"w".parse().unwrap(), digest(*n))));
        assert!(first.contains(&format!("retires = {{ \"{}\" = 2027-01-16T08:00:00Z }}", digest(1))), "{first}");
        // The next one, when the first has retired.
        let second = after(&first, &[("sha256", 3)], false, NOW + 86_400);
        assert!(!second.contains(&digest(1).to_string()), "{second}");
        assert!(second.contains(&format!("\"{}\" = 2027-01-17T08:00:00Z", digest(2))), "{second}");
        // Back again: what is approved does not retire.
        let back = after(&second, &[("sha256", 2)], false, NOW + 86_401);
        assert!(!back.contains("retires"), "{back}");
        assert_eq!(after(&back, &[("sha256", 2)], false, NOW), back);
    }

    #[test]
    fn what_is_kept_does_not_retire() {
        let kept = after(&text(""), &[("sha256", 2)], true, NOW);
        assert!(!kept.contains("retires"), "{kept}");
        let week = after(&text(""), &[("sha256", 2)], false, NOW);
        assert!(week.contains("2027-01-22T08:00:00Z"), "{week}");
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |field: &str, name: &str| {
            edited(&text(""), &name.parse().unwrap(), &[(field.to_owned(), digest(2))], false, NOW).unwrap_err()
        };
        assert_eq!(wrong("image", "w"), "w has no image, so that any would do");
        assert_eq!(wrong("sha256", "v"), "no [[workload]] is named v");
    }

    #[test]
    fn what_is_meant_must_be_clear() {
        let known =
            [("sha256".to_owned(), digest(1)), ("image".to_owned(), digest(2)), ("sha256".to_owned(), digest(3))];
        assert!(choose(&known, &[]).unwrap_err().contains("several digests wait for sha256"));
        assert_eq!(choose(&known[..2], &[]).unwrap(), known[..2]);
        assert_eq!(choose(&known, &[digest(3)]).unwrap(), known[2..]);
        assert!(choose(&known, &[digest(4)]).unwrap_err().contains("does not wait on this node"));
        assert!(choose(&[], &[]).unwrap_err().contains("no new digest waits"));
    }

    #[test]
    fn the_file_that_declares_it_is_found_among_those_included() {
        let dir = tempfile::tempdir().unwrap();
        let (main, part) = (dir.path().join("p.toml"), dir.path().join("d/part.toml"));
        std::fs::write(&main, "mode = \"enforce\"\ninclude = [\"d/\"]\n").unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(&part, "[[workload]]\nname = \"w\"\nexe = \"/w\"\n").unwrap();
        assert_eq!(file_of(&main, &"w".parse().unwrap()).unwrap().0, part);
        assert!(file_of(&main, &"v".parse().unwrap()).unwrap_err().contains("no [[workload]] is named v"));
    }
}
