use std::net::SocketAddr;

use bonafide_proto::fingerprint::{Digest, Evidence, Execution, Fingerprint, HashedFile, Host, Script};
use bonafide_proto::flow::{FlowKey, NetNs, SocketRole};
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::program::CertifiedProgram;
use bonafide_proto::record::NearMiss;
use bonafide_proto::revoked::Revoked;
use bonafide_proto::svid::Issuer;
use bonafide_proto::taint::Taints;

use super::*;
use crate::identity::{About, Attested, Process, Socket};
use crate::tunnel::testing::{Hand, Mesh, T0};

const OPEN: &str = "mode = 'enforce'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'a'\nexe = '/a'\n[[workload]]\nname = 'b'\nexe = '/b'\n";
const RULE: &str = "[[rule]]\nname = 'r'\nfrom = 'a'\nto = 'b'\naction = 'allow'\n";

fn policy(text: &str) -> Arc<Policy> {
    Arc::new(Policy::parse("p.toml", text).unwrap())
}

fn allowing() -> Arc<Policy> {
    policy(&format!("{OPEN}{RULE}"))
}

/// A table and what it asks.
struct World {
    live: Arc<Live>,
    memory: Arc<Memory>,
    quarantine: watch::Sender<Arc<Quarantine>>,
    policy: watch::Sender<Option<Arc<Policy>>>,
}

fn world(first: &Arc<Policy>) -> World {
    let (policy, policies) = watch::channel(Some(Arc::clone(first)));
    let (quarantine, quarantined) = watch::channel(Arc::default());
    let memory = Arc::new(Memory::default());
    memory.ready();
    let live = Arc::new(Live::new(policies, quarantined, Arc::clone(&memory), watch::channel(None).1, Hand::at(T0)));
    live.judge_again(first);
    World { live, memory, quarantine, policy }
}

impl World {
    fn program(&self, pid: u32) -> Program {
        let as_of = self.memory.as_of();
        let (local, remote) = addresses(pid);
        let key = FlowKey { netns: NetNs(1), local, remote, role: SocketRole::Connector };
        Program::new(name("a"), Attested { attestation: attestation(pid, |_| ()), as_of, about: About::key(key) })
    }

    /// A flow of the program `a` in that process.
    fn enter(&self, pid: u32) -> Seat {
        self.live.enter(Some(question(self.program(pid).judged()))).unwrap()
    }

    fn lapse(&self, what: Lapsed) -> usize {
        let lapse = Lapse { what, why: "it changed".into(), at_ns: 5 };
        self.memory.hear(lapse.clone());
        self.live.hear(&lapse)
    }

    fn settle(&self, doubt: &Doubt, answer: Result<Arc<Attestation>, AttestReason>) -> usize {
        let answer = answer.map_err(|reason| AttestRefusal::new(reason, "as said"));
        self.live.settle(doubt, self.memory.as_of(), &answer)
    }
}

fn name(text: &str) -> WorkloadName {
    text.parse().unwrap()
}

fn execution(pid: u32) -> Execution {
    Execution { pid, start_ticks: 1, image: 2 }
}

fn process(pid: u32) -> Process {
    execution(pid).into()
}

fn addresses(pid: u32) -> (SocketAddr, SocketAddr) {
    (SocketAddr::from(([10, 0, 0, 1], u16::try_from(pid).unwrap())), "10.0.0.2:80".parse().unwrap())
}

fn socket(pid: u32) -> Socket {
    let (local, remote) = addresses(pid);
    Socket::new(local, remote)
}

fn attestation(pid: u32, but: impl FnOnce(&mut Attestation)) -> Arc<Attestation> {
    let absent = || Evidence::Absent("none".into());
    let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
    let exe = HashedFile { path: "/a".into(), digest: Digest::of(b"a") };
    let mut attestation = Attestation {
        executions: vec![execution(pid)],
        fingerprint: Fingerprint::of(exe, (0, 0), host),
        account: 0,
        workload: Some(name("a")),
        near_misses: vec![],
        source: "kernel".into(),
    };
    but(&mut attestation);
    Arc::new(attestation)
}

fn peer() -> Peer {
    let program = CertifiedProgram {
        exe: Digest::of(b"b"),
        program: "/b".into(),
        uid: 0,
        taints: Taints::new(),
        script: None,
        libraries: None,
        image: None,
        bios_uuid: None,
        machine_id: None,
        release: None,
    };
    let issuer = Some(Issuer { node: "there".parse().unwrap(), number: 4 });
    Peer { workload: name("b"), program, issuer, serial: "4b01".into(), not_after: T0 + 3600 }
}

fn question(from: Judged) -> Question {
    Question { from, to: peer().judged(), port: 80 }
}

fn pinned(workload: &str, digest: Digest) -> Arc<Policy> {
    let exe = format!("exe = '/{workload}'");
    policy(&format!("{OPEN}{RULE}").replace(&exe, &format!("{exe}\nsha256 = '{digest}'")))
}

fn lives(seat: &mut Seat) -> bool {
    seat.ended.try_recv().is_err()
}

#[test]
fn of_ten_thousand_flows_exactly_those_end_that_are_no_longer_allowed() {
    let rule = |port: u16| RULE.replace("name = 'r'", &format!("name = '{port}'\nports = [{port}]"));
    let world = world(&policy(&format!("{OPEN}{}{}", rule(80), rule(81))));
    let enter = |pid: u32| {
        let question = Question { port: 80 + u16::try_from(pid % 2).unwrap(), ..question(world.program(pid).judged()) };
        world.live.enter(Some(question)).unwrap()
    };
    let mut seats: Vec<Seat> = (1..=10_000).map(enter).collect();
    assert_eq!(world.live.judge_again(&policy(&format!("{OPEN}{}", rule(80)))), 5000);
    for (pid, seat) in (1..).zip(&mut seats) {
        assert_eq!(lives(seat), pid % 2 == 0, "the flow of process {pid}");
    }
    // What was let go on is asked again, and nobody else.
    assert_eq!(world.live.judge_again(&policy(&format!("{OPEN}{}", rule(81)))), 5000);
}

#[test]
fn a_flow_ends_when_its_rule_goes_and_only_then() {
    let world = world(&allowing());
    let mut seat = world.enter(1);
    assert_eq!(world.live.judge_again(&allowing()), 0);
    assert!(lives(&mut seat));
    assert_eq!(world.live.judge_again(&policy(OPEN)), 1);
    assert_eq!(seat.ended.try_recv().unwrap().reason, Reason::PolicyChanged);
}

#[test]
fn a_flow_ends_when_its_program_no_longer_earns_its_name() {
    let world = world(&allowing());
    let mut seat = world.enter(1);
    assert_eq!(world.live.judge_again(&pinned("a", Digest::of(b"a"))), 0);
    assert_eq!(world.live.judge_again(&pinned("a", Digest::of(b"another"))), 1);
    assert!(seat.ended.try_recv().unwrap().detail.contains("does not earn a any more"));
}

#[test]
fn a_flow_ends_when_its_peers_certificate_is_not_what_the_policy_demands_any_more() {
    let world = world(&allowing());
    let mut seat = world.enter(1);
    assert_eq!(world.live.judge_again(&pinned("b", Digest::of(b"b"))), 0);
    assert_eq!(world.live.judge_again(&pinned("b", Digest::of(b"another"))), 1);
    let why = seat.ended.try_recv().unwrap();
    assert_eq!((why.reason, why.nearest.unwrap().field.as_str()), (Reason::PolicyChanged, "sha256"));
}

#[test]
fn a_flow_decided_under_an_older_policy_is_asked_again_when_it_enters() {
    let world = world(&policy(OPEN));
    let refused = world.live.enter(Some(question(world.program(1).judged())));
    assert_eq!(refused.unwrap_err().reason, Reason::PolicyChanged);
    assert_eq!(world.live.enter(None).unwrap_err().reason, Reason::PolicyChanged);
    assert!(world.live.is_empty());
}

#[test]
fn a_doubt_is_on_the_account_that_identityd_names() {
    let world = world(&allowing());
    let mut program = world.program(1);
    program.attestation = attestation(1, |subordinate| {
        (subordinate.fingerprint.uid, subordinate.account) = (100_007, 1000);
    });
    let _seat = world.live.enter(Some(question(program.judged()))).unwrap();
    world.lapse(Lapsed::Process(process(1)));
    let doubt = world.live.next_doubt().unwrap();
    assert_eq!(world.live.doubted_user(&doubt), 1000);
}

#[test]
fn other_modes_end_nothing() {
    let shadow = policy(&OPEN.replace("enforce", "shadow"));
    let world = world(&shadow);
    let seats = (world.enter(1), world.live.enter(None).unwrap());
    assert_eq!(world.live.judge_again(&shadow), 0);
    world.quarantine.send_replace(Arc::new([Digest::of(b"a")].into()));
    assert_eq!(world.live.judge_again(&shadow), 0);
    assert_eq!(world.lapse(Lapsed::Socket(socket(1), None)), 0);
    world.lapse(Lapsed::Process(process(1)));
    let doubt = world.live.next_doubt().unwrap();
    assert_eq!(world.settle(&doubt, Err(AttestReason::GenerationGone)), 0);
    assert_eq!(world.live.end_all(), 2);
    assert_eq!(world.live.len(), 2, "a flow lives until its record is written");
    drop(seats);
    assert!(world.live.is_empty());
}

#[test]
fn what_lapsed_in_another_mode_is_asked_when_enforce_mode_begins() {
    let enforce = allowing();
    let world = world(&enforce);
    let mut seat = world.enter(1);
    let shadow = policy(&format!("{OPEN}{RULE}").replace("enforce", "shadow"));
    world.policy.send_replace(Some(Arc::clone(&shadow)));
    world.live.judge_again(&shadow);
    world.lapse(Lapsed::Process(process(1)));
    let doubt = world.live.next_doubt().unwrap();
    assert_eq!(world.settle(&doubt, Err(AttestReason::GenerationGone)), 0);
    world.policy.send_replace(Some(Arc::clone(&enforce)));
    assert_eq!(world.live.judge_again(&enforce), 0);
    let doubt = world.live.next_doubt().expect("asked again");
    assert_eq!(world.settle(&doubt, Err(AttestReason::GenerationGone)), 1);
    assert_eq!(seat.ended.try_recv().unwrap().reason, Reason::IdentityChanged);
}

#[test]
fn a_lapse_is_one_question_about_all_flows_of_the_same_executions() {
    let world = world(&allowing());
    let mut seats: Vec<Seat> = [1, 1, 1, 2].map(|pid| world.enter(pid)).into();
    world.lapse(Lapsed::Process(process(1)));
    world.lapse(Lapsed::Process(process(1)));
    let doubt = world.live.next_doubt().unwrap();
    assert_eq!(doubt.executions, [execution(1)]);
    assert!(world.live.next_doubt().is_none(), "one question");
    assert_eq!(world.settle(&doubt, Err(AttestReason::GenerationGone)), 3);
    for seat in &mut seats[..3] {
        let why = seat.ended.try_recv().unwrap();
        assert_eq!(why.reason, Reason::IdentityChanged);
        assert_eq!(why.detail, "it changed; asked again: generation-gone: as said");
    }
    assert!(lives(&mut seats[3]));
    assert_eq!(world.lapse(Lapsed::Everything), 0);
    let asked: Vec<_> = std::iter::from_fn(|| world.live.next_doubt()).map(|doubt| doubt.executions).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
}

#[test]
fn whoever_else_may_have_a_socket_is_asked_about_by_the_socket() {
    let world = world(&allowing());
    let _seats = [1, 2].map(|pid| world.enter(pid));
    world.lapse(Lapsed::Process(process(1)));
    assert!(!world.live.next_doubt().unwrap().of_holders);
    world.lapse(Lapsed::Process(process(1)));
    world.lapse(Lapsed::Holders(process(1)));
    let doubt = world.live.next_doubt().unwrap();
    assert!(doubt.of_holders && world.live.next_doubt().is_none());
    assert_eq!(world.live.doubted_sockets(&doubt), [world.program(1).about]);
    world.lapse(Lapsed::Everything);
    let lost: Vec<bool> = std::iter::from_fn(|| world.live.next_doubt()).map(|doubt| doubt.of_holders).collect();
    assert_eq!(lost, [true; 2]);
    world.live.hear_in_haste("again");
    let hasty: Vec<bool> = std::iter::from_fn(|| world.live.next_doubt()).map(|doubt| doubt.of_holders).collect();
    assert_eq!(hasty, [false; 2]);
}

#[test]
fn only_another_program_or_a_doubt_ends_a_flow() {
    let keeps: [Result<Arc<Attestation>, AttestReason>; 5] = [
        Ok(attestation(1, |_| ())),
        Ok(attestation(1, |now| now.fingerprint.taints = [bonafide_proto::taint::Taint::Traced].into())),
        Err(AttestReason::ProcessGone),
        Err(AttestReason::Unavailable),
        Err(AttestReason::NoPolicy),
    ];
    let changes: [fn(&mut Attestation); 4] = [
        |now| now.fingerprint.exe.path = "/b".into(),
        |now| now.fingerprint.exe.digest = Digest::of(b"new"),
        |now| now.workload = None,
        |now| now.workload = Some(name("b")),
    ];
    let others = changes.map(|change| Ok(attestation(1, change)));
    let none = [AttestReason::ProcessGone, AttestReason::Unavailable, AttestReason::NoPolicy];
    let doubts = AttestReason::ALL.iter().filter(|reason| !none.contains(reason)).map(|reason| Err(*reason));
    let all = keeps.into_iter().map(|a| (a, 0)).chain(others.into_iter().chain(doubts).map(|a| (a, 1)));
    for (answer, ended) in all {
        // This evidence is a taint, which the policy has to allow to be asked at all.
        let tolerant = policy(&format!("{OPEN}{RULE}").replace("exe = '/a'", "exe = '/a'\nallow_taints = ['traced']"));
        let world = world(&tolerant);
        let mut seat = world.enter(1);
        world.lapse(Lapsed::Process(process(1)));
        let doubt = world.live.next_doubt().unwrap();
        assert_eq!(world.settle(&doubt, answer.clone()), ended, "{answer:?}");
        assert_eq!(lives(&mut seat), ended == 0);
    }
}

#[test]
fn the_kind_of_evidence_that_changed_is_told() {
    let missed = |now: &mut Attestation| {
        now.workload = None;
        let miss = |of: &str, field: &str| NearMiss {
            of: of.into(),
            field: field.into(),
            expected: "another".into(),
            seen: "this".into(),
        };
        now.near_misses = vec![miss("b", "uid"), miss("a", "libraries")];
    };
    let stdin = |now: &mut Attestation| now.fingerprint.script = Evidence::Known(Script::Stdin);
    let answers = [
        (Ok(attestation(1, |now| now.fingerprint.exe.digest = Digest::of(b"new"))), Some(Kind::Executable)),
        (Ok(attestation(1, stdin)), Some(Kind::Script)),
        (Ok(attestation(1, missed)), Some(Kind::Libraries)),
        (Ok(attestation(1, |now| now.workload = Some(name("b")))), None),
        (Err(AttestReason::GenerationGone), Some(Kind::Executable)),
        (Err(AttestReason::TwoPrograms), Some(Kind::Socket)),
        (Err(AttestReason::Unreadable), None),
    ];
    for (answer, changed) in answers {
        let world = world(&allowing());
        let mut seat = world.enter(1);
        world.lapse(Lapsed::Process(process(1)));
        let doubt = world.live.next_doubt().unwrap();
        assert_eq!(world.settle(&doubt, answer.clone()), 1, "{answer:?}");
        let why = seat.ended.try_recv().unwrap();
        assert_eq!((why.reason, why.changed), (Reason::IdentityChanged, changed), "{why:?}");
        let names_what =
            why.detail.ends_with("/a does not earn a any more, whose libraries wants another and not this");
        assert_eq!(names_what, changed == Some(Kind::Libraries), "{why:?}");
    }
}

#[test]
fn a_doubt_that_comes_from_a_quarantine_says_so() {
    let world = world(&allowing());
    let mut seat = world.enter(1);
    world.lapse(Lapsed::Everything);
    let doubt = world.live.next_doubt().unwrap();
    assert_eq!(world.settle(&doubt, Err(AttestReason::Quarantined)), 1);
    assert_eq!(seat.ended.try_recv().unwrap().reason, Reason::Quarantined);
}

#[test]
fn what_another_look_found_is_what_the_next_policy_judges() {
    let world = world(&allowing());
    let mut seat = world.enter(1);
    world.lapse(Lapsed::Process(process(1)));
    let doubt = world.live.next_doubt().unwrap();
    let became_nobody = attestation(1, |now| now.fingerprint.uid = 65_534);
    assert_eq!(world.settle(&doubt, Ok(became_nobody)), 0);
    let only_root = policy(&format!("{OPEN}{RULE}").replace("exe = '/a'", "exe = '/a'\nuid = 0"));
    assert_eq!(world.live.judge_again(&only_root), 1);
    assert!(!lives(&mut seat));
}

#[test]
fn a_socket_that_another_program_used_ends_its_flow_alone() {
    let world = world(&allowing());
    let (mut used, mut other) = (world.enter(1), world.enter(2));
    assert_eq!(world.lapse(Lapsed::Socket(socket(1), None)), 1);
    let why = used.ended.try_recv().unwrap();
    assert_eq!((why.reason, why.changed), (Reason::IdentityChanged, Some(Kind::Socket)));
    assert!(lives(&mut other));
    assert!(world.live.next_doubt().is_none());
}

#[test]
fn who_else_of_a_program_uses_its_socket_is_what_the_flow_depends_on_too() {
    let world = world(&allowing());
    let (mut used, mut other) = (world.enter(1), world.enter(2));
    for by in [7, 8, 1] {
        assert_eq!(world.lapse(Lapsed::Kin(socket(1), execution(by))), 0);
    }
    let doubts: Vec<Doubt> = std::iter::from_fn(|| world.live.next_doubt()).collect();
    let asked: Vec<_> = doubts.iter().map(|doubt| doubt.executions.clone()).collect();
    assert_eq!(asked, [[execution(1), execution(7)], [execution(1), execution(8)]]);
    // The answers overtake each other: nobody is forgotten.
    for (doubt, kin) in doubts.iter().zip([7, 8]) {
        assert!(!doubt.of_holders);
        assert_eq!(world.settle(doubt, Ok(attestation(1, |now| now.executions.push(execution(kin))))), 0);
    }
    world.lapse(Lapsed::Kin(socket(1), execution(7)));
    assert!(world.live.next_doubt().is_none(), "it is known");
    for of in [7, 8] {
        world.lapse(Lapsed::Process(process(of)));
    }
    let doubt = world.live.next_doubt().unwrap();
    assert_eq!(doubt.executions.len(), 3, "{doubt:?}");
    assert_eq!(world.settle(&doubt, Err(AttestReason::TwoPrograms)), 1);
    assert!(!lives(&mut used) && lives(&mut other));
}

#[test]
fn who_lapses_while_it_is_asked_about_for_the_first_time_is_asked_about_again() {
    let world = world(&allowing());
    let _seat = world.enter(1);
    world.lapse(Lapsed::Kin(socket(1), execution(7)));
    let doubt = world.live.next_doubt().unwrap();
    let asked = world.memory.as_of();
    world.lapse(Lapsed::Process(process(7)));
    assert!(world.live.next_doubt().is_none(), "nobody is known to depend on it");
    let both = attestation(1, |now| now.executions.push(execution(7)));
    assert_eq!(world.live.settle(&doubt, asked, &Ok(both)), 0);
    assert_eq!(world.live.next_doubt().unwrap().executions, [execution(1), execution(7)]);
}

#[test]
fn who_used_a_socket_since_it_was_connected_counts_though_that_was_before_it_was_attested() {
    let world = world(&allowing());
    // Both were at that time.
    const AT: u64 = 5;
    world.lapse(Lapsed::Socket(socket(1), None));
    world.lapse(Lapsed::Kin(socket(2), execution(7)));
    let enter = |pid: u32, at_ns: u64| {
        let mut program = world.program(pid);
        program.about.record = Some(ConnectRecord { at_ns, ..ConnectRecord::parse(&[1; 80]).unwrap() });
        world.live.enter(Some(question(program.judged())))
    };
    let refused = enter(1, AT).unwrap_err();
    assert_eq!((refused.reason, refused.changed), (Reason::IdentityChanged, Some(Kind::Socket)));
    let _asked = enter(2, AT).unwrap();
    assert_eq!(world.live.next_doubt().unwrap().executions, [execution(2), execution(7)]);
    // That was another connection, of the same addresses.
    let _later = [1, 2].map(|pid| enter(pid, AT + 1).unwrap());
    assert!(world.live.next_doubt().is_none());
}

#[test]
fn what_lapses_while_a_flow_is_on_its_way_reaches_it() {
    let world = world(&allowing());
    let early = world.program(1);
    world.lapse(Lapsed::Process(process(2)));
    let _unconcerned = world.live.enter(Some(question(early.clone().judged()))).unwrap();
    assert!(world.live.next_doubt().is_none());

    world.lapse(Lapsed::Process(process(1)));
    let _doubted = world.live.enter(Some(question(early.clone().judged()))).unwrap();
    assert!(world.live.next_doubt().is_some());

    let before = world.program(1);
    world.lapse(Lapsed::Holders(process(1)));
    let _shared = world.live.enter(Some(question(before.judged()))).unwrap();
    while let Some(doubt) = world.live.next_doubt() {
        assert!(doubt.of_holders);
    }

    let late = world.program(1);
    let _sure = world.live.enter(Some(question(late.clone().judged()))).unwrap();
    assert!(world.live.next_doubt().is_none());
    world.lapse(Lapsed::Socket(socket(1), None));
    let refused = world.live.enter(Some(question(late.judged()))).unwrap_err();
    assert_eq!(refused.reason, Reason::IdentityChanged);
}

#[test]
fn a_quarantine_ends_flows_of_either_end_and_refuses_new_ones() {
    for digest in [Digest::of(b"a"), Digest::of(b"b")] {
        let world = world(&allowing());
        let mut seat = world.enter(1);
        world.quarantine.send_replace(Arc::new([Digest::of(b"unrelated")].into()));
        assert_eq!(world.live.judge_again(&allowing()), 0);
        world.quarantine.send_replace(Arc::new([Digest::of(b"unrelated"), digest].into()));
        assert_eq!(world.live.judge_again(&allowing()), 1);
        let why = seat.ended.try_recv().unwrap();
        assert_eq!(why.reason, Reason::Quarantined);
        assert!(why.detail.contains(&digest.to_string()));
        let refused = world.live.enter(Some(question(world.program(1).judged()))).unwrap_err();
        assert_eq!(refused.reason, Reason::Quarantined);
    }
}

/// What is revoked, by one entry.
fn revoked(node: Option<(&str, u64)>, workload: Option<&str>, serial: Option<&str>) -> Arc<Quarantine> {
    let revoked = Revoked {
        nodes: node.map(|(node, through)| (node.parse().unwrap(), through)).into_iter().collect(),
        workloads: workload.map(name).into_iter().collect(),
        serials: serial.map(|serial| serial.parse().unwrap()).into_iter().collect(),
    };
    Arc::new(Quarantine { revoked, ..Quarantine::default() })
}

#[test]
fn what_is_revoked_at_either_end_ends_flows_by_its_name_and_refuses_new_ones() {
    let own = Mesh::new("example.org").leaf("a").shown();
    let serial = own.svid.serial().to_owned();
    let cases = [
        (revoked(Some(("node-a", 1)), None, None), Some(Reason::NodeRevoked)),
        (revoked(Some(("node-a", 0)), None, None), None),
        (revoked(Some(("there", 4)), None, None), Some(Reason::NodeRevoked)),
        (revoked(Some(("there", 9)), None, None), Some(Reason::NodeRevoked)),
        (revoked(Some(("there", 3)), None, None), None),
        (revoked(Some(("elsewhere", 9)), None, None), None),
        (revoked(None, Some("a"), None), Some(Reason::WorkloadRevoked)),
        (revoked(None, Some("b"), None), Some(Reason::WorkloadRevoked)),
        (revoked(None, Some("c"), None), None),
        (revoked(None, None, Some(&serial)), Some(Reason::SerialRevoked)),
        (revoked(None, None, Some("4b01")), Some(Reason::SerialRevoked)),
        (revoked(None, None, Some("4b02")), None),
    ];
    for (barred, expected) in cases {
        let world = world(&allowing());
        let flow = || question(world.program(1).showing(own.clone()).judged());
        let mut seat = world.live.enter(Some(flow())).unwrap();
        world.quarantine.send_replace(Arc::clone(&barred));
        assert_eq!(world.live.judge_again(&allowing()), usize::from(expected.is_some()), "{barred:?}");
        assert_eq!(seat.ended.try_recv().ok().map(|why| why.reason), expected, "{barred:?}");
        assert_eq!(world.live.enter(Some(flow())).err().map(|why| why.reason), expected, "{barred:?}");
        let other = policy(&format!("{OPEN}{RULE}").replace("enforce", "shadow"));
        assert_eq!(world.live.judge_again(&other), 0, "only enforce mode ends flows");
    }
}

#[test]
fn after_a_restart_executions_are_asked_for_without_their_numbers() {
    let world = world(&allowing());
    let mut seat = world.enter(1);
    world.memory.deafen();
    world.memory.ready();
    assert_eq!(world.lapse(Lapsed::Everything), 0);
    let doubt = world.live.next_doubt().unwrap();
    assert_eq!(doubt.executions, [Execution { image: 0, ..execution(1) }]);
    let renumbered = attestation(1, |now| now.executions = vec![Execution { image: 77, ..execution(1) }]);
    assert_eq!(world.settle(&doubt, Ok(renumbered)), 0);
    assert!(lives(&mut seat));
    world.lapse(Lapsed::Process(process(1)));
    assert_eq!(world.live.next_doubt().unwrap().executions, [Execution { image: 77, ..execution(1) }]);
}

#[test]
fn nothing_is_kept_about_flows_that_are_gone() {
    let world = world(&allowing());
    let seat = world.enter(1);
    world.lapse(Lapsed::Everything);
    let doubt = world.live.next_doubt().unwrap();
    assert!(world.live.doubted_sockets(&doubt) == [world.program(1).about]);
    drop(seat);
    assert!(world.live.doubted_sockets(&doubt).is_empty());
    assert_eq!(world.settle(&doubt, Err(AttestReason::GenerationGone)), 0);
    assert!(world.live.table().stakes.is_empty());
}
