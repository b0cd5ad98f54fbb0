use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicI64;

use bonafide_proto::clock::Clock;
use bonafide_proto::edge::Actor;
use bonafide_proto::observed::Protocol;
use bonafide_proto::record::{End, Outcome};
use proptest::prelude::*;

use super::day::Day;
use super::*;

/// A Wednesday at noon.
const NOON: i64 = 1_795_003_200;
const DAY: i64 = 86_400;

#[derive(Debug)]
struct Set(AtomicI64);

impl Clock for Set {
    fn now(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.load(Ordering::SeqCst)).unwrap())
    }
}

fn edge(port: u16) -> Edge {
    let program =
        Actor { program: Some(format!("/srv/{port}")), workload: Some("web".parse().unwrap()), ..Actor::default() };
    Edge {
        end: End::Source,
        from: program,
        to: Actor::default(),
        port,
        protocol: Protocol::Tcp,
        mode: "enforce".into(),
        verdict: Outcome::Allowed,
        rule: None,
        tried: None,
        reason: None,
    }
}

fn seen(at: i64) -> Seen {
    Seen { flows: 1, bytes_sent: 2, first: at, last: at, ..Seen::default() }
}

struct Bench {
    dir: tempfile::TempDir,
    clock: Arc<Set>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: Arc::new(Set(AtomicI64::new(NOON))) }
    }

    fn open(&self, limits: Limits) -> Arc<History> {
        History::open(self.dir.path().join("history"), limits, self.clock.clone()).unwrap()
    }

    fn at(&self, now: i64) {
        self.clock.0.store(now, Ordering::SeqCst);
    }

    fn day(&self, day: i64) -> PathBuf {
        self.dir.path().join("history").join((day / DAY).to_string())
    }
}

fn count(history: &History, at: i64, edge: Edge) {
    history.waiting().add(at.div_euclid(HOUR) * HOUR, edge, seen(at));
}

/// Flows by port; and what is missing.
fn told(history: &History, since: i64, until: i64) -> (BTreeMap<u16, u64>, Kept) {
    let mut flows = BTreeMap::new();
    let span = Span { since, until, by_hour: false };
    let kept = history.read(span, |count| {
        *flows.entry(count.edge.port).or_default() += count.seen.flows;
        true
    });
    (flows, kept.unwrap())
}

/// As after a kill: nothing is closed, and the files are as they are on disk.
fn killed(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            killed(&entry.path(), &to)
        } else {
            assert!(std::fs::copy(entry.path(), to).is_ok())
        }
    }
}

#[test]
fn what_was_counted_is_told_by_time_also_by_the_next_enforcer() {
    let bench = Bench::new();
    let history = bench.open(Limits::default());
    for (at, port) in [(NOON - DAY, 1), (NOON, 1), (NOON, 2), (NOON + 1, 2), (NOON + HOUR, 2)] {
        count(&history, at, edge(port));
    }
    assert_eq!(told(&history, 0, i64::MAX).0, [(1, 2), (2, 3)].into());
    assert_eq!(told(&history, NOON, NOON + HOUR).0, [(1, 1), (2, 2)].into());
    let mut hours = Vec::new();
    let span = Span { since: NOON, until: i64::MAX, by_hour: true };
    let _kept = history.read(span, |count| {
        hours.push((count.edge.port, count.seen.first, count.seen.last, count.seen.bytes_sent));
        true
    });
    hours.sort_unstable();
    assert_eq!(hours, [(1, NOON, NOON, 2), (2, NOON, NOON + 1, 4), (2, NOON + HOUR, NOON + HOUR, 2)]);
    history.stop();
    drop(history);
    let again = bench.open(Limits::default());
    assert_eq!(told(&again, 0, i64::MAX), ([(1, 2), (2, 3)].into(), Kept::default()));
}

#[test]
fn what_was_written_outlives_a_kill() {
    let bench = Bench::new();
    let history = bench.open(Limits::default());
    count(&history, NOON, edge(7));
    history.write();
    let copy = Bench::new();
    killed(bench.dir.path(), copy.dir.path());
    assert_eq!(told(&copy.open(Limits::default()), 0, i64::MAX).0, [(7, 1)].into());
}

#[test]
fn a_thread_writes_without_being_asked() {
    let bench = Bench::new();
    let history = bench.open(Limits::default());
    count(&history, NOON, edge(7));
    let begun = std::time::Instant::now();
    while !history.waiting().edges.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing is written");
        std::thread::yield_now();
    }
}

#[test]
fn old_days_go_and_so_do_the_oldest_where_there_is_no_room() {
    let bench = Bench::new();
    let limits = Limits { days: 3, bytes: 1 << 30 };
    let history = bench.open(limits);
    for day in 0..5 {
        bench.at(NOON + day * DAY);
        count(&history, NOON + day * DAY, edge(7));
        history.write();
    }
    let there = |day: i64| bench.day(NOON + day * DAY).exists();
    assert_eq!([0, 1, 2, 3, 4].map(there), [false, false, true, true, true]);
    history.stop();
    drop(history);
    // Less room than three days take, and more than one does.
    let one = std::fs::read_dir(bench.day(NOON + 4 * DAY)).unwrap();
    let one: u64 = one.map(|file| file.unwrap().metadata().unwrap()).filter(|m| m.is_file()).map(|m| m.len()).sum();
    let history = bench.open(Limits { days: 3, bytes: one + one / 2 });
    assert_eq!([2, 3, 4].map(there), [false, false, true]);
    assert_eq!(told(&history, 0, i64::MAX).0, [(7, 1)].into());
    drop(history);
    // And less than one: nothing more is counted, and it is said.
    let history = bench.open(Limits { days: 3, bytes: 1 });
    count(&history, NOON + 4 * DAY, edge(8));
    assert_eq!(told(&history, 0, i64::MAX), ([(7, 1)].into(), Kept { left_out: 1, damaged: 0 }));
}

#[test]
fn a_damaged_day_is_put_aside_and_the_others_stay() {
    let bench = Bench::new();
    let history = bench.open(Limits::default());
    count(&history, NOON - DAY, edge(1));
    count(&history, NOON, edge(2));
    history.stop();
    drop(history);
    let yesterday = bench.day(NOON - DAY);
    for file in std::fs::read_dir(&yesterday).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= 0xa5);
        std::fs::write(&file, bytes).unwrap();
    }
    let history = bench.open(Limits::default());
    assert_eq!(told(&history, 0, i64::MAX), ([(2, 1)].into(), Kept { left_out: 0, damaged: 1 }));
    count(&history, NOON - DAY, edge(3));
    assert_eq!(told(&history, 0, i64::MAX).0, [(2, 1), (3, 1)].into());
}

#[test]
fn too_many_edges_lose_their_programs_and_then_are_counted_as_left_out() {
    let bench = Bench::new();
    let history = bench.open(Limits::default());
    history.store().edges_max = 3;
    for port in 1..=9 {
        count(&history, NOON, edge(port));
        history.write();
    }
    let (mut exact, mut plain) = (0, 0);
    let span = Span { since: 0, until: i64::MAX, by_hour: false };
    let kept = history.read(span, |count| {
        let known = if count.edge.from.program.is_some() { &mut exact } else { &mut plain };
        *known += count.seen.flows;
        true
    });
    assert_eq!((exact, plain, kept.unwrap().left_out), (3, 3, 3));
    // Those that are known are still counted.
    count(&history, NOON, edge(1));
    assert_eq!(told(&history, 0, i64::MAX).0[&1], 2);
}

#[test]
fn while_the_disk_takes_nothing_memory_is_bounded_and_nothing_is_counted_twice() {
    let bench = Bench::new();
    let history = bench.open(Limits::default());
    // A file where the day should be.
    std::fs::write(bench.day(NOON), "").unwrap();
    std::fs::create_dir(bench.dir.path().join(format!("history/damaged-{}", NOON / DAY))).unwrap();
    std::fs::write(bench.dir.path().join(format!("history/damaged-{}/x", NOON / DAY)), "").unwrap();
    for n in 0..WAITING_MAX + 5 {
        let edge = Edge { mode: n.to_string(), ..edge(1) };
        count(&history, NOON, edge);
    }
    assert!(history.waiting().edges.len() <= WAITING_MAX);
    history.write();
    std::fs::remove_file(bench.day(NOON)).unwrap();
    let (flows, kept) = told(&history, 0, i64::MAX);
    assert_eq!(flows[&1] + kept.left_out, u64::try_from(WAITING_MAX + 5).unwrap());
}

#[test]
fn an_hour_is_told_to_whoever_asks_from_within_it() {
    let bench = Bench::new();
    let history = bench.open(Limits::default());
    count(&history, NOON + 5, edge(1));
    assert_eq!(told(&history, NOON + 1800, i64::MAX).0, [(1, 1)].into());
    assert_eq!(told(&history, NOON + HOUR, i64::MAX).0, BTreeMap::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_flow_is_lost_or_counted_twice(flows: Vec<(u8, u8, bool)>) {
        let dir = tempfile::tempdir().unwrap();
        let mut day = Day::open(dir.path(), 1000).unwrap();
        let mut expected = BTreeMap::<(i64, u16), u64>::new();
        for (hour, port, reopen) in flows {
            let (hour, port) = (NOON + i64::from(hour % 4) * HOUR, u16::from(port % 5));
            prop_assert!(day.add(hour, &edge(port), &seen(hour)).unwrap());
            *expected.entry((hour, port)).or_default() += 1;
            if reopen {
                day.flush().unwrap();
                drop(day);
                day = Day::open(dir.path(), 1000).unwrap();
            }
        }
        let mut told = BTreeMap::new();
        prop_assert!(day.each(0, i64::MAX, |hour, count| told.insert((hour, count.edge.port), count.seen.flows).is_none()).unwrap());
        prop_assert_eq!(told, expected);
    }
}
