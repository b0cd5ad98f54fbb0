//! The days of the history on disk: opened as they are needed, forgotten when they are old or there is no room, and put
//! aside when they are damaged.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use bonafide_proto::edge::{Edge, EdgeCount, Seen};
use bonafide_proto::room;

use super::day::{Day, EDGES_MAX, NotOpened};
use super::{HOUR, Limits, Span};

/// In seconds.
const DAY: i64 = 86_400;
/// How often old days are looked for, in seconds.
const TIDY_EVERY: i64 = 60;
/// How many damaged days are kept for whoever wants to look at them.
const DAMAGED_MAX: usize = 2;
/// The most edges that are put together in memory for one answer; beyond, an edge may be told more than once.
const TOGETHER_MAX: usize = 500_000;

const DAMAGED: &str = "damaged-";

/// Why there is no history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// Its directory.
    #[error("the history in {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread that writes it.
    #[error("the history's thread cannot be started: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// What is missing in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// Flows that were not counted since the start, for want of room or because the disk took nothing.
    pub left_out: u64,
    /// Days that were put aside as damaged, and are still there.
    pub damaged: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    limits: Limits,
    pub(super) edges_max: usize,
    /// The day that is written now, by its number since 1970.
    open: Option<(i64, Day)>,
    left_out: u64,
    tidied: i64,
    /// There is no room even for one day.
    full: bool,
    /// The last write failed: it is said once.
    failing: bool,
}

impl Store {
    pub(super) fn open(dir: PathBuf, limits: Limits, now: i64) -> Result<Self, HistoryError> {
        std::fs::create_dir_all(&dir).map_err(|source| HistoryError::Directory { path: dir.clone(), source })?;
        let mut store = Self {
            dir,
            limits,
            edges_max: EDGES_MAX,
            open: None,
            left_out: 0,
            tidied: i64::MIN,
            full: false,
            failing: false,
        };
        store.tidy(now);
        Ok(store)
    }

    pub(super) fn leave_out(&mut self, flows: u64) {
        self.left_out = self.left_out.saturating_add(flows);
    }

    /// Writes these counts; what the disk did not take comes back.
    pub(super) fn write(&mut self, counted: HashMap<(i64, Edge), Seen>, now: i64) -> HashMap<(i64, Edge), Seen> {
        if now.saturating_sub(self.tidied) >= TIDY_EVERY {
            self.tidy(now);
        }
        if counted.is_empty() {
            return counted;
        }
        let mut by_day: HashMap<i64, HashMap<(i64, Edge), Seen>> = HashMap::new();
        for ((hour, edge), seen) in counted {
            by_day.entry(hour.div_euclid(DAY)).or_default().insert((hour, edge), seen);
        }
        let mut unwritten = HashMap::new();
        for (day, counted) in by_day {
            if let Err((why, rest)) = self.write_day(day, counted) {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(why, dir = %self.dir.display(), "the history cannot be written; it is tried again");
                }
                unwritten.extend(rest);
            } else if std::mem::replace(&mut self.failing, false) {
                tracing::info!(dir = %self.dir.display(), "the history is written again");
            }
        }
        unwritten
    }

    #[allow(clippy::type_complexity, reason = "what could not be written comes back as it was")]
    fn write_day(
        &mut self,
        number: i64,
        counted: HashMap<(i64, Edge), Seen>,
    ) -> Result<(), (String, HashMap<(i64, Edge), Seen>)> {
        if self.full {
            self.leave_out(counted.values().map(|seen| seen.flows).fold(0, u64::saturating_add));
            return Ok(());
        }
        // A store that meets a full disk in the middle of a write does not open any more.
        if let Err(e) = room::check(&self.dir, room::OF_STORE) {
            return Err((e.to_string(), counted));
        }
        let mut day = match self.open.take_if(|(open, _)| *open == number) {
            Some((_, day)) => day,
            None => match self.opened(number) {
                Ok(day) => day,
                Err(why) => return Err((why, counted)),
            },
        };
        let mut left_out = 0_u64;
        let mut rest = counted.into_iter();
        while let Some(((hour, edge), seen)) = rest.next() {
            match day.add(hour, &edge, &seen) {
                Ok(true) => {}
                Ok(false) => left_out = left_out.saturating_add(seen.flows),
                Err(why) => return Err((why, std::iter::once(((hour, edge), seen)).chain(rest).collect())),
            }
        }
        let flushed = day.flush();
        self.leave_out(left_out);
        self.open = Some((number, day));
        // What was added is in the store already: it would be counted twice if it came back.
        if let Err(why) = flushed {
            tracing::warn!(why, "the history is written and may not be on disk yet");
        }
        Ok(())
    }

    /// A day that is not open yet. A damaged one is put aside, and begun anew.
    fn opened(&self, number: i64) -> Result<Day, String> {
        let path = self.path(number);
        let why = match Day::open(&path, self.edges_max) {
            Ok(day) => return Ok(day),
            Err(NotOpened::Unavailable(why)) => return Err(why),
            Err(NotOpened::Damaged(why)) => why,
        };
        let aside = self.dir.join(format!("{DAMAGED}{number}"));
        let moved = match std::fs::rename(&path, &aside) {
            // There is one already: the first one shows more.
            Err(_) if aside.exists() => std::fs::remove_dir_all(&path),
            moved => moved,
        };
        moved.map_err(|e| format!("{why}; and it cannot be put aside: {e}"))?;
        tracing::error!(why, aside = %aside.display(), "a day of the history was damaged; it is begun anew");
        Day::open(&path, self.edges_max).map_err(|(NotOpened::Damaged(why) | NotOpened::Unavailable(why))| why)
    }

    fn path(&self, number: i64) -> PathBuf {
        self.dir.join(number.to_string())
    }

    /// Numbers of the days that are there, oldest first.
    fn days(&self) -> Vec<i64> {
        let mut days: Vec<i64> = self.names().iter().filter_map(|name| name.parse().ok()).collect();
        days.sort_unstable();
        days
    }

    fn damaged(&self) -> Vec<String> {
        let mut damaged: Vec<String> = self.names().into_iter().filter(|name| name.starts_with(DAMAGED)).collect();
        damaged.sort();
        damaged
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Forgets what is too old, and the oldest days while there is no room.
    pub(super) fn tidy(&mut self, now: i64) {
        self.tidied = now;
        let today = now.div_euclid(DAY);
        for damaged in self.damaged().into_iter().rev().skip(DAMAGED_MAX) {
            self.forget(&damaged);
        }
        let oldest = today - i64::from(self.limits.days);
        let mut days: Vec<(i64, u64)> = Vec::new();
        for day in self.days() {
            if day <= oldest {
                self.forget(&day.to_string());
            } else {
                days.push((day, self.size(day)));
            }
        }
        let aside: u64 = self.damaged().iter().map(|name| size_of(&self.dir.join(name))).sum();
        let mut total = days.iter().map(|(_, size)| size).sum::<u64>().saturating_add(aside);
        for (day, size) in days {
            if total <= self.limits.bytes || day == today {
                break;
            }
            tracing::info!(day, "a day of the history is forgotten: there is no room for it");
            self.forget(&day.to_string());
            total = total.saturating_sub(size);
        }
        let full = total > self.limits.bytes;
        if full && !self.full {
            let limit = self.limits.bytes;
            tracing::error!(limit, "one day takes all the room of the history: no more is counted until there is some");
        }
        self.full = full;
    }

    fn size(&self, day: i64) -> u64 {
        match &self.open {
            Some((open, store)) if *open == day => store.size(),
            _ => size_of(&self.path(day)),
        }
    }

    fn forget(&mut self, name: &str) {
        drop(self.open.take_if(|(open, _)| open.to_string() == name));
        if let Err(e) = std::fs::remove_dir_all(self.dir.join(name)) {
            tracing::warn!(error = %e, day = name, "a day of the history cannot be removed");
        }
    }

    /// See [`super::History::read`].
    pub(super) fn read(&mut self, span: Span, mut tell: impl FnMut(EdgeCount) -> bool) -> Result<Kept, HistoryError> {
        let Span { since, until, by_hour } = span;
        let since = since.max(0).div_euclid(HOUR) * HOUR;
        let mut together: HashMap<Edge, Seen> = HashMap::new();
        let mut take = |_: i64, count: EdgeCount| {
            if by_hour {
                return tell(count);
            }
            together.entry(count.edge).or_default().add(count.seen);
            let much = together.len() >= TOGETHER_MAX;
            !much || together.drain().all(|(edge, seen)| tell(EdgeCount { edge, seen }))
        };
        let (first, last) = (since.div_euclid(DAY), until.saturating_sub(1).div_euclid(DAY));
        for number in self.days().into_iter().filter(|number| (first..=last).contains(number)) {
            let known = self.open.as_ref().filter(|(open, _)| *open == number);
            let told = match known {
                Some((_, day)) => day.each(since, until, &mut take),
                None => self.opened(number).and_then(|day| day.each(since, until, &mut take)),
            };
            match told {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => tracing::error!(why, number, "a day of the history cannot be read to its end"),
            }
        }
        let _enough = together.into_iter().all(|(edge, seen)| tell(EdgeCount { edge, seen }));
        Ok(Kept { left_out: self.left_out, damaged: self.damaged().len() })
    }
}

fn size_of(path: &Path) -> u64 {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size_of(&entry.path())).sum()
}
