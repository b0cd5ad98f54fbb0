//! The source's end of a connection: a program of this host connected, and TPROXY brought the connection here.
//!
//! Read [`carry`] first: it is the whole story.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bonafide_policy::{Mode, Place, Policy, SameHost, Subject, Verdict};
use bonafide_proto::flow::{FlowKey, SocketRole, canonical};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::{End, Reason, Transport};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::flow::{
    CONNECT_TIMEOUT, Ended, Grant, HANDSHAKE_TIMEOUT, Node, finish, judge, program, refuse, scope, unknown_address,
    why_denied, why_late, why_no_svid, why_tunnel,
};
use crate::live::{Judged, Peer, Program, Question, Seat};
use crate::record::{Account, Why, describe_peer};
use crate::relay::{self, Beside};
use crate::sys::dial::{self, Reserved};
use crate::tunnel::ending::{Cause, Ending};
use crate::tunnel::frame::Open;
use crate::tunnel::{self, Tunnel};
use crate::{inbound, sys};

/// Where it is told how long the attribution of a connection took, well or not, and when it was over.
const ATTRIBUTION: &str = "bonafide_enforcer::attribution";

/// One connection, from capture to record.
pub(crate) async fn carry(app: TcpStream, accepted: Instant, node: &Arc<Node>) -> Ended {
    let captured = match Captured::new(app, node) {
        Ok(captured) => captured,
        Err(ended) => return ended,
    };
    let began = Instant::now();
    let attributed = captured.attribute(node).await;
    let (nanos, since_accepted) = (began.elapsed().as_nanos(), accepted.elapsed().as_nanos());
    tracing::trace!(target: ATTRIBUTION, nanos, since_accepted, "attributed");
    let way = match attributed.captured.way(node) {
        Ok(way) => way,
        Err(why) => return attributed.refuse(&why),
    };
    match way {
        Way::SameHost => attributed.deliver_here(node).await,
        Way::SameHostTls => attributed.deliver_here_by_tls(node).await,
        Way::Mesh => attributed.through_the_mesh(node).await,
        Way::Clear => attributed.in_the_clear(node).await,
    }
}

/// How the destination is reached. A matter of addresses and mode alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Both programs are here: both are attributed, nothing is encrypted.
    SameHost,
    /// Both programs are here, and policy wants TLS between the two halves.
    SameHostTls,
    /// Another host of the mesh.
    Mesh,
    /// Outside the mesh, or anywhere unless it enforces: whether the far end is captured is not known yet.
    Clear,
}

/// A connection as the kernel handed it over.
struct Captured {
    app: TcpStream,
    /// The program's own address.
    client: SocketAddr,
    /// Where it goes, after local NAT.
    dialled: SocketAddr,
    /// Where the program wanted to go, before local NAT.
    asked: SocketAddr,
    policy: Arc<Policy>,
    account: Account,
}

impl Captured {
    fn new(app: TcpStream, node: &Node) -> Result<Self, Ended> {
        let policy = node.policy();
        let mode = policy.as_ref().map_or("none", |p| p.mode().as_str());
        let mut account = Account::open(&node.records, End::Source, mode);
        let policy = match policy {
            Ok(policy) => policy,
            Err(why) => return Err(refuse(app, account, &why)),
        };
        let (client, dialled) = match (app.peer_addr(), app.local_addr()) {
            (Ok(client), Ok(dialled)) => (client, dialled),
            (Err(e), _) | (_, Err(e)) => {
                // The program was faster than we: nobody is left to be connected.
                let why = Why::new(Reason::Unattributed, format!("the connection was gone before it was seen: {e}"));
                return Err(refuse(app, account, &why));
            }
        };
        let asked = sys::captured::original_dst(&app).ok().flatten().unwrap_or(dialled);
        account.addresses(canonical(client), canonical(dialled), (asked != dialled).then_some(canonical(asked)));
        if node.is_own_listener(dialled) {
            let why = Why::new(Reason::OwnListener, "the destination is the enforcer's own capture port");
            return Err(refuse(app, account, &why));
        }
        Ok(Self { app, client, dialled, asked, policy, account })
    }

    fn way(&self, node: &Node) -> Result<Way, Why> {
        let local = node.locality.is_local(self.dialled.ip());
        let local =
            local.map_err(|e| Why::new(Reason::Internal, format!("the kernel's routes cannot be asked: {e}")))?;
        Ok(match (local, self.policy.mode(), self.policy.place(canonical(self.dialled).ip())) {
            (true, Mode::Enforce, _) if self.policy.same_host() == SameHost::Mtls => Way::SameHostTls,
            (true, ..) => Way::SameHost,
            (false, Mode::Enforce, Place::Mesh) => Way::Mesh,
            (false, ..) => Way::Clear,
        })
    }

    fn refuse(self, why: &Why) -> Ended {
        refuse(self.app, self.account, why)
    }

    /// A connection that was reset while its owner was looked up proves nothing about that owner: another program
    /// may hold a new socket of the same addresses by now, and the old one's bytes could still be read here.
    fn still_open(&self) -> Result<(), Why> {
        match self.app.peer_addr() {
            Ok(peer) if peer == self.client => Ok(()),
            _ => Err(Why::new(Reason::Unattributed, "the program ended the connection while its owner was looked up")),
        }
    }

    /// Whose socket is it?
    async fn attribute(mut self, node: &Node) -> Attributed {
        let key = FlowKey { netns: node.netns, local: self.client, remote: self.asked, role: SocketRole::Connector };
        let attested = node.identity.attest_accepted(&self.app, key).await;
        if let Ok(attested) = &attested {
            node.describe(self.account.source(), attested);
        }
        let program = program(attested).and_then(|program| node.admit(program));
        let program = program.and_then(|program| self.still_open().map(|()| program));
        Attributed { captured: self, program }
    }
}

/// The program is known, or the doubt has a name.
struct Attributed {
    captured: Captured,
    program: Result<Program, Why>,
}

impl Attributed {
    fn refuse(self, why: &Why) -> Ended {
        self.captured.refuse(why)
    }

    fn workload(&self) -> Result<&WorkloadName, Why> {
        self.program.as_ref().map(|p| &p.workload).map_err(Clone::clone)
    }

    /// Another host of the mesh: its program's identity is what its certificate proves.
    async fn through_the_mesh(self, node: &Arc<Node>) -> Ended {
        if let Err(why) = self.may_try() {
            return self.refuse(&why);
        }
        let Captured { client, dialled, .. } = self.captured;
        match dial::connect_from(client.ip(), dialled, CONNECT_TIMEOUT).await {
            Ok(wire) => self.over(wire, node).await,
            Err(e) => {
                self.refuse(&Why::new(Reason::Unreachable, format!("{} cannot be reached: {e}", canonical(dialled))))
            }
        }
    }

    /// This host, but policy wants the two halves of this enforcer to speak TLS to each other.
    async fn deliver_here_by_tls(mut self, node: &Arc<Node>) -> Ended {
        if let Err(why) = self.may_try() {
            // The other half never hears of it.
            self.captured.account.both_ends();
            return self.refuse(&why);
        }
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (client, dialled) = (self.captured.client, self.captured.dialled);
        let other_half = Box::pin(inbound::carry(far, client, dialled, node));
        let (ended, other) = tokio::join!(Box::pin(self.over(near, node)), other_half);
        let _ = other;
        ended
    }

    /// No certificate is shown and nothing is dialled for a program that no rule could let through.
    fn may_try(&self) -> Result<(), Why> {
        let workload = self.workload()?;
        if self.captured.policy.may_reach_mesh(workload) {
            return Ok(());
        }
        let dialled = self.captured.dialled;
        let remedy =
            self.captured.policy.remedy(&Subject::Workload(workload), &Subject::Outside(dialled), dialled.port());
        let remedy = remedy.map(|remedy| remedy.to_string());
        Err(Why { remedy, ..Why::new(Reason::NoRule, format!("no rule allows {workload} to reach any workload")) })
    }

    /// Handshake, verdict, relay.
    async fn over<S>(mut self, wire: S, node: &Arc<Node>) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match self.authorize(wire, node).await {
            Ok(authorized) => {
                let Authorized { tunnel, grant, mut seat } = authorized;
                let Captured { app, mut account, .. } = self.captured;
                account.transport(Transport::Mtls);
                grant.enter(&mut account);
                let counters = account.counters();
                let end = relay::tunnel(app, tunnel, Beside::Source, &counters, &mut seat).await;
                finish(account, end)
            }
            Err(why) => self.refuse(&why),
        }
    }

    async fn authorize<S>(&mut self, wire: S, node: &Arc<Node>) -> Result<Authorized<S>, Why>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let program = self.program.clone()?;
        let leaf = node.identity.leaf(&program.attestation).await;
        let leaf = leaf.map_err(|e| why_no_svid(&e))?;
        let program = node.admit(program.showing(leaf.shown()))?;
        let workload = &program.workload;
        let trust = node.trust()?;
        let handshake = timeout(HANDSHAKE_TIMEOUT, tunnel::client::handshake(wire, &leaf, &trust.trust));
        let client = handshake.await.map_err(|_| why_late("the handshake", HANDSHAKE_TIMEOUT))?;
        let client = client.map_err(|e| why_tunnel(&e))?;

        let account = &mut self.captured.account;
        describe_peer(account.destination(), client.peer());
        account.tls(client.facts());
        let peer = Peer::of(client.peer())?;
        let policy = &self.captured.policy;
        if let Err(why) = node.accept(&peer, policy) {
            let _ = timeout(HANDSHAKE_TIMEOUT, client.leave(Ending::of(why.reason, None))).await;
            return Err(why);
        }
        // Behind port forwarding the program listens on another port than was dialled: the far end says which.
        // A peer that no rule allows on any port does not even learn what was asked.
        if !policy.may_reach(workload, &peer.workload)
            && let Verdict::Deny(denied) = policy.decide(
                &Subject::Workload(workload),
                &Subject::Workload(&peer.workload),
                self.captured.dialled.port(),
            )
        {
            return Err(why_denied(denied));
        }
        let open = Open {
            id: account.flow_id(),
            client: canonical(self.captured.client),
            asked: canonical(self.captured.asked),
        };
        // The other end connects to its program before it answers.
        let limit = HANDSHAKE_TIMEOUT + CONNECT_TIMEOUT;
        let opened = timeout(limit, client.open(open)).await.map_err(|_| why_late("opening the flow", limit))?;
        let (accept, tunnel) = opened.map_err(|e| why_tunnel(&e))?;

        let question = Question { from: program.judged(), to: peer.judged(), port: accept.port };
        let verdict = verdict_on(policy, &question, self.captured.dialled.port());
        let granted = judge(Mode::Enforce, Ok(verdict)).and_then(|grant| Ok((grant, node.live.enter(Some(question))?)));
        match granted {
            Ok((grant, seat)) => Ok(Authorized { tunnel, grant, seat }),
            Err(why) => {
                let (_, mut writer) = tunnel.into_split();
                let _ = timeout(HANDSHAKE_TIMEOUT, writer.reset(Cause::Refused.into())).await;
                Err(why)
            }
        }
    }

    /// Both programs are on this host: both are looked at here.
    async fn deliver_here(mut self, node: &Arc<Node>) -> Ended {
        self.captured.account.both_ends();
        match self.authorize_here(node).await {
            Ok((destination, grant, mut seat)) => {
                let Captured { app, mut account, .. } = self.captured;
                account.transport(Transport::SameHost);
                grant.enter(&mut account);
                let counters = account.counters();
                let end = relay::clear(app, destination, &counters, &mut seat.ended).await;
                finish(account, end)
            }
            Err(why) => self.refuse(&why),
        }
    }

    async fn authorize_here(&mut self, node: &Arc<Node>) -> Result<(TcpStream, Grant, Seat), Why> {
        let dialled = self.captured.dialled;
        let reserved = Reserved::bind(self.captured.client.ip(), scope(self.captured.client))
            .map_err(|e| Why::new(Reason::Limit, format!("no port to deliver from: {e}")))?;
        let key = FlowKey { netns: node.netns, local: dialled, remote: reserved.local(), role: SocketRole::Listener };
        let attested = node.identity.attest(key).await;
        if let Ok(attested) = &attested {
            node.describe(self.captured.account.destination(), attested);
        }
        let to = program(attested).and_then(|program| node.admit(program));
        let question = self
            .program
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|from| Ok(Question { from: from.judged(), to: to?.judged(), port: dialled.port() }));
        let policy = &self.captured.policy;
        let verdict = question.as_ref().map(|q| q.ask(policy)).map_err(Clone::clone);
        let grant = judge(policy.mode(), verdict)?;
        let destination = reserved.connect(dialled, CONNECT_TIMEOUT).await;
        let destination = destination
            .map_err(|e| Why::new(Reason::Unreachable, format!("{} cannot be reached: {e}", canonical(dialled))))?;
        let seat = node.live.enter(question.ok().filter(|_| policy.mode() == Mode::Enforce))?;
        Ok((destination, grant, seat))
    }

    /// Outside the mesh by a rule, or anywhere in shadow mode.
    async fn in_the_clear(mut self, node: &Arc<Node>) -> Ended {
        match self.authorize_clear(node).await {
            Ok((destination, grant, mut seat)) => {
                let Captured { app, mut account, .. } = self.captured;
                account.transport(Transport::Clear);
                grant.enter(&mut account);
                let counters = account.counters();
                let end = relay::clear(app, destination, &counters, &mut seat.ended).await;
                finish(account, end)
            }
            Err(why) => self.refuse(&why),
        }
    }

    async fn authorize_clear(&mut self, node: &Arc<Node>) -> Result<(TcpStream, Grant, Seat), Why> {
        let dialled = canonical(self.captured.dialled);
        let policy = Arc::clone(&self.captured.policy);
        let outside = policy.place(dialled.ip()) == Place::Outside;
        let (grant, question) = if outside {
            let name = policy.outside(dialled).map(ToOwned::to_owned);
            let known = name.is_some();
            self.captured.account.destination().outside = name;
            let question = self.program.as_ref().map_err(Clone::clone).map(|from| Question {
                from: from.judged(),
                to: Judged::Outside(dialled),
                port: dialled.port(),
            });
            let verdict = question
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|question| if known { Ok(question.ask(&policy)) } else { Err(unknown_address(dialled)) });
            (judge(policy.mode(), verdict)?, question.ok())
        } else {
            // Shadow mode towards the mesh: who listens there is not known in the clear.
            match self.may_try() {
                Ok(()) => (Grant::undecided(), None),
                Err(why) => (judge(policy.mode(), Err(why))?, None),
            }
        };
        let Captured { client, dialled, .. } = self.captured;
        let destination = dial::connect_from(client.ip(), dialled, CONNECT_TIMEOUT).await;
        let destination = destination
            .map_err(|e| Why::new(Reason::Unreachable, format!("{} cannot be reached: {e}", canonical(dialled))))?;
        let seat = node.live.enter(question.filter(|_| policy.mode() == Mode::Enforce))?;
        Ok((destination, grant, seat))
    }
}

/// The policy allows it at both addresses and names; what is left is to carry it.
struct Authorized<S> {
    tunnel: Tunnel<S>,
    grant: Grant,
    seat: Seat,
}

/// The verdict of the source's end, on the port that the destination's end says its program listens on.
///
/// Behind port forwarding that is not the port dialled. But where this program has business with somebody on the
/// port it dialled, a peer may not take that flow over by naming another port on which it would be allowed.
fn verdict_on(policy: &Policy, accepted: &Question, dialled: u16) -> Verdict {
    if let Some(from) = accepted.from.workload()
        && accepted.port != dialled
        && policy.expects_on(from, dialled)
    {
        let as_dialled = policy.decide(&accepted.from.subject(), &accepted.to.subject(), dialled);
        if !as_dialled.is_allow() {
            return as_dialled;
        }
    }
    accepted.ask(policy)
}
