//! Attribution of an accepted connection as the enforcer does it, warm: with more and more processes and sockets about.
//! Beside it the fallback, without the kernel programs.

use std::net::SocketAddr;
use std::time::Instant;

use crate::report::{Claim, Report, median, percentile};
use crate::station::{Ear, Source, Station, connecting};

/// Microseconds.
const P50: f64 = 20.0;
const P99: f64 = 100.0;
/// How much slower it may be with 500 times the processes.
const FLAT: f64 = 1.5;

/// Measures both curves.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(curves(quick, report))
}

async fn curves(quick: bool, report: &mut Report) -> Result<(), String> {
    let station = Station::build("att")?;
    let _daemons = [station.identityd(Source::Kernel), station.identityd(Source::Proc)];
    let v4 = SocketAddr::from(([127, 0, 0, 1], 0));
    let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0));
    let kernel = station.ear(Source::Kernel, v4)?;
    let kernel6 = station.ear(Source::Kernel, v6)?;
    let proc = station.ear(Source::Proc, v4)?;
    for ear in [&kernel, &kernel6, &proc] {
        ear.ready(&station).await?;
    }
    let (many, few) = if quick { (2_000, 20) } else { (20_000, 50) };
    report.part("Attribution on the enforcer's hot path, warm");
    let mut middles = Vec::new();
    for (processes, sockets) in [(10, 10), (1_000, 10), (5_000, 10), (10, 20_000)] {
        let _idlers = station.idlers(processes)?;
        let _sockets = station.sockets(sockets)?;
        let about = format!("{processes} processes, {sockets} sockets");
        let ours = attribute(&station, &kernel, many).await?;
        let (p50, p99) = (median(ours.clone()), percentile(ours, 99));
        middles.push(p50);
        report.add(format!("kernel, {about}: p50"), p50, "us", Claim::AtMost(P50));
        report.add(format!("kernel, {about}: p99"), p99, "us", Claim::AtMost(P99));
        let theirs = attribute(&station, &proc, few).await?;
        report.add(format!("fallback, {about}: p50"), median(theirs), "us", Claim::Nothing);
    }
    let six = attribute(&station, &kernel6, many).await?;
    report.add("kernel, IPv6: p50", median(six), "us", Claim::AtMost(P50));
    let least = middles.iter().copied().fold(f64::INFINITY, f64::min);
    let most = middles.iter().copied().fold(0.0, f64::max);
    report.add("the slowest of those p50 / the fastest", most / least, "", Claim::AtMost(FLAT));
    Ok(())
}

/// Microseconds from accepted to attributed, of each connection after the first few.
async fn attribute(station: &Station, ear: &Ear, count: usize) -> Result<Vec<f64>, String> {
    let unmeasured = count / 10;
    let total = (count + unmeasured).to_string();
    let mut child = connecting(station, "a", "hold", ear.address()?, &total).spawn().map_err(|e| e.to_string())?;
    let mut took = Vec::with_capacity(count);
    for n in 0..count + unmeasured {
        let stream = ear.accept().await?;
        let began = Instant::now();
        let answer = ear.attribute(&stream).await;
        let elapsed = began.elapsed().as_secs_f64() * 1e6;
        let attestation = answer.map_err(|refusal| format!("connection {n} is refused: {refusal}"))?;
        if attestation.workload.as_ref().is_none_or(|workload| workload.as_str() != "bench/a") {
            return Err(format!("connection {n} is taken for {:?}", attestation.workload));
        }
        if n >= unmeasured {
            took.push(elapsed);
        }
    }
    let _ = child.wait();
    Ok(took)
}
