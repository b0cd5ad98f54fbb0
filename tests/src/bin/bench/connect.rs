//! What the kernel programs add to a `connect()` on loopback, refused and established: with none of them, and as they are
//! loaded for attribution, for an enforcer that captures, and for one that observes, in turns.

use std::net::SocketAddr;

use crate::counted::{Counting, run_time};
use crate::report::{Claim, Report, median};
use crate::station::{Source, Station, connecting};

/// Microseconds.
const ADDED: f64 = 2.0;
/// Where nobody listens.
const CLOSED: u16 = 9;

/// Which programs are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    None,
    Attribution,
    /// As every enforcer has it that captures: flows are told of, too, but those of connections are not.
    Enforcing,
    Observing,
}

impl Loaded {
    const ALL: [Self; 4] = [Self::None, Self::Attribution, Self::Enforcing, Self::Observing];

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Attribution => "attribution alone",
            Self::Enforcing => "as in enforce mode",
            Self::Observing => "as in observe mode",
        }
    }

    fn claim(self) -> Claim {
        match self {
            Self::Attribution | Self::Enforcing => Claim::AtMost(ADDED),
            Self::None | Self::Observing => Claim::Nothing,
        }
    }
}

/// What is done, and with which programs loaded: what it took in each round.
struct Course {
    how: &'static str,
    to: SocketAddr,
    took: [Vec<f64>; Loaded::ALL.len()],
}

/// Measures both families.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(costs(quick, report))
}

async fn costs(quick: bool, report: &mut Report) -> Result<(), String> {
    report.part("connect() on loopback, its median in each round");
    let station = Station::build("con")?;
    let (rounds, count) = if quick { (8, "3000") } else { (24, "5000") };
    let v4 = SocketAddr::from(([127, 0, 0, 1], CLOSED));
    let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], CLOSED));
    let course = |how, to| Course { how, to, took: Default::default() };
    let mut courses =
        ["refused", "met"].into_iter().flat_map(|how| [v4, v6].map(|to| course(how, to))).collect::<Vec<_>>();
    for round in 0..rounds {
        for (which, loaded) in order(round) {
            let _identityd = (loaded != Loaded::None).then(|| station.identityd(Source::Kernel));
            let _told = match loaded {
                Loaded::None | Loaded::Attribution => None,
                Loaded::Enforcing => Some(station.told_of_flows(false).await?),
                Loaded::Observing => Some(station.told_of_flows(true).await?),
            };
            for course in &mut courses {
                let took = connects(&station, course.how, course.to, count)?;
                course.took.get_mut(which).into_iter().for_each(|all| all.push(took));
            }
        }
    }
    courses.iter().for_each(|course| course.tell(report));
    each_end(&station, [v4, v6], count, report).await
}

/// What is refused runs this end's programs alone; what is established, both ends'. Their difference is not the other
/// end's: what nobody takes, as of all that is refused, has to be put elsewhere when the next one comes to its place.
async fn each_end(station: &Station, to: [SocketAddr; 2], count: &str, report: &mut Report) -> Result<(), String> {
    report.part("Run time of the kernel programs in a connect(), as the kernel counts it, counting included");
    let identityd = station.identityd(Source::Kernel);
    let _told = station.told_of_flows(false).await?;
    let _counting = Counting::begin()?;
    let number: f64 = count.parse().map_err(|e| format!("{count}: {e}"))?;
    for to in to {
        let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
        let took = |how| {
            let before = run_time(identityd.pid())?;
            connects(station, how, to, count)?;
            Ok::<_, String>((run_time(identityd.pid())? - before) / number / 1e3)
        };
        let (this, both) = (took("refused")?, took("met")?);
        report.add(format!("{family}, this end's programs (refused)"), this, "us", Claim::AtMost(ADDED));
        report.add(format!("{family}, both ends' programs (established on loopback)"), both, "us", Claim::Nothing);
    }
    Ok(())
}

/// Another beginning in each round, and every other round backwards: nobody always comes after the same one.
fn order(round: usize) -> Vec<(usize, Loaded)> {
    let mut order: Vec<_> = Loaded::ALL.into_iter().enumerate().collect();
    order.rotate_left(round / 2 % Loaded::ALL.len());
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

impl Course {
    fn tell(&self, report: &mut Report) {
        let what = if self.how == "met" { "established" } else { "refused" };
        let family = if self.to.is_ipv4() { "IPv4" } else { "IPv6" };
        let [none, ..] = &self.took;
        report.add(format!("{what}, {family}, no programs"), median(none.clone()), "us", Claim::Nothing);
        for (loaded, took) in Loaded::ALL.iter().zip(&self.took).skip(1) {
            let added = took.iter().zip(none).map(|(with, without)| with - without).collect();
            let name = format!("{what}, {family}, added {}", loaded.name());
            report.add(name, median(added), "us", loaded.claim());
        }
    }
}

/// The median of so many, in microseconds.
fn connects(station: &Station, how: &str, to: SocketAddr, count: &str) -> Result<f64, String> {
    let output = connecting(station, "a", how, to, count).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(format!("{to} was not {how}: {}", output.status));
    }
    let nanos = String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse::<f64>().ok()).collect();
    Ok(median(nanos) / 1e3)
}
