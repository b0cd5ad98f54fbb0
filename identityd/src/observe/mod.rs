//! Flows that nobody stands in, told when they are over, with the program at this end.
//!
//! The kernel programs are loaded when the first listener comes and gone with the last. Everything that waits is
//! bounded; what finds no room is counted, and the listeners are told how much.
//!
//! | module | |
//! |---|---|
//! | `programs` | the kernel programs, and what they count |
//! | `layout` | what they say |
//! | `flow` | what it means |
//! | `attempts` | what is no connection yet |
//! | `acquaintances` | who the programs are, asked while they live |
//! | `living` | connections that live, and their other ends |
//! | `joining` | the two halves of a flow inside one host, or between two |
//! | `sharing` | how halves reach the other end's node |
//! | `talks` | flows of datagrams that live |
//! | `source_address` | from where the sockets among them send that have no address |
//!
//! # What is not seen
//! * Connections that were established before anybody listened.
//! * At the destination, attempts that a full queue drops or whose source takes them back within a second, and datagrams
//!   that nobody reads. The source's end has them, if the source is in the mesh.
//! * What the kernel itself sends (`WireGuard`, VXLAN, NFS), raw sockets, and protocols other than TCP and UDP.

mod acquaintances;
mod attempts;
mod flow;
mod joining;
pub(crate) mod layout;
mod living;
mod programs;
mod sharing;
mod source_address;
mod talks;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::name::NodeName;
use bonafide_proto::observed::{Attested, ObservedFlow, Protocol};
use bonafide_proto::wire::node as wire;
use tokio::sync::{mpsc, oneshot};

use acquaintances::Acquaintances;
pub(crate) use acquaintances::{Asked, Attests};
use attempts::Attempts;
use flow::{Flow, Life};
use joining::{Joining, Theirs};
use layout::{Half, RawEnds, Step, StepEvent, Talk};
use programs::Programs;
pub(crate) use programs::Sight;
use sharing::Sharing;
use source_address::SourceAddress;
use talks::{Ends, Talks};

use crate::bundle::Authority;
use crate::kernel::Ground;

/// Flows that may wait for a listener who is slow.
const WAITING_MAX: usize = 8192;
/// A flow of datagrams ends when nothing was heard for so long.
const SILENCE: Duration = Duration::from_secs(30);
/// How often listeners, losses and silence are looked at.
const ROUND: Duration = Duration::from_secs(1);

/// Takes orders to observe.
#[derive(Debug, Clone)]
pub(crate) struct Observatory {
    orders: mpsc::Sender<Order>,
    attempts: Arc<AtomicU64>,
    sight: Sight,
}

/// What it takes to observe.
pub(crate) struct Means {
    /// The programs in the kernel.
    pub(crate) ground: Ground,
    /// Who says whose a flow is.
    pub(crate) attests: Arc<dyn Attests>,
    /// Who carries halves of flows to other nodes.
    pub(crate) authority: Authority,
    /// The time.
    pub(crate) clock: SharedClock,
}

#[derive(Debug)]
struct Order {
    wish: Wish,
    accepted: oneshot::Sender<Result<mpsc::Receiver<wire::ObservedFlow>, String>>,
}

impl Observatory {
    /// One that is ready to observe.
    pub(crate) fn open(means: Means, node: Option<NodeName>) -> Self {
        let (orders, taken) = mpsc::channel(16);
        let observer = Observer::new(means, node);
        let attempts = Arc::clone(&observer.attempts);
        tokio::spawn(observer.run(taken));
        Self { orders, attempts, sight: Sight::of_kernel() }
    }

    /// What this kernel tells of attempts.
    pub(crate) fn sight(&self) -> Sight {
        self.sight
    }

    /// How many attempts that came to nothing were only counted.
    pub(crate) fn attempts_only_counted(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Flows that end from now on.
    ///
    /// # Errors
    /// Why that cannot be, in words.
    pub(crate) async fn listen(&self, wish: Wish) -> Result<mpsc::Receiver<wire::ObservedFlow>, String> {
        let (accepted, answer) = oneshot::channel();
        let gone = || "the observer has ended".to_owned();
        self.orders.send(Order { wish, accepted }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// What somebody wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Also of connections that begin from now on.
    pub(crate) connections: bool,
    /// Nothing is told here: others are told.
    pub(crate) quiet: bool,
}

/// Somebody who wants to know.
#[derive(Debug)]
struct Listener {
    wish: Wish,
    told: mpsc::Sender<wire::ObservedFlow>,
    /// Flows that found no room since it was last told.
    missed: u64,
}

/// The programs at work, and what is remembered meanwhile.
struct Work {
    programs: Programs,
    heard: mpsc::Receiver<StepEvent>,
    acquaintances: Acquaintances,
    sharing: Sharing,
    talks: Talks,
    attempts: Attempts,
    /// Of those that came, how many were only counted so far.
    counted: u64,
    source_address: SourceAddress,
    moment: Moment,
    missed: u64,
}

struct Observer {
    means: Means,
    listeners: Vec<Listener>,
    joining: Joining,
    /// Attempts that were only counted.
    attempts: Arc<AtomicU64>,
    work: Option<Work>,
}

/// What happened next.
enum News {
    Order(Option<Order>),
    Step(StepEvent),
    Answered(Vec<(Flow, Attested)>),
    Theirs(Box<Theirs>),
    Round,
}

impl Observer {
    fn new(means: Means, node: Option<NodeName>) -> Self {
        let attempts = Arc::default();
        Self { means, listeners: Vec::new(), joining: Joining::new(node), attempts, work: None }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut round = tokio::time::interval(ROUND);
        loop {
            let news = match &mut self.work {
                None => News::Order(orders.recv().await),
                Some(work) => tokio::select! {
                    order = orders.recv() => News::Order(order),
                    Some(step) = work.heard.recv() => News::Step(step),
                    answered = work.acquaintances.answered() => News::Answered(answered),
                    Some(theirs) = work.sharing.theirs.recv() => News::Theirs(Box::new(theirs)),
                    _ = round.tick() => News::Round,
                },
            };
            match news {
                News::Order(None) => return,
                News::Order(Some(order)) => self.accept(order),
                News::Step(step) => self.step(&step),
                News::Answered(flows) => flows.into_iter().for_each(|(flow, who)| self.tell(flow, who)),
                News::Theirs(theirs) => self.meet(*theirs),
                News::Round => self.round(),
            }
        }
    }

    fn accept(&mut self, order: Order) {
        let (told, flows) = mpsc::channel(WAITING_MAX);
        self.listeners.push(Listener { wish: order.wish, told, missed: 0 });
        let outcome = self.settle().map_err(|e| e.to_string());
        if outcome.is_err() {
            self.listeners.pop();
        }
        // Whoever asked may be gone already; the next round sees it.
        let _ = order.accepted.send(outcome.map(|()| flows));
    }

    /// Programs as the listeners want them.
    fn settle(&mut self) -> Result<(), programs::ObserveError> {
        if self.listeners.is_empty() {
            if self.work.take().is_some() {
                tracing::info!("nobody wants to know of flows any more");
                self.joining.forget_living();
            }
            return Ok(());
        }
        let connections = self.listeners.iter().any(|listener| listener.wish.connections);
        match &mut self.work {
            Some(work) => work.programs.want(connections),
            None => {
                let (programs, heard) = Programs::load(&self.means.ground, connections)?;
                tracing::info!(connections, "flows are observed");
                let acquaintances = Acquaintances::new(Arc::clone(&self.means.attests));
                self.work = Some(Work {
                    programs,
                    heard,
                    acquaintances,
                    sharing: Sharing::by(self.means.authority.issuance()),
                    talks: Talks::default(),
                    attempts: Attempts::default(),
                    counted: 0,
                    source_address: SourceAddress::default(),
                    moment: Moment::default(),
                    missed: 0,
                });
                Ok(())
            }
        }
    }

    fn step(&mut self, step: &StepEvent) {
        let Some(work) = &mut self.work else { return };
        work.moment = Moment::now(step.at_ns);
        match step.step {
            Step::Opened if step.datagrams => {
                let ends = work.remember(step);
                work.acquaintances.begin(step.who);
                self.begun(step, ends);
            }
            Step::Opened => {
                work.acquaintances.begin(step.who);
                work.attempts.ask(step, Instant::now());
            }
            // Who will use what was accepted is known when it is used.
            Step::Established if !step.source => work.acquaintances.meet(step.who),
            Step::Established => {
                work.attempts.answered(step.cookie);
                self.over(Flow::established(step));
            }
            Step::Taken => {
                work.acquaintances.begin(step.who);
                self.over(Flow::established(step));
            }
            Step::Refused => {}
            Step::Knocked => self.over(Flow::knocked(step)),
            Step::Unfinished => {
                if work.attempts.came(step) {
                    work.acquaintances.begin(step.who);
                }
                self.over(Flow::unfinished(step));
            }
            Step::Closed => {
                work.attempts.answered(step.cookie);
                self.over(Flow::closed(step));
            }
            Step::Released => {
                for talk in work.talks.of_socket(step.cookie) {
                    self.end_talk(&talk, Life::Over);
                }
            }
        }
    }

    fn end_talk(&mut self, talk: &Talk, life: Life) {
        if let Some(flow) = self.work.as_mut().and_then(|work| work.end(talk, life)) {
            self.over(flow);
        }
    }

    /// A server's socket is seldom closed. So that its half of a flow can meet the client's, which ends long before the
    /// silence does, the client's node hears of it while it lives; and it is over when the client's half comes.
    fn begun(&mut self, step: &StepEvent, ends: Ends) {
        if !step.source && ends.local.ip() != ends.remote.ip() && ends.remote.port() != 0 {
            self.over(Flow::begun(step, ends));
        }
    }

    /// Told at once if the program is known, else as soon as it is.
    fn over(&mut self, flow: Flow) {
        let answer = self.work.as_mut().and_then(|work| work.acquaintances.answer(flow));
        if let Some(who) = answer {
            self.tell(flow, who);
        }
    }

    fn tell(&mut self, flow: Flow, here: Attested) {
        let Some(work) = &mut self.work else { return };
        let (life, now) = (flow.life, Instant::now());
        let flow = observed(&flow, here, &work.moment, &self.means.clock);
        let told_before = self.joining.has_told_of(&flow, now);
        let whole = match life {
            Life::Lives => self.joining.begins(&flow, now),
            Life::Over | Life::Followed => self.joining.ours(flow.clone(), now),
        };
        if !told_before && (life == Life::Lives || whole.is_empty()) && flow.local.ip() != flow.remote.ip() {
            work.sharing.share(&flow);
        }
        self.tell_all(&whole);
        if life == Life::Over {
            self.end_partner(&flow);
        }
    }

    /// Another node's half of a flow.
    fn meet(&mut self, theirs: Theirs) {
        let flow = theirs.flow.clone();
        let whole = self.joining.theirs(theirs, Instant::now());
        self.tell_all(whole.as_slice());
        self.end_partner(&flow);
    }

    /// Where the other end of a flow of datagrams is over, this one is: otherwise only silence tells.
    fn end_partner(&mut self, other: &ObservedFlow) {
        if other.protocol != Protocol::Udp {
            return;
        }
        let Some(work) = &self.work else { return };
        let ours = Ends { local: other.local, remote: other.remote }.reversed();
        for talk in work.talks.between(ours) {
            self.end_talk(&talk, Life::Followed);
        }
    }

    fn tell_all(&mut self, flows: &[ObservedFlow]) {
        for told in flows.iter().map(wire::ObservedFlow::from) {
            for listener in self.listeners.iter_mut().filter(|listener| !listener.wish.quiet) {
                listener.tell(told.clone());
            }
        }
    }

    fn round(&mut self) {
        let alone = self.joining.alone(Instant::now());
        self.tell_all(&alone);
        self.listeners.retain(|listener| !listener.told.is_closed());
        if let Err(e) = self.settle() {
            tracing::warn!("the kernel programs that see flows cannot be told what is wanted: {e}");
        }
        let Some(work) = &mut self.work else { return };
        let missed = work.programs.missed().saturating_add(work.acquaintances.missed());
        let new = missed.saturating_sub(std::mem::replace(&mut work.missed, missed));
        if new > 0 {
            tracing::warn!(missed = new, "events of flows were lost: some records will be missing or incomplete");
        }
        let too_long = work.sharing.take_too_long();
        if too_long > 0 {
            tracing::warn!(
                too_long,
                "halves of flows are too long to be shared: the other end's records do not name them"
            );
        }
        work.acquaintances.forget_old();
        work.source_address.round();
        for listener in &mut self.listeners {
            listener.missed = listener.missed.saturating_add(new);
            listener.tell_what_it_missed();
        }
        self.count_attempts();
        self.tell_late();
        self.end_half_open();
        self.end_silent();
    }

    fn count_attempts(&mut self) {
        let Some(work) = &mut self.work else { return };
        let counted = work.programs.attempts();
        let new = counted.saturating_sub(std::mem::replace(&mut work.counted, counted));
        if new > 0 {
            self.attempts.fetch_add(new, Ordering::Relaxed);
            tracing::warn!(counted = new, "attempts to connect that came to nothing were too many to be recorded");
        }
    }

    /// So that the other end can name who waits for its answer.
    fn tell_late(&mut self) {
        let late = self.work.as_mut().map(|work| work.attempts.late(Instant::now()));
        for step in late.unwrap_or_default() {
            self.over(Flow::unanswered(&step));
        }
    }

    fn end_half_open(&mut self) {
        let Some(work) = &mut self.work else { return };
        let over = work.end_half_open();
        for flow in over {
            self.over(flow);
        }
    }

    fn end_silent(&mut self) {
        let Some(work) = &self.work else { return };
        let Some(now) = work.moment.boot_ns() else { return };
        let silence = u64::try_from(SILENCE.as_nanos()).unwrap_or(u64::MAX);
        let is_silent =
            |talk: &Talk| work.programs.tally(talk).is_some_and(|tally| now.saturating_sub(tally.last_ns) >= silence);
        let silent: Vec<Talk> = work.programs.talks().into_iter().filter(is_silent).collect();
        for talk in silent {
            self.end_talk(&talk, Life::Over);
        }
    }
}

impl Work {
    /// So that it ends with its socket, or with its other end.
    fn remember(&mut self, step: &StepEvent) -> Ends {
        let ends = Ends { local: self.source_address.of(step.local, step.remote), remote: step.remote };
        self.talks.begin(step.talk, ends);
        ends
    }

    /// Attempts that are not answered again.
    fn end_half_open(&mut self) -> Vec<Flow> {
        let now = self.moment.boot_ns().unwrap_or_default();
        let all: Vec<(RawEnds, Half)> =
            self.programs.halves().into_iter().filter_map(|ends| Some((ends, self.programs.half(&ends)?))).collect();
        let waiting: HashSet<u64> = all.iter().map(|(_, half)| half.cookie).collect();
        for who in self.attempts.keep(|cookie| waiting.contains(&cookie)) {
            self.acquaintances.leave(who);
        }
        let mut over = Vec::new();
        for (ends, _) in all.iter().filter(|(_, half)| half.until_ns <= now) {
            let Some(half) = self.programs.end_half(ends) else { continue };
            // Its end counts as one less.
            if !self.attempts.over(half.cookie) {
                self.acquaintances.begin(half.who);
            }
            over.push(Flow::half_open(&half));
        }
        over
    }

    /// `None`: it has ended before.
    fn end(&mut self, talk: &Talk, life: Life) -> Option<Flow> {
        let remembered = self.talks.end(talk);
        let tally = self.programs.end(talk)?;
        let ends = match remembered {
            Some(ends) => ends,
            // Its beginning was not heard of.
            None => {
                let remote = layout::remote_of(talk)?;
                Ends { local: self.source_address.of(tally.local, remote), remote }
            }
        };
        Some(Flow::silent(talks::cookie_of(talk), &tally, ends, life))
    }
}

impl Listener {
    fn tell(&mut self, flow: wire::ObservedFlow) {
        let flow = wire::ObservedFlow { missed: self.missed, ..flow };
        match self.told.try_send(flow) {
            Ok(()) => self.missed = 0,
            Err(_) => self.missed = self.missed.saturating_add(1),
        }
    }

    fn tell_what_it_missed(&mut self) {
        if self.missed > 0 {
            let only = wire::ObservedFlow { missed: self.missed, ..wire::ObservedFlow::default() };
            if self.told.try_send(only).is_ok() {
                self.missed = 0;
            }
        }
    }
}

/// The kernel's clock, held against ours. It counts while the machine sleeps, which ours need not.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    seen: Option<(u64, Instant)>,
}

impl Moment {
    fn now(boot_ns: u64) -> Self {
        Self { seen: Some((boot_ns, Instant::now())) }
    }

    /// Nanoseconds since boot. `None`: no event was heard yet.
    fn boot_ns(&self) -> Option<u64> {
        let (then, seen) = self.seen?;
        Some(then.saturating_add(u64::try_from(seen.elapsed().as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Nanoseconds since 1970 of a time since boot.
    fn wall_ns(&self, boot_ns: u64, clock: &SharedClock) -> i64 {
        let ago = self.boot_ns().unwrap_or(boot_ns).saturating_sub(boot_ns);
        let now = u64::try_from(clock.now().as_nanos()).unwrap_or(u64::MAX);
        i64::try_from(now.saturating_sub(ago)).unwrap_or(i64::MAX)
    }
}

fn observed(flow: &Flow, here: Attested, moment: &Moment, clock: &SharedClock) -> ObservedFlow {
    let (sent, received) = if flow.source { (flow.sent, flow.received) } else { (flow.received, flow.sent) };
    ObservedFlow {
        // A socket's cookie is given once while the machine runs, but not each flow has a socket of its own.
        id: format!("{:016x}{:016x}", flow.cookie, flow.began_ns),
        protocol: flow.protocol,
        source: flow.source,
        local: flow.local,
        remote: flow.remote,
        started_ns: moment.wall_ns(flow.began_ns, clock),
        ended_ns: moment.wall_ns(flow.ended_ns, clock),
        sent,
        received,
        ending: flow.ending,
        here,
        there: None,
    }
}
