//! Live connections and the certificates at their ends: two enforcers, a tunnel between them, and a clock that travels.

use std::net::SocketAddr;

use bonafide_policy::Policy;
use bonafide_proto::clock::Clock as _;
use bonafide_proto::record::{EndedBy, Reason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::fake::{Fake, Issues};
use super::*;
use crate::identity::{About, Attested};
use crate::live::{Live, Peer, Program, Question, Seat};
use crate::record::Counters;
use crate::relay::{self, Beside, End};
use crate::renew::Renewals;
use crate::tunnel::frame::{Accept, FlowId, Open};
use crate::tunnel::testing::LEAF_TTL;
use crate::tunnel::{Leaf, Tunnel, client, server};

/// Renewal is due by then, however late it may be.
const ROTATION: i64 = LEAF_TTL / 2 + LEAF_TTL / 8 + 1;
/// Flows end so many seconds before their certificates expire.
const MARGIN: i64 = 2;

type Wire = tokio::io::DuplexStream;

/// One enforcer, and the program beside it.
struct Enforcer {
    identity: Identity,
    live: Arc<Live>,
    renewals: Renewals,
    of: Attestation,
    leaf: Arc<Leaf>,
    _policy: watch::Sender<Option<Arc<Policy>>>,
}

impl Enforcer {
    /// Its program is `workload`, and the other end's `other`.
    async fn new(fake: &Fake, workload: &str, other: &str) -> Self {
        let text = format!(
            "mode = 'enforce'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = '{workload}'\nexe = '/usr/bin/x'\ngid = 33\n\
             [[workload]]\nname = '{other}'\nexe = '/usr/bin/x'\ngid = 77\n\
             [[rule]]\nname = 'r'\nfrom = 'shop/web'\nto = 'shop/db'\naction = 'allow'\n"
        );
        let (policy, policies) = watch::channel(Some(Arc::new(Policy::parse("p.toml", &text).unwrap())));
        let identity = client(fake);
        arrived(&mut identity.trust(), |_| true).await;
        let (quarantine, memory) = (identity.quarantine(), identity.memory());
        let live = Arc::new(Live::new(policies, quarantine, memory, identity.trust(), fake.mesh.hand.clone()));
        let of = attestation(Some(workload));
        let leaf = identity.leaf(&of).await.unwrap();
        let renewals = Renewals::new(Arc::clone(&live), identity.clone());
        Self { identity, live, renewals, of, leaf, _policy: policy }
    }

    fn program(&self) -> Program {
        let (attestation, as_of) = (Arc::new(self.of.clone()), self.identity.memory().as_of());
        let attested = Attested { attestation, as_of, about: About::key(key()) };
        Program::new(self.of.workload.clone().unwrap(), attested).showing(self.leaf.shown())
    }
}

/// An open connection through two enforcers: the programs' ends, and how each enforcer's end of it goes.
struct Connection {
    web: TcpStream,
    db: TcpStream,
    ends: [JoinHandle<End>; 2],
}

async fn loopback() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn carry(app: TcpStream, tunnel: Tunnel<Wire>, beside: Beside, mut seat: Seat) -> JoinHandle<End> {
    tokio::spawn(async move { relay::tunnel(app, tunnel, beside, &Counters::default(), &mut seat).await })
}

async fn connect(fake: &Fake, [web, db]: [&Enforcer; 2]) -> Connection {
    let (trust, (near, far)) = (fake.mesh.trust(), tokio::io::duplex(64 * 1024));
    let (c, s) = tokio::join!(client::handshake(near, &web.leaf, &trust), server::handshake(far, &db.leaf, &trust));
    let (c, s) = (c.unwrap(), s.unwrap());
    let port = 5432;
    let from_web = Question { from: web.program().judged(), to: Peer::of(c.peer()).unwrap().judged(), port };
    let from_db = Question { from: Peer::of(s.peer()).unwrap().judged(), to: db.program().judged(), port };
    let (addr, id) = (SocketAddr::from(([10, 0, 0, 1], 4000)), FlowId::random());
    let accept = async { s.await_open().await.unwrap().1.accept(Accept { port }).await.unwrap() };
    let (opened, accepted) = tokio::join!(c.open(Open { id, client: addr, asked: addr }), accept);
    let ((web_app, web_far), (db_app, db_far)) = (loopback().await, loopback().await);
    let seats = (web.live.enter(Some(from_web)).unwrap(), db.live.enter(Some(from_db)).unwrap());
    let ends = [
        carry(web_far, opened.unwrap().1, Beside::Source, seats.0),
        carry(db_far, accepted, Beside::Destination, seats.1),
    ];
    Connection { web: web_app, db: db_app, ends }
}

async fn pass(from: &mut TcpStream, to: &mut TcpStream, seed: u8) {
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8 ^ seed).collect();
    let mut seen = vec![0; sent.len()];
    let (wrote, read) = tokio::join!(from.write_all(&sent), to.read_exact(&mut seen));
    wrote.unwrap();
    read.unwrap();
    assert!(seen == sent, "bytes were changed on their way");
}

async fn ended(connection: Connection) -> [End; 2] {
    let [web, db] = connection.ends;
    let ended = async { [web.await.unwrap(), db.await.unwrap()] };
    timeout(LONG, ended).await.expect("both ends end")
}

/// Both ends' certificates, as this enforcer knows them, are as new as can be.
fn renewed(at: &Enforcer, fake: &Fake) -> bool {
    at.live.expiries().iter().all(|until| *until == fake.mesh.hand.unix() + LEAF_TTL)
}

#[tokio::test]
async fn a_live_connection_survives_ten_rotations_of_leaf_and_node_certificate_and_ends_before_one_that_fails() {
    for half_closed in [false, true] {
        let fake = Fake::start();
        let (mut web, mut db) =
            (Enforcer::new(&fake, "shop/web", "shop/db").await, Enforcer::new(&fake, "shop/db", "shop/web").await);
        let mut connection = connect(&fake, [&web, &db]).await;
        pass(&mut connection.web, &mut connection.db, 1).await;
        if half_closed {
            connection.web.shutdown().await.unwrap();
            assert_eq!(connection.db.read(&mut [0]).await.unwrap(), 0);
        }
        for rotation in 1..=10 {
            fake.mesh.renew_node();
            fake.mesh.hand.advance(ROTATION);
            let sides = std::sync::Mutex::new((&mut web, &mut db));
            until("both ends know later certificates of both", async || {
                let (web, db) = &mut *sides.lock().unwrap();
                web.renewals.look();
                db.renewals.look();
                renewed(web, &fake) && renewed(db, &fake)
            })
            .await;
            if !half_closed {
                pass(&mut connection.web, &mut connection.db, 2).await;
            }
            pass(&mut connection.db, &mut connection.web, 3).await;
            let leaf = db.identity.leaf(&db.of).await.unwrap();
            assert_eq!(leaf.svid().issuer().unwrap().number, 1 + rotation, "by the node's renewed certificate");
        }
        assert_eq!(fake.orders(), 2 * 11, "one for each program and rotation");
        assert!(connection.ends.iter().all(|end| !end.is_finished()));

        fake.issue(Issues::Refusal);
        fake.mesh.hand.advance(LEAF_TTL - MARGIN - 1);
        web.renewals.look();
        assert_eq!((web.live.end_expired(), db.live.end_expired()), (0, 0), "it is valid still");
        fake.mesh.hand.advance(1);
        web.renewals.look();
        db.renewals.look();
        for end in ended(connection).await {
            let why = end.why.unwrap();
            match end.by {
                EndedBy::Enforcer => assert_eq!(why.reason, Reason::CertificateExpired, "{why:?}"),
                _ => assert!(why.detail.ends_with("certificate-expired"), "{why:?}"),
            }
        }
    }
}

#[tokio::test]
async fn who_does_not_show_a_later_certificate_is_not_waited_for_beyond_its_expiry() {
    let fake = Fake::start();
    let (mut web, db) =
        (Enforcer::new(&fake, "shop/web", "shop/db").await, Enforcer::new(&fake, "shop/db", "shop/web").await);
    let connection = connect(&fake, [&web, &db]).await;
    // The other end's enforcer renews nothing, and would go on for ever.
    fake.mesh.hand.advance(ROTATION);
    let side = std::sync::Mutex::new(&mut web);
    until("this end has a later one", async || {
        let web = &mut *side.lock().unwrap();
        web.renewals.look();
        web.live.expiries().contains(&(fake.mesh.hand.unix() + LEAF_TTL))
    })
    .await;
    fake.mesh.hand.advance(LEAF_TTL - ROTATION - MARGIN);
    web.renewals.look();
    let [at_web, at_db] = ended(connection).await;
    let why = at_web.why.unwrap();
    assert_eq!((at_web.by, why.reason), (EndedBy::Enforcer, Reason::CertificateExpired));
    assert!(why.detail.contains("of shop/db is valid until"), "{}", why.detail);
    assert_eq!((at_db.by, at_db.why.unwrap().reason), (EndedBy::Peer, Reason::EndedByPeer));
}

#[tokio::test]
async fn who_shows_a_later_certificate_of_somebody_else_is_cut_off() {
    let fake = Fake::start();
    let (web, db) =
        (Enforcer::new(&fake, "shop/web", "shop/db").await, Enforcer::new(&fake, "shop/db", "shop/web").await);
    let connection = connect(&fake, [&web, &db]).await;
    let of_another = Arc::new(fake.mesh.leaf("shop/admin"));
    assert_eq!(db.live.refresh(db.leaf.svid().serial(), &of_another), 1);
    let [at_web, _] = ended(connection).await;
    let why = at_web.why.unwrap();
    assert_eq!((at_web.by, why.reason), (EndedBy::Enforcer, Reason::PeerCertificate));
    assert_eq!(
        why.detail,
        "the peer was shop/db of node node-a, and its later certificate is of shop/admin of node node-a"
    );
}

#[tokio::test]
async fn a_flow_does_not_begin_by_a_certificate_that_is_about_to_expire() {
    let fake = Fake::start();
    let web = Enforcer::new(&fake, "shop/web", "shop/db").await;
    let peer = Peer::of(fake.mesh.leaf("shop/db").svid()).unwrap();
    let question = Question { from: web.program().judged(), to: peer.judged(), port: 1 };
    drop(web.live.enter(Some(question.clone())).unwrap());
    fake.mesh.hand.advance(LEAF_TTL - MARGIN);
    assert_eq!(web.live.enter(Some(question)).unwrap_err().reason, Reason::CertificateExpired);
}
