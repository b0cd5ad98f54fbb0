use bonafide_policy::Policy;
use bonafide_proto::record::Reason;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node::lapse::{Flow, Of};
use bonafide_proto::wire::node::{Quarantine, ReattestRequest};
use tokio::task::AbortHandle;

use super::fake::{Answers, Fake};
use super::*;
use crate::live::{Judged, Live, Program, Question, Seat};
use crate::reverify;

const POLICY: &str = "mode = 'enforce'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'shop/web'\nexe = '/usr/bin/x'\n\
    [[outside]]\nname = 'net'\nprefixes = ['192.0.2.0/24']\n\
    [[rule]]\nname = 'r'\nfrom = 'shop/web'\nto = 'net'\naction = 'allow'\n";

/// Who holds the table while nothing lives or is asked: the test, the task, and what it asks by.
const IDLE: usize = 3;

/// Live flows beside an identityd.
struct World {
    fake: Fake,
    identity: Identity,
    live: Arc<Live>,
    running: AbortHandle,
}

impl Drop for World {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn world() -> World {
    let fake = Fake::start();
    fake.set_policy(POLICY);
    let identity = client(&fake);
    arrived(&mut identity.policy(), |_: &Arc<Policy>| true).await;
    until("it listens", async || identity.memory().as_of() != Default::default()).await;
    let live = Arc::new(Live::new(
        identity.policy(),
        identity.quarantine(),
        identity.memory(),
        identity.trust(),
        fake.mesh.hand.clone(),
    ));
    let running = tokio::spawn(reverify::run(Arc::clone(&live), identity.clone())).abort_handle();
    World { fake, identity, live, running }
}

impl World {
    /// A flow whose program was attested just now.
    async fn enter(&self) -> Seat {
        let attested = self.identity.attest(key()).await.unwrap();
        let from = Program::new("shop/web".parse().unwrap(), attested).judged();
        let to = Judged::Outside("192.0.2.1:80".parse().unwrap());
        self.live.enter(Some(Question { from, to, port: 80 })).unwrap()
    }

    fn lapse_of_it(&self) {
        let execution = attestation(None).executions[0];
        self.fake.lapse(Of::Execution(execution.into()));
    }
}

async fn ended(seat: &mut Seat) -> Reason {
    timeout(LONG, &mut seat.ended).await.expect("in time").unwrap().reason
}

#[tokio::test]
async fn a_lapse_is_asked_about_and_ends_the_flow_of_another_program() {
    let world = world().await;
    let mut seat = world.enter().await;
    world.lapse_of_it();
    until("it is asked", async || world.fake.asked_again() == 1).await;
    // The same program: it goes on, also under the next lapse.
    world.fake.again(Err(AttestReason::GenerationGone));
    assert!(seat.ended.try_recv().is_err());
    world.lapse_of_it();
    assert_eq!(ended(&mut seat).await, Reason::IdentityChanged);
    assert_eq!(world.fake.asked_again(), 2);
}

#[tokio::test]
async fn a_lapse_during_a_question_is_asked_about_once_more() {
    let world = world().await;
    let mut seats = Vec::new();
    for _ in 0..5 {
        seats.push(world.enter().await);
    }
    world.fake.again_gate.forget_permits(usize::MAX);
    world.lapse_of_it();
    until("it is asked", async || world.fake.asked_again() == 1).await;
    for _ in 0..20 {
        world.lapse_of_it();
    }
    let heard = world.identity.memory().heard();
    until("all is heard", async || *heard.borrow() >= 21).await;
    world.fake.again_gate.add_permits(1);
    until("it is asked once more", async || world.fake.asked_again() == 2).await;
    world.fake.again(Err(AttestReason::TwoPrograms));
    world.fake.again_gate.add_permits(1_000);
    for seat in &mut seats {
        assert_eq!(ended(seat).await, Reason::IdentityChanged);
    }
    assert!(world.fake.asked_again() <= 3, "one question at a time for five flows and twenty lapses");
}

#[tokio::test]
async fn a_question_without_an_answer_is_repeated_and_the_flow_lives() {
    let world = world().await;
    let mut seat = world.enter().await;
    world.fake.again(Err(AttestReason::Unavailable));
    world.lapse_of_it();
    until("it is repeated", async || world.fake.asked_again() >= 3).await;
    assert!(seat.ended.try_recv().is_err());
    world.fake.again(Err(AttestReason::ExeReplaced));
    assert_eq!(ended(&mut seat).await, Reason::IdentityChanged);
}

/// That may be the program's own doing; only an identityd that is away is waited for.
#[tokio::test]
async fn a_flow_of_which_nobody_can_say_whose_it_is_ends_after_a_while() {
    let world = world().await;
    let mut seat = world.enter().await;
    world.fake.again(Err(AttestReason::Unavailable));
    world.lapse_of_it();
    let why = timeout(LONG, &mut seat.ended).await.expect("in time").unwrap();
    assert_eq!(why.reason, Reason::IdentityChanged);
    assert!(why.detail.contains("could not say for too long: as said"), "{}", why.detail);
    assert!(world.fake.asked_again() >= 3);
}

#[tokio::test]
async fn without_a_policy_nobody_is_told_to_end() {
    let world = world().await;
    let mut seat = world.enter().await;
    world.fake.again(Err(AttestReason::NoPolicy));
    world.lapse_of_it();
    // More than it takes for an answer that says nothing.
    until("it is repeated", async || world.fake.asked_again() >= 16).await;
    assert!(seat.ended.try_recv().is_err());
}

#[tokio::test]
async fn nobody_asks_for_ever_about_flows_that_are_gone() {
    let world = world().await;
    let seat = world.enter().await;
    world.fake.again(Err(AttestReason::Unavailable));
    world.lapse_of_it();
    until("it is asked", async || world.fake.asked_again() >= 1).await;
    drop(seat);
    until("nobody asks any more", async || Arc::strong_count(&world.live) == IDLE).await;
}

#[tokio::test]
async fn flows_outlive_a_restart_and_are_asked_about_after_it() {
    let mut world = world().await;
    let mut seat = world.enter().await;
    let before = world.identity.memory().as_of();
    world.fake.stop();
    until("it is noticed", async || world.identity.memory().as_of() != before).await;
    assert!(seat.ended.try_recv().is_err());
    world.fake.resume();
    until("it is asked", async || world.fake.asked_again() == 1).await;
    let execution = attestation(None).executions[0];
    let unnumbered = Execution { image: 0, ..execution };
    let sockets = vec![key().into()];
    let asked = ReattestRequest { executions: vec![unnumbered.into()], sockets };
    assert_eq!(world.fake.asked_again.lock().unwrap()[0], asked, "another identityd numbers executions anew");
    assert!(seat.ended.try_recv().is_err());

    world.fake.stop();
    world.fake.again(Ok(attestation(Some("shop/db"))));
    world.fake.resume();
    assert_eq!(ended(&mut seat).await, Reason::IdentityChanged);
}

/// What was asked about sockets, and about executions alone.
fn asked(world: &World) -> (usize, usize) {
    let asked = world.fake.asked_again.lock().unwrap();
    let by_sockets = asked.iter().filter(|request| !request.sockets.is_empty()).count();
    (by_sockets, asked.len() - by_sockets)
}

/// A child between fork and exec has the sockets of its parent for a moment.
#[tokio::test]
async fn when_one_of_several_holders_is_another_the_socket_is_asked_about() {
    let world = world().await;
    let parent = attestation(Some("shop/web"));
    let child = Execution { pid: 4712, ..parent.executions[0] };
    let both = Attestation { executions: vec![parent.executions[0], child], ..parent.clone() };
    world.fake.answer(Answers::With(Box::new(Ok(both))));
    let mut seat = world.enter().await;
    world.fake.again(Err(AttestReason::GenerationGone));
    world.fake.by_sockets(Some(Ok(parent.clone())));
    world.fake.lapse(Of::Execution(child.into()));
    until("the socket is asked about", async || asked(&world) == (1, 1)).await;
    until("it is settled", async || Arc::strong_count(&world.live) == IDLE + 1).await;
    assert!(seat.ended.try_recv().is_err(), "the parent alone has it");

    world.fake.again(Ok(parent.clone()));
    world.lapse_of_it();
    until("the parent is asked about", async || asked(&world) == (1, 2)).await;
    assert_eq!(world.fake.asked_again.lock().unwrap()[2].executions, [parent.executions[0].into()]);
    assert!(seat.ended.try_recv().is_err());
}

#[tokio::test]
async fn when_another_holder_still_has_the_socket_the_flow_ends() {
    let world = world().await;
    let parent = attestation(Some("shop/web"));
    let child = Execution { pid: 4712, ..parent.executions[0] };
    let both = Attestation { executions: vec![parent.executions[0], child], ..parent };
    world.fake.answer(Answers::With(Box::new(Ok(both))));
    let mut seat = world.enter().await;
    world.fake.again(Err(AttestReason::GenerationGone));
    world.fake.by_sockets(Some(Err(AttestReason::TwoPrograms)));
    world.fake.lapse(Of::Execution(child.into()));
    assert_eq!(ended(&mut seat).await, Reason::IdentityChanged);
}

#[tokio::test]
async fn who_has_the_socket_of_a_process_that_ended_is_asked_and_believed_alone() {
    let world = world().await;
    let child = Execution { pid: 4712, ..attestation(None).executions[0] };
    let of_child = Attestation { executions: vec![child], ..attestation(Some("shop/web")) };
    let mut seat = world.enter().await;
    world.fake.by_sockets(Some(Ok(of_child)));
    world.fake.lapse(Of::Holders(attestation(None).executions[0].into()));
    until("the socket is asked about", async || asked(&world) == (1, 0)).await;
    until("it is settled", async || Arc::strong_count(&world.live) == IDLE + 1).await;
    // From now on it is about the child.
    world.fake.again(Err(AttestReason::ExeReplaced));
    world.lapse_of_it();
    world.fake.lapse(Of::Execution(child.into()));
    assert_eq!(ended(&mut seat).await, Reason::IdentityChanged);
    let questions = world.fake.asked_again.lock().unwrap();
    assert_eq!(questions.last().unwrap().executions, [child.into()]);
    assert_eq!(questions.len(), 2);
}

#[tokio::test]
async fn a_process_that_is_gone_ends_the_flow_only_if_somebody_else_has_its_socket() {
    let world = world().await;
    let mut seat = world.enter().await;
    world.fake.again(Err(AttestReason::ProcessGone));
    world.lapse_of_it();
    until("the socket is asked about", async || asked(&world) == (1, 1)).await;
    until("it is settled", async || Arc::strong_count(&world.live) == IDLE + 1).await;
    assert!(seat.ended.try_recv().is_err(), "nobody has it: its last bytes are on their way");
    world.fake.by_sockets(Some(Err(AttestReason::HolderUnseen)));
    world.lapse_of_it();
    assert_eq!(ended(&mut seat).await, Reason::IdentityChanged);
}

#[tokio::test]
async fn lost_events_lead_to_a_search_for_whoever_holds_what() {
    let world = world().await;
    let mut seat = world.enter().await;
    world.fake.lapse(Of::Everything(true));
    until("it is searched for", async || asked(&world).0 == 1).await;
    assert!(seat.ended.try_recv().is_err());
    world.fake.by_sockets(Some(Err(AttestReason::TwoPrograms)));
    // At once or, too early for another search, a little later.
    world.fake.lapse(Of::Everything(true));
    assert_eq!(ended(&mut seat).await, Reason::IdentityChanged);
}

/// One question about many sockets; where it is in doubt, each is asked about.
#[tokio::test]
async fn where_the_holders_of_many_sockets_do_not_agree_each_is_asked_about() {
    let world = world().await;
    let mut seats = vec![world.enter().await, world.enter().await];
    world.fake.by_sockets(Some(Err(AttestReason::TwoPrograms)));
    world.fake.lapse(Of::Holders(attestation(None).executions[0].into()));
    for seat in &mut seats {
        assert_eq!(ended(seat).await, Reason::IdentityChanged);
    }
    let questions = world.fake.asked_again.lock().unwrap();
    let sockets: Vec<usize> = questions.iter().map(|request| request.sockets.len()).collect();
    assert_eq!(sockets, [2, 1, 1]);
}

#[tokio::test]
async fn a_socket_used_by_another_program_ends_its_flow_unasked() {
    let world = world().await;
    let mut seat = world.enter().await;
    let (local, remote) = (Some(key().local.into()), Some(key().remote.into()));
    world.fake.lapse(Of::Flow(Flow { local, remote, used_by: None, at_ns: 0 }));
    assert_eq!(ended(&mut seat).await, Reason::IdentityChanged);
    assert_eq!(world.fake.asked_again(), 0);
}

#[tokio::test]
async fn a_quarantine_ends_idle_flows_and_everything_else_is_looked_at() {
    let world = world().await;
    let mut seat = world.enter().await;
    world.fake.lapse(Of::Quarantine(Quarantine { sha256: vec![vec![1; 32]], revoked: None }));
    until("it is looked at", async || world.fake.asked_again() >= 1).await;
    assert!(seat.ended.try_recv().is_err());
    let digest = attestation(None).fingerprint.exe.digest;
    world.fake.lapse(Of::Quarantine(Quarantine { sha256: vec![digest.0.to_vec()], revoked: None }));
    assert_eq!(ended(&mut seat).await, Reason::Quarantined);
}
