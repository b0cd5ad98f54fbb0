//! The account of one flow: filled in as it becomes known, closed exactly once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Script;
use bonafide_proto::name::SpiffeId;
use bonafide_proto::observed::Protocol;
use bonafide_proto::record::{
    End, EndedBy, FlowRecord, NearMiss, Outcome, Party, RECORD_VERSION, Reason, TlsFacts, Transport, Tried,
};
use bonafide_proto::svid::PeerSvid;

use super::{Records, rfc3339};
use crate::tunnel::ending::Kind;
use crate::tunnel::frame::FlowId;

/// Why a flow was refused, would have been, or was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// The name.
    pub reason: Reason,
    /// In words, for a person.
    pub detail: String,
    /// The rule that denies.
    pub rule: Option<String>,
    /// What came nearest to allowing it.
    pub nearest: Option<NearMiss>,
    /// What would let it pass, to be copied into the policy.
    pub remedy: Option<String>,
    /// What a rule that is only tried would have decided.
    pub tried: Option<Tried>,
    /// Which kind of evidence changed; the other end learns that, too.
    pub changed: Option<Kind>,
}

impl Why {
    /// A reason with its detail.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), rule: None, nearest: None, remedy: None, tried: None, changed: None }
    }
}

/// Payload bytes of one flow, counted while it lives.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the connecting program to the listening one.
    pub sent: AtomicU64,
    /// From the listening program to the connecting one.
    pub received: AtomicU64,
}

/// The account of one flow. Dropping it without closing it writes `internal-error`.
#[derive(Debug)]
#[must_use = "a flow is accounted for exactly once: close it with its end"]
pub struct Account {
    records: Arc<Records>,
    number: u64,
    began: Instant,
    id: FlowId,
    /// Boxed: the account moves with its flow through every stage.
    draft: Box<FlowRecord>,
    ends: Vec<End>,
    counters: Arc<Counters>,
    closed: bool,
}

impl Account {
    /// Opens the account of a flow that was captured just now. With its addresses it is written into the journal.
    pub fn open(records: &Arc<Records>, end: End, mode: &'static str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let started = rfc3339(&records.clock);
        let id = FlowId::random();
        let draft = Box::new(FlowRecord {
            v: RECORD_VERSION,
            id: id.to_string(),
            end,
            protocol: Protocol::Tcp,
            ended: started.clone(),
            started,
            duration_us: 0,
            mode: mode.to_owned(),
            verdict: Outcome::Refused,
            rule: None,
            reason: None,
            detail: None,
            nearest: None,
            remedy: None,
            tried: None,
            transport: Transport::None,
            source: Party::default(),
            destination: Party::default(),
            original: None,
            tls: None,
            bytes_sent: 0,
            bytes_received: 0,
            ended_by: EndedBy::Refusal,
        });
        let ends = vec![end];
        let counters = Arc::default();
        Self { records: Arc::clone(records), number, began: Instant::now(), id, draft, ends, counters, closed: false }
    }

    /// The flow's ID, 32 hex digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.draft.id
    }

    /// The flow's ID, as it travels.
    #[must_use]
    pub fn flow_id(&self) -> FlowId {
        self.id
    }

    /// Takes over the ID that the source's enforcer gave the flow.
    pub fn rename(&mut self, id: FlowId) {
        self.id = id;
        self.draft.id = id.to_string();
    }

    /// Both programs are on this host: one record is written for each end.
    pub fn both_ends(&mut self) {
        self.ends = vec![End::Source, End::Destination];
    }

    /// The byte counters, to be shared with the relay.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The addresses of both ends as seen here, and the original one where NAT changed it.
    pub fn addresses(&mut self, source: SocketAddr, destination: SocketAddr, original: Option<SocketAddr>) {
        self.draft.source.addr = Some(source);
        self.draft.destination.addr = Some(destination);
        self.draft.original = original;
        self.records.draft(self.number, &self.draft, &self.ends);
    }

    /// The connecting side.
    pub fn source(&mut self) -> &mut Party {
        &mut self.draft.source
    }

    /// The listening side.
    pub fn destination(&mut self) -> &mut Party {
        &mut self.draft.destination
    }

    /// Facts of the TLS session.
    pub fn tls(&mut self, facts: TlsFacts) {
        self.draft.tls = Some(facts);
    }

    /// How it travels from here on.
    pub fn transport(&mut self, transport: Transport) {
        self.draft.transport = transport;
    }

    /// It is let through; the draft in the journal now says so.
    pub fn allowed(&mut self, rule: Option<&str>) {
        self.draft.verdict = Outcome::Allowed;
        self.draft.rule = rule.map(ToOwned::to_owned);
        self.draft.ended_by = EndedBy::Closed;
        self.records.draft(self.number, &self.draft, &self.ends);
    }

    /// It is let through because nothing is refused in this mode: enforce would have refused it for `why`, or could not tell yet.
    pub fn observed(&mut self, outcome: Outcome, why: Option<&Why>) {
        self.allowed(None);
        self.draft.verdict = outcome;
        if let Some(why) = why {
            self.reason(why);
        }
    }

    /// Writes the record of a flow that was refused.
    pub fn refused(mut self, why: &Why) {
        self.draft.verdict = Outcome::Refused;
        self.draft.ended_by = EndedBy::Refusal;
        self.reason(why);
        self.close();
    }

    /// Writes the record of a flow that was let through and is over.
    pub fn ended(mut self, by: EndedBy, why: Option<&Why>) {
        self.draft.ended_by = by;
        if let Some(why) = why {
            self.reason(why);
        }
        self.close();
    }

    /// What a rule that is only tried would have decided, if there is one; what was said before stays.
    pub fn tried(&mut self, tried: Option<&Tried>) {
        if tried.is_some() {
            self.draft.tried = tried.cloned();
        }
    }

    fn reason(&mut self, why: &Why) {
        self.draft.reason = Some(why.reason);
        self.draft.detail = Some(why.detail.clone());
        if why.rule.is_some() {
            self.draft.rule.clone_from(&why.rule);
        }
        self.draft.nearest.clone_from(&why.nearest);
        self.draft.remedy.clone_from(&why.remedy);
        self.tried(why.tried.as_ref());
    }

    fn close(&mut self) {
        self.closed = true;
        self.draft.ended = rfc3339(&self.records.clock);
        self.draft.duration_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.draft.bytes_sent = self.counters.sent.load(Ordering::Relaxed);
        self.draft.bytes_received = self.counters.received.load(Ordering::Relaxed);
        self.records.close(self.number, &self.draft, &self.ends);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.closed {
            self.reason(&if self.records.stopping.load(Ordering::Relaxed) {
                Why::new(Reason::EnforcerStopped, "the enforcer was stopped")
            } else {
                Why::new(Reason::Internal, "the flow was dropped inside the enforcer")
            });
            self.draft.ended_by = EndedBy::Enforcer;
            self.close();
        }
    }
}

/// Writes what attestation found into a party.
pub(crate) fn describe_attested(party: &mut Party, attestation: &Attestation, id: Option<SpiffeId>) {
    let fingerprint = &attestation.fingerprint;
    let container = fingerprint.container.known();
    let pod = container.and_then(|container| container.pod.as_ref());
    party.workload.clone_from(&attestation.workload);
    party.spiffe_id = id;
    party.program = Some(fingerprint.exe.path.clone());
    party.digest = Some(fingerprint.exe.digest);
    describe_script(party, fingerprint.script.known());
    party.uid = Some(fingerprint.uid);
    party.pid = attestation.executions.first().map(|e| e.pid);
    party.unit = fingerprint.unit.known().map(|unit| unit.name.clone());
    party.libraries = fingerprint.libraries.known().map(|libraries| libraries.digest);
    party.image = container.map(|container| container.image);
    party.container = container.map(|container| format!("{}:{}", container.runtime, container.id));
    party.pod = pod.map(|pod| format!("{}/{}", pod.namespace, pod.name));
    party.taints.clone_from(&fingerprint.taints);
    let host = &fingerprint.host;
    party.host = host.bios_uuid.known().or_else(|| host.machine_id.known()).cloned();
    party.node.clone_from(&host.node);
}

/// Writes what a peer's certificate proved into a party.
pub(crate) fn describe_peer(party: &mut Party, peer: &PeerSvid) {
    party.workload = peer.id().workload_name();
    party.spiffe_id = Some(peer.id().clone());
    party.node = peer.node().cloned();
    if let Some(program) = peer.program() {
        party.program = Some(program.program.clone());
        party.digest = Some(program.exe);
        describe_script(party, program.script.as_ref());
        party.uid = Some(program.uid);
        party.libraries = program.libraries;
        party.image = program.image;
        party.taints.clone_from(&program.taints);
        party.host = program.bios_uuid.as_ref().or(program.machine_id.as_ref()).cloned();
    }
}

/// Code of a command line has a digest, but no path.
fn describe_script(party: &mut Party, script: Option<&Script>) {
    party.script = script.and_then(Script::file).map(|file| file.path.clone());
    party.script_digest = script.and_then(Script::digest);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bonafide_proto::container::{Container, Pod};
    use bonafide_proto::fingerprint::{Digest, Evidence, Execution, Fingerprint, HashedFile, Host, Libraries, Unit};
    use bonafide_proto::taint::Taint;

    use super::*;

    fn absent<T>() -> Evidence<T> {
        Evidence::Absent("none".into())
    }

    fn attestation(bios_uuid: Evidence<String>) -> Attestation {
        let host = Host { bios_uuid, machine_id: Evidence::Known("0123abcd".into()), node: None };
        let exe = HashedFile { path: "/usr/bin/python3".into(), digest: Digest([1; 32]) };
        let pod = Pod {
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: "u".into(),
            service_account: None,
            labels: BTreeMap::new(),
        };
        let container = Container {
            runtime: "containerd".into(),
            id: "abc".into(),
            name: None,
            image: Digest([4; 32]),
            image_name: None,
            manifests: vec![],
            labels: BTreeMap::new(),
            pod: Some(pod),
        };
        let fingerprint = Fingerprint {
            script: Evidence::Known(Script::File(HashedFile { path: "/srv/a.py".into(), digest: Digest([2; 32]) })),
            libraries: Evidence::Known(Libraries { digest: Digest([3; 32]), count: 2 }),
            unit: Evidence::Known(Unit { name: "web.service".into(), invocation: None }),
            container: Evidence::Known(container),
            taints: [Taint::Deleted].into(),
            ..Fingerprint::of(exe, (33, 34), host)
        };
        let executions = vec![Execution { pid: 7, start_ticks: 8, image: 9 }];
        Attestation {
            executions,
            fingerprint,
            account: 33,
            workload: None,
            near_misses: vec![],
            source: "kernel".into(),
        }
    }

    #[test]
    fn a_party_is_described_by_all_its_evidence() {
        let mut party = Party::default();
        describe_attested(&mut party, &attestation(Evidence::Known("4c4c4544".into())), None);
        let expected = Party {
            program: Some("/usr/bin/python3".into()),
            digest: Some(Digest([1; 32])),
            script: Some("/srv/a.py".into()),
            script_digest: Some(Digest([2; 32])),
            uid: Some(33),
            pid: Some(7),
            unit: Some("web.service".into()),
            libraries: Some(Digest([3; 32])),
            image: Some(Digest([4; 32])),
            container: Some("containerd:abc".into()),
            pod: Some("shop/web-0".into()),
            taints: [Taint::Deleted].into(),
            host: Some("4c4c4544".into()),
            ..Party::default()
        };
        assert_eq!(party, expected);
    }

    #[test]
    fn a_host_without_a_uuid_is_known_by_its_machine_id_and_inline_code_by_its_digest() {
        let mut party = Party::default();
        let mut attestation = attestation(absent());
        attestation.fingerprint.script = Evidence::Known(Script::Inline(Digest([5; 32])));
        describe_attested(&mut party, &attestation, None);
        assert_eq!(party.host.as_deref(), Some("0123abcd"));
        assert_eq!((party.script, party.script_digest), (None, Some(Digest([5; 32]))));
    }
}
