//! A decision beside a policy of ten rules and beside one of a million pairs, in turns; and how long that one takes to
//! be understood.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use bonafide_policy::{Party, Policy, Ruling, Subject};
use bonafide_proto::name::WorkloadName;

use crate::report::{Claim, Report, median};

/// Nanoseconds for one decision.
const DECISION: f64 = 150.0;
/// Workloads of the large policy, how many rules it has, and how many of them each names at each end.
const LARGE: (usize, usize, usize) = (20_000, 2_000, 22);
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
        format!("the same, {} pairs of {} workloads", large.pairs, LARGE.0),
        many,
        "ns",
        Claim::AtMost(DECISION),
    );
    report.add("the same by name, with both look-ups and the rule's name", median(named), "ns", Claim::Nothing);
    let mut compiled = Vec::new();
    for _ in 0..if quick { 1 } else { 5 } {
        let began = Instant::now();
        black_box(Policy::parse("large", &large.text).map_err(|e| e.to_string())?);
        compiled.push(began.elapsed().as_secs_f64());
    }
    report.add(format!("a policy of {} pairs is understood", large.pairs), median(compiled), "s", Claim::AtMost(3.0));
    Ok(())
}

/// A policy, and pairs of workloads of which half are named by a rule.
struct World {
    text: String,
    policy: Policy,
    names: Vec<WorkloadName>,
    asked: Vec<(usize, usize, bool)>,
    pairs: usize,
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
        Ok(Self { text, policy, names, asked, pairs })
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
