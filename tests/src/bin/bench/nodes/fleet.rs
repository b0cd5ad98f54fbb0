//! The nodes: each a task that joins, follows, and comes again, by the node CA's own code; and what became of them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bonafide_ca::bench::{Newcomer, Pauses};
use bonafide_ca::link::SignedPolicies;
use bonafide_ca::machine::Machine;
use bonafide_ca::member::Member;
use bonafide_ca::mesh::Held;
use bonafide_ca::policies::PolicyHeld;
use bonafide_ca::remote::Remote;
use bonafide_ca::{AuthorityLink as _, JoinToken, LinkError};
use bonafide_proto::clock::SystemClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::signed_policy::SignedPolicy;
use bonafide_tests::netns::Netns;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

use super::authority::{PORT, Seat};
use crate::report::percentile;

/// What is not over by then is broken: so long, and so much longer for each node.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_millis(30));

/// What became of a node, and when.
#[derive(Debug)]
struct News {
    node: usize,
    at: Instant,
    what: What,
}

/// What becomes of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// It is a member.
    Joined,
    /// It was told the first thing on a connection.
    Follows,
    /// It was told a state of this number.
    State(u64),
    /// It was told a policy of this version.
    Policy(u64),
    /// It got no answer, and asks again.
    Repeats,
    /// It was refused.
    Refused,
}

/// All nodes.
pub(super) struct Fleet {
    size: usize,
    go: watch::Sender<bool>,
    news: mpsc::UnboundedReceiver<News>,
    /// What nobody asked for yet.
    kept: Vec<News>,
    repeated: usize,
    refused: usize,
    /// They end with it.
    _nodes: JoinSet<()>,
}

impl Fleet {
    /// Nodes with keys and tokens that wait for the word. Their keys are made before: each would have a processor for that.
    pub(super) fn prepare(_seat: &Seat, tokens: Vec<JoinToken>) -> Result<Self, String> {
        let (go, word) = watch::channel(false);
        let (tell, news) = mpsc::unbounded_channel();
        let (size, known, mut nodes) = (tokens.len(), Arc::<KnownPolicies>::default(), JoinSet::new());
        for (number, token) in tokens.into_iter().enumerate() {
            let machine = Machine { bios_uuid: String::new(), machine_id: format!("{number:032x}") };
            let name = name(number).parse().map_err(|e| format!("a node name {e}"))?;
            let newcomer = Newcomer::new(name, &machine).map_err(|e| e.to_string())?;
            let link = Remote::new(address(number), Arc::new(SystemClock));
            let node = Node { number, machine, link, tell: tell.clone(), known: known.clone() };
            nodes.spawn(node.live(newcomer, token, word.clone()));
        }
        Ok(Self { size, go, news, kept: Vec::new(), repeated: 0, refused: 0, _nodes: nodes })
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Now, all at once.
    pub(super) fn set_out(&self) -> Instant {
        self.go.send_replace(true);
        Instant::now()
    }

    /// What was told before does not count any more.
    pub(super) fn begin_again(&mut self) -> Instant {
        let now = Instant::now();
        self.kept.clear();
        (self.repeated, self.refused) = (0, 0);
        now
    }

    pub(super) fn refused(&self) -> usize {
        self.refused
    }

    pub(super) fn repeated(&self) -> usize {
        self.repeated
    }

    pub(super) async fn all_joined(&mut self, since: Instant) -> Result<Times, String> {
        self.all("be members", since, |what| what == What::Joined).await
    }

    pub(super) async fn all_follow(&mut self, since: Instant) -> Result<Times, String> {
        self.all("follow", since, |what| what == What::Follows).await
    }

    pub(super) async fn all_told_state(&mut self, number: u64, since: Instant) -> Result<Times, String> {
        self.all("be told a state", since, move |what| matches!(what, What::State(told) if told >= number)).await
    }

    pub(super) async fn all_told_policy(&mut self, version: u64, since: Instant) -> Result<Times, String> {
        self.all("be told a policy", since, move |what| what == What::Policy(version)).await
    }

    /// When each node's was so, once that is so of all of them.
    async fn all(&mut self, to: &str, since: Instant, so: impl Fn(What) -> bool) -> Result<Times, String> {
        let mut when = HashMap::new();
        let mut take = |news: News, kept: &mut Vec<News>| match so(news.what) {
            true => {
                when.entry(news.node).or_insert_with(|| news.at.saturating_duration_since(since).as_secs_f64());
                when.len()
            }
            false => {
                kept.push(news);
                when.len()
            }
        };
        let mut reached = 0;
        for news in std::mem::take(&mut self.kept) {
            reached = take(news, &mut self.kept);
        }
        let limit = PATIENCE.0 + PATIENCE.1 * u32::try_from(self.size).unwrap_or(u32::MAX);
        let deadline = tokio::time::Instant::now() + limit;
        while reached < self.size {
            let news = tokio::time::timeout_at(deadline, self.news.recv()).await;
            match news {
                Ok(Some(News { what: What::Repeats, .. })) => self.repeated += 1,
                Ok(Some(News { what: What::Refused, .. })) => self.refused += 1,
                Ok(Some(news)) => reached = take(news, &mut self.kept),
                Ok(None) => return Err("all nodes ended".to_owned()),
                Err(_) => {
                    let (refused, repeated) = (self.refused, self.repeated);
                    return Err(format!(
                        "within {limit:?} {reached} came to {to}; {refused} were refused, {repeated} attempts repeated"
                    ));
                }
            }
        }
        Ok(Times(when.into_values().collect()))
    }
}

/// How long it took each node, in seconds.
#[derive(Debug, Default)]
pub(super) struct Times(Vec<f64>);

impl Times {
    pub(super) fn last(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    pub(super) fn percentile(&self, hundredths: usize) -> f64 {
        percentile(self.0.clone(), hundredths)
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }
}

/// The versions of policies, of which each is verified once for all nodes: each would have a processor for that.
#[derive(Debug, Default)]
struct KnownPolicies(Mutex<HashMap<Digest, u64>>);

impl KnownPolicies {
    fn version(&self, digest: Digest, signed: &[u8], member: &Member) -> Result<u64, String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = known.get(&digest) {
            return Ok(*version);
        }
        let version = SignedPolicy::verify(signed, member.bundle()).map_err(|e| e.to_string())?.version();
        known.insert(digest, version);
        Ok(version)
    }
}

/// One node.
struct Node {
    number: usize,
    machine: Machine,
    link: Remote,
    tell: mpsc::UnboundedSender<News>,
    known: Arc<KnownPolicies>,
}

impl Node {
    async fn live(self, newcomer: Newcomer, token: JoinToken, mut word: watch::Receiver<bool>) {
        if word.wait_for(|go| *go).await.is_err() {
            return;
        }
        let Some(member) = self.join(newcomer, &token).await else { return };
        let mut pauses = Pauses::of_following();
        loop {
            let began = Instant::now();
            if let Err(e) = self.follow(&member).await {
                self.failed(&e);
            }
            if began.elapsed() > Duration::from_secs(5) {
                pauses = Pauses::of_following();
            }
            tokio::time::sleep(pauses.pause()).await;
        }
    }

    async fn join(&self, newcomer: Newcomer, token: &JoinToken) -> Option<Member> {
        let mut pauses = Pauses::of_joining();
        loop {
            match newcomer.ask(&self.link, token).await {
                Ok(issued) => {
                    let member = newcomer.take(issued, token);
                    self.tells(if member.is_ok() { What::Joined } else { What::Refused });
                    return member.ok();
                }
                Err(e @ LinkError::Unreachable { .. }) => self.failed(&e),
                Err(e) => {
                    self.failed(&e);
                    return None;
                }
            }
            tokio::time::sleep(pauses.pause()).await;
        }
    }

    fn failed(&self, e: &LinkError) {
        self.tells(if matches!(e, LinkError::Unreachable { .. }) { What::Repeats } else { What::Refused });
    }

    fn tells(&self, what: What) {
        // Whoever hears it is gone when all is over.
        let _ = self.tell.send(News { node: self.number, at: Instant::now(), what });
    }

    /// Listens as the daemon does, both streams on one connection, until the authority goes away.
    async fn follow(&self, member: &Member) -> Result<(), LinkError> {
        let roots = member.sequence();
        let (held, says) = watch::channel(Held { roots, ..Held::default() });
        let mut states = self.link.follow(member, &self.machine, says).await?;
        let (policy_held, policy_says) = watch::channel(PolicyHeld::default());
        let policies = self.link.follow_policy(member, policy_says).await?;
        let states = async {
            let mut first = true;
            while let Some(state) = states.next().await {
                let told = state?.mesh.sequence;
                self.tells(What::State(told));
                held.send_replace(Held { told, holds: told, roots });
                if std::mem::take(&mut first) {
                    self.tells(What::Follows);
                }
            }
            Ok(())
        };
        tokio::select! {
            ended = states => ended,
            ended = self.take_policies(member, policies, policy_held) => ended,
        }
    }

    async fn take_policies(
        &self,
        member: &Member,
        mut policies: SignedPolicies,
        held: watch::Sender<PolicyHeld>,
    ) -> Result<(), LinkError> {
        while let Some(signed) = policies.next().await {
            let signed = signed?;
            let digest = Digest::of(&signed);
            let version = self.known.version(digest, &signed, member).map_err(LinkError::Malformed)?;
            self.tells(What::Policy(version));
            let kept_signed = Some(digest);
            held.send_replace(PolicyHeld { kept: version, kept_signed, in_force: version, refused: None });
        }
        Ok(())
    }
}

/// What a node is called.
pub(super) fn name(node: usize) -> String {
    format!("node-{node}")
}

/// Where a node reaches the authority: at its own address, which is also where it comes from.
fn address(node: usize) -> String {
    let ip = ip(node);
    if node.is_multiple_of(2) { format!("{ip}:{PORT}") } else { format!("[{ip}]:{PORT}") }
}

/// Half of them by either family, no two in one IPv6 /64.
fn ip(node: usize) -> String {
    match node.is_multiple_of(2) {
        true => format!("10.{}.{}.{}", node >> 16 & 0xff, node >> 8 & 0xff, node & 0xff),
        false => format!("fd00:0:0:{node:x}::1"),
    }
}

/// Gives this host the addresses of all nodes.
pub(super) fn addresses(netns: &Netns, nodes: usize) -> Result<(), String> {
    let mut batch = String::from("route add local 10.0.0.0/8 dev lo\n");
    for node in (1..nodes).step_by(2) {
        writeln!(batch, "addr add {}/128 dev lo nodad", ip(node)).map_err(|e| e.to_string())?;
    }
    let failed = |e: std::io::Error| format!("ip -batch: {e}");
    let mut command: Command = netns.command("ip");
    let mut child = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        std::io::Write::write_all(&mut input, batch.as_bytes()).map_err(failed)?;
    }
    match child.wait().map_err(failed)?.success() {
        true => Ok(()),
        false => Err("the nodes have no addresses: ip -batch failed".to_owned()),
    }
}
