//! As many processes as a day has at 2,000 exec/s, told to the watch as the kernel programs tell them: their bytes are
//! read, the table is asked, children of watched programs are looked for, new programs are to be hashed. Most of them
//! never were: whoever looks finds them gone, as it is with processes that live for an instant.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identityd::bench::Hearing;
use bonafide_proto::clock::SystemClock;

use crate::report::{Claim, Report};
use crate::soak::A_DAY;
use crate::station::{Station, size as size_of};

/// Programs that run all day.
const REAL: usize = 100;
/// What memory may grow by in the second half, in MiB: what an allocator keeps in reserve.
const GROWTH: f64 = 4.0;
/// How long the rest may take to be heard.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tells so many.
pub(crate) async fn measure(processes: u32, report: &mut Report) -> Result<(), String> {
    report.part(&format!(
        "{processes} of the {A_DAY} processes of a day at 2,000 exec/s, told to the watch over {REAL} real ones"
    ));
    let station = Station::build("day")?;
    let idlers = station.idlers(REAL)?;
    let hearing = Hearing::new(Arc::new(SystemClock), &idlers.pids()).await;
    let mut hearing = hearing.map_err(|e| e.to_string())?;
    let began = Instant::now();
    let mut sizes = vec![size(&hearing).await?];
    for half in [0..processes / 2, processes / 2..processes] {
        for n in half {
            hearing.came_and_went(n.into()).await.map_err(|e| e.to_string())?;
        }
        sizes.push(size(&hearing).await?);
    }
    let seconds = began.elapsed().as_secs_f64();
    let [first, middle, last] = sizes.as_slice() else { return Err("not all was measured".to_owned()) };
    let hours = f64::from(processes) / seconds * 60.0 / 2000.0 / 3600.0;
    report.add("time it took", seconds, "s", Claim::Nothing);
    report.add("hours of a host with 2,000 exec/s, per minute", hours, "h", Claim::Nothing);
    report.add("memory, grown in the first half", middle.0 - first.0, "MiB", Claim::Nothing);
    report.add("memory, grown in the second half", last.0 - middle.0, "MiB", Claim::AtMost(GROWTH));
    report.add("open files, grown in the second half", last.1 - middle.1, "", Claim::AtMost(0.0));
    report.add("watched in the end, of those who ended", last.2, "", Claim::AtMost(0.0));
    Ok(())
}

/// Memory in MiB, open files, and how many are watched who ended, of this process.
async fn size(hearing: &Hearing) -> Result<(f64, f64, f64), String> {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let others = number(hearing.settle(PATIENCE).await);
    let (memory, files) = size_of(std::process::id()).map_err(|e| e.to_string())?;
    Ok((memory / 1_048_576.0, number(files), others))
}
