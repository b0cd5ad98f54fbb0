//! From a change at the authority to the last node that knows it.

use std::time::Instant;

use bonafide_proto::wire::authority as wire;

use super::authority::Seat;
use super::fleet::{Fleet, Times};
use super::{CLAIMED, LAST, REST, count};
use crate::burden::Burden;
use crate::report::{Claim, Report};

/// What several changes took and cost.
#[derive(Default)]
struct Rounds {
    /// Of all nodes and rounds.
    all: Times,
    /// Until the operator's command came back, in seconds.
    answered: Vec<f64>,
    theirs: f64,
    ours: f64,
    /// What nobody said to have in time.
    untold: usize,
}

/// Certificates are revoked by their serial numbers.
pub(super) async fn revocations(
    seat: &Seat,
    fleet: &mut Fleet,
    rounds: usize,
    idle: f64,
    report: &mut Report,
) -> Result<(), String> {
    let mut all = Rounds::default();
    for round in 1..=rounds {
        let number = u64::try_from(round).unwrap_or(u64::MAX);
        let what = wire::revoke_request::What::Serial(number.to_be_bytes().to_vec());
        let request = wire::RevokeRequest { what: Some(what), lift: false, reason: "benchmark".to_owned() };
        let round = Round::begin(seat)?;
        let mut admin = seat.admin();
        let revoked = async { admin.revoke(request).await.map(|said| (said, Instant::now())) };
        let (revoked, told) = tokio::join!(revoked, fleet.all_told_state(number, round.began));
        let (said, at) = revoked.map_err(|e| format!("not revoked: {}", e.message()))?;
        let said = said.into_inner();
        all.untold += usize::try_from(said.nodes.saturating_sub(said.told)).unwrap_or(usize::MAX);
        round.end(seat, told?, at, idle, &mut all).await?;
    }
    all.report("revocation", fleet.size(), report);
    Ok(())
}

/// Policies of a hundred rules are published.
pub(super) async fn policies(
    seat: &Seat,
    fleet: &mut Fleet,
    rounds: usize,
    idle: f64,
    report: &mut Report,
) -> Result<(), String> {
    let mut all = Rounds::default();
    for round in 1..=rounds {
        let version = u64::try_from(round).unwrap_or(u64::MAX);
        let request =
            wire::PublishPolicyRequest { text: policy(round), author: "benchmark".to_owned(), ..Default::default() };
        let round = Round::begin(seat)?;
        let mut admin = seat.admin();
        let published = async { admin.publish_policy(request).await.map(|said| (said, Instant::now())) };
        let (published, told) = tokio::join!(published, fleet.all_told_policy(version, round.began));
        let (said, at) = published.map_err(|e| format!("not published: {}", e.message()))?;
        all.untold += said.into_inner().nodes.iter().filter(|node| node.in_force != version).count();
        round.end(seat, told?, at, idle, &mut all).await?;
    }
    all.report(&format!("policy of {} KiB", policy(1).len() / 1024), fleet.size(), report);
    Ok(())
}

fn policy(round: usize) -> String {
    let rule = |number| {
        format!(
            "[[rule]]\nname = \"r{number}\"\nallow = true\nfrom = \"shop/{number}\"\nto = \"shop/db\"\nports = [{round}]\n"
        )
    };
    (1..=100).map(rule).collect()
}

/// A change that is on its way.
struct Round {
    began: Instant,
    theirs: Burden,
    ours: Burden,
}

impl Round {
    fn begin(seat: &Seat) -> Result<Self, String> {
        Ok(Self { theirs: seat.burden()?, ours: Burden::ours()?, began: Instant::now() })
    }

    /// What it cost is known when nobody has anything to say about it any more.
    async fn end(self, seat: &Seat, told: Times, answered: Instant, idle: f64, all: &mut Rounds) -> Result<(), String> {
        tokio::time::sleep(REST).await;
        let seconds = self.began.elapsed().as_secs_f64();
        all.theirs += seat.burden()?.cpu - self.theirs.cpu - idle * seconds;
        all.ours += Burden::ours()?.cpu - self.ours.cpu;
        all.answered.push(answered.saturating_duration_since(self.began).as_secs_f64());
        all.all.extend(told);
        Ok(())
    }
}

impl Rounds {
    fn report(self, what: &str, nodes: usize, report: &mut Report) {
        let claim = if nodes <= CLAIMED { Claim::AtMost(LAST) } else { Claim::Nothing };
        let rounds = count(self.answered.len());
        let times = [("p50", self.all.percentile(50)), ("p99", self.all.percentile(99)), ("last", self.all.last())];
        for (which, seconds) in times {
            report.add(format!("{what}: until a node has it, {which}"), seconds * 1e3, "ms", claim);
        }
        let answered = self.answered.iter().copied().fold(0.0, f64::max);
        report.add(format!("{what}: until the operator is told so, at most"), answered * 1e3, "ms", Claim::Nothing);
        report.count(format!("{what}: nodes that did not say so in time"), self.untold, Claim::AtMost(0.0));
        let each = |cpu: f64| cpu / rounds / count(nodes) * 1e6;
        report.add(
            format!("{what}: processor time of the authority, each node"),
            each(self.theirs),
            "us",
            Claim::Nothing,
        );
        report.add(format!("{what}: processor time of its node"), each(self.ours), "us", Claim::Nothing);
    }
}
