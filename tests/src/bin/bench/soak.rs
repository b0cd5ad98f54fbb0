//! A day's worth of events in minutes: processes that come and go, first real ones as fast as this machine starts them,
//! then as many as a day has at 2,000 a second, told to the watch over processes. Memory and open files must not grow.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identityd::bench::Hearing;
use bonafide_proto::clock::SystemClock;

use crate::report::{Claim, Report};
use crate::station::{Source, Station, connecting, size};

/// 24 h at 2,000 exec/s.
const A_DAY: u32 = 24 * 3600 * 2000;
/// What memory may grow by, in MiB, after the first tenth.
const GROWTH: f64 = 16.0;

/// Measures both.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(real(Duration::from_secs(if quick { 10 } else { 60 }), report))?;
    runtime.block_on(told(if quick { A_DAY / 50 } else { A_DAY }, report))
}

/// Processes that connect and end; identityd looks at each that is still there.
async fn real(lasts: Duration, report: &mut Report) -> Result<(), String> {
    let station = Station::build("soak")?;
    let identityd = station.identityd(Source::Kernel);
    let ear = station.ear(Source::Kernel, SocketAddr::from(([127, 0, 0, 1], 0)))?;
    ear.ready(&station).await?;
    report.part("Real processes that connect and end");
    let mut command = connecting(&station, "a", "spawn", ear.address()?, "100000000");
    let spawner = command.arg(station.file("a")).arg(station.file("b")).spawn().map_err(|e| e.to_string())?;
    let mut spawner = Ended(spawner);
    let (began, mut processes, mut early) = (Instant::now(), 0_u32, None);
    while began.elapsed() < lasts {
        let stream = ear.accept().await?;
        // Whether it is attributed or refused is another benchmark's business.
        let _ = ear.attribute(&stream).await;
        processes += 1;
        if early.is_none() && began.elapsed() > lasts / 10 {
            early = size(identityd.pid());
        }
    }
    spawner.end();
    let seconds = began.elapsed().as_secs_f64();
    let (Some(early), Some(late)) = (early, size(identityd.pid())) else { return Err("identityd is gone".to_owned()) };
    report.add("processes", f64::from(processes), "", Claim::Nothing);
    report.add("processes per second", f64::from(processes) / seconds, "/s", Claim::Nothing);
    grown(early, late, report);
    Ok(())
}

/// The spawner, killed in the end.
struct Ended(std::process::Child);

impl Ended {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

/// Events alone, as the kernel programs tell them.
async fn told(processes: u32, report: &mut Report) -> Result<(), String> {
    report.part("Processes of a day at 2,000 exec/s, told to the watch");
    let hearing = Hearing::new(Arc::new(SystemClock)).map_err(|e| e.to_string())?;
    let (began, mut early) = (Instant::now(), None);
    for n in 0..processes {
        hearing.came_and_went(n.into()).await;
        if n == processes / 10 {
            early = size(std::process::id());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let (Some(early), Some(late)) = (early, size(std::process::id())) else { return Err("no /proc".to_owned()) };
    report.add("processes", f64::from(processes), "", Claim::Nothing);
    report.add(
        "hours of a host with 2,000 exec/s, per minute",
        f64::from(processes) / seconds * 60.0 / 2000.0 / 3600.0,
        "h",
        Claim::Nothing,
    );
    grown(early, late, report);
    Ok(())
}

fn grown(early: (f64, usize), late: (f64, usize), report: &mut Report) {
    let files = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    report.add("memory in the end", late.0, "MiB", Claim::Nothing);
    report.add("memory, grown since the first tenth", late.0 - early.0, "MiB", Claim::AtMost(GROWTH));
    report.add("open files, grown since the first tenth", files(late.1) - files(early.1), "", Claim::AtMost(8.0));
}
