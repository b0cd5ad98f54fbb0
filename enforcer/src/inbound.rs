//! The destination's end of a connection: it came from another host, and TPROXY brought it here.
//!
//! Read [`carry`] first: it is the whole story. The server's certificate is that of the program that listens on
//! the port, so the listener is attributed before the handshake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bonafide_policy::{Mode, Place, Policy, Verdict};
use bonafide_proto::flow::{FlowKey, SocketRole, canonical};
use bonafide_proto::record::{End, Reason, Transport};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::flow::{
    Abort, CONNECT_TIMEOUT, Ended, Grant, HANDSHAKE_TIMEOUT, Node, finish, judge, listener_now, program, refuse, scope,
    why_late, why_no_svid, why_tunnel,
};
use crate::live::{Judged, Peer, Program, Question, Seat};
use crate::record::{Account, Why, describe_peer};
use crate::relay::{self, Beside};
use crate::sys::dial::Reserved;
use crate::tunnel::frame::{Accept, RefuseCode};
use crate::tunnel::sniff::{Rewind, Speaks, sniff};
use crate::tunnel::{self, Tunnel, TunnelError};

/// How long a peer that has to speak `bonafide/1` may be silent. Enforcers speak at once.
const PATIENCE_MESH: Duration = Duration::from_secs(5);
/// How long we wait for a possible `bonafide/1` hello of a client that may also be in the clear:
/// the delay that protocols in which the server speaks first have with outside clients.
const PATIENCE_CLEAR: Duration = Duration::from_millis(150);

/// A connection that TPROXY brought: its own addresses are the ones that count.
pub(crate) async fn accepted(far: TcpStream, node: &Arc<Node>) -> Ended {
    match (far.peer_addr(), far.local_addr()) {
        (Ok(from), Ok(dialled)) => carry(far, from, dialled, node).await,
        (Err(e), _) | (_, Err(e)) => {
            let account = Account::open(&node.records, End::Destination, "none");
            let why = Why::new(Reason::NotBonafide, format!("the connection was gone before it was seen: {e}"));
            Ended::without_stream(account, &why)
        }
    }
}

/// One connection, from capture to record. `from` and `dialled` are the addresses of the TCP connection.
pub(crate) async fn carry<S>(far: S, from: SocketAddr, dialled: SocketAddr, node: &Arc<Node>) -> Ended
where
    S: AsyncRead + AsyncWrite + Abort + Unpin + Send,
{
    let captured = match Captured::new(far, from, dialled, node) {
        Ok(captured) => captured,
        Err(ended) => return ended,
    };
    let attributed = match captured.attribute(node).await {
        Ok(attributed) => attributed,
        Err(ended) => return ended,
    };
    let (attributed, speaks) = match attributed.listen().await {
        Ok(heard) => heard,
        Err(ended) => return ended,
    };
    match speaks {
        Speaks::Bonafide => attributed.over_the_mesh(node).await,
        Speaks::Other | Speaks::Silent => attributed.in_the_clear(speaks, node).await,
    }
}

/// A connection as the kernel handed it over.
struct Captured<S> {
    far: S,
    from: SocketAddr,
    dialled: SocketAddr,
    policy: Arc<Policy>,
    account: Account,
}

impl<S: Abort> Captured<S> {
    fn new(far: S, from: SocketAddr, dialled: SocketAddr, node: &Node) -> Result<Self, Ended> {
        let policy = node.policy();
        let mode = policy.as_ref().map_or("none", |p| p.mode().as_str());
        let mut account = Account::open(&node.records, End::Destination, mode);
        account.addresses(canonical(from), canonical(dialled), None);
        let policy = match policy {
            Ok(policy) => policy,
            Err(why) => return Err(refuse(far, account, &why)),
        };
        if node.is_own_listener(dialled) {
            let why = Why::new(Reason::OwnListener, "the destination is the enforcer's own capture port");
            return Err(refuse(far, account, &why));
        }
        Ok(Self { far, from, dialled, policy, account })
    }

    /// Who listens on that port? The delivery's own port is reserved first, so that of several listeners the
    /// one is named that the kernel will choose.
    async fn attribute(mut self, node: &Node) -> Result<Attributed<S>, Ended> {
        let reserved = match Reserved::bind(self.from.ip(), scope(self.from)) {
            Ok(reserved) => reserved,
            Err(e) => {
                let why = Why::new(Reason::Limit, format!("no port to deliver from: {e}"));
                return Err(refuse(self.far, self.account, &why));
            }
        };
        let key =
            FlowKey { netns: node.netns, local: self.dialled, remote: reserved.local(), role: SocketRole::Listener };
        let attested = node.identity.attest(key).await;
        match &attested {
            Ok(attested) => node.describe(self.account.destination(), attested),
            // Shadow mode refuses nothing: a listener bound to a device is not found this way, and serves all the same.
            Err(AttestRefusal { reason: AttestReason::NoSocket, .. }) if self.policy.mode() == Mode::Enforce => {
                let why = Why::new(Reason::Unreachable, format!("nobody listens on {}", canonical(self.dialled)));
                return Err(refuse(self.far, self.account, &why));
            }
            Err(_) => {}
        }
        let Self { far, from, dialled, policy, account } = self;
        let program = program(attested).and_then(|program| node.admit(program));
        let known = Known { from, dialled, policy, account, program };
        Ok(Attributed { far, reserved, known })
    }
}

/// The program that listens is known, or the doubt has a name.
struct Attributed<S> {
    far: S,
    reserved: Reserved,
    known: Known,
}

/// All that is known of the flow, without its two connections.
struct Known {
    from: SocketAddr,
    dialled: SocketAddr,
    policy: Arc<Policy>,
    account: Account,
    program: Result<Program, Why>,
}

impl Known {
    /// The question whether this source may reach the program in the clear.
    fn clear_question(&self) -> Result<Question, Why> {
        let to = self.program.as_ref().map_err(Clone::clone)?;
        Ok(Question { from: Judged::Outside(canonical(self.from)), to: to.judged(), port: self.dialled.port() })
    }

    /// May this source reach the program in the clear? Never from within the mesh.
    fn clear_verdict(&self) -> Result<Verdict, Why> {
        let from = canonical(self.from);
        if self.policy.place(from.ip()) == Place::Mesh {
            let detail = format!("{from} is in the mesh but does not speak bonafide/1");
            return Err(Why::new(Reason::NotBonafide, detail));
        }
        Ok(self.clear_question()?.ask(&self.policy))
    }

    fn patience(&self) -> Duration {
        match (self.policy.mode(), self.clear_verdict()) {
            (Mode::Observe | Mode::Shadow, _) | (_, Ok(Verdict::Allow(_))) => PATIENCE_CLEAR,
            _ => PATIENCE_MESH,
        }
    }
}

impl<S> Attributed<S>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin + Send,
{
    /// What does the peer speak? Its first bytes are kept and heard again by whoever goes on.
    async fn listen(self) -> Result<(Attributed<Rewind<S>>, Speaks), Ended> {
        let Self { far, reserved, known } = self;
        if let (Err(why), Mode::Enforce) = (&known.program, known.policy.mode()) {
            let why = why.clone();
            return Err(refuse(far, known.account, &why));
        }
        match sniff(far, known.patience()).await {
            Ok((speaks, far)) => Ok((Attributed { far, reserved, known }, speaks)),
            Err(e) => {
                let why = Why::new(Reason::NotBonafide, format!("the connection broke before it said anything: {e}"));
                Err(Ended::without_stream(known.account, &why))
            }
        }
    }
}

impl<S> Attributed<Rewind<S>>
where
    S: AsyncRead + AsyncWrite + Abort + Unpin + Send,
{
    /// Another enforcer: mutual TLS, the same policy, decided again at this end.
    async fn over_the_mesh(self, node: &Arc<Node>) -> Ended {
        let Self { far, reserved, mut known } = self;
        // The tunnel tells an end from a break by itself, and a reset could overtake its last words.
        far.disarm();
        match known.authorize(far, reserved, node).await {
            Ok(Authorized { tunnel, app, grant, mut seat }) => {
                let mut account = known.account;
                account.transport(Transport::Mtls);
                grant.enter(&mut account);
                let counters = account.counters();
                let end = relay::tunnel(app, tunnel, Beside::Destination, &counters, &mut seat).await;
                finish(account, end)
            }
            Err(why) => Ended::without_stream(known.account, &why),
        }
    }

    /// An outside client by a rule, or anybody in shadow mode.
    async fn in_the_clear(self, speaks: Speaks, node: &Arc<Node>) -> Ended {
        let Self { far, reserved, mut known } = self;
        match known.authorize_clear(speaks, reserved, node).await {
            Ok((app, grant, mut seat)) => {
                let mut account = known.account;
                account.transport(Transport::Clear);
                grant.enter(&mut account);
                let counters = account.counters();
                let end = relay::clear(far, app, &counters, &mut seat.ended).await;
                finish(account, end)
            }
            Err(why) => refuse(far, known.account, &why),
        }
    }
}

impl Known {
    /// Does the program still listen that was named before the handshake? Its port may have changed hands while
    /// the peer took its time.
    async fn listens_still(&self, node: &Node) -> Result<(), Why> {
        let Ok(before) = &self.program else { return Ok(()) };
        let changed = |detail: String| Why::new(Reason::Unattributed, detail);
        let (_spare, key) =
            listener_now(before.about.key).map_err(|e| Why::new(Reason::Limit, format!("no port to ask from: {e}")))?;
        let now = program(node.identity.attest(key).await)
            .map_err(|why| changed(format!("looked at again, the listener is in doubt: {}", why.detail)))?;
        match before.changed(&now.attestation) {
            None => Ok(()),
            Some(now) => Err(changed(format!("the port changed hands during the handshake: {}", now.how))),
        }
    }

    async fn authorize_clear(
        &mut self,
        speaks: Speaks,
        reserved: Reserved,
        node: &Arc<Node>,
    ) -> Result<(TcpStream, Grant, Seat), Why> {
        let source = canonical(self.from).ip();
        let shadow = self.policy.mode() != Mode::Enforce;
        self.account.source().outside = self.policy.outside_source(source).map(ToOwned::to_owned);
        let grant = match (shadow && self.policy.place(source) == Place::Mesh, &self.program) {
            // In the clear the source's program is not known.
            (true, Ok(_)) => Grant::undecided(),
            (true, Err(why)) => judge(Mode::Shadow, Err(why.clone()))?,
            (false, _) => judge(self.policy.mode(), self.clear_verdict()).map_err(|why| unheard(why, speaks))?,
        };
        let app = reserved.connect(self.dialled, CONNECT_TIMEOUT).await;
        let app = app.map_err(|e| unreachable(self.dialled, &e))?;
        if !shadow {
            self.listens_still(node).await?;
        }
        let seat = match self.clear_question() {
            Ok(question) if !shadow => node.live.enter(Some(question))?,
            _ => node.live.enter(None)?,
        };
        Ok((app, grant, seat))
    }

    async fn authorize<S>(&mut self, far: S, reserved: Reserved, node: &Arc<Node>) -> Result<Authorized<S>, Why>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let program = self.program.clone()?;
        let leaf = node.identity.leaf(&program.attestation).await;
        let leaf = leaf.map_err(|e| why_no_svid(&e))?;
        let program = node.admit(program.showing(leaf.shown()))?;
        let trust = node.trust()?;
        let handshake = timeout(HANDSHAKE_TIMEOUT, tunnel::server::handshake(far, &leaf, &trust.trust));
        let server = handshake.await.map_err(|_| why_late("the handshake", HANDSHAKE_TIMEOUT))?;
        let server = server.map_err(|e| why_tunnel(&e))?;
        describe_peer(self.account.source(), server.peer());
        self.account.tls(server.facts());
        let peer = Peer::of(server.peer())?;
        let opened = timeout(HANDSHAKE_TIMEOUT, server.await_open()).await;
        let (open, pending) =
            opened.map_err(|_| why_late("opening the flow", HANDSHAKE_TIMEOUT))?.map_err(|e| match e {
                // The other end looked at our certificate and went away without a word.
                TunnelError::Truncated | TunnelError::Io(_) => {
                    Why::new(Reason::RefusedByPeer, format!("the source's enforcer left after the handshake: {e}"))
                }
                e => why_tunnel(&e),
            })?;
        self.account.rename(open.id);
        // What the peer says about addresses is written down, and used for nothing.
        let claimed = (open.client != canonical(self.from)).then_some(open.client);
        self.account.addresses(canonical(self.from), canonical(self.dialled), claimed);

        let accepted = node.accept(&peer, &self.policy);
        let question = Question { from: peer.judged(), to: program.judged(), port: self.dialled.port() };
        let verdict = accepted.map(|()| question.ask(&self.policy));
        let granted = judge(self.policy.mode(), verdict).and_then(|grant| {
            let question = Some(question).filter(|_| self.policy.mode() == Mode::Enforce);
            Ok((grant, node.live.enter(question)?))
        });
        let (grant, seat) = match granted {
            Ok(granted) => granted,
            Err(why) => {
                let _ = timeout(HANDSHAKE_TIMEOUT, pending.refuse(refusal(&why))).await;
                return Err(why);
            }
        };
        let app = match reserved.connect(self.dialled, CONNECT_TIMEOUT).await {
            Ok(app) => app,
            Err(e) => {
                let _ = timeout(HANDSHAKE_TIMEOUT, pending.refuse(RefuseCode::Unreachable)).await;
                return Err(unreachable(self.dialled, &e));
            }
        };
        if let Err(why) = self.listens_still(node).await {
            let _ = timeout(HANDSHAKE_TIMEOUT, pending.refuse(RefuseCode::Unattributed)).await;
            return Err(why);
        }
        let tunnel = pending.accept(Accept { port: self.dialled.port() }).await.map_err(|e| why_tunnel(&e))?;
        Ok(Authorized { tunnel, app, grant, seat })
    }
}

/// The policy allows it, and the program took the connection; what is left is to carry it.
struct Authorized<S> {
    tunnel: Tunnel<S>,
    app: TcpStream,
    grant: Grant,
    seat: Seat,
}

/// What the peer learns: a revocation by its name, which is no secret; else that the policy says no.
fn refusal(why: &Why) -> RefuseCode {
    match RefuseCode::from(why.reason) {
        revoked @ (RefuseCode::NodeRevoked | RefuseCode::WorkloadRevoked | RefuseCode::SerialRevoked) => revoked,
        _ => RefuseCode::Policy,
    }
}

/// A peer that had to speak `bonafide/1` and was silent.
fn unheard(mut why: Why, speaks: Speaks) -> Why {
    if matches!(speaks, Speaks::Silent) && why.reason == Reason::NotBonafide {
        why.detail.push_str(": it said nothing");
    }
    why
}

fn unreachable(addr: SocketAddr, e: &std::io::Error) -> Why {
    Why::new(Reason::Unreachable, format!("the program on {} did not take the connection: {e}", canonical(addr)))
}
