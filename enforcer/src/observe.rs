//! Flows that nobody stands in: in observe mode all of them, in the other modes those that are not captured.
//!
//! identityd tells of them when they are over, with the program at this end, and with that of the other end where the
//! two halves met. Here they are judged as enforce mode would, and written down. Nothing in here touches a flow.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bonafide_policy::{Allowed, Identified, Mode, Place, Policy, Subject, Verdict};
use bonafide_proto::convert::Attestation;
use bonafide_proto::flow::canonical;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::observed::{Attested, Ending, ObservedFlow, Protocol, There};
use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Party, RECORD_VERSION, Reason, Transport, Tried};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::watch;

use crate::capture::Control;
use crate::flow::{Node, named, unknown_address, why_denied, why_unattributed};
use crate::identity::Quarantine;
use crate::record::{Why, describe_attested, rfc3339_of};

/// Workloads that an ambiguity names.
const NAMES_SHOWN: usize = 8;

/// Writes down what is seen.
#[derive(Debug)]
pub(crate) struct Observer {
    node: Arc<Node>,
    /// Other daemons' connections, which are not captured either.
    control: Vec<Control>,
    /// Whether connections are to be seen.
    wanted: watch::Sender<bool>,
    /// From when on connections are captured, nanoseconds since 1970: those have records already.
    captured_from: AtomicI64,
}

impl Observer {
    /// Begins to listen. Connections are not wanted yet.
    pub(crate) fn start(node: Arc<Node>, control: Vec<Control>) -> Arc<Self> {
        let (wanted, wishes) = watch::channel(false);
        let observer = Arc::new(Self { node, control, wanted, captured_from: AtomicI64::new(i64::MAX) });
        tokio::spawn(observer.node.identity.clone().wish_for_connections(wishes));
        let listening = Arc::clone(&observer);
        tokio::spawn(async move {
            let identity = listening.node.identity.clone();
            identity.watch_flows(|flow| listening.take(flow)).await;
        });
        observer
    }

    /// Connections are no longer captured from now on, or are about not to be.
    pub(crate) fn observe(&self) {
        self.captured_from.store(i64::MAX, Ordering::Relaxed);
        self.wanted.send_replace(true);
    }

    /// Connections are captured since just now.
    pub(crate) fn leave_to_capture(&self) {
        let now = self.node.records.now_ns();
        // From one way of capturing to another, it stays as it was.
        let _ = self.captured_from.compare_exchange(i64::MAX, now, Ordering::Relaxed, Ordering::Relaxed);
        self.wanted.send_replace(false);
    }

    fn take(&self, flow: ObservedFlow) {
        let captured = flow.protocol == Protocol::Tcp && flow.started_ns >= self.captured_from.load(Ordering::Relaxed);
        if captured || self.is_of_the_node(&flow) {
            return;
        }
        let Ok(policy) = self.node.policy() else { return };
        let record = self.record(&renamed(flow, &policy), &policy, &self.node.identity.quarantined());
        self.node.records.observed(&record);
    }

    /// What this enforcer stands in has a record of its own, also while the mode changes. What the node's daemons say
    /// to the authority is nobody's flow, captured or not.
    fn is_of_the_node(&self, flow: &ObservedFlow) -> bool {
        let other = flow.there.as_ref().filter(|there| there.node.as_ref() == flow.here_node());
        if is_this_process(&flow.here) || other.is_some_and(|other| is_this_process(&other.attested)) {
            return true;
        }
        let Ok(here) = &flow.here else { return false };
        let uid = here.fingerprint.uid;
        self.control.iter().any(|control| control.uid == uid && canonical(control.to) == flow.remote)
    }

    fn record(&self, flow: &ObservedFlow, policy: &Policy, barred: &Quarantine) -> FlowRecord {
        let (source, destination) = addresses(flow);
        let Judged { outcome, rule, tried, why } = judge(policy, barred, flow);
        let (ended_by, came_to_nothing) = ended(flow);
        let mut record = FlowRecord {
            v: RECORD_VERSION,
            id: flow.id.clone(),
            end: if flow.source { End::Source } else { End::Destination },
            protocol: flow.protocol,
            started: rfc3339_of(flow.started_ns),
            ended: rfc3339_of(flow.ended_ns),
            duration_us: u64::try_from(flow.ended_ns.saturating_sub(flow.started_ns) / 1000).unwrap_or_default(),
            mode: policy.mode().as_str().to_owned(),
            verdict: outcome,
            rule,
            reason: None,
            detail: None,
            nearest: None,
            remedy: None,
            tried,
            transport: Transport::Observed,
            source: Party { addr: Some(source), ..Party::default() },
            destination: Party { addr: Some(destination), ..Party::default() },
            original: None,
            tls: None,
            bytes_sent: flow.sent,
            bytes_received: flow.received,
            ended_by,
        };
        let (here, there) = match flow.source {
            true => (&mut record.source, &mut record.destination),
            false => (&mut record.destination, &mut record.source),
        };
        self.describe(here, &flow.here);
        match &flow.there {
            Some(other) => {
                self.describe(there, &other.attested);
                there.node = other.node.clone().or(there.node.take());
            }
            None => there.outside = outside(policy, flow).map(ToOwned::to_owned),
        }
        say_why(&mut record, why.as_ref(), came_to_nothing);
        record
    }

    fn describe(&self, party: &mut Party, attested: &Attested) {
        if let Ok(attestation) = attested {
            describe_attested(party, attestation, self.node.spiffe_id(attestation.workload.as_ref()));
        }
    }
}

/// As the policy in force names the programs of this node, by their evidence: what they had earned when the flow began,
/// or when a program that is never without one was first looked at, may be another policy's word. Another node's word
/// is its own.
fn renamed(flow: ObservedFlow, policy: &Policy) -> ObservedFlow {
    let ours = flow.here_node().cloned();
    let again = |there: There| match there.node == ours {
        true => There { attested: earned_now(there.attested, policy), ..there },
        false => there,
    };
    ObservedFlow { there: flow.there.map(again), here: earned_now(flow.here, policy), ..flow }
}

fn earned_now(attested: Attested, policy: &Policy) -> Attested {
    let attestation = attested?;
    let (workload, near_misses) = match policy.identify(&attestation.fingerprint) {
        Identified::Workload(name) => (Some(name), Vec::new()),
        Identified::Nothing { near } => (None, near),
        Identified::Unavailable { workload, field, why } => {
            let detail = format!("{workload} requires {field}, and {why}");
            return Err(AttestRefusal::new(AttestReason::EvidenceUnavailable, detail));
        }
        Identified::Ambiguous(names) => {
            let names: Vec<&str> = names.iter().take(NAMES_SHOWN).map(WorkloadName::as_str).collect();
            let detail = format!("the evidence fits {}", names.join(", "));
            return Err(AttestRefusal::new(AttestReason::AmbiguousWorkload, detail));
        }
    };
    Ok(Attestation { workload, near_misses, ..attestation })
}

fn is_this_process(attested: &Attested) -> bool {
    let executions = attested.as_ref().map(|attestation| attestation.executions.as_slice()).unwrap_or_default();
    executions.iter().any(|execution| execution.pid == std::process::id())
}

fn addresses(flow: &ObservedFlow) -> (SocketAddr, SocketAddr) {
    if flow.source { (flow.local, flow.remote) } else { (flow.remote, flow.local) }
}

/// What enforce mode would have decided.
struct Judged {
    outcome: Outcome,
    rule: Option<String>,
    tried: Option<Tried>,
    why: Option<Why>,
}

fn judge(policy: &Policy, barred: &Quarantine, flow: &ObservedFlow) -> Judged {
    let would_refuse = |why: Why| {
        let (rule, tried) = (why.rule.clone(), why.tried.clone());
        Judged { outcome: Outcome::WouldRefuse, rule, tried, why: Some(why) }
    };
    let undecided = || Judged { outcome: Outcome::Undecided, rule: None, tried: None, why: None };
    let at_the_other_end = |why: Why| Why { detail: format!("at the other end: {}", why.detail), ..why };
    // Where nobody listens, there is nobody to be judged.
    if is_nobody(flow, &flow.here) {
        let there = flow.there.as_ref().map(|there| workload(&there.attested));
        return there.and_then(Result::err).map_or_else(undecided, |why| would_refuse(at_the_other_end(why)));
    }
    let here = match workload(&flow.here).and_then(|here| unbarred(&flow.here, here, barred)) {
        Ok(here) => here,
        Err(why) => return would_refuse(why),
    };
    if flow.there.as_ref().is_some_and(|there| is_nobody(flow, &there.attested)) {
        return undecided();
    }
    let there = match (&flow.there, policy.place(flow.remote.ip())) {
        (Some(there), _) => match workload(&there.attested).and_then(|name| unbarred(&there.attested, name, barred)) {
            Ok(there) => Subject::Workload(there),
            Err(why) => return would_refuse(at_the_other_end(why)),
        },
        (None, Place::Mesh) => return undecided(),
        (None, Place::Outside) if flow.source && outside(policy, flow).is_none() => {
            return would_refuse(unknown_address(flow.remote));
        }
        (None, Place::Outside) => Subject::Outside(flow.remote),
    };
    let (here, port) = (Subject::Workload(here), addresses(flow).1.port());
    let (from, to) = if flow.source { (&here, &there) } else { (&there, &here) };
    match policy.decide(from, to, port) {
        Verdict::Allow(Allowed { rule, tried }) => {
            Judged { outcome: Outcome::Allowed, rule: Some(rule), tried, why: None }
        }
        Verdict::Deny(denied) => would_refuse(why_denied(denied)),
    }
}

/// The end where nobody listens: it has no program, by its own node's word.
fn is_nobody(flow: &ObservedFlow, attested: &Attested) -> bool {
    let refused = flow.protocol == Protocol::Tcp && flow.ending == Ending::Refused;
    refused && matches!(attested, Err(refusal) if refusal.reason == AttestReason::NoSocket)
}

fn workload(attested: &Attested) -> Result<&WorkloadName, Why> {
    attested.as_ref().map_err(why_unattributed).and_then(named)
}

/// What is in quarantine or revoked when the flow is over: enforce mode would have refused or ended it. Observed flows have no
/// certificates, so nothing is said of the serial numbers and nodes that are revoked.
fn unbarred<'a>(attested: &Attested, name: &'a WorkloadName, barred: &Quarantine) -> Result<&'a WorkloadName, Why> {
    let would = |detail: String| format!("{detail}: enforce mode would have refused it, or ended it then");
    if let Some((reason, detail)) = barred.revoked.workload(name) {
        return Err(Why::new(reason, would(detail)));
    }
    let fingerprint = attested.as_ref().ok().map(|attestation| &attestation.fingerprint);
    let found = fingerprint.and_then(|f| f.digests().find(|digest| barred.digests.contains(digest)));
    match found {
        Some(digest) => Err(Why::new(Reason::Quarantined, would(format!("{digest} is in quarantine")))),
        None => Ok(name),
    }
}

fn outside<'a>(policy: &'a Policy, flow: &ObservedFlow) -> Option<&'a str> {
    if policy.place(flow.remote.ip()) == Place::Mesh {
        return None;
    }
    if flow.source { policy.outside(flow.remote) } else { policy.outside_source(flow.remote.ip()) }
}

/// How it ended; and in words, if it came to nothing.
fn ended(flow: &ObservedFlow) -> (EndedBy, Option<&'static str>) {
    match (flow.ending, flow.source) {
        (Ending::Closed, _) => (EndedBy::Closed, None),
        (Ending::ResetHere, true) | (Ending::ResetThere, false) => (EndedBy::SourceReset, None),
        (Ending::ResetHere, false) | (Ending::ResetThere, true) => (EndedBy::DestinationReset, None),
        (Ending::Refused, _) => (EndedBy::Refusal, Some("the destination refused it: nobody listens there")),
        (Ending::Unanswered, false) => (EndedBy::Refusal, Some("half-open: the source never finished the handshake")),
        (Ending::Unanswered, true) => (EndedBy::Refusal, Some("the destination never answered")),
    }
}

/// Why it would be refused comes before why it came to nothing.
fn say_why(record: &mut FlowRecord, why: Option<&Why>, came_to_nothing: Option<&str>) {
    record.reason = why.map(|why| why.reason).or(came_to_nothing.map(|_| Reason::Unreachable));
    record.nearest = why.and_then(|why| why.nearest.clone());
    record.remedy = why.and_then(|why| why.remedy.clone());
    record.detail = match (why, came_to_nothing) {
        (Some(why), Some(nothing)) => Some(format!("{}; {nothing}", why.detail)),
        (Some(why), None) => Some(why.detail.clone()),
        (None, nothing) => nothing.map(ToOwned::to_owned),
    };
}

/// Whether a mode leaves connections to be observed.
pub(crate) fn observes(mode: Mode) -> bool {
    mode == Mode::Observe
}

#[cfg(test)]
mod tests {
    use super::*;
    use bonafide_proto::fingerprint::{Digest, Evidence, Execution, Fingerprint, HashedFile, Host};

    fn policy(from: &str, to: &str) -> Policy {
        let workloads = [from, to].map(|name| format!("[[workload]]\nname = '{name}'\nexe = '/{name}'\n")).concat();
        let rule = format!("[[rule]]\nname = 'r'\nfrom = '{from}'\nto = '{to}'\naction = 'allow'\n");
        Policy::parse("p.toml", &format!("mode = 'observe'\nmesh = ['10.0.0.0/8']\n{workloads}{rule}")).unwrap()
    }

    /// As identityd named it, by whatever policy was in force then.
    fn attested(path: &str, workload: &str, node: &str) -> Attested {
        let absent = || Evidence::Absent("none".into());
        let host = Host { bios_uuid: absent(), machine_id: absent(), node: Some(node.parse().unwrap()) };
        let exe = HashedFile { path: path.into(), digest: Digest::of(b"a") };
        Ok(Attestation {
            executions: vec![Execution { pid: 1, start_ticks: 2, image: 3 }],
            fingerprint: Fingerprint::of(exe, (0, 0), host),
            account: 0,
            workload: Some(workload.parse().unwrap()),
            near_misses: vec![],
            source: "kernel".into(),
        })
    }

    fn flow(here: Attested, there: Attested, node: &str) -> ObservedFlow {
        ObservedFlow {
            id: "aa".into(),
            protocol: Protocol::Tcp,
            source: false,
            local: "10.0.0.1:80".parse().unwrap(),
            remote: "10.0.0.2:4000".parse().unwrap(),
            started_ns: 1,
            ended_ns: 2,
            sent: 3,
            received: 4,
            ending: Ending::Closed,
            here,
            there: Some(There { node: Some(node.parse().unwrap()), attested: there }),
        }
    }

    fn outcome(policy: &Policy, flow: ObservedFlow) -> Outcome {
        judge(policy, &Quarantine::default(), &renamed(flow, policy)).outcome
    }

    #[test]
    fn a_program_is_judged_by_what_it_earns_now() {
        let begun = || flow(attested("/web", "web", "a"), attested("/shop", "shop", "b"), "b");
        assert_eq!(outcome(&policy("shop", "web"), begun()), Outcome::Allowed);

        // `/web` is another workload by now, which nobody may reach; then one that had no name has one.
        let text = "mode = 'observe'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'new'\nexe = '/web'\n\
            [[workload]]\nname = 'web'\nexe = '/other'\n[[workload]]\nname = 'shop'\nexe = '/shop'\n\
            [[rule]]\nname = 'r'\nfrom = 'shop'\nto = 'web'\naction = 'allow'\n";
        let edited = Policy::parse("p.toml", text).unwrap();
        assert_eq!(outcome(&edited, begun()), Outcome::WouldRefuse);
        assert_eq!(renamed(begun(), &edited).here.unwrap().workload.unwrap().as_str(), "new");
        let nobody = attested("/web", "web", "a").map(|here| Attestation { workload: None, ..here });
        assert_eq!(
            outcome(&policy("shop", "web"), flow(nobody, begun().there.unwrap().attested, "b")),
            Outcome::Allowed
        );
    }

    #[test]
    fn what_is_revoked_or_in_quarantine_at_either_end_would_have_ended_it() {
        let policy = policy("shop", "web");
        let seen = || flow(attested("/web", "web", "a"), attested("/shop", "shop", "b"), "b");
        let judged = |barred: &Quarantine| judge(&policy, barred, &seen());
        assert_eq!(judged(&Quarantine::default()).outcome, Outcome::Allowed);
        for (name, begins) in
            [("web", "workload web is revoked"), ("shop", "at the other end: workload shop is revoked")]
        {
            let mut barred = Quarantine::default();
            barred.revoked.workloads.insert(name.parse().unwrap());
            let Judged { outcome, why, .. } = judged(&barred);
            let why = why.unwrap();
            assert_eq!((outcome, why.reason), (Outcome::WouldRefuse, Reason::WorkloadRevoked));
            assert!(why.detail.starts_with(begins) && why.detail.contains("or ended it"), "{}", why.detail);
        }
        assert_eq!(judged(&[Digest::of(b"a")].into()).why.unwrap().reason, Reason::Quarantined);
    }

    #[test]
    fn where_nobody_listens_only_whoever_knocked_is_judged() {
        let policy = policy("shop", "web");
        let nobody = || Err(AttestRefusal::new(AttestReason::NoSocket, "nobody"));
        let refused = |source, here, there| {
            let flow = flow(here, there, "b");
            judge(&policy, &Quarantine::default(), &ObservedFlow { ending: Ending::Refused, source, ..flow }).outcome
        };
        let shop = || attested("/shop", "shop", "a");
        let stranger = || attested("/x", "x", "a").map(|here| Attestation { workload: None, ..here });
        assert_eq!(refused(false, nobody(), shop()), Outcome::Undecided);
        assert_eq!(refused(true, shop(), nobody()), Outcome::Undecided);
        assert_eq!(refused(false, nobody(), stranger()), Outcome::WouldRefuse);
        assert_eq!(refused(true, stranger(), nobody()), Outcome::WouldRefuse);
        // A connection has somebody at both ends.
        assert_eq!(judge(&policy, &Quarantine::default(), &flow(nobody(), shop(), "b")).outcome, Outcome::WouldRefuse);
    }

    #[test]
    fn the_other_end_keeps_its_name_unless_it_is_of_this_node() {
        let policy = policy("shop", "web");
        for (node, named) in [("b", Some("old")), ("a", None)] {
            let flow = renamed(flow(attested("/web", "web", "a"), attested("/x", "old", "a"), node), &policy);
            let there = flow.there.unwrap().attested.unwrap().workload;
            assert_eq!(there.as_ref().map(WorkloadName::as_str), named);
        }
    }
}
