//! A copy of a node's keys shows itself, and so does another machine that has them; a crash in the middle of a renewal does
//! not.

use std::sync::Arc;

use bonafide_ca::attestor::Proof;
use bonafide_ca::node::MembershipError;
use bonafide_ca::store::By;
use bonafide_ca::{AuthorityLink as _, Machine, NodeCa, NodeSetup};
use bonafide_proto::record::Reason;
use bonafide_proto::svid::{Expect, PeerSvid};
use bonafide_proto::wire::authority as wire;

use crate::bench::{
    Domain, INTERMEDIATE_TTL, LOOPBACKS, Served, csr, fingerprint, follow, instant, refusal, setup, until,
};

/// A copy of what a node has on disk.
fn clone_of(served: &Served, name: &str) -> NodeCa {
    let (from, to) = (setup(served.dir.path(), name).state, served.dir.path().join("clone"));
    let copied = std::process::Command::new("cp").args(["-a"]).arg(&from).arg(&to).status().unwrap();
    assert!(copied.success());
    NodeCa::open(NodeSetup { state: to, ..setup(served.dir.path(), name) }, served.clock.clone()).unwrap()
}

async fn suspicion(served: &Served, node: &str) -> String {
    let listed = served.admin().list_nodes(wire::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    listed.into_iter().find(|n| n.name == node).unwrap().suspect
}

#[tokio::test]
async fn a_copy_of_the_keys_is_superseded_once_the_node_has_used_newer_ones() {
    for ip in LOOPBACKS {
        let served = Served::on(ip).await;
        drop(served.member("a").await);
        let clone = clone_of(&served, "a");
        let node = Arc::new(NodeCa::open(setup(served.dir.path(), "a"), served.clock.clone()).unwrap());
        let stolen = clone.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap();
        served.clock.forward(i64::from(INTERMEDIATE_TTL) / 2);
        node.renew(&served.link()).await.unwrap();
        // Nobody has used the new one, so either may be the node that crashed before it could keep it.
        clone.follow_once(&served).await.unwrap();
        node.follow_once(&served).await.unwrap();
        let following = follow(&node, served.link());
        assert_eq!(suspicion(&served, "a").await, "");
        // What was on its way at that moment is taken; a minute later it is not.
        clone.follow_once(&served).await.unwrap();
        served.clock.forward(61);
        let refused = clone.follow_once(&served).await.unwrap_err();
        assert_eq!(refusal(&refused), "superseded");
        assert_eq!(refusal(&clone.renew(&served.link()).await.unwrap_err()), "superseded");
        assert!(suspicion(&served, "a").await.contains("certificate 1 after its certificate 2"));
        // What the copy issues is worth nothing, and the node goes on.
        let bundle = node.trust_bundle().unwrap();
        let verify = |chain: &[_]| bundle.verify(chain, instant(&served.clock), Expect::Workload);
        let known = || node.mesh().borrow().revoked.clone();
        until(|| !known().nodes.is_empty()).await;
        let of = |svid: &PeerSvid| known().issuer(svid.issuer().unwrap()).map(|(reason, _)| reason);
        if let Ok(stolen) = verify(&stolen.chain) {
            assert_eq!(of(&stolen), Some(Reason::NodeRevoked));
        }
        let own = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap();
        assert_eq!(of(&verify(&own.chain).unwrap()), None);
        node.renew(&served.link()).await.unwrap();
        following.abort();
    }
}

trait FollowOnce {
    async fn follow_once(&self, served: &Served) -> Result<(), MembershipError>;
}

impl FollowOnce for NodeCa {
    /// Comes by its certificate, and goes away again.
    async fn follow_once(&self, served: &Served) -> Result<(), MembershipError> {
        let (_held, says) = tokio::sync::watch::channel(bonafide_ca::mesh::Held::default());
        let followed = served.link().follow(&self.member().unwrap(), self.machine(), says).await;
        followed.map(drop).map_err(MembershipError::from)
    }
}

#[tokio::test]
async fn a_crash_between_renewal_and_keeping_it_does_not_lock_the_node_out() {
    let served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    for _ in 0..3 {
        served.clock.forward(120);
        // The authority renewed, and the answer was lost.
        let lost = served.link().renew(&node.member().unwrap(), node.machine(), csr(&[]), csr(&[])).await;
        assert!(lost.is_ok());
    }
    node.follow_once(&served).await.unwrap();
    node.renew(&served.link()).await.unwrap();
    node.follow_once(&served).await.unwrap();
    assert_eq!(node.member().unwrap().issuer().unwrap().number, 5);
    assert_eq!(suspicion(&served, "a").await, "");
}

#[tokio::test]
async fn a_machine_of_another_name_is_refused_and_the_node_is_suspect() {
    for ip in LOOPBACKS {
        let served = Served::on(ip).await;
        let node = served.member("a").await;
        let other = |bios: &str, id: &str| Machine { bios_uuid: bios.into(), machine_id: id.into() };
        let Machine { bios_uuid, machine_id } = node.machine().clone();
        let member = node.member().unwrap();
        for machine in [other("stolen", &machine_id), other(&bios_uuid, "stolen"), other("", "")] {
            if machine == *node.machine() {
                continue;
            }
            let link = served.link();
            let renewed = link.renew(&member, &machine, csr(&[]), csr(&[])).await.map(drop);
            let (_held, says) = tokio::sync::watch::channel(bonafide_ca::mesh::Held::default());
            let followed = link.follow(&member, &machine, says).await.map(drop);
            for outcome in [renewed, followed] {
                assert_eq!(refusal(&outcome.unwrap_err().into()), "machine-changed");
            }
        }
        assert!(suspicion(&served, "a").await.contains("is not that of the machine that joined"));
        // The node itself is none the worse for it, and a new admission starts anew.
        node.renew(&served.link()).await.unwrap();
        node.join(&served.link(), &served.token("a").await).await.unwrap();
        assert_eq!(suspicion(&served, "a").await, "");
    }
}

#[tokio::test]
async fn a_copy_that_renews_when_newer_keys_are_in_use_shows_itself_at_once() {
    let served = Served::on("127.0.0.1").await;
    drop(served.member("a").await);
    let clone = clone_of(&served, "a");
    let node = Arc::new(NodeCa::open(setup(served.dir.path(), "a"), served.clock.clone()).unwrap());
    node.renew(&served.link()).await.unwrap();
    node.follow_once(&served).await.unwrap();
    // Within the time in which it could still come to listen.
    assert_eq!(refusal(&clone.renew(&served.link()).await.unwrap_err()), "superseded");
    assert!(suspicion(&served, "a").await.contains("certificate 1 after its certificate 2"));
    node.renew(&served.link()).await.unwrap();
}

/// What a machine of these identifiers applies by.
fn application(node: &str, bios_uuid: &str, machine_id: &str) -> bonafide_ca::Application {
    bonafide_ca::Application {
        node: node.parse().unwrap(),
        signing_csr: csr(&[]),
        authentication_csr: csr(&[]),
        bios_uuid: bios_uuid.into(),
        machine_id: machine_id.into(),
    }
}

#[tokio::test]
async fn a_copied_certificate_of_another_pki_takes_no_members_name_to_another_machine() {
    let domain = Domain::new();
    let certified = |node: &str, bios_uuid: &str, machine_id: &str| {
        let application = application(node, bios_uuid, machine_id);
        domain.authority.enrol(&application, Proof::Certified(None)).map(drop).map_err(|refusal| refusal.as_str())
    };
    assert_eq!(certified("a", "board-1", "first"), Ok(()));
    assert_eq!(certified("a", "board-1", "set-up-anew"), Ok(()));
    assert_eq!(certified("a", "board-2", "set-up-anew"), Err("machine-changed"));
    assert_eq!(certified("a", "board-1", "set-up-anew"), Err("suspect"), "until its operator has looked");
    domain.authority.clear_suspicion(&By::Uid(0), &"a".parse().unwrap(), "looked").unwrap();
    assert_eq!(certified("a", "board-1", "set-up-anew"), Ok(()));
    // Where there is no UUID, the machine ID is all there is.
    assert_eq!(certified("b", "", "first"), Ok(()));
    assert_eq!(certified("b", "", "second"), Err("machine-changed"));
    // Nobody is a member by certificates that have expired.
    domain.clock.forward(i64::from(INTERMEDIATE_TTL) + 1);
    assert_eq!(certified("a", "board-2", "second"), Ok(()));
}

#[tokio::test]
async fn a_token_may_be_for_one_machine_alone() {
    let domain = Domain::new();
    let bound = |uuid: &str| {
        let terms = bonafide_ca::authority::TokenTerms { ttl: 600, bios_uuid: Some(uuid.into()), ..Default::default() };
        domain.authority.create_token(terms).unwrap().0
    };
    let apply = |bios_uuid: &str| application("a", bios_uuid, "");
    let token = bound("4C4C4544-0042");
    for other in ["", "4c4c4544-0043"] {
        let refused = domain.authority.join(token.secret(), &apply(other)).unwrap_err();
        assert_eq!(refused.as_str(), "token-for-another-machine");
    }
    domain.authority.join(token.secret(), &apply("4c4c4544-0042")).unwrap();
}

#[tokio::test]
async fn an_operator_clears_a_suspicion_and_both_are_written_down_once() {
    let served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    let stolen = Machine { bios_uuid: "stolen".into(), machine_id: "stolen".into() };
    let comes = async || {
        let renewed = served.link().renew(&node.member().unwrap(), &stolen, csr(&[]), csr(&[])).await;
        assert_eq!(refusal(&renewed.map(drop).unwrap_err().into()), "machine-changed");
    };
    let clear = async |node: &str, reason: &str| {
        let request = wire::ClearSuspicionRequest { node: node.into(), reason: reason.into() };
        served.admin().clear_suspicion(request).await.map(|answer| answer.into_inner().was)
    };
    assert_eq!(clear("a", "").await.unwrap(), "", "it is not suspect");
    for _ in 0..3 {
        comes().await;
    }
    let why = suspicion(&served, "a").await;
    assert_eq!(clear("a", "a restored disk").await.unwrap(), why);
    assert_eq!(suspicion(&served, "a").await, "");
    comes().await;
    assert_eq!(suspicion(&served, "a").await, why, "it happened again");
    assert_eq!(clear("nobody", "").await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(clear("a", "two\nlines").await.unwrap_err().code(), tonic::Code::InvalidArgument);

    let page = served.admin().show_audit(wire::ShowAuditRequest { from: 0 }).await.unwrap().into_inner();
    let entries: Vec<bonafide_proto::audit::Entry> =
        page.entries.iter().map(|entry| serde_json::from_slice(entry).unwrap()).collect();
    let about: Vec<&str> =
        entries.iter().map(|entry| entry.act.as_str()).filter(|act| act.starts_with("susp")).collect();
    assert_eq!(about, ["suspect", "suspicion-cleared", "suspect"]);
    let cleared = entries.iter().find(|entry| entry.act == "suspicion-cleared").unwrap();
    assert_eq!((&cleared.about["why"], cleared.about["reason"].as_str()), (&why, "a restored disk"));
}
