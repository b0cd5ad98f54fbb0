//! New releases of programs: digests that a workload does not list yet. Until somebody approves them they are refused, unless
//! the policy gives them a grace, or trusts what dpkg recorded.
//!
//! What was seen when is kept on disk, also across boots: a grace that began anew with each restart would never end. Without a
//! directory for that there is none.

mod book;
mod dpkg;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_policy::{Pending, Policy};
use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::{Execution, Fingerprint, Release, Root};
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node as wire;

use self::book::{Book, Key, Standing};
use crate::in_force::InForce;
use crate::lapse::{Lapse, Lapsed, Lapses};
use crate::sys::process::Process;

/// How often it is looked whether something accepted is so no longer.
const TICK: Duration = Duration::from_millis(500);
/// The most executions that are remembered; beyond that everything lapses when one of them does.
const ACCEPTED_MAX: usize = 65_536;
/// dpkg is asked again about the same digest after so many seconds: an upgrade may be under way.
const AGAIN: i64 = 5;

/// Knows the digests that nobody has approved yet. Clones are of one.
#[derive(Debug, Clone)]
pub(crate) struct Newcomers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: SharedClock,
    lapses: Lapses,
    /// Where dpkg's records are.
    root: PathBuf,
    /// One question to dpkg's records at a time.
    dpkg: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    book: Book,
    /// What was accepted by what speaks for it, until that ends.
    accepted: HashMap<Execution, Accepted>,
    /// Not all of it is remembered.
    more: bool,
}

#[derive(Debug, Clone)]
struct Accepted {
    pending: Pending,
    by: Release,
}

impl Newcomers {
    /// With what is kept in this directory; `root` is where dpkg's records are, `/`.
    pub(crate) fn open(state: Option<&Path>, root: PathBuf, clock: SharedClock, lapses: Lapses) -> Self {
        let known = Known { book: Book::open(state), accepted: HashMap::new(), more: false };
        Self(Arc::new(Inner { clock, lapses, root, dpkg: tokio::sync::Mutex::default(), known: Mutex::new(known) }))
    }

    /// What speaks for a program whose digests the policy does not list.
    ///
    /// # Errors
    /// Nothing does; in words, with the remedy.
    pub(crate) async fn vouch(
        &self,
        pending: &Pending,
        of: &Fingerprint,
        execution: Execution,
    ) -> Result<Release, String> {
        let keys = keys(pending);
        {
            let (now, mut known) = (self.0.clock.unix(), self.0.known());
            keys.iter().try_for_each(|(key, path)| known.book.sees(key, path.path(of), now))?;
        }
        if pending.may_be_packaged() {
            self.ask_dpkg(&keys, of).await;
        }
        let now = self.0.clock.unix();
        let mut known = self.0.known();
        let by = known.book.judge(pending, now)?;
        known.accept(execution, Accepted { pending: pending.clone(), by });
        Ok(by)
    }

    /// Looks again and again whether what was accepted still is: graces end, old releases retire, policies change.
    pub(crate) async fn run(self, policy: InForce) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Ok(loaded) = policy.get() else { continue };
            for (execution, why) in self.0.ended(&loaded.policy) {
                let what = execution.map_or(Lapsed::Everything, Lapsed::Execution);
                self.0.lapses.tell(Lapse { what, reason: AttestReason::EvidenceChanged, detail: why });
            }
        }
    }

    /// Every digest that waits for an approval, for people.
    pub(crate) fn told(&self, policy: &Policy) -> Vec<wire::PendingDigest> {
        let (now, known) = (self.0.clock.unix(), self.0.known());
        known
            .book
            .all(policy)
            .map(|(key, entry, releases, listed)| {
                let standing = known.book.standing(key, releases, listed, now);
                let (state, until) = match standing {
                    Standing::Packaged { until } => ("packaged", until),
                    Standing::InGrace { until } => ("in-grace", Some(until)),
                    Standing::Refused(_) => ("pending", None),
                };
                wire::PendingDigest {
                    workload: key.workload.to_string(),
                    selector: key.field.clone(),
                    sha256: key.digest.0.to_vec(),
                    path: entry.path.clone(),
                    since: entry.since,
                    state: state.to_owned(),
                    until: until.unwrap_or_default(),
                }
            })
            .collect()
    }

    /// Whether each of them is what dpkg recorded, unless that is known already.
    async fn ask_dpkg(&self, keys: &[(Key, Part)], of: &Fingerprint) {
        // In a container a path is no path of the host, and dpkg of the host knows nothing of it.
        if matches!(of.root, Root::Other(_)) {
            return;
        }
        let _turn = self.0.dpkg.lock().await;
        for (key, part) in keys {
            let Some(path) = part.path(of).map(str::to_owned) else { continue };
            let now = self.0.clock.unix();
            if !self.0.known().book.asks(key, now, AGAIN) {
                continue;
            }
            let (root, digest) = (self.0.root.clone(), key.digest);
            let looked = tokio::task::spawn_blocking(move || dpkg::recorded(&root, &path, digest)).await;
            match looked {
                Ok(Ok(package)) => {
                    tracing::info!(workload = %key.workload, digest = %key.digest, package, "approved: dpkg recorded it");
                    self.0.known().book.packaged(key, self.0.clock.unix());
                }
                Ok(Err(why)) => self.0.known().book.unpackaged(key, why.to_string(), now),
                Err(e) => tracing::error!(error = %e, "dpkg's records were not read"),
            }
        }
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is accepted no longer, and why; none: everything.
    fn ended(&self, policy: &Policy) -> Vec<(Option<Execution>, String)> {
        let (now, mut known) = (self.clock.unix(), self.known());
        let mut ended = Vec::new();
        for (execution, accepted) in &known.accepted {
            let pending = &accepted.pending;
            let now_says = policy.releases(&pending.workload);
            let still = now_says.map(|(releases, listed)| {
                known.book.judge(&Pending { releases: releases.clone(), listed, ..pending.clone() }, now)
            });
            match still {
                Some(Ok(by)) if by == accepted.by => {}
                // The policy may list it by now; that is told when it is asked again.
                Some(Ok(_)) | None => ended.push((*execution, "what becomes of new digests changed".to_owned())),
                Some(Err(why)) => ended.push((*execution, why)),
            }
        }
        ended.iter().for_each(|(execution, _)| drop(known.accepted.remove(execution)));
        if known.more && !ended.is_empty() {
            known.more = false;
            return vec![(None, "more new releases are accepted than are remembered".to_owned())];
        }
        ended.into_iter().map(|(execution, why)| (Some(execution), why)).collect()
    }
}

impl Known {
    fn accept(&mut self, execution: Execution, accepted: Accepted) {
        if self.accepted.len() >= ACCEPTED_MAX {
            self.accepted.retain(|execution, _| !Process::has_ended(*execution));
        }
        if self.accepted.len() >= ACCEPTED_MAX {
            self.more = true;
            return;
        }
        self.accepted.insert(execution, accepted);
    }
}

/// Which of a program's parts a digest is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Executable,
    Script,
    Other,
}

impl Part {
    fn path(self, of: &Fingerprint) -> Option<&str> {
        match self {
            Self::Executable => Some(&of.exe.path),
            Self::Script => of.script_file().map(|file| file.path.as_str()),
            Self::Other => None,
        }
    }
}

fn keys(pending: &Pending) -> Vec<(Key, Part)> {
    let part = |field: &str| match field {
        "sha256" => Part::Executable,
        "script_sha256" => Part::Script,
        _ => Part::Other,
    };
    pending.digests.iter().map(|(field, digest)| (Key::of(&pending.workload, field, *digest), part(field))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use bonafide_proto::clock::Clock;
    use bonafide_proto::fingerprint::{Digest, Evidence, HashedFile, Host};

    use super::*;

    #[derive(Debug)]
    struct Hands(AtomicI64);

    impl Clock for Hands {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::Relaxed).unsigned_abs())
        }
    }

    const T0: i64 = 1_800_000_000;

    struct Bench {
        state: tempfile::TempDir,
        root: tempfile::TempDir,
        clock: Arc<Hands>,
        newcomers: Newcomers,
        lapses: Lapses,
    }

    impl Bench {
        fn new() -> Self {
            let (state, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (clock, lapses) = (Arc::new(Hands(AtomicI64::new(T0))), Lapses::new());
            let shared: SharedClock = Arc::<Hands>::clone(&clock);
            let newcomers = Newcomers::open(Some(state.path()), root.path().to_owned(), shared, lapses.clone());
            Self { state, root, clock, newcomers, lapses }
        }

        fn restarted(mut self) -> Self {
            self.newcomers = Newcomers::open(None, PathBuf::new(), Arc::<Hands>::clone(&self.clock), Lapses::new());
            let shared: SharedClock = Arc::<Hands>::clone(&self.clock);
            self.newcomers =
                Newcomers::open(Some(self.state.path()), self.root.path().to_owned(), shared, self.lapses.clone());
            self
        }

        fn at(&self, seconds: i64) {
            self.clock.0.store(T0 + seconds, Ordering::Relaxed);
        }

        /// A program of this content at /usr/bin/w.
        fn program(&self, content: &str) -> Fingerprint {
            std::fs::create_dir_all(self.root.path().join("usr/bin")).unwrap();
            std::fs::write(self.root.path().join("usr/bin/w"), content).unwrap();
            let absent = || Evidence::Absent("none".to_owned());
            let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
            Fingerprint::of(
                HashedFile { path: "/usr/bin/w".into(), digest: Digest::of(content.as_bytes()) },
                (1, 1),
                host,
            )
        }

        /// dpkg records what is at /usr/bin/w now.
        fn record(&self, content: &str) {
            let info = self.root.path().join("var/lib/dpkg/info");
            std::fs::create_dir_all(&info).unwrap();
            std::fs::write(info.join("w.md5sums"), format!("{}  usr/bin/w\n", dpkg::md5(content.as_bytes()))).unwrap();
        }

        async fn asks(&self, policy: &Policy, of: &Fingerprint) -> Result<Release, String> {
            self.newcomers.vouch(&policy.pending(of).unwrap(), of, execution(of)).await
        }
    }

    fn execution(of: &Fingerprint) -> Execution {
        let [first, second, ..] = of.exe.digest.0;
        Execution { pid: std::process::id(), start_ticks: u64::from(first) << 8 | u64::from(second), image: 1 }
    }

    fn policy(releases: &str) -> Policy {
        let digest = Digest::of(b"old");
        let text =
            format!("mode = 'enforce'\n[[workload]]\nname = 'w'\nexe = '/usr/bin/w'\nsha256 = '{digest}'\n{releases}");
        Policy::parse("p", &text).unwrap_or_else(|e| panic!("{e}"))
    }

    #[tokio::test]
    async fn a_grace_begins_with_the_first_sight_and_no_restart_renews_it() {
        let (bench, policy) = (Bench::new(), policy("releases = { new = '1h' }"));
        let new = bench.program("new");
        assert_eq!(bench.asks(&policy, &new).await, Ok(Release::InGrace));
        bench.at(3599);
        let bench = bench.restarted();
        assert_eq!(bench.asks(&policy, &new).await, Ok(Release::InGrace));
        assert_eq!(bench.newcomers.0.ended(&policy), []);
        bench.at(3600);
        let ended = bench.newcomers.0.ended(&policy);
        assert!(
            matches!(&ended[..], [(Some(one), why)] if *one == execution(&new) && why.contains("grace")),
            "{ended:?}"
        );
        let refused = bench.asks(&policy, &new).await.unwrap_err();
        assert!(refused.contains("bonafide workload approve w"), "{refused}");
        assert_eq!(bench.asks(&policy, &bench.program("newer")).await, Ok(Release::InGrace));
        let told = bench.newcomers.told(&policy);
        assert_eq!(told.iter().map(|one| one.state.as_str()).collect::<Vec<_>>(), ["pending", "in-grace"]);
    }

    #[tokio::test]
    async fn without_a_place_to_keep_it_there_is_no_grace() {
        let bench = Bench::new();
        let shared: SharedClock = Arc::<Hands>::clone(&bench.clock);
        let newcomers = Newcomers::open(None, bench.root.path().to_owned(), shared, Lapses::new());
        let (new, policy) = (bench.program("new"), policy("releases = { new = '1h' }"));
        let refused = newcomers.vouch(&policy.pending(&new).unwrap(), &new, execution(&new)).await.unwrap_err();
        assert!(refused.contains("state"), "{refused}");
    }

    #[tokio::test]
    async fn so_many_digests_are_live_and_no_more() {
        let (bench, policy) = (Bench::new(), policy("releases = { new = '1h', live = 3 }"));
        for (content, accepted) in [("a", true), ("b", true), ("c", false), ("a", true), ("d", false)] {
            let answer = bench.asks(&policy, &bench.program(content)).await;
            assert_eq!(answer.is_ok(), accepted, "{content}: {answer:?}");
        }
        bench.at(3600);
        let late = bench.asks(&policy, &bench.program("e")).await;
        assert_eq!(late, Ok(Release::InGrace), "the first ones' time is over");
    }

    #[tokio::test]
    async fn what_dpkg_recorded_is_approved_and_the_release_before_retires() {
        let (bench, policy) = (Bench::new(), policy("releases = { approve = 'dpkg', retire = '1h' }"));
        let first = bench.program("1.0");
        assert!(bench.asks(&policy, &first).await.is_err(), "dpkg knows nothing of it");
        bench.record("1.0");
        assert!(bench.asks(&policy, &first).await.is_err(), "dpkg is not asked at each connection");
        bench.at(AGAIN);
        assert_eq!(bench.asks(&policy, &first).await, Ok(Release::Packaged));
        bench.record("1.1");
        let second = bench.program("1.1");
        assert_eq!(bench.asks(&policy, &second).await, Ok(Release::Packaged));
        // Both run beside each other until the old one retires.
        bench.at(AGAIN + 3599);
        assert_eq!(bench.asks(&policy, &first).await, Ok(Release::Packaged));
        assert_eq!(bench.newcomers.0.ended(&policy), []);
        bench.at(AGAIN + 3600);
        let ended = bench.newcomers.0.ended(&policy);
        assert!(matches!(&ended[..], [(Some(one), _)] if *one == execution(&first)), "{ended:?}");
        assert!(bench.asks(&policy, &first).await.is_err());
        assert_eq!(bench.asks(&policy, &second).await, Ok(Release::Packaged));
        // Somebody changes the file: what dpkg recorded is something else.
        bench.at(2 * 3600);
        assert!(bench.asks(&policy, &bench.program("1.1 and more")).await.is_err());
    }

    #[tokio::test]
    async fn a_program_of_a_container_is_nothing_that_the_hosts_dpkg_recorded() {
        let (bench, policy) = (Bench::new(), policy("unit = 'w.service'\nreleases = { approve = 'dpkg' }"));
        bench.record("new");
        let unit = bonafide_proto::fingerprint::Unit { name: "w.service".into(), invocation: None };
        let new = Fingerprint { unit: Evidence::Known(unit), ..bench.program("new") };
        let contained = Fingerprint { root: Root::Other("elsewhere".into()), ..new.clone() };
        assert!(bench.asks(&policy, &contained).await.is_err());
        bench.at(AGAIN);
        assert_eq!(bench.asks(&policy, &new).await, Ok(Release::Packaged));
    }

    #[tokio::test]
    async fn a_policy_that_says_otherwise_ends_what_was_accepted() {
        let (bench, generous) = (Bench::new(), policy("releases = { new = '1h' }"));
        let new = bench.program("new");
        assert_eq!(bench.asks(&generous, &new).await, Ok(Release::InGrace));
        bench.at(120);
        assert_eq!(bench.newcomers.0.ended(&generous), []);
        assert_eq!(bench.newcomers.0.ended(&policy("releases = { new = '1m' }")).len(), 1);
        assert_eq!(bench.asks(&generous, &new).await, Ok(Release::InGrace));
        assert_eq!(bench.newcomers.0.ended(&policy("")).len(), 1);
    }
}
