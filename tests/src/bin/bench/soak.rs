//! A day's worth of events in minutes: nothing grows, and no loss goes unnoticed.
//!
//! `day` tells the watch as many processes as a day has; here real ones come and go as fast as this machine starts them,
//! in two halves; `loss` has events lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identityd::bench::Maps;

use crate::crowd::{self, Life, Outcomes};
use crate::report::{Claim, Report};
use crate::station::{self, Source, Station};
use crate::{churn, day, loss};

/// Processes of 24 h at 2,000 exec/s.
pub(crate) const A_DAY: u32 = 24 * 3600 * 2000;
/// Bytes by which memory may grow for each process. An allocator hands out no less than 32 at once (glibc): one piece
/// that was forgotten for each process is found, and what a page more or less makes is not held against anybody.
const EACH: f64 = 16.0;
/// More than identityd remembers of those who ended: only then nothing may grow any more.
const REMEMBERED: usize = 70_000;
/// How long those who ended may be held.
const SETTLES: Duration = Duration::from_secs(20);
/// Maps that have an entry for what runs, and for nothing else.
const OF_PROCESSES: [&str; 3] = ["processes", "images", "long_arguments"];
/// Maps that are empty when nobody is watched or sought.
const OF_WATCHED: [&str; 2] = ["watched", "sought"];

/// Measures all three.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string());
    loss::measure(if quick { 3 } else { 10 }, report)?;
    runtime()?.block_on(real(quick, report))?;
    runtime()?.block_on(day::measure(if quick { A_DAY / 50 } else { A_DAY }, report))
}

/// Processes that connect and end; identityd looks at each that is still there.
async fn real(quick: bool, report: &mut Report) -> Result<(), String> {
    let (before, half) = if quick { (4_000, 8_000) } else { (REMEMBERED, 70_000) };
    report.part(&format!("Real processes that connect and end: {before} unmeasured, then twice {half}"));
    let station = Station::build("soak")?;
    let identityd = station.identityd(Source::Kernel);
    let maps = Maps::of(identityd.pid()).map_err(|e| e.to_string())?;
    let ear = Arc::new(station.ear(Source::Kernel, SocketAddr::from(([127, 0, 0, 1], 0)))?);
    ear.ready(&station).await?;
    station.settled().await;
    let mut sizes = Vec::new();
    let mut outcomes = Outcomes::default();
    for count in [before, half, half] {
        outcomes = crowd::come_and_go(&station, &ear, Life::Instant, count).await?;
        sizes.push(Size::settled(identityd.pid(), &maps, sizes.first()).await?);
    }
    let [first, middle, last] = sizes.as_slice() else { return Err("not all was measured".to_owned()) };
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    report.add("processes per second", number(outcomes.started) / outcomes.seconds, "/s", Claim::Nothing);
    churn::judge(&outcomes, report);
    report.add("identityd's own memory in the end", last.memory / MIB, "MiB", Claim::Nothing);
    report.add("grown in the first half", (middle.memory - first.memory) / MIB, "MiB", Claim::Nothing);
    report.add("grown in the second half", (last.memory - middle.memory) / MIB, "MiB", Claim::Nothing);
    let each = (last.memory - middle.memory) / number(half);
    // Before everything it remembers is full, something grows, and should.
    let claim = |most| if quick { Claim::Nothing } else { Claim::AtMost(most) };
    report.add("that is, for each process", each, "bytes", claim(EACH));
    report.add(
        "and in a day at 2,000 exec/s",
        each * f64::from(A_DAY) / MIB,
        "MiB",
        claim(EACH * f64::from(A_DAY) / MIB),
    );
    report.add("open files, grown in both halves", last.files - first.files, "", Claim::AtMost(0.0));
    for name in OF_WATCHED {
        let (now, then) = (last.entries(name), first.entries(name));
        report.add(format!("kernel map `{name}`, grown in both halves"), now - then, "", Claim::AtMost(0.0));
    }
    for name in OF_PROCESSES {
        report.add(
            format!("kernel map `{name}`, entries of nobody who runs"),
            last.entries(name),
            "",
            Claim::AtMost(0.0),
        );
    }
    Ok(())
}

const MIB: f64 = 1_048_576.0;

/// How much identityd has.
#[derive(Debug)]
struct Size {
    /// Its own memory (`RssAnon`), in bytes.
    memory: f64,
    files: f64,
    /// Entries of maps; of those that have one for what runs, the entries above that.
    entries: Vec<(&'static str, f64)>,
}

impl Size {
    /// When it is no more than it was, but for its memory; or after a while.
    async fn settled(pid: u32, maps: &Maps, than: Option<&Self>) -> Result<Self, String> {
        let began = Instant::now();
        loop {
            let size = Self::of(pid, maps).map_err(|e| format!("identityd: {e}"))?;
            if size.is_back(than) || began.elapsed() > SETTLES {
                return Ok(size);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn of(pid: u32, maps: &Maps) -> std::io::Result<Self> {
        let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let (memory, files) = station::size(pid)?;
        let mut entries = Vec::new();
        for name in OF_WATCHED {
            entries.push((name, number(maps.entries(name)?)));
        }
        for name in OF_PROCESSES {
            let (kept, running) = (maps.entries(name)?, running()?);
            entries.push((name, number(kept.saturating_sub(running))));
        }
        Ok(Self { memory, files: number(files), entries })
    }

    fn is_back(&self, than: Option<&Self>) -> bool {
        let files = than.is_none_or(|than| self.files <= than.files);
        files && self.entries.iter().all(|(_, entries)| *entries <= 0.0)
    }

    fn entries(&self, name: &str) -> f64 {
        self.entries.iter().find(|(of, _)| *of == name).map_or(f64::NAN, |(_, entries)| *entries)
    }
}

/// Processes on this machine, the kernel's too.
fn running() -> std::io::Result<usize> {
    let is_pid = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    Ok(std::fs::read_dir("/proc")?.flatten().filter(|entry| is_pid(&entry.file_name())).count())
}
