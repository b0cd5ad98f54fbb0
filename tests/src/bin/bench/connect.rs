//! What the kernel programs add to a `connect()`: refused on loopback, so that little else is measured, with identityd
//! running and not, in turns.

use std::net::SocketAddr;

use crate::report::{Claim, Report, median};
use crate::station::{Source, Station, connecting};

/// Microseconds.
const ADDED: f64 = 2.0;
/// Where nobody listens.
const CLOSED: u16 = 9;

/// Measures both families.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let station = Station::build("con")?;
    let (rounds, count) = if quick { (5, "5000") } else { (11, "20000") };
    report.part("connect(), refused on loopback");
    for address in [SocketAddr::from(([127, 0, 0, 1], CLOSED)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], CLOSED))] {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            without.push(connects(&station, address, count)?);
            let _identityd = station.identityd(Source::Kernel);
            with.push(connects(&station, address, count)?);
        }
        let added = with.iter().zip(&without).map(|(with, without)| with - without).collect();
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        report.add(format!("{family}, without"), median(without), "us", Claim::Nothing);
        report.add(format!("{family}, with the kernel programs"), median(with), "us", Claim::Nothing);
        report.add(format!("{family}, added"), median(added), "us", Claim::AtMost(ADDED));
    }
    Ok(())
}

/// The median of so many, in microseconds.
fn connects(station: &Station, address: SocketAddr, count: &str) -> Result<f64, String> {
    let output = connecting(station, "a", "cost", address, count).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(format!("{address} did not refuse: {}", output.status));
    }
    let nanos = String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse::<f64>().ok()).collect();
    Ok(median(nanos) / 1e3)
}
