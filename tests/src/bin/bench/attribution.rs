//! Attribution of an accepted connection as the enforcer does it, warm: with few and with many processes and sockets
//! about, in turns. Beside it the fallback, without the kernel programs.

use std::net::SocketAddr;
use std::time::Instant;

use bonafide_proto::refusal::AttestRefusal;

use crate::report::{Claim, Report, median, percentile};
use crate::station::{Ear, Source, Station, connecting};

/// Microseconds.
const P50: f64 = 20.0;
const P99: f64 = 100.0;
/// How much slower it may be with 500 times the processes, or 2,000 times the sockets.
const FLAT: f64 = 1.5;

/// Processes and open sockets in the station's network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    processes: usize,
    sockets: usize,
}

const SMALL: Load = Load { processes: 10, sockets: 10 };
const MANY_PROCESSES: Load = Load { processes: 5_000, ..SMALL };
const MANY_SOCKETS: Load = Load { sockets: 20_000, ..SMALL };
const QUICK: &[Load] = &[SMALL, MANY_PROCESSES, MANY_SOCKETS];
const ALL: &[Load] =
    &[SMALL, Load { processes: 1_000, ..SMALL }, MANY_PROCESSES, Load { sockets: 2_000, ..SMALL }, MANY_SOCKETS];

/// Measures both curves.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(curves(quick, report))
}

async fn curves(quick: bool, report: &mut Report) -> Result<(), String> {
    report.part("Attribution on the enforcer's hot path, warm");
    let station = Station::build("att")?;
    let _daemons = [station.identityd(Source::Kernel), station.identityd(Source::Proc)];
    let (rounds, loads) = if quick { (3, QUICK) } else { (5, ALL) };
    let mut curves = Curve::each(&station, quick)?;
    for curve in &curves {
        curve.ear.ready(&station).await?;
    }
    for round in 0..rounds {
        // Each of them comes after another one in each round.
        for turn in 0..loads.len() {
            let Some(load) = loads.get((turn + round) % loads.len()) else { continue };
            let _processes = station.processes(load.processes)?;
            let _sockets = station.sockets(load.sockets)?;
            for curve in &mut curves {
                curve.measure(&station, *load).await?;
            }
        }
    }
    curves.iter().for_each(|curve| curve.tell(loads, report));
    Ok(())
}

/// What one source takes for connections of one family.
struct Curve {
    name: String,
    claims: bool,
    ear: Ear,
    /// Connections in each turn.
    each: usize,
    /// Microseconds, of each turn.
    turns: Vec<(Load, Vec<f64>)>,
    /// Those of connections that were refused: the fallback may take longer than the enforcer waits.
    refused: Vec<Load>,
}

impl Curve {
    fn each(station: &Station, quick: bool) -> Result<Vec<Self>, String> {
        let each = |source| match source {
            Source::Kernel => {
                if quick {
                    1_000
                } else {
                    4_000
                }
            }
            Source::Proc => {
                if quick {
                    4
                } else {
                    10
                }
            }
        };
        let families = [SocketAddr::from(([127, 0, 0, 1], 0)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0))];
        let both = [Source::Kernel, Source::Proc].into_iter().flat_map(|source| families.map(|on| (source, on)));
        both.map(|(source, on)| {
            let what = if source == Source::Kernel { "kernel" } else { "fallback" };
            let name = format!("{what}, {}", if on.is_ipv4() { "IPv4" } else { "IPv6" });
            let (claims, ear) = (source == Source::Kernel, station.ear(source, on)?);
            Ok(Self { name, claims, ear, each: each(source), turns: Vec::new(), refused: Vec::new() })
        })
        .collect()
    }

    async fn measure(&mut self, station: &Station, load: Load) -> Result<(), String> {
        let answers = attribute(station, &self.ear, self.each).await;
        let answers = answers.map_err(|e| format!("{}, {load}: {e}", self.name))?;
        let refused = answers.iter().filter(|(_, refusal)| refusal.is_some());
        self.refused.extend(refused.map(|_| load));
        if let Some(refusal) = answers.iter().find_map(|(_, refusal)| refusal.as_ref().filter(|_| self.claims)) {
            return Err(format!("{}, {load}: refused: {refusal}", self.name));
        }
        self.turns.push((load, answers.into_iter().map(|(took, _)| took).collect()));
        Ok(())
    }

    fn tell(&self, loads: &[Load], report: &mut Report) {
        let claim = |most| if self.claims { Claim::AtMost(most) } else { Claim::Nothing };
        for load in loads {
            let took: Vec<f64> = self.turns_of(*load).flatten().copied().collect();
            report.add(format!("{}, {load}: p50", self.name), median(took.clone()), "us", claim(P50));
            if self.claims {
                report.add(format!("{}, {load}: p99", self.name), percentile(took, 99), "us", claim(P99));
            } else {
                let refused = self.refused.iter().filter(|of| *of == load).count();
                report.count(format!("{}, {load}: refused", self.name), refused, Claim::Nothing);
            }
        }
        for load in loads.iter().filter(|load| **load != SMALL) {
            let name = |of| format!("{}, {load} / {SMALL}: {of}", self.name);
            report.add(name("p50"), self.ratio(*load, 50), "", claim(FLAT));
            if self.claims {
                report.add(name("p99"), self.ratio(*load, 99), "", Claim::Nothing);
            }
        }
    }

    fn turns_of(&self, load: Load) -> impl Iterator<Item = &Vec<f64>> {
        self.turns.iter().filter(move |(of, _)| *of == load).map(|(_, took)| took)
    }

    /// How much slower than with little about: each round by itself, and of those the middle one.
    fn ratio(&self, load: Load, hundredths: usize) -> f64 {
        let of = |took: &Vec<f64>| percentile(took.clone(), hundredths);
        let rounds = self.turns_of(load).zip(self.turns_of(SMALL));
        median(rounds.map(|(large, small)| of(large) / of(small)).collect())
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            SMALL => write!(f, "{} of each", SMALL.processes),
            Self { processes, sockets } if sockets == SMALL.sockets => write!(f, "{processes} processes"),
            Self { sockets, .. } => write!(f, "{sockets} sockets"),
        }
    }
}

/// Microseconds from accepted to attributed or refused, of each connection after the first few.
async fn attribute(station: &Station, ear: &Ear, count: usize) -> Result<Vec<(f64, Option<AttestRefusal>)>, String> {
    let unmeasured = count / 10 + 1;
    let total = (count + unmeasured).to_string();
    let mut child = connecting(station, "a", "hold", ear.address()?, &total).spawn().map_err(|e| e.to_string())?;
    let mut answers = Vec::with_capacity(count);
    for n in 0..count + unmeasured {
        let stream = ear.accept().await?;
        let began = Instant::now();
        let answer = ear.attribute(&stream).await;
        let elapsed = began.elapsed().as_secs_f64() * 1e6;
        if let Ok(attestation) = &answer
            && attestation.workload.as_ref().is_none_or(|workload| workload.as_str() != "bench/a")
        {
            return Err(format!("connection {n} is taken for {:?}", attestation.workload));
        }
        if n >= unmeasured {
            answers.push((elapsed, answer.err()));
        }
    }
    let _ = child.wait();
    Ok(answers)
}
