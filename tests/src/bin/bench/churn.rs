//! Processes that live for less than a millisecond and connect once: each is attributed right or refused by name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_proto::convert::Attestation;
use bonafide_proto::refusal::AttestRefusal;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::report::{Claim, Report};
use crate::station::{Ear, Source, Station, connecting};

/// How long all of them may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Counts what became of each.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(churn(if quick { 2_000 } else { 20_000 }, report))
}

async fn churn(count: usize, report: &mut Report) -> Result<(), String> {
    let station = Station::build("chu")?;
    let _identityd = station.identityd(Source::Kernel);
    let ear = Arc::new(station.ear(Source::Kernel, SocketAddr::from(([127, 0, 0, 1], 0)))?);
    ear.ready(&station).await?;
    let began = Instant::now();
    let spawner = spawner(&station, &ear, count)?;
    let outcomes = tokio::time::timeout(LIMIT, outcomes(&ear, count)).await.map_err(|_| "they took too long")??;
    let seconds = began.elapsed().as_secs_f64();
    let ended = spawner.wait_with_output().map_err(|e| e.to_string())?;
    report.part(&format!("{count} processes of two programs, in turns, each connects once and ends"));
    let failed: f64 = String::from_utf8_lossy(&ended.stdout).trim().parse().map_err(|e| format!("the spawner: {e}"))?;
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    report.add("processes per second", number(count) / seconds, "/s", Claim::Nothing);
    report.add("could not connect", failed, "", Claim::AtMost(0.0));
    report.add("attributed to the program that connected", number(outcomes.right), "", Claim::Nothing);
    report.add("attributed to the other one", number(outcomes.wrong), "", Claim::AtMost(0.0));
    for (reason, refused) in &outcomes.refused {
        report.add(format!("refused: {reason}"), number(*refused), "", Claim::Nothing);
    }
    let all = outcomes.right + outcomes.wrong + outcomes.refused.values().sum::<usize>();
    report.add("unaccounted for", number(count) - number(all), "", Claim::AtMost(0.0));
    Ok(())
}

fn spawner(station: &Station, ear: &Ear, count: usize) -> Result<Child, String> {
    let mut command = connecting(station, "a", "spawn", ear.address()?, &count.to_string());
    command.arg(station.file("a")).arg(station.file("b")).spawn().map_err(|e| e.to_string())
}

#[derive(Debug, Default)]
struct Outcomes {
    right: usize,
    wrong: usize,
    refused: BTreeMap<String, usize>,
}

async fn outcomes(ear: &Arc<Ear>, count: usize) -> Result<Outcomes, String> {
    let (mut asking, mut outcomes) = (JoinSet::new(), Outcomes::default());
    for _ in 0..count {
        let (stream, ear) = (ear.accept().await?, Arc::clone(ear));
        asking.spawn(async move {
            let answer = ear.attribute(&stream).await;
            (answer, tag(stream).await)
        });
        while let Some(done) = asking.try_join_next() {
            outcomes.count(done.map_err(|e| e.to_string())?);
        }
    }
    while let Some(done) = asking.join_next().await {
        outcomes.count(done.map_err(|e| e.to_string())?);
    }
    Ok(outcomes)
}

/// What the program that connected said it is.
async fn tag(mut stream: TcpStream) -> Option<u8> {
    stream.read_u8().await.ok()
}

impl Outcomes {
    fn count(&mut self, (answer, tag): (Result<Arc<Attestation>, AttestRefusal>, Option<u8>)) {
        match answer {
            Ok(attestation) => {
                let name = attestation.workload.as_ref().map(ToString::to_string);
                let right = match tag {
                    Some(b'A') => name.as_deref() == Some("bench/a"),
                    Some(b'B') => name.as_deref() == Some("bench/b"),
                    _ => false,
                };
                *(if right { &mut self.right } else { &mut self.wrong }) += 1;
            }
            Err(refusal) => *self.refused.entry(refusal.reason.to_string()).or_default() += 1,
        }
    }
}
