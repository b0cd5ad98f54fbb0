//! Processes that live for less than a millisecond and connect once: each is attributed right or refused by name.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::crowd::{self, Outcomes};
use crate::report::{Claim, Report, median};
use crate::station::{Source, Station};

/// Counts what became of each.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(churn(if quick { 4_000 } else { 20_000 }, report))
}

async fn churn(count: usize, report: &mut Report) -> Result<(), String> {
    report.part(&format!("{count} processes of two programs, each connects once and ends"));
    let station = Station::build("chu")?;
    let _identityd = station.identityd(Source::Kernel);
    let ear = Arc::new(station.ear(Source::Kernel, SocketAddr::from(([127, 0, 0, 1], 0)))?);
    ear.ready(&station).await?;
    let outcomes = crowd::come_and_go(&station, &ear, count).await?;
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    report.add("processes per second", number(outcomes.started) / outcomes.seconds, "/s", Claim::Nothing);
    report.add(
        "life, from before the start to after the end: p50",
        median(outcomes.lives.clone()) / 1e3,
        "us",
        Claim::Nothing,
    );
    report.add("lived for less than a millisecond", outcomes.shorter_than(1e6), "%", Claim::Nothing);
    report.count("could not connect", outcomes.failed, Claim::AtMost(0.0));
    judge(&outcomes, report);
    Ok(())
}

/// What has to hold of each of them.
pub(crate) fn judge(outcomes: &Outcomes, report: &mut Report) {
    report.count("attributed to the process that connected, and its program", outcomes.right, Claim::Nothing);
    for (reason, refused) in &outcomes.refused {
        report.count(format!("refused: {reason}"), *refused, Claim::Nothing);
    }
    report.count("attributed to another program or process", outcomes.wrong, Claim::AtMost(0.0));
    report.count("let through unattributed", outcomes.nameless, Claim::AtMost(0.0));
    report.count("connections of nobody who was started", outcomes.unknown, Claim::AtMost(0.0));
    report.count("connected, but neither attributed nor refused", outcomes.missing(), Claim::AtMost(0.0));
}
