//! What the stages of a flow share: the node they ask, the verdict they carry, and the one way to end refused.
//!
//! A flow walks Captured → Attributed → Authorized → Tunnel → Ended. Each stage owns the one before it, so a
//! failing step can always reset the program's connection and close the account with its reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bonafide_policy::{Denied, Mode, Policy, Verdict};
use bonafide_proto::convert::Attestation;
use bonafide_proto::flow::NetNs;
use bonafide_proto::name::{SpiffeId, WorkloadName};
use bonafide_proto::record::{Outcome, Reason};
use bonafide_proto::refusal::AttestRefusal;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::identity::{Identity, NodeTrust};
use crate::live::{Judged, Live};
use crate::record::{Account, Records, Why};
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

    /// True for an address that is one of our own capture listeners: relaying to it would loop for ever.
    pub fn is_own_listener(&self, addr: SocketAddr) -> bool {
        addr.ip().is_loopback() && self.ports.contains(&addr.port())
    }
}

/// A program that earned a workload.
#[derive(Debug, Clone)]
pub struct Program {
    /// The evidence.
    pub attestation: Attestation,
    /// What it earned.
    pub workload: WorkloadName,
}

impl Program {
    /// As a party of a verdict on this host.
    pub(crate) fn judged(&self) -> Judged {
        Judged::Workload(self.workload.clone(), Some(Box::new(self.attestation.fingerprint.clone())))
    }

    /// Whether another look found the same program.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let (a, b) = (&self.attestation.fingerprint, &other.attestation.fingerprint);
        self.workload == other.workload && a.exe == b.exe && a.script == b.script
    }
}

/// Names the program behind an attestation, or says why it has no name.
pub(crate) fn program(attested: Result<Attestation, AttestRefusal>) -> Result<Program, Why> {
    let attestation = attested.map_err(|e| Why::new(Reason::Unattributed, format!("{}: {}", e.reason, e.detail)))?;
    match attestation.workload.clone() {
        Some(workload) => Ok(Program { attestation, workload }),
        None => Err(Why {
            reason: Reason::NoWorkload,
            detail: match attestation.near_misses.first() {
                Some(near) => {
                    format!("{} fits no workload; nearest is {:?}", attestation.fingerprint.exe.path, near.of)
                }
                None => format!("{} fits no workload", attestation.fingerprint.exe.path),
            },
            rule: None,
            nearest: attestation.near_misses.into_iter().next(),
        }),
    }
}

/// A permission, and what its holder now must write down.
#[derive(Debug)]
#[must_use = "what was granted has to be entered into the account"]
pub struct Grant {
    outcome: Outcome,
    rule: Option<String>,
    why: Option<Why>,
}

impl Grant {
    /// Writes the verdict into the account.
    pub fn enter(self, account: &mut Account) {
        match self.outcome {
            Outcome::Allowed => account.allowed(self.rule.as_deref()),
            observed => account.observed(observed, self.why.as_ref()),
        }
    }

    /// Observe mode: the other end's program cannot be known in the clear.
    pub fn undecided() -> Self {
        Self { outcome: Outcome::Undecided, rule: None, why: None }
    }
}

/// The decision, in the mode in force: observe lets everything through and writes down what enforce would do.
pub(crate) fn judge(mode: Mode, verdict: Result<Verdict, Why>) -> Result<Grant, Why> {
    let refusal = match verdict {
        Ok(Verdict::Allow(allowed)) => {
            return Ok(Grant { outcome: Outcome::Allowed, rule: Some(allowed.rule), why: None });
        }
        Ok(Verdict::Deny(denied)) => why_denied(denied),
        Err(why) => why,
    };
    match mode {
        Mode::Enforce => Err(refusal),
        Mode::Observe => Ok(Grant { outcome: Outcome::WouldRefuse, rule: None, why: Some(refusal) }),
    }
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
    Why { reason, detail, rule: denied.rule, nearest: denied.nearest }
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
