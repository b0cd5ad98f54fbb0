//! What the stages of a flow share: the node they ask, the verdict they carry, and the one way to end refused.
//!
//! A flow walks Captured → Attributed → Authorized → Tunnel → Ended. Each stage owns the one before it, so a
//! failing step can always reset the program's connection and close the account with its reason.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bonafide_policy::{Denied, Mode, Policy, Verdict};
use bonafide_proto::convert::Attestation;
use bonafide_proto::flow::{FlowKey, NetNs};
use bonafide_proto::name::{SpiffeId, TrustDomain, WorkloadName};
use bonafide_proto::record::{Outcome, Party, Reason, Tried};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::identity::{Attested, Identity, NodeTrust};
use crate::live::{Live, Peer, Program};
use crate::record::{Account, Records, Why, describe_attested};
use crate::sys::dial::Reserved;
use crate::sys::locality::Locality;
use crate::tunnel::TunnelError;
use crate::tunnel::sniff::Rewind;

/// How long a TCP connection to the other end may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the TLS handshake and the opening of a flow may take, each.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What every flow of this node may ask.
#[derive(Debug)]
pub struct Node {
    /// identityd.
    pub identity: Identity,
    /// The policy in force.
    pub policy: watch::Receiver<Option<Arc<Policy>>>,
    /// The trust bundle and this node's name.
    pub trust: watch::Receiver<Option<Arc<NodeTrust>>>,
    /// Where records go.
    pub records: Arc<Records>,
    /// The flows that live.
    pub live: Arc<Live>,
    /// Which addresses are this host's.
    pub locality: Locality,
    /// The network namespace that is captured.
    pub netns: NetNs,
    /// Our own capture ports: a connection to them is refused.
    pub ports: [u16; 2],
}

impl Node {
    /// The policy in force.
    ///
    /// # Errors
    /// `no-policy` as long as none was loaded.
    pub fn policy(&self) -> Result<Arc<Policy>, Why> {
        self.policy.borrow().clone().ok_or_else(|| Why::new(Reason::NoPolicy, "no policy is loaded yet"))
    }

    /// The trust bundle.
    ///
    /// # Errors
    /// `no-svid` as long as the CA has not given one.
    pub fn trust(&self) -> Result<Arc<NodeTrust>, Why> {
        self.trust.borrow().clone().ok_or_else(|| Why::new(Reason::NoSvid, "the CA has given no trust bundle yet"))
    }

    /// The SPIFFE ID a workload has here, if the trust domain is known already.
    pub fn spiffe_id(&self, workload: Option<&WorkloadName>) -> Option<SpiffeId> {
        let trust = self.trust.borrow();
        Some(SpiffeId::workload(trust.as_ref()?.trust.bundle.trust_domain(), workload?))
    }

    /// Whose roots are in force; none before the first trust bundle.
    #[must_use]
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        self.trust.borrow().as_ref().map(|trust| trust.trust.bundle.trust_domain().clone())
    }

    /// Writes what attestation found into a party.
    pub(crate) fn describe(&self, party: &mut Party, attested: &Attested) {
        let attestation = &attested.attestation;
        describe_attested(party, attestation, self.spiffe_id(attestation.workload.as_ref()));
    }

    /// Refuses what is in quarantine, or revoked.
    ///
    /// # Errors
    /// `quarantined`, with the digest; or what is revoked.
    pub(crate) fn admit(&self, program: Program) -> Result<Program, Why> {
        match program.quarantined(&self.identity.quarantined()) {
            Some(why) => Err(why),
            None => Ok(program),
        }
    }

    /// Whether this end accepts what a peer's certificate says about its program: the node that issued it judged by its
    /// own policy, and may not know yet what is in quarantine.
    ///
    /// # Errors
    /// `quarantined`, what is revoked, or `peer-certificate` with the demand of the policy that it misses.
    pub(crate) fn accept(&self, peer: &Peer, policy: &Policy) -> Result<(), Why> {
        let objection = peer.quarantined(&self.identity.quarantined());
        objection.or_else(|| peer.misfit(policy)).map_or(Ok(()), Err)
    }

    /// True for an address that is one of our own capture listeners: relaying to it would loop for ever.
    pub fn is_own_listener(&self, addr: SocketAddr) -> bool {
        addr.ip().is_loopback() && self.ports.contains(&addr.port())
    }
}

/// Names the program behind an attestation, or says why it has no name.
pub(crate) fn program(attested: Result<Attested, AttestRefusal>) -> Result<Program, Why> {
    let attested = attested.map_err(|e| why_unattributed(&e))?;
    let workload = named(&attested.attestation)?.clone();
    Ok(Program::new(workload, attested))
}

/// The name that an attestation earned, or why it earned none.
pub(crate) fn named(attestation: &Attestation) -> Result<&WorkloadName, Why> {
    let path = &attestation.fingerprint.exe.path;
    let (detail, nearest) = match (&attestation.workload, attestation.near_misses.first()) {
        (Some(workload), _) => return Ok(workload),
        (None, Some(near)) => (format!("{path} fits no workload; nearest is {:?}", near.of), Some(near.clone())),
        (None, None) => (format!("{path} fits no workload"), None),
    };
    let pid = attestation.executions.first().map_or_else(|| "PID".to_owned(), |execution| execution.pid.to_string());
    let remedy =
        format!("# no rule can allow it yet: the program has no name; bonafide workload add --from-pid {pid}\n");
    Err(Why { nearest, remedy: Some(remedy), ..Why::new(Reason::NoWorkload, detail) })
}

/// The question who listens now where this one was asked before. It is asked from a port of its own, to be held until
/// the answer is there: by now the pair of the first question is connected.
pub(crate) fn listener_now(key: FlowKey) -> io::Result<(Reserved, FlowKey)> {
    let spare = Reserved::bind(key.remote.ip(), scope(key.remote))?;
    let remote = spare.local();
    Ok((spare, FlowKey { remote, ..key }))
}

/// A doubt about a program in the words of the record.
pub(crate) fn why_unattributed(refusal: &AttestRefusal) -> Why {
    let reason = match refusal.reason {
        AttestReason::Quarantined => Reason::Quarantined,
        _ => Reason::Unattributed,
    };
    Why::new(reason, refusal.to_string())
}

/// Why a program gets no certificate, in the words of the record.
pub(crate) fn why_no_svid(refusal: &AttestRefusal) -> Why {
    let reason = match refusal.reason {
        AttestReason::Quarantined => Reason::Quarantined,
        AttestReason::NotGranted => Reason::NotGranted,
        AttestReason::NodeRevoked => Reason::NodeRevoked,
        AttestReason::WorkloadRevoked => Reason::WorkloadRevoked,
        _ => Reason::NoSvid,
    };
    Why::new(reason, refusal.to_string())
}

/// A permission, and what its holder now must write down.
#[derive(Debug)]
#[must_use = "what was granted has to be entered into the account"]
pub struct Grant {
    outcome: Outcome,
    rule: Option<String>,
    tried: Option<Tried>,
    why: Option<Why>,
}

impl Grant {
    /// Writes the verdict into the account.
    pub fn enter(self, account: &mut Account) {
        account.tried(self.tried.as_ref());
        match self.outcome {
            Outcome::Allowed => account.allowed(self.rule.as_deref()),
            observed => account.observed(observed, self.why.as_ref()),
        }
    }

    /// Shadow mode: the other end's program cannot be known in the clear.
    pub fn undecided() -> Self {
        Self { outcome: Outcome::Undecided, rule: None, tried: None, why: None }
    }
}

/// The decision, in the mode in force: shadow lets everything through and writes down what enforce would do.
pub(crate) fn judge(mode: Mode, verdict: Result<Verdict, Why>) -> Result<Grant, Why> {
    let refusal = match verdict {
        Ok(Verdict::Allow(allowed)) => {
            let (rule, tried) = (Some(allowed.rule), allowed.tried);
            return Ok(Grant { outcome: Outcome::Allowed, rule, tried, why: None });
        }
        Ok(Verdict::Deny(denied)) => why_denied(denied),
        Err(why) => why,
    };
    match mode {
        Mode::Enforce => Err(refusal),
        Mode::Observe | Mode::Shadow => {
            Ok(Grant { outcome: Outcome::WouldRefuse, rule: None, tried: refusal.tried.clone(), why: Some(refusal) })
        }
    }
}

/// A destination that the policy does not know, in the words of the record.
pub(crate) fn unknown_address(addr: SocketAddr) -> Why {
    let remedy =
        format!("# no rule can allow it yet: no [[outside]] covers {}; declare one\n", addr.ip().to_canonical());
    let detail = format!("{addr} is neither in the policy's mesh nor in an [[outside]]; add one of them, and a rule");
    Why { remedy: Some(remedy), ..Why::new(Reason::UnknownAddress, detail) }
}

/// A denial in the words of the record.
pub(crate) fn why_denied(denied: Denied) -> Why {
    let (reason, detail) = match (&denied.rule, &denied.nearest) {
        (Some(rule), _) => (Reason::RuleDenies, format!("rule {rule:?} denies it")),
        (None, Some(near)) => {
            let (of, field) = (&near.of, &near.field);
            (Reason::NoRule, format!("no rule allows it; nearest is {of:?}, whose {field} wants {}", near.expected))
        }
        (None, None) => (Reason::NoRule, "no rule allows it".to_owned()),
    };
    let remedy = Some(denied.remedy.to_string());
    let Denied { rule, nearest, tried, .. } = denied;
    Why { rule, nearest, remedy, tried, ..Why::new(reason, detail) }
}

/// A tunnel error in the words of the record.
pub(crate) fn why_tunnel(error: &TunnelError) -> Why {
    Why::new(error.reason(), error.to_string())
}

/// A step that did not finish in its time.
pub(crate) fn why_late(step: &str, limit: Duration) -> Why {
    Why::new(Reason::Limit, format!("{step} took longer than {} s", limit.as_secs()))
}

/// The IPv6 scope of an address, else 0.
pub(crate) fn scope(addr: SocketAddr) -> u32 {
    match addr {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

/// A stream that can be ended so that the other side sees a reset.
///
/// From capture on, a program's connection is armed: however its flow is dropped, also by a killed enforcer, the
/// program sees a reset and never takes half an answer for a whole one. Only an orderly end disarms it.
pub(crate) trait Abort {
    /// Ends it at once.
    fn abort(self);
    /// From now on, being dropped is a reset.
    fn arm(&self);
    /// From now on, being dropped is an orderly close.
    fn disarm(&self);
}

impl Abort for TcpStream {
    fn abort(self) {
        crate::sys::reset::reset(self);
    }

    fn arm(&self) {
        // A socket that takes no option any more is closed already.
        let _ = crate::sys::reset::on_drop(self);
    }

    fn disarm(&self) {
        let _ = crate::sys::reset::off_drop(self);
    }
}

impl Abort for DuplexStream {
    fn abort(self) {}
    fn arm(&self) {}
    fn disarm(&self) {}
}

impl<S: Abort> Abort for Rewind<S> {
    fn abort(self) {
        self.into_parts().1.abort();
    }

    fn arm(&self) {
        self.get_ref().arm();
    }

    fn disarm(&self) {
        self.get_ref().disarm();
    }
}

/// Proof that a flow was accounted for. Made only where an account is closed.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ended(());

impl Ended {
    /// For a flow whose stream is gone already: the account is closed by [`Account::refused`].
    pub(crate) fn without_stream(account: Account, why: &Why) -> Self {
        account.refused(why);
        Self(())
    }
}

/// Resets the program's connection at once and writes why.
pub(crate) fn refuse(stream: impl Abort, account: Account, why: &Why) -> Ended {
    stream.abort();
    account.refused(why);
    Ended(())
}

/// Writes how a flow that was let through ended.
pub(crate) fn finish(account: Account, end: crate::relay::End) -> Ended {
    account.ended(end.by, end.why.as_ref());
    Ended(())
}
