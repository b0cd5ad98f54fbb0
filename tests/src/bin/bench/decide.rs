//! A decision beside a policy of ten rules and beside one of a million, in turns; and what it takes to understand that one.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use bonafide_policy::{Identified, Party, Policy, Ruling, Subject};
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Host};
use bonafide_proto::name::WorkloadName;

use crate::report::{Claim, Report, median};

/// Nanoseconds for one decision.
const DECISION: f64 = 150.0;
/// Workloads of the large policy, how many rules it has, and how many of them each names at each end.
const LARGE: (usize, usize, usize) = (100_000, 1_000_000, 1);
const SMALL: (usize, usize, usize) = (10, 10, 1);
const PORT: u16 = 5432;

/// Measures decisions and compiling.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    report.part("Decisions");
    let (small, large) = (World::new(SMALL)?, World::new(LARGE)?);
    let rounds = if quick { 5 } else { 21 };
    let decisions = if quick { 200_000 } else { 2_000_000 };
    let (mut few, mut many, mut named) = (Vec::new(), Vec::new(), Vec::new());
    let (small_parties, large_parties) = (small.parties(), large.parties());
    for _ in 0..rounds {
        few.push(small.decide(&small_parties, decisions)?);
        many.push(large.decide(&large_parties, decisions)?);
        named.push(large.decide_by_name(decisions / 10)?);
    }
    let (few, many) = (median(few), median(many));
    report.add("between two known parties, 10 rules", few, "ns", Claim::AtMost(DECISION));
    report.add(
        format!("the same, {} rules between {} workloads", LARGE.1, LARGE.0),
        many,
        "ns",
        Claim::AtMost(DECISION),
    );
    report.add("the same by name, with both look-ups and the rule's name", median(named), "ns", Claim::Nothing);
    let identified = large.identify(decisions / 10)?;
    report.add(format!("which of {} workloads a program earns", LARGE.0), identified, "ns", Claim::Nothing);
    let (mut compiled, mut memory) = (Vec::new(), Vec::new());
    let World { text, .. } = large;
    for _ in 0..if quick { 1 } else { 5 } {
        let before = forget_peak()?;
        let began = Instant::now();
        black_box(Policy::parse("large", &text).map_err(|e| e.to_string())?);
        compiled.push(began.elapsed().as_secs_f64());
        memory.push((status("VmHWM")? - before) / 1024.0);
    }
    let what = format!("{} rules between {} workloads, {} MiB of text,", LARGE.1, LARGE.0, text.len() >> 20);
    report.add(format!("{what} are understood"), median(compiled), "s", Claim::AtMost(3.0));
    report.add("memory at the most meanwhile, beside the text", median(memory), "MiB", Claim::AtMost(1024.0));
    Ok(())
}

/// Forgets the most memory that this process ever had (proc(5), `clear_refs`), and says how much it has, in KiB.
fn forget_peak() -> Result<f64, String> {
    std::fs::write("/proc/self/clear_refs", "5").map_err(|e| format!("/proc/self/clear_refs: {e}"))?;
    status("VmRSS")
}

/// A number of `/proc/self/status`, in KiB.
fn status(field: &str) -> Result<f64, String> {
    let text = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.ok_or_else(|| format!("/proc/self/status has no {field}"))
}

/// A policy, and pairs of workloads of which half are named by a rule.
struct World {
    text: String,
    policy: Policy,
    names: Vec<WorkloadName>,
    asked: Vec<(usize, usize, bool)>,
}

impl World {
    fn new((workloads, rules, ends): (usize, usize, usize)) -> Result<Self, String> {
        let mut chance = Chance(7);
        let mut text = "mode = \"enforce\"\n".to_owned();
        for i in 0..workloads {
            let _ = writeln!(text, "[[workload]]\nname = \"w{i}\"\nexe = \"/w{i}\"");
        }
        let mut asked = Vec::new();
        for i in 0..rules {
            let [from, to] = [(); 2].map(|()| chance.some(ends, workloads));
            let list = |of: &[usize]| of.iter().map(|w| format!("\"w{w}\"")).collect::<Vec<_>>().join(",");
            let (from_names, to_names) = (list(&from), list(&to));
            let _ =
                writeln!(text, "[[rule]]\nname = \"{i}\"\nfrom = [{from_names}]\nto = [{to_names}]\nports = [{PORT}]");
            let _ = writeln!(text, "action = \"allow\"");
            asked.extend(from.iter().flat_map(|f| to.iter().map(move |t| (*f, *t, true))));
        }
        let pairs = asked.len();
        let named: std::collections::HashSet<_> = asked.iter().map(|(f, t, _)| (*f, *t)).collect();
        let strangers = (0..pairs.max(1000)).map(|_| (chance.below(workloads), chance.below(workloads)));
        asked.extend(strangers.map(|(f, t)| (f, t, named.contains(&(f, t)))));
        chance.shuffle(&mut asked);
        let policy = Policy::parse("bench", &text).map_err(|e| e.to_string())?;
        let names = policy.workloads().cloned().collect();
        Ok(Self { text, policy, names, asked })
    }

    fn parties(&self) -> Vec<Party<'_>> {
        self.names.iter().map(|name| self.policy.party(&Subject::Workload(name))).collect()
    }

    /// Nanoseconds for each of so many decisions, every one of which must be right.
    fn decide(&self, parties: &[Party<'_>], decisions: usize) -> Result<f64, String> {
        self.timed(decisions, |from, to| {
            let (from, to) = (parties.get(from)?, parties.get(to)?);
            Some(matches!(from.may_reach(to, PORT), Ruling::Allow(_)))
        })
    }

    fn decide_by_name(&self, decisions: usize) -> Result<f64, String> {
        self.timed(decisions, |from, to| {
            let (from, to) = (self.names.get(from)?, self.names.get(to)?);
            let party = |name| self.policy.party(&Subject::Workload(name));
            Some(matches!(party(from).may_reach(&party(to), PORT), Ruling::Allow(_)))
        })
    }

    /// Nanoseconds until it is known what a program earns.
    fn identify(&self, programs: usize) -> Result<f64, String> {
        let absent = || Evidence::Absent("none".to_owned());
        let of = |i: usize| {
            let exe = HashedFile { path: format!("/w{i}"), digest: Digest([1; 32]) };
            Fingerprint::of(exe, (1, 1), Host { bios_uuid: absent(), machine_id: absent(), node: None })
        };
        let seen: Vec<Fingerprint> = (0..self.names.len()).step_by(97).map(of).collect();
        let began = Instant::now();
        for of in seen.iter().cycle().take(programs) {
            if !matches!(self.policy.identify(of), Identified::Workload(_)) {
                return Err(format!("{} earned nothing", of.exe.path));
            }
        }
        Ok(began.elapsed().as_secs_f64() * 1e9 / programs as f64)
    }

    fn timed(&self, decisions: usize, decide: impl Fn(usize, usize) -> Option<bool>) -> Result<f64, String> {
        let began = Instant::now();
        let mut wrong = 0_usize;
        for (from, to, allowed) in self.asked.iter().cycle().take(decisions) {
            wrong += usize::from(decide(*from, *to) != Some(*allowed));
        }
        let took = began.elapsed();
        if wrong > 0 {
            return Err(format!("{wrong} of {decisions} decisions were wrong"));
        }
        Ok(took.as_secs_f64() * 1e9 / decisions as f64)
    }
}

/// Numbers that look like chance and are the same in each run (xorshift64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap_or_default()
    }

    /// So many different ones.
    fn some(&mut self, count: usize, limit: usize) -> Vec<usize> {
        let mut some = std::collections::BTreeSet::new();
        while some.len() < count {
            some.insert(self.below(limit));
        }
        some.into_iter().collect()
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.below(last + 1));
        }
    }
}
