//! Who is watched, by everything they are looked up by. Bounded, pure; an entry leaves with its process.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bonafide_proto::fingerprint::{Digest, Execution};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::time::Instant;

use super::changes::Believed;
use super::files::Spot;
use super::turns::Lane;
use crate::refuse::refuse;
use crate::sys::executable::FileId;

/// Executions that are watched; what comes on top is refused, by name.
const WATCHED_MAX: usize = 65_536;
/// Files that are watched.
const FILES_MAX: usize = 65_536;
/// Files of all executions together, shared or not: a million of them take some 100 MB.
const SHARES_MAX: usize = 1 << 20;
/// Of each of these, so much is for one user who is not root: nobody gets all others refused.
const SHARE: usize = 4;
/// Programs of executions that ended, by their image: children that they forked may still hold their sockets. As many as
/// a hash table of 2^17 places keeps however long they come and go: from 7/16 on it would double one day.
const DEPARTED_MAX: usize = 49_152;

/// How often an execution is looked at though nothing is told: what a runtime says, and whatever makes no noise (a
/// directory renamed above its script).
const CONTAINED: Duration = Duration::from_secs(5);
const OTHERS: Duration = Duration::from_secs(60);

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    watched: HashMap<Execution, Watched>,
    by_pid: HashMap<u32, Execution>,
    by_file: HashMap<Spot, Shared>,
    by_user: HashMap<u32, Used>,
    by_image: HashMap<u64, Image>,
    departed: VecDeque<u64>,
    /// Files of all executions together.
    shares: usize,
}

/// A file, and whose evidence it is.
#[derive(Debug)]
struct Shared {
    /// Whoever needed it first.
    account: u32,
    users: HashSet<Execution>,
}

/// What is watched on one account.
#[derive(Debug, Default, PartialEq, Eq)]
struct Used {
    executions: usize,
    files: usize,
    shares: usize,
}

/// An execution that is watched.
#[derive(Debug)]
pub(crate) struct Watched {
    /// What was attested, as far as it was looked at again since.
    pub(crate) believed: Believed,
    files: HashMap<FileId, Spot>,
    looking: Looking,
    /// It left the patient lane for the urgent one, where it still has a place.
    left: bool,
    /// Looks in a row that showed nothing.
    in_vain: u32,
    looked: Instant,
    user: u32,
}

/// Each execution is looked at by one at a time:
///
/// ```text
///  No ──suspect──► Waits ──begin──► Runs ──suspect──► Runs, again
///  ▲                 ▲                │                    │
///  └─────────────────┼───── end ──────┘                    │
///                    └──────────────── end ────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looking {
    No,
    Waits(Lane),
    Runs { again: Option<Lane> },
}

/// Somebody who is to wait for a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Place {
    /// On whose account.
    pub(crate) user: u32,
    /// Where.
    pub(crate) lane: Lane,
}

/// What an image is, and how many of those who run it are watched.
#[derive(Debug)]
struct Image {
    program: Program,
    watched: usize,
    /// The last that was watched of it.
    last: Execution,
}

/// What makes two executions the same program ([`crate::witness::Witnessed::same_program`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    /// The file: who runs another one is another program, whatever it holds.
    pub(crate) exe: FileId,
    rest: Digest,
}

impl Program {
    /// That of something believed.
    pub(crate) fn of(believed: &Believed) -> Self {
        let fingerprint = &believed.fingerprint;
        let rest = Digest::of(format!("{:?}{:?}", fingerprint.exe, fingerprint.script).as_bytes());
        Self { exe: believed.exe, rest }
    }
}

impl Watched {
    /// Whether this file is watched for it.
    pub(crate) fn has(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }
}

impl Table {
    /// Watches an execution that was not watched.
    ///
    /// # Errors
    /// `rate-limited` if too many are this user's, `unavailable` if there are too many.
    pub(crate) fn add(&mut self, execution: Execution, believed: Believed, now: Instant) -> Result<(), AttestRefusal> {
        let user = believed.account;
        let of_user = self.used(user).executions;
        within(user, "processes", (self.watched.len(), WATCHED_MAX), of_user)?;
        self.use_up(user, |used| used.executions += 1);
        self.by_pid.insert(execution.pid, execution);
        if execution.image != 0 {
            let program = Program::of(&believed);
            let image = self.by_image.entry(execution.image).or_insert(Image { program, watched: 0, last: execution });
            image.watched += 1;
            image.last = execution;
        }
        let (files, looking) = (HashMap::new(), Looking::No);
        let watched = Watched { believed, files, looking, left: false, in_vain: 0, looked: now, user };
        self.watched.insert(execution, watched);
        Ok(())
    }

    /// Watches it no longer. The files that nobody needs any more are handed back.
    pub(crate) fn remove(&mut self, execution: Execution) -> Option<Vec<Spot>> {
        let watched = self.watched.remove(&execution)?;
        if self.by_pid.get(&execution.pid) == Some(&execution) {
            self.by_pid.remove(&execution.pid);
        }
        let shares = watched.files.len();
        self.use_up(watched.user, |used| {
            used.executions -= 1;
            used.shares -= shares;
        });
        self.depart(execution.image);
        self.shares -= shares;
        Some(watched.files.into_values().filter(|spot| self.release(*spot, execution)).collect())
    }

    /// The program of an image is kept in mind, and in turn forgotten.
    fn depart(&mut self, image: u64) {
        let Some(of_image) = self.by_image.get_mut(&image) else { return };
        of_image.watched -= 1;
        if of_image.watched > 0 {
            return;
        }
        self.departed.push_back(image);
        while self.departed.len() > DEPARTED_MAX {
            let oldest = self.departed.pop_front().unwrap_or_default();
            if self.by_image.get(&oldest).is_some_and(|image| image.watched == 0) {
                self.by_image.remove(&oldest);
            }
        }
    }

    /// Whether nobody needs this file now.
    fn release(&mut self, spot: Spot, execution: Execution) -> bool {
        let Some(shared) = self.by_file.get_mut(&spot) else { return false };
        shared.users.remove(&execution);
        if !shared.users.is_empty() {
            return false;
        }
        let account = shared.account;
        self.by_file.remove(&spot);
        self.use_up(account, |used| used.files -= 1);
        true
    }

    fn used(&self, user: u32) -> &Used {
        const NOTHING: &Used = &Used { executions: 0, files: 0, shares: 0 };
        self.by_user.get(&user).unwrap_or(NOTHING)
    }

    fn use_up(&mut self, user: u32, change: impl FnOnce(&mut Used)) {
        let used = self.by_user.entry(user).or_default();
        change(used);
        if *used == Used::default() {
            self.by_user.remove(&user);
        }
    }

    /// An execution that is watched.
    pub(crate) fn get_mut(&mut self, execution: Execution) -> Option<&mut Watched> {
        self.watched.get_mut(&execution)
    }

    /// The execution that is watched under this process number.
    pub(crate) fn of_pid(&self, pid: u32) -> Option<Execution> {
        self.by_pid.get(&pid).copied()
    }

    /// The program that is or was watched under this image, else under this process number.
    pub(crate) fn program(&self, image: u64, pid: u32) -> Option<Program> {
        if image != 0 {
            return self.by_image.get(&image).map(|image| image.program);
        }
        self.watched.get(&self.of_pid(pid)?).map(|watched| Program::of(&watched.believed))
    }

    /// Who is or was watched under this image, else under this process number.
    pub(crate) fn owners(&self, image: u64, pid: u32) -> Vec<Execution> {
        if image == 0 {
            return self.of_pid(pid).into_iter().collect();
        }
        let last = self.by_image.get(&image).map(|image| image.last);
        let watched = self.watched.keys().filter(|owner| owner.image == image && Some(**owner) != last);
        watched.copied().chain(last).collect()
    }

    /// Everybody.
    pub(crate) fn all(&self) -> Vec<Execution> {
        self.watched.keys().copied().collect()
    }

    /// Whom this holds of.
    pub(crate) fn which(&self, holds: impl Fn(&Believed) -> bool) -> Vec<Execution> {
        self.watched.iter().filter(|(_, watched)| holds(&watched.believed)).map(|(execution, _)| *execution).collect()
    }

    /// A file of an execution is watched there.
    ///
    /// # Errors
    /// `rate-limited` if too many are this user's, `unavailable` if there are too many.
    pub(crate) fn attach(&mut self, execution: Execution, file: FileId, spot: Spot) -> Result<(), AttestRefusal> {
        let Some(user) = self.watched.get(&execution).map(|watched| watched.user) else { return Ok(()) };
        let new = !self.by_file.contains_key(&spot);
        if new {
            within(user, "files", (self.by_file.len(), FILES_MAX), self.used(user).files)?;
        }
        within(user, "files of processes", (self.shares, SHARES_MAX), self.used(user).shares)?;
        let Some(watched) = self.watched.get_mut(&execution) else { return Ok(()) };
        let before = watched.files.insert(file, spot);
        let more = usize::from(before.is_none());
        self.shares += more;
        self.use_up(user, |used| {
            used.shares += more;
            used.files += usize::from(new);
        });
        let shared = self.by_file.entry(spot).or_insert_with(|| Shared { account: user, users: HashSet::new() });
        shared.users.insert(execution);
        if let Some(before) = before.filter(|before| *before != spot) {
            self.release(before, execution);
        }
        Ok(())
    }

    /// Only these files of an execution are evidence now. Those that nobody needs any more are handed back.
    pub(crate) fn keep(&mut self, execution: Execution, files: impl Fn(FileId) -> bool) -> Vec<Spot> {
        let Some(watched) = self.watched.get_mut(&execution) else { return Vec::new() };
        let stale: Vec<Spot> = watched.files.extract_if(|file, _| !files(*file)).map(|(_, spot)| spot).collect();
        let user = watched.user;
        self.use_up(user, |used| used.shares -= stale.len());
        self.shares -= stale.len();
        stale.into_iter().filter(|spot| self.release(*spot, execution)).collect()
    }

    /// Somebody who is not watched runs the same program under this image, with sockets that it had before.
    pub(crate) fn inherit(&mut self, heir: Execution, program: Program) {
        let image = heir.image;
        if image != 0 && !self.by_image.contains_key(&image) {
            self.by_image.insert(image, Image { program, watched: 1, last: heir });
            self.depart(image);
        }
    }

    /// Whose evidence this file is.
    pub(crate) fn users(&self, spot: Spot) -> Vec<Execution> {
        self.by_file.get(&spot).map(|shared| shared.users.iter().copied().collect()).unwrap_or_default()
    }

    /// A file is watched no longer, because it is gone. Its number may become another file's.
    pub(crate) fn gone(&mut self, spot: Spot) {
        let Some(shared) = self.by_file.remove(&spot) else { return };
        self.use_up(shared.account, |used| used.files -= 1);
        for execution in shared.users {
            if let Some(watched) = self.watched.get_mut(&execution) {
                let before = watched.files.len();
                watched.files.retain(|_, file| *file != spot);
                let (user, fewer) = (watched.user, before - watched.files.len());
                self.shares -= fewer;
                self.use_up(user, |used| used.shares -= fewer);
            }
        }
    }

    /// An execution is to be looked at: where it is to wait, unless it waits already.
    pub(crate) fn suspect(&mut self, execution: Execution, lane: Lane) -> Option<Place> {
        let watched = self.watched.get_mut(&execution)?;
        match watched.looking {
            Looking::No if lane == Lane::Patient && watched.left => {
                // The place that it left is its place again.
                watched.left = false;
                watched.looking = Looking::Waits(lane);
                return None;
            }
            Looking::Waits(place) if place >= lane => return None,
            Looking::Waits(_) => watched.left = true,
            Looking::Runs { again } => {
                watched.looking = Looking::Runs { again: again.max(Some(lane)) };
                return None;
            }
            Looking::No => {}
        }
        watched.looking = Looking::Waits(lane);
        Some(Place { user: watched.user, lane })
    }

    /// Its turn has come in this lane. False if it is not watched any more, or was looked at from the other lane.
    pub(crate) fn begin(&mut self, execution: Execution, lane: Lane) -> bool {
        let Some(watched) = self.watched.get_mut(&execution) else { return false };
        if lane == Lane::Patient && watched.left {
            watched.left = false;
            return false;
        }
        let waits = watched.looking == Looking::Waits(lane);
        if waits {
            watched.looking = Looking::Runs { again: None };
        }
        waits
    }

    /// A look ended; where to wait for the next one, if something happened meanwhile.
    pub(crate) fn end(&mut self, execution: Execution, now: Instant) -> Option<Place> {
        let watched = self.watched.get_mut(&execution)?;
        (watched.looked, watched.in_vain) = (now, 0);
        let Looking::Runs { again } = std::mem::replace(&mut watched.looking, Looking::No) else { return None };
        self.suspect(execution, again?)
    }

    /// A look showed nothing; where to wait for the next one, and how many were in vain before it.
    pub(crate) fn in_vain(&mut self, execution: Execution, lane: Lane) -> Option<(Place, u32)> {
        let watched = self.watched.get_mut(&execution)?;
        let Looking::Runs { again } = std::mem::replace(&mut watched.looking, Looking::No) else { return None };
        watched.in_vain += 1;
        let in_vain = watched.in_vain;
        Some((self.suspect(execution, lane.max(again.unwrap_or(lane)))?, in_vain))
    }

    /// Those who were not looked at for long, at most so many, the longest first.
    pub(crate) fn due(&self, now: Instant, most: usize) -> Vec<Execution> {
        let mut due: Vec<(Instant, Execution)> = self
            .watched
            .iter()
            .filter(|(_, watched)| {
                watched.looking == Looking::No && now.duration_since(watched.looked) >= watched.pace()
            })
            .map(|(execution, watched)| (watched.looked, *execution))
            .collect();
        due.sort_unstable_by_key(|(looked, _)| *looked);
        due.into_iter().take(most).map(|(_, execution)| execution).collect()
    }

    /// How many of everything: executions, process numbers, files, users, images.
    pub(crate) fn sizes(&self) -> [usize; 5] {
        let (images, departed) = (self.by_image.len(), self.departed.len());
        let files = self.by_file.len().max(self.shares);
        [self.watched.len(), self.by_pid.len(), files, self.by_user.len(), images.max(departed)]
    }
}

/// Whether there is room for one more: of all, and of this user's.
fn within(user: u32, what: &str, (all, most): (usize, usize), theirs: usize) -> Result<(), AttestRefusal> {
    let reason = if user != 0 && theirs >= most / SHARE {
        AttestReason::RateLimited
    } else if all >= most {
        AttestReason::Unavailable
    } else {
        return Ok(());
    };
    refuse(reason, format!("{all} {what} are watched, {theirs} of them user {user}'s"))
}

impl Watched {
    fn pace(&self) -> Duration {
        use bonafide_proto::fingerprint::Evidence;
        match self.believed.fingerprint.container {
            Evidence::Absent(_) => OTHERS,
            Evidence::Known(_) | Evidence::Unavailable(_) => CONTAINED,
        }
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::Evidence;

    use super::super::changes::tests::{believed, container_of, with};
    use super::*;

    fn execution(pid: u32) -> Execution {
        Execution { pid, start_ticks: 1, image: u64::from(pid) + 1000 }
    }

    fn id(ino: u64) -> FileId {
        FileId { dev: 1, ino }
    }

    fn table(pids: std::ops::Range<u32>) -> Table {
        let mut table = Table::default();
        for pid in pids {
            table.add(execution(pid), believed("/a"), Instant::now()).unwrap();
        }
        table
    }

    #[tokio::test]
    async fn a_file_is_watched_as_long_as_somebody_needs_it() {
        let mut table = table(1..3);
        for pid in 1..3 {
            table.attach(execution(pid), id(1), Spot::Told(1)).unwrap();
        }
        table.attach(execution(2), id(2), Spot::Told(2)).unwrap();
        assert_eq!(table.users(Spot::Told(1)).len(), 2);
        assert_eq!(table.keep(execution(2), |file| file == id(1)), [Spot::Told(2)]);
        assert_eq!(table.remove(execution(1)), Some(vec![]));
        assert_eq!(table.remove(execution(2)), Some(vec![Spot::Told(1)]));
        assert_eq!(table.remove(execution(2)), None);
        assert_eq!(table.sizes()[..4], [0; 4]);
    }

    #[tokio::test]
    async fn a_file_that_is_gone_is_no_longer_had() {
        let mut table = table(1..2);
        table.attach(execution(1), id(1), Spot::Told(1)).unwrap();
        assert!(table.get_mut(execution(1)).unwrap().has(id(1)));
        table.gone(Spot::Told(1));
        // The next file may have its number.
        assert!(!table.get_mut(execution(1)).unwrap().has(id(1)));
        assert_eq!(table.users(Spot::Told(1)), []);
    }

    const URGENT: Option<Place> = Some(Place { user: 0, lane: Lane::Urgent });
    const PATIENT: Option<Place> = Some(Place { user: 0, lane: Lane::Patient });

    #[tokio::test]
    async fn one_look_at_a_time_and_none_is_lost() {
        let (mut table, one) = (table(1..2), execution(1));
        assert_eq!(table.suspect(one, Lane::Urgent), URGENT);
        assert_eq!(table.suspect(one, Lane::Urgent), None, "it waits already");
        assert_eq!(table.suspect(one, Lane::Patient), None);
        assert!(table.begin(one, Lane::Urgent), "which one look answers");
        assert_eq!(table.suspect(one, Lane::Patient), None);
        assert_eq!(table.suspect(one, Lane::Urgent), None);
        assert_eq!(table.end(one, Instant::now()), URGENT, "that came during the look");
        assert!(table.begin(one, Lane::Urgent));
        assert_eq!(table.end(one, Instant::now()), None);
        assert_eq!(table.suspect(execution(9), Lane::Urgent), None);
        assert!(!table.begin(execution(9), Lane::Urgent));
    }

    #[tokio::test]
    async fn who_gave_cause_waits_in_the_other_lane_and_in_each_only_once() {
        let (mut table, one) = (table(1..2), execution(1));
        for _ in 0..3 {
            assert_eq!(table.suspect(one, Lane::Patient), PATIENT);
            assert_eq!(table.suspect(one, Lane::Urgent), URGENT);
            assert!(table.begin(one, Lane::Urgent));
            assert_eq!(table.end(one, Instant::now()), None);
            assert_eq!(table.suspect(one, Lane::Patient), None, "its old place is there");
            assert!(table.begin(one, Lane::Patient));
            assert_eq!(table.end(one, Instant::now()), None);
        }
        assert_eq!(table.suspect(one, Lane::Patient), PATIENT);
        assert_eq!(table.suspect(one, Lane::Urgent), URGENT);
        assert!(!table.begin(one, Lane::Patient), "the place it left");
        assert!(table.begin(one, Lane::Urgent));
    }

    #[tokio::test]
    async fn looks_in_vain_are_counted_until_one_shows_something() {
        let (mut table, one) = (table(1..2), execution(1));
        let _ = table.suspect(one, Lane::Urgent);
        for count in 1..4 {
            assert!(table.begin(one, Lane::Urgent));
            assert_eq!(table.in_vain(one, Lane::Urgent), Some((URGENT.unwrap(), count)));
        }
        assert!(table.begin(one, Lane::Urgent));
        assert_eq!(table.end(one, Instant::now()), None);
        let _ = table.suspect(one, Lane::Patient);
        assert!(table.begin(one, Lane::Patient));
        assert_eq!(table.in_vain(one, Lane::Patient), Some((PATIENT.unwrap(), 1)));
    }

    #[tokio::test]
    async fn neither_all_nor_one_user_are_too_many() {
        let mut table = Table::default();
        let theirs = with(&believed("/a"), |f| f.uid = 7);
        let most = u32::try_from(WATCHED_MAX / SHARE).unwrap();
        for pid in 0..most {
            table.add(execution(pid), theirs.clone(), Instant::now()).unwrap();
        }
        let refusal = table.add(execution(most), theirs.clone(), Instant::now()).unwrap_err();
        assert_eq!(refusal.reason, AttestReason::RateLimited);
        for pid in most..u32::try_from(WATCHED_MAX).unwrap() {
            table.add(execution(pid), believed("/a"), Instant::now()).unwrap();
        }
        let last = execution(u32::try_from(WATCHED_MAX).unwrap());
        assert!(table.add(last, believed("/a"), Instant::now()).unwrap_err().detail.starts_with("65536 processes"));
        table.remove(execution(0)).unwrap();
        table.add(last, theirs, Instant::now()).unwrap();
    }

    #[tokio::test]
    async fn one_user_s_files_leave_room_for_those_of_others() {
        let mut table = table(1..2);
        let theirs = with(&believed("/a"), |f| f.uid = 7);
        let (one, two) = (execution(8), execution(9));
        for execution in [one, two] {
            table.add(execution, theirs.clone(), Instant::now()).unwrap();
        }
        let file = |n: usize| (id(n as u64), Spot::Told(i32::try_from(n).unwrap()));
        for n in 0..FILES_MAX / SHARE {
            table.attach(one, file(n).0, file(n).1).unwrap();
        }
        let (more, spot) = file(FILES_MAX / SHARE);
        let refusal = table.attach(two, more, spot).unwrap_err();
        assert_eq!(refusal.reason, AttestReason::RateLimited);
        assert!(refusal.detail.contains("16384 of them user 7's"), "{refusal}");
        table.attach(two, file(0).0, file(0).1).unwrap();
        table.attach(execution(1), more, spot).unwrap();
        table.attach(two, more, spot).unwrap();
        // What goes away makes room, however it goes.
        table.gone(file(1).1);
        assert_eq!(table.keep(one, |file| file != id(2)), [file(2).1]);
        assert_eq!(table.used(7), &Used { executions: 2, files: FILES_MAX / SHARE - 2, shares: FILES_MAX / SHARE });
        for execution in [one, two, execution(1)] {
            table.remove(execution).unwrap();
        }
        assert_eq!(table.sizes()[..4], [0; 4]);
    }

    #[tokio::test]
    async fn an_image_is_known_beyond_the_end_of_who_ran_it_but_not_for_ever() {
        let mut table = table(1..2);
        let program = Program::of(&believed("/a"));
        table.remove(execution(1)).unwrap();
        assert_eq!(table.program(1001, 0), Some(program));
        for pid in 2..u32::try_from(DEPARTED_MAX).unwrap() + 2 {
            table.add(execution(pid), believed("/b"), Instant::now()).unwrap();
            table.remove(execution(pid)).unwrap();
        }
        assert_eq!(table.program(1001, 0), None);
        assert_eq!(table.sizes(), [0, 0, 0, 0, DEPARTED_MAX]);
    }

    #[tokio::test]
    async fn without_images_a_program_is_known_by_its_process() {
        let mut table = Table::default();
        let unwitnessed = Execution { image: 0, ..execution(5) };
        table.add(unwitnessed, believed("/a"), Instant::now()).unwrap();
        assert_eq!(table.program(0, 5), Some(Program::of(&believed("/a"))));
        assert_eq!(table.program(0, 6), None);
        assert_ne!(Program::of(&believed("/a")), Program::of(&believed("/b")));
    }

    #[tokio::test]
    async fn containers_are_looked_at_more_often_and_the_longest_unseen_first() {
        let (mut table, start) = (table(0..0), Instant::now());
        let contained = with(&believed("/a"), |f| f.container = Evidence::Known(container_of(1)));
        table.add(execution(1), believed("/a"), start).unwrap();
        table.add(execution(2), contained.clone(), start + Duration::from_secs(1)).unwrap();
        table.add(execution(3), contained, start).unwrap();
        assert_eq!(table.due(start + Duration::from_secs(4), 9), []);
        assert_eq!(table.due(start + CONTAINED, 9), [execution(3)]);
        assert_eq!(table.due(start + CONTAINED + Duration::from_secs(1), 1), [execution(3)]);
        let _ = table.suspect(execution(3), Lane::Patient);
        assert_eq!(table.due(start + CONTAINED + Duration::from_secs(1), 9), [execution(2)]);
        assert!(table.due(start + OTHERS, 9).contains(&execution(1)));
    }
}
