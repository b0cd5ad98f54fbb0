//! Processes of two programs in turns, from several spawners at once: each connects once, says which program, number
//! and process it is, and ends. What became of each is known in the end, also of those of whom nothing was heard.

use std::collections::{BTreeMap, HashSet};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_proto::convert::Attestation;
use bonafide_proto::refusal::AttestRefusal;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::station::{Ear, Station, connecting};

/// Spawners at once: each has one of them, which shall not have to wait for the others' to be run.
const SPAWNERS: usize = 2;
/// When all have ended, and nothing more is heard for so long, nothing will be.
const SILENCE: Duration = Duration::from_secs(2);
/// What a connection says, and how long it may take to.
const SAID: usize = 9;
const SAYS: Duration = Duration::from_secs(10);

/// How long each of them lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Until it has connected and said so.
    Instant,
    /// Until it was answered who it is.
    Answered,
}

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    /// Processes that were started.
    pub(crate) started: usize,
    /// Of those, processes that say they could not connect.
    pub(crate) failed: usize,
    /// Numbers from which a connection came.
    numbers: HashSet<u32>,
    /// Connections that said nothing, or a number that is nobody's or somebody else's.
    pub(crate) unknown: usize,
    /// Attributed to the process that connected and to its program.
    pub(crate) right: usize,
    /// Attributed to another program or process.
    pub(crate) wrong: usize,
    /// Attributed, but to no workload.
    pub(crate) nameless: usize,
    /// Refused, by the reason.
    pub(crate) refused: BTreeMap<String, usize>,
    /// From before each one's start to after its end, in nanoseconds.
    pub(crate) lives: Vec<f64>,
    /// The same, from its exec.
    pub(crate) executions: Vec<f64>,
    /// How long all of it took, in seconds.
    pub(crate) seconds: f64,
}

/// One connection: what was answered, and what it said itself.
struct Heard {
    answer: Result<Arc<Attestation>, AttestRefusal>,
    said: Option<Said>,
}

struct Said {
    workload: &'static str,
    number: u32,
    pid: u32,
}

impl Outcomes {
    /// Processes that connected and of which nothing was heard.
    pub(crate) fn missing(&self) -> usize {
        (self.started - self.failed).saturating_sub(self.numbers.len())
    }

    fn hear(&mut self, heard: Heard) {
        match &heard.said {
            Some(said) if usize::try_from(said.number).is_ok_and(|number| number < self.started) => {
                // Twice the same number is one that is nobody's.
                self.unknown += usize::from(!self.numbers.insert(said.number));
            }
            _ => self.unknown += 1,
        }
        match heard.answer {
            Err(refusal) => *self.refused.entry(refusal.reason.to_string()).or_default() += 1,
            Ok(attestation) => match (&attestation.workload, &heard.said) {
                (None, _) => self.nameless += 1,
                (Some(workload), Some(said)) if workload.as_str() == said.workload && is(&attestation, said.pid) => {
                    self.right += 1;
                }
                _ => self.wrong += 1,
            },
        }
    }

    fn spawned(&mut self, said: &str) -> Result<(), String> {
        let mut lines = said.lines();
        let failed = lines.next().ok_or("a spawner says nothing")?;
        self.failed += failed.parse::<usize>().map_err(|e| format!("a spawner says {failed:?}: {e}"))?;
        for line in lines {
            let numbers: Vec<f64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
            let [life, execution] = numbers[..] else { return Err(format!("a spawner says {line:?}")) };
            self.lives.push(life);
            self.executions.push(execution);
        }
        Ok(())
    }
}

/// The share of those that are less than this, in percent.
pub(crate) fn shorter_than(lives: &[f64], nanoseconds: f64) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    100.0 * number(lives.iter().filter(|life| **life < nanoseconds).count()) / number(lives.len())
}

/// Whether it is that process, and no other.
fn is(attestation: &Attestation, pid: u32) -> bool {
    attestation.executions.iter().all(|execution| execution.pid == pid)
}

/// Lets so many come and go.
pub(crate) async fn come_and_go(
    station: &Station,
    ear: &Arc<Ear>,
    life: Life,
    count: usize,
) -> Result<Outcomes, String> {
    let (began, each) = (Instant::now(), count.div_ceil(SPAWNERS));
    let spawners = (0..SPAWNERS).map(|n| spawner(station, ear, life, n * each, each)).collect::<Result<Vec<_>, _>>()?;
    let mut spawners: Vec<JoinHandle<_>> =
        spawners.into_iter().map(|child| tokio::task::spawn_blocking(|| child.wait_with_output())).collect();
    let (mut outcomes, mut asking) = (Outcomes { started: SPAWNERS * each, ..Outcomes::default() }, JoinSet::new());
    loop {
        tokio::select! {
            accepted = ear.accept() => {
                let (stream, ear) = (accepted?, Arc::clone(ear));
                asking.spawn(hear(stream, ear));
            }
            Some(heard) = asking.join_next() => outcomes.hear(heard.map_err(|e| e.to_string())?),
            () = tokio::time::sleep(SILENCE) => if spawners.iter().all(JoinHandle::is_finished) { break },
        }
    }
    outcomes.seconds = began.elapsed().saturating_sub(SILENCE).as_secs_f64();
    for spawner in spawners.drain(..) {
        let output = spawner.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        outcomes.spawned(&String::from_utf8_lossy(&output.stdout))?;
    }
    Ok(outcomes)
}

fn spawner(station: &Station, ear: &Ear, life: Life, first: usize, count: usize) -> Result<Child, String> {
    let mut command = connecting(station, "a", "spawn", ear.address()?, &first.to_string());
    let what = if life == Life::Instant { "once" } else { "wait" };
    command
        .args([&count.to_string(), what])
        .arg(station.file("small-a"))
        .arg(station.file("small-b"))
        .spawn()
        .map_err(|e| e.to_string())
}

async fn hear(stream: TcpStream, ear: Arc<Ear>) -> Heard {
    let answer = ear.attribute(&stream).await;
    let said = tokio::time::timeout(SAYS, said(stream)).await.ok().flatten();
    Heard { answer, said }
}

async fn said(mut stream: TcpStream) -> Option<Said> {
    let mut bytes = [0; SAID];
    stream.read_exact(&mut bytes).await.ok()?;
    let (tag, numbers) = bytes.split_first()?;
    let (number, pid) = (numbers.first_chunk()?, numbers.last_chunk()?);
    let workload = match tag {
        b'A' => "bench/small-a",
        b'B' => "bench/small-b",
        _ => return None,
    };
    Some(Said { workload, number: u32::from_be_bytes(*number), pid: u32::from_be_bytes(*pid) })
}
