//! A workload's releases: what becomes of a digest that it does not list yet, and of those that it will not list for long.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use bonafide_proto::fingerprint::{Digest, Fingerprint, Release};
use bonafide_proto::name::WorkloadName;

use crate::evidence::{Value as Seen, seen};
use crate::expiry::{self, Expiry};
use crate::fault::{Faults, quoted};
use crate::identify::{compare, compare_vouched};
use crate::selector::{Demand, Field, Selectors};
use crate::table::{Table, Text, Value, as_integer, as_text};
use crate::workload::Workload;

const RELEASES: &str = "releases";
const RETIRES: &str = "retires";
/// What can be said in `releases`.
const KNOWN: [&str; 4] = ["new", "approve", "live", "retire"];
/// The selectors that change from release to release.
const OF_RELEASES: [Field; 4] = [Field::Sha256, Field::ScriptSha256, Field::Libraries, Field::Image];
/// Those that are digests of files, of which dpkg may know.
const OF_PACKAGES: [Field; 2] = [Field::Sha256, Field::ScriptSha256];
/// The shortest and the longest grace, and time until an old digest retires, in seconds.
const TIMES: std::ops::RangeInclusive<u64> = 60..=90 * 86_400;
/// The most digests of one selector that may be live, and how many are where nothing is written.
const LIVE_MAX: u32 = 64;
const LIVE: u32 = 4;
/// How long the last release is accepted beside the new one, where nothing is written.
const RETIRE: Duration = Duration::from_secs(7 * 86_400);

/// What becomes of a digest that a workload does not list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Releases {
    /// For how long it is accepted all the same, from when a node sees it first; `None`: it is refused until approved.
    pub grace: Option<Duration>,
    /// Whether it is approved where it is the one that dpkg recorded for the file's package.
    pub dpkg: bool,
    /// How many digests of one selector are accepted at once: those that are listed, and those that are not.
    pub live: u32,
    /// For how long an old one is accepted beside a new one that was approved.
    pub retire: Duration,
}

impl Releases {
    /// Whether it lets this vouch for a selector.
    fn trusts(&self, release: Release, field: Field) -> bool {
        match release {
            Release::Packaged => self.dpkg && OF_PACKAGES.contains(&field),
            Release::InGrace => self.grace.is_some() && OF_RELEASES.contains(&field),
        }
    }
}

/// A program that would have earned a workload, had the policy listed its digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Which workload.
    pub workload: WorkloadName,
    /// The digests that it does not list, each with the field of its selector.
    pub digests: Vec<(&'static str, Digest)>,
    /// What the workload says of that.
    pub releases: Releases,
    /// How many of the digests that may be live are listed: of the selector that lists most.
    pub listed: u32,
}

impl Pending {
    /// Whether dpkg could vouch for all of it.
    #[must_use]
    pub fn may_be_packaged(&self) -> bool {
        let of_files = |field: &str| OF_PACKAGES.iter().any(|known| known.name() == field);
        self.releases.dpkg && self.digests.iter().all(|(field, _)| of_files(field))
    }
}

/// When each digest retires.
pub(crate) type Retires = BTreeMap<Digest, Expiry>;

impl Workload {
    /// What a selector demands at this time, unix seconds: digests that retired are no longer among it.
    pub(crate) fn demand<'w>(&self, demand: &'w Demand, now: i64) -> Cow<'w, Demand> {
        match demand {
            Demand::Digests(digests) if digests.iter().any(|digest| self.is_retired(*digest, now)) => {
                let live = digests.iter().copied().filter(|digest| !self.is_retired(*digest, now));
                Cow::Owned(Demand::Digests(live.collect()))
            }
            _ => Cow::Borrowed(demand),
        }
    }

    /// Whether what vouches for unlisted digests counts for this selector.
    pub(crate) fn trusts(&self, release: Option<Release>, field: Field) -> bool {
        let both = self.releases.as_ref().zip(release);
        both.is_some_and(|(releases, release)| releases.trusts(release, field))
    }

    /// When the next digest retires.
    pub(crate) fn next_retirement(&self, now: i64) -> Option<i64> {
        self.retires.values().map(|until| until.0).filter(|until| *until > now).min()
    }

    fn is_retired(&self, digest: Digest, now: i64) -> bool {
        self.retires.get(&digest).is_some_and(|until| until.0 <= now)
    }

    /// Whether it is among those of a selector.
    pub(crate) fn lists(&self, digest: Digest) -> bool {
        let demands = OF_RELEASES.iter().filter_map(|field| self.selectors.demands.get(field));
        demands.into_iter().any(|demand| matches!(demand, Demand::Digests(digests) if digests.contains(&digest)))
    }

    /// How many digests it lists, of the selector that lists most.
    pub(crate) fn listed(&self, now: i64) -> u32 {
        let demands = OF_RELEASES.iter().filter_map(|field| self.selectors.demands.get(field));
        let listed = demands.filter_map(|demand| match demand {
            Demand::Digests(digests) => Some(digests.iter().filter(|digest| !self.is_retired(**digest, now)).count()),
            _ => None,
        });
        u32::try_from(listed.max().unwrap_or_default()).unwrap_or(u32::MAX)
    }
}

/// The one workload of which this program is a new release; none if there are several, or the evidence lacks anything else.
pub(crate) fn pending(workloads: &[&Workload], of: &Fingerprint, now: i64) -> Option<Pending> {
    let mut found = None;
    for workload in workloads {
        let Some(releases) = &workload.releases else { continue };
        // As if everything that changes from release to release were vouched for.
        let fits = compare_vouched(workload, of, now).iter().all(crate::identify::Compared::holds);
        if !fits {
            continue;
        }
        if found.is_some() {
            return None;
        }
        let missing = compare(workload, of, now).into_iter().filter(|compared| !compared.holds());
        let missing: Vec<&'static str> = missing.map(|compared| compared.field()).collect();
        let digests = OF_RELEASES.iter().filter(|field| missing.contains(&field.name()));
        let digests = digests.filter_map(|field| Some((field.name(), first_digest(*field, of)?))).collect();
        let (workload, listed) = (&workload.name, workload.listed(now));
        found = Some(Pending { workload: workload.clone(), digests, releases: releases.clone(), listed });
    }
    found.filter(|pending| !pending.digests.is_empty())
}

/// Whether a selector's evidence may be vouched for at all.
pub(crate) fn changes_with_releases(field: Field) -> bool {
    OF_RELEASES.contains(&field)
}

fn first_digest(field: Field, of: &Fingerprint) -> Option<Digest> {
    match seen(field, of).known()? {
        Seen::Digests(digests) => digests.first().copied(),
        _ => None,
    }
}

/// Reads `releases`; none where nothing is written or there is a mistake in it, which was reported.
pub(crate) fn read(table: &Table<'_>, selectors: &Selectors, faults: &mut Faults<'_>) -> Option<Releases> {
    let value = table.get(RELEASES)?;
    let Some((at, entries)) = Table::entries_of(value) else {
        table.wrong_type(RELEASES, "a table", value, faults);
        return None;
    };
    let lists = OF_RELEASES.iter().any(|field| selectors.demands.contains_key(field));
    if !lists {
        let fields = OF_RELEASES.map(Field::name).join(", ");
        faults.wrong(at, format!("releases says what becomes of new digests, and this workload lists none ({fields})"));
    }
    let mut read = Releases { grace: None, dpkg: false, live: LIVE, retire: RETIRE };
    for (key, value) in entries {
        match key.value {
            "new" => read.grace = grace(key, value, faults),
            "approve" => read.dpkg = dpkg(key, value, faults),
            "live" => read.live = live(key, value, faults),
            "retire" => read.retire = time(key, value, faults).unwrap_or(RETIRE),
            other => {
                let all = || format!("it knows {}", KNOWN.join(", "));
                let remedy = faults.did_you_mean(other, KNOWN.into_iter(), all);
                faults.wrong(key.at, format!("unknown field {} in releases; {remedy}", quoted(other)));
            }
        }
    }
    Some(read)
}

fn grace(key: Text<'_>, value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Duration> {
    if as_text(value).is_some_and(|text| text.value == "refuse") { None } else { time(key, value, faults) }
}

fn dpkg(key: Text<'_>, value: &Value<'_>, faults: &mut Faults<'_>) -> bool {
    let known = as_text(value).is_some_and(|text| text.value == "dpkg");
    if !known {
        faults.wrong(key.at, "approve in releases can be \"dpkg\": digests that dpkg recorded for the file's package");
    }
    known
}

fn live(key: Text<'_>, value: &Value<'_>, faults: &mut Faults<'_>) -> u32 {
    let number = as_integer(value).and_then(|number| u32::try_from(number).ok());
    number.filter(|number| (1..=LIVE_MAX).contains(number)).unwrap_or_else(|| {
        faults.wrong(key.at, format!("live in releases is a number of digests, 1 to {LIVE_MAX}"));
        LIVE
    })
}

fn time(key: Text<'_>, value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Duration> {
    let seconds = as_text(value).and_then(|text| seconds(text.value)).filter(|seconds| TIMES.contains(seconds));
    if seconds.is_none() {
        let or = if key.value == "new" { "\"refuse\", or " } else { "" };
        let right = "a time from \"1m\" to \"90d\", in minutes, hours or days";
        faults.wrong(key.at, format!("{} in releases is {or}{right}", key.value));
    }
    seconds.map(Duration::from_secs)
}

/// `30m`, `24h`, `7d`.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let plain = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| plain)?.checked_mul(unit)
}

/// Reads `retires`: digests that the workload lists, each with its last moment.
pub(crate) fn retires(table: &Table<'_>, selectors: &Selectors, faults: &mut Faults<'_>) -> Retires {
    let Some(value) = table.get(RETIRES) else { return Retires::new() };
    let Some((_, entries)) = Table::entries_of(value) else {
        table.wrong_type(RETIRES, "a table of digests with their last moments", value, faults);
        return Retires::new();
    };
    let listed = |digest: &Digest| {
        let demands = OF_RELEASES.iter().filter_map(|field| selectors.demands.get(field));
        demands.into_iter().any(|demand| matches!(demand, Demand::Digests(digests) if digests.contains(digest)))
    };
    let mut read = Retires::new();
    for (key, value) in entries {
        let digest = key.value.parse::<Digest>().ok().filter(listed);
        let until = value.get_ref().as_datetime().and_then(expiry::moment);
        match (digest, until) {
            (Some(digest), Some(until)) => drop(read.insert(digest, until)),
            (None, _) => {
                faults.wrong(key.at, format!("{} retires, and this workload does not list it", quoted(key.value)))
            }
            (_, None) => {
                let right = "write its last moment with an offset from UTC, like 2027-01-31T18:00:00Z";
                faults.wrong(key.at, format!("{} retires when? {right}", quoted(key.value)));
            }
        }
    }
    read
}

/// No more digests may be live than `releases` says.
pub(crate) fn check_live(at: usize, workload: &Workload, faults: &mut Faults<'_>) {
    let Some(releases) = &workload.releases else { return };
    for field in OF_RELEASES {
        let Some(Demand::Digests(digests)) = workload.selectors.demands.get(&field) else { continue };
        let lasting = digests.iter().filter(|digest| !workload.retires.contains_key(digest)).count();
        if u32::try_from(lasting).unwrap_or(u32::MAX) > releases.live {
            let live = releases.live;
            let remedy = "remove old ones, or let them retire by retires";
            faults.wrong(
                at,
                format!("{} lists {lasting} digests, and at most {live} may be live; {remedy}", field.name()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::{Evidence, HashedFile, Host, Script};
    use bonafide_proto::program::CertifiedProgram;

    use super::*;
    use crate::{Certified, Identified, Policy};

    const NOW: i64 = 1_800_000_000;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn policy(more: &str) -> Policy {
        let text = format!(
            "mode = 'enforce'\n[[workload]]\nname = 'w'\nexe = '/w'\nsha256 = ['{}', '{}']\n{more}",
            digest(1),
            digest(2)
        );
        Policy::parse("p", &text).unwrap_or_else(|e| panic!("{e}")).at(NOW)
    }

    fn program(n: u8, release: Option<Release>) -> Fingerprint {
        let absent = || Evidence::Absent("none".to_owned());
        let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
        let exe = HashedFile { path: "/w".into(), digest: digest(n) };
        Fingerprint { script: Evidence::Absent("none".into()), release, ..Fingerprint::of(exe, (1, 1), host) }
    }

    fn earns(policy: &Policy, of: &Fingerprint) -> bool {
        policy.identify(of) == Identified::Workload("w".parse().unwrap())
    }

    fn certified(policy: &Policy, exe: Digest, release: Option<Release>) -> bool {
        let program = CertifiedProgram { exe, ..CertifiedProgram::of(&program(1, release)) };
        let certified = Certified { program: &program, node: None };
        policy.accepts_certified(&"w".parse().unwrap(), &certified).is_ok()
    }

    #[test]
    fn a_new_digest_earns_nothing_unless_what_the_policy_trusts_vouches_for_it() {
        use Release::{InGrace, Packaged};
        for (more, trusted) in [
            ("", vec![]),
            ("releases = {}", vec![]),
            ("releases = { new = 'refuse' }", vec![]),
            ("releases = { new = '24h' }", vec![InGrace]),
            ("releases = { approve = 'dpkg' }", vec![Packaged]),
            ("releases = { new = '1m', approve = 'dpkg', live = 2, retire = '90d' }", vec![InGrace, Packaged]),
        ] {
            let policy = policy(more);
            for release in [None, Some(InGrace), Some(Packaged)] {
                let is_trusted = release.is_some_and(|release| trusted.contains(&release));
                assert_eq!(earns(&policy, &program(9, release)), is_trusted, "{more} {release:?}");
                assert_eq!(certified(&policy, digest(9), release), is_trusted, "{more} {release:?}");
                assert!(earns(&policy, &program(1, release)) && certified(&policy, digest(2), release));
                let elsewhere =
                    Fingerprint { exe: HashedFile { path: "/x".into(), digest: digest(9) }, ..program(9, release) };
                assert!(!earns(&policy, &elsewhere), "nothing vouches for a path");
            }
            assert_eq!(policy.pending(&program(1, None)), None);
            let pending = policy.pending(&program(9, None));
            assert_eq!(pending.is_some(), !more.is_empty());
            if let Some(pending) = pending {
                assert_eq!((pending.digests, pending.listed), (vec![("sha256", digest(9))], 2));
            }
        }
    }

    #[test]
    fn what_is_absent_is_vouched_for_by_nobody() {
        let text = format!("releases = {{ new = '24h' }}\nscript_sha256 = '{}'", digest(3));
        let policy = policy(&text);
        let scriptless = program(1, Some(Release::InGrace));
        assert!(!earns(&policy, &scriptless) && policy.pending(&scriptless).is_none());
        let script = |n| Evidence::Known(Script::File(HashedFile { path: "/s".into(), digest: digest(n) }));
        let other = Fingerprint { script: script(4), ..program(1, None) };
        assert_eq!(policy.pending(&other).unwrap().digests, [("script_sha256", digest(4))]);
        assert!(!earns(&policy, &other));
        assert!(earns(&policy, &Fingerprint { release: Some(Release::InGrace), ..other }));
        assert!(!certified(&policy, digest(9), Some(Release::InGrace)), "the certificate names no script");
    }

    #[test]
    fn a_digest_that_retires_is_accepted_until_its_moment() {
        // 1800000000 is 2027-01-15T08:00:00Z.
        let text = format!("retires = {{ '{}' = 2027-01-15T08:00:01Z }}", digest(1));
        let policy = policy(&text);
        assert!(earns(&policy, &program(1, None)) && certified(&policy, digest(1), None));
        assert_eq!(policy.next_change(), Some(NOW + 1));
        let later = policy.at(NOW + 1);
        assert!(!earns(&later, &program(1, None)) && !certified(&later, digest(1), None));
        assert!(earns(&later, &program(2, None)));
        assert_eq!(later.next_change(), None);
    }

    #[test]
    fn two_workloads_that_may_be_meant_are_none() {
        let two =
            "releases = { new = '1d' }\nuid = 1\n[[workload]]\nname = 'v'\nexe = '/w'\ngid = 1\nsha256 = '".to_owned();
        let policy = policy(&format!("{two}{}'\nreleases = {{ new = '1d' }}", digest(3)));
        assert_eq!(policy.pending(&program(9, None)), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (more, said) in [
            ("releases = 3", "releases must be a table"),
            ("releases = { new = '24' }", "new in releases is \"refuse\", or a time from \"1m\" to \"90d\""),
            ("releases = { new = '59s' }", "new in releases is"),
            ("releases = { new = '+1d' }", "new in releases is"),
            ("releases = { retire = '91d' }", "retire in releases is a time"),
            ("releases = { retire = 'é' }", "retire in releases is a time"),
            ("releases = { approve = 'rpm' }", "approve in releases can be \"dpkg\""),
            ("releases = { live = 0 }", "live in releases is a number of digests, 1 to 64"),
            ("releases = { live = 1 }", "sha256 lists 2 digests, and at most 1 may be live"),
            ("releases = { lives = 2 }", "unknown field \"lives\" in releases; did you mean \"live\"?"),
            ("retires = { 'sha256:00' = 2027-01-15T08:00:01Z }", "does not list it"),
            ("retires = 3", "retires must be a table of digests"),
        ] {
            let text = format!(
                "mode = 'enforce'\n[[workload]]\nname = 'w'\nexe = '/w'\nsha256 = ['{}', '{}']\n{more}",
                digest(1),
                digest(2)
            );
            let errors = Policy::parse("p", &text).unwrap_err().to_string();
            assert!(errors.contains(said) && errors.lines().count() == 1, "{errors}");
        }
        let when = format!(
            "mode = 'enforce'\n[[workload]]\nname = 'w'\nsha256 = '{0}'\nretires = {{ '{0}' = 2027-01-15 }}",
            digest(1)
        );
        assert!(Policy::parse("p", &when).unwrap_err().to_string().contains("retires when?"));
        let none = "mode = 'enforce'\n[[workload]]\nname = 'w'\nexe = '/w'\nreleases = { new = '1d' }";
        assert!(Policy::parse("p", none).unwrap_err().to_string().contains("this workload lists none (sha256, "));
    }
}
