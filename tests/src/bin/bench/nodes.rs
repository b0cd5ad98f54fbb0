//! Many nodes of one authority: all of them join at once, are told of revocations and policies, and come again when the
//! authority was away.
//!
//! The authority is the program that is shipped, in a process and a network namespace of its own, with its store on the
//! disk. The nodes live in this process: each has its own address, keys, token, certificates and TLS connection, and asks
//! and listens by the code of the node CA. They have no disk, so what a node CA writes down and passes on to identityd is
//! not in it. Both sides share this machine's processors, which many nodes would not; so what either costs stands apart.

mod authority;
mod fleet;
mod told;

use std::time::Duration;

use bonafide_tests::netns::Netns;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::burden::Burden;
use crate::report::{Claim, Report};
use authority::Seat;
use fleet::Fleet;

/// From a change to the last node that knows it, in milliseconds.
const LAST: f64 = 1_000.0;
/// Up to so many nodes.
const CLAIMED: usize = 1_000;
/// How long the authority is left alone, to see what it does then.
const IDLE: Duration = Duration::from_secs(5);
/// What it costs to be idle is measured, and what the next step costs is not, once the last one is over.
const REST: Duration = Duration::from_millis(500);

/// Measures for so many nodes, or for several numbers of them.
pub(crate) fn measure(quick: bool, nodes: Option<usize>, report: &mut Report) -> Result<(), String> {
    let all: &[usize] = if quick { &[50, 100] } else { &[100, 1_000, 5_000] };
    let numbers = nodes.map_or(all.to_vec(), |nodes| vec![nodes]);
    may_open_many_files()?;
    numbers.into_iter().try_for_each(|nodes| mesh(nodes, if quick { 5 } else { 20 }, report))
}

/// Each node has one, and so has the authority, which sees to that itself.
fn may_open_many_files() -> Result<(), String> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).map_err(|e| format!("open files: {e}"))
}

fn mesh(nodes: usize, rounds: usize, report: &mut Report) -> Result<(), String> {
    let netns = Netns::create(&format!("bt{}-nodes-{nodes}", std::process::id()));
    fleet::addresses(&netns, nodes)?;
    let seat = Seat::start(netns)?;
    report.part(&format!("{nodes} nodes of one authority"));
    let measured = seat.netns.within(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
        runtime.block_on(live(&seat, nodes, rounds, report))
    });
    measured.map_err(|why| format!("{nodes} nodes: {why}; the authority's last words: {}", seat.last_words()))
}

async fn live(seat: &Seat, nodes: usize, rounds: usize, report: &mut Report) -> Result<(), String> {
    let before = seat.burden()?;
    let tokens = seat.tokens(nodes).await?;
    let mut fleet = Fleet::prepare(seat, tokens)?;
    join(seat, &mut fleet, report).await?;
    let each = count(nodes);
    tokio::time::sleep(REST).await;
    report.add("resident memory of the authority, all of it", seat.burden()?.resident / MIB, "MiB", Claim::Nothing);
    let grown = seat.burden()?.resident - before.resident;
    report.add("resident memory of the authority, more for each node", grown / each / 1024.0, "KiB", Claim::Nothing);
    let idle = idle(seat, each, report).await?;
    told::revocations(seat, &mut fleet, rounds, idle, report).await?;
    told::policies(seat, &mut fleet, rounds, idle, report).await?;
    again(seat, &mut fleet, report).await
}

const MIB: f64 = 1024.0 * 1024.0;

/// All at once.
async fn join(seat: &Seat, fleet: &mut Fleet, report: &mut Report) -> Result<(), String> {
    let (theirs, ours) = (seat.burden()?, Burden::ours()?);
    let began = fleet.set_out();
    let joined = fleet.all_joined(began).await?;
    let follow = fleet.all_follow(began).await?;
    let nodes = count(fleet.size());
    report.add("all join at once: until the last is a member", joined.last(), "s", Claim::Nothing);
    report.add("all join at once: until the last is told what is revoked", follow.last(), "s", Claim::Nothing);
    report.count("all join at once: refused, or failed for good", fleet.refused(), Claim::AtMost(0.0));
    // More than are claimed may take two processors longer than a node waits for its answer.
    let once = if fleet.size() <= CLAIMED { Claim::AtMost(0.0) } else { Claim::Nothing };
    report.count("all join at once: had to ask again", fleet.repeated(), once);
    let theirs = (seat.burden()?.cpu - theirs.cpu) / nodes;
    report.add("processor time of the authority for each that joined", theirs * 1e3, "ms", Claim::Nothing);
    let ours = (Burden::ours()?.cpu - ours.cpu) / nodes;
    report.add("processor time of its node for each that joined", ours * 1e3, "ms", Claim::Nothing);
    Ok(())
}

/// What the authority costs in a second in which nothing changes.
async fn idle(seat: &Seat, nodes: f64, report: &mut Report) -> Result<f64, String> {
    let before = seat.burden()?;
    tokio::time::sleep(IDLE).await;
    let each_second = (seat.burden()?.cpu - before.cpu) / IDLE.as_secs_f64();
    let name = "processor time of the authority, idle, for each node and second";
    report.add(name, each_second / nodes * 1e6, "us", Claim::Nothing);
    Ok(each_second)
}

/// The authority is killed and started again.
async fn again(seat: &Seat, fleet: &mut Fleet, report: &mut Report) -> Result<(), String> {
    let theirs = seat.restart().await?;
    let began = fleet.begin_again();
    let back = fleet.all_follow(began).await?;
    report.add(
        "the authority was killed: from its start to the last that follows again",
        back.last(),
        "s",
        Claim::Nothing,
    );
    report.count("the authority was killed: nodes refused", fleet.refused(), Claim::AtMost(0.0));
    let theirs = (seat.burden()?.cpu - theirs.cpu) / count(fleet.size());
    report.add("processor time of the authority for each that came again", theirs * 1e3, "ms", Claim::Nothing);
    Ok(())
}

fn count(of: usize) -> f64 {
    f64::from(u32::try_from(of).unwrap_or(u32::MAX))
}
