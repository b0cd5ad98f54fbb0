//! Processes that live for less than a millisecond and connect once: each is attributed right or refused by name.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::crowd::{self, Life, Outcomes};
use crate::report::{Claim, Report, median};
use crate::station::{Source, Station};

/// Counts what became of each.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(churn(if quick { 4_000 } else { 20_000 }, report))
}

async fn churn(count: usize, report: &mut Report) -> Result<(), String> {
    let station = Station::build("chu")?;
    let _identityd = station.identityd(Source::Kernel);
    let ear = Arc::new(station.ear(Source::Kernel, SocketAddr::from(([127, 0, 0, 1], 0)))?);
    ear.ready(&station).await?;
    station.settled().await;
    report.part(&format!("{count} processes of two programs, each connects once and ends"));
    let outcomes = crowd::come_and_go(&station, &ear, Life::Instant, count).await?;
    lives(&outcomes, report);
    judge(&outcomes, report);
    // Of most of those nothing was left to be looked at, and so nothing to be mistaken for something else.
    let some = count / 10;
    report.part(&format!("{some} more, each of which ends when it was answered who it is"));
    let outcomes = crowd::come_and_go(&station, &ear, Life::Answered, some).await?;
    lives(&outcomes, report);
    judge(&outcomes, report);
    report.count("refused, though they were there", outcomes.refused.values().sum(), Claim::AtMost(0.0));
    Ok(())
}

fn lives(outcomes: &Outcomes, report: &mut Report) {
    let number = f64::from(u32::try_from(outcomes.started).unwrap_or(u32::MAX));
    report.add("processes per second", number / outcomes.seconds, "/s", Claim::Nothing);
    for (how, lives) in [("from before the start", &outcomes.lives), ("from its exec", &outcomes.executions)] {
        report.add(format!("life, {how} to after the end: p50"), median(lives.clone()) / 1e3, "us", Claim::Nothing);
        report.add(format!("less than a millisecond, {how}"), crowd::shorter_than(lives, 1e6), "%", Claim::Nothing);
    }
    report.count("could not connect", outcomes.failed, Claim::AtMost(0.0));
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
