//! The question a flow was allowed by, kept so that it can be asked again: of another policy, about other evidence.

use std::net::SocketAddr;
use std::sync::Arc;

use bonafide_policy::{Certified, Identified, Mode, Policy, Subject, Verdict};
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Digest, Execution};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::program::CertifiedProgram;
use bonafide_proto::record::{NearMiss, Reason};
use bonafide_proto::svid::{Issuer, PeerSvid};

use crate::flow::why_denied;
use crate::identity::{About, AsOf, Attested, Quarantine, Socket};
use crate::record::Why;
use crate::tunnel::Showing;
use crate::tunnel::ending::Kind;

/// So many seconds before a certificate expires, a flow by it ends. Expiry is looked for twice a second.
const MARGIN: i64 = 2;

/// How a program differs from what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Of which kind the evidence is that changed, where that can be told.
    pub(crate) of: Option<Kind>,
    /// In words, for a person.
    pub(crate) how: String,
}

/// A program of this host that earned a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// What it earned.
    pub workload: WorkloadName,
    /// By which evidence.
    pub attestation: Arc<Attestation>,
    /// What lapsed since then may be about it.
    pub(crate) as_of: AsOf,
    /// Its socket.
    pub(crate) about: About,
    /// What is shown of it to a peer, where one is.
    pub(crate) shown: Option<Showing>,
}

impl Program {
    pub(crate) fn new(workload: WorkloadName, attested: Attested) -> Self {
        let Attested { attestation, as_of, about } = attested;
        Self { workload, attestation, as_of, about, shown: None }
    }

    /// The same, of which a peer is shown this.
    pub(crate) fn showing(self, shown: Showing) -> Self {
        Self { shown: Some(shown), ..self }
    }

    pub(super) fn socket(&self) -> Socket {
        self.about.key.into()
    }

    /// As a party of a verdict.
    pub(crate) fn judged(&self) -> Judged {
        Judged::Here(Box::new(self.clone()))
    }

    /// How another look at it differs: the first difference.
    pub(crate) fn changed(&self, now: &Attestation) -> Option<Difference> {
        let (a, b) = (&self.attestation.fingerprint, &now.fingerprint);
        let differs = |of, how| Some(Difference { of, how });
        if a.exe != b.exe {
            let how = format!("it was {} ({}), and is {} ({})", a.exe.path, a.exe.digest, b.exe.path, b.exe.digest);
            return differs(Some(Kind::Executable), how);
        }
        if a.script != b.script {
            return differs(Some(Kind::Script), format!("{} runs another script than it did", b.exe.path));
        }
        match &now.workload {
            Some(workload) if *workload == self.workload => None,
            Some(workload) => differs(None, format!("{} was {}, and is {workload}", b.exe.path, self.workload)),
            None => {
                let miss = now.near_misses.iter().find(|miss| miss.of == self.workload.as_str());
                let wants =
                    |miss: &NearMiss| format!(", whose {} wants {} and not {}", miss.field, miss.expected, miss.seen);
                let why = miss.map(wants).unwrap_or_default();
                let how = format!("{} does not earn {} any more{why}", b.exe.path, self.workload);
                differs(miss.and_then(|miss| Kind::of_field(&miss.field)), how)
            }
        }
    }

    /// Whether a digest of it is in quarantine, or its workload or what is shown of it is revoked.
    pub(crate) fn quarantined(&self, quarantine: &Quarantine) -> Option<Why> {
        let fingerprint = &self.attestation.fingerprint;
        quarantined(&fingerprint.exe.path, fingerprint.digests(), quarantine).or_else(|| {
            let shown = self.shown.as_ref().map(|shown| (shown.svid.serial(), shown.svid.issuer()));
            revoked(&self.workload, shown, quarantine)
        })
    }

    /// As whom to ask for it again: identityd numbers executions as long as it lives, and knows no other's numbers.
    pub(super) fn executions(&self, now: AsOf) -> Vec<Execution> {
        let strangers = self.as_of.is_of_another_session(now);
        let number = |execution: &Execution| if strangers { 0 } else { execution.image };
        self.attestation.executions.iter().map(|e| Execution { image: number(e), ..*e }).collect()
    }

    fn lost_its_name(&self, policy: &Policy) -> Option<Why> {
        let evidence = &self.attestation.fingerprint;
        match policy.identify(evidence) {
            Identified::Workload(earned) if earned == self.workload => None,
            _ => {
                let detail = format!("{} does not earn {} any more", evidence.exe.path, self.workload);
                Some(Why::new(Reason::NoWorkload, detail))
            }
        }
    }
}

/// A program of another host, as its certificate proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it earned, by the judgement of its own node.
    pub workload: WorkloadName,
    pub(super) program: CertifiedProgram,
    pub(super) issuer: Option<Issuer>,
    pub(super) serial: String,
    /// When its certificate expires, unix seconds.
    pub(super) not_after: i64,
}

impl Peer {
    /// # Errors
    /// `peer-certificate`: it names no workload, or no program.
    pub(crate) fn of(svid: &PeerSvid) -> Result<Self, Why> {
        let lacks = |what: &str| Why::new(Reason::PeerCertificate, format!("the peer's {what}"));
        Ok(Self {
            workload: svid.id().workload_name().ok_or_else(|| lacks("SPIFFE ID names no workload"))?,
            program: svid.program().cloned().ok_or_else(|| lacks("certificate names no program"))?,
            issuer: svid.issuer().cloned(),
            serial: svid.serial().to_owned(),
            not_after: svid.not_after(),
        })
    }

    /// As a party of a verdict.
    pub(crate) fn judged(self) -> Judged {
        Judged::There(Box::new(self))
    }

    /// Whether a later certificate of the same end is another one's.
    pub(super) fn is_another(&self, later: &Self) -> Option<Why> {
        let node = |peer: &Self| peer.issuer.as_ref().map(|issuer| issuer.node.clone());
        let same = self.workload == later.workload && node(self) == node(later);
        let named = |peer: &Self| match node(peer) {
            Some(node) => format!("{} of node {node}", peer.workload),
            None => peer.workload.to_string(),
        };
        (!same).then(|| {
            let detail = format!("the peer was {}, and its later certificate is of {}", named(self), named(later));
            Why::new(Reason::PeerCertificate, detail)
        })
    }

    /// Whether a digest of it is in quarantine, or its certificate is revoked.
    pub(crate) fn quarantined(&self, quarantine: &Quarantine) -> Option<Why> {
        quarantined(&self.program.program, self.program.digests(), quarantine)
            .or_else(|| revoked(&self.workload, Some((&self.serial, self.issuer.as_ref())), quarantine))
    }

    /// What this policy demands of the workload and the certificate does not say.
    pub(crate) fn misfit(&self, policy: &Policy) -> Option<Why> {
        let node = self.issuer.as_ref().map(|issuer| &issuer.node);
        let certified = Certified { program: &self.program, node };
        let miss = policy.accepts_certified(&self.workload, &certified).err()?;
        let detail = format!(
            "{} is certified as {}, but its {} is not what the policy here wants: {}",
            self.program.program, self.workload, miss.field, miss.seen
        );
        Some(Why { nearest: Some(miss), ..Why::new(Reason::PeerCertificate, detail) })
    }
}

fn quarantined(path: &str, mut digests: impl Iterator<Item = Digest>, quarantine: &Quarantine) -> Option<Why> {
    if quarantine.digests.is_empty() {
        return None;
    }
    let digest = digests.find(|digest| quarantine.digests.contains(digest))?;
    Some(Why::new(Reason::Quarantined, format!("{digest} of {path} is in quarantine")))
}

/// Whether a workload, or the certificate by which it is known, is revoked: by its serial number, by who issued it.
fn revoked(workload: &WorkloadName, shown: Option<(&str, Option<&Issuer>)>, quarantine: &Quarantine) -> Option<Why> {
    let revoked = &quarantine.revoked;
    let issuer = || revoked.issuer(shown?.1?);
    let serial = || revoked.serial(shown?.0);
    let (reason, detail) = issuer().or_else(|| revoked.workload(workload)).or_else(serial)?;
    Some(Why::new(reason, detail))
}

/// One party of a verdict, owned, so that it can be asked for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// A program of this host, with the evidence that earned the name: a policy that no longer accepts this evidence
    /// no longer allows the flow, though the name may still be allowed.
    Here(Box<Program>),
    /// A program of another host, with what its certificate says: the same.
    There(Box<Peer>),
    /// An address outside the mesh.
    Outside(SocketAddr),
}

impl Judged {
    /// As the policy asks for it.
    #[must_use]
    pub fn subject(&self) -> Subject<'_> {
        match self {
            Self::Here(program) => Subject::Workload(&program.workload),
            Self::There(peer) => Subject::Workload(&peer.workload),
            Self::Outside(addr) => Subject::Outside(*addr),
        }
    }

    /// The workload, if it is a program.
    #[must_use]
    pub fn workload(&self) -> Option<&WorkloadName> {
        match self {
            Self::Here(program) => Some(&program.workload),
            Self::There(peer) => Some(&peer.workload),
            Self::Outside(_) => None,
        }
    }

    fn lost_its_name(&self, policy: &Policy) -> Option<Why> {
        match self {
            Self::Here(program) => program.lost_its_name(policy),
            Self::There(peer) => peer.misfit(policy),
            Self::Outside(_) => None,
        }
    }

    /// Which certificate it is known by to the other end, and until when; unix seconds.
    fn expires(&self) -> Option<(i64, &WorkloadName, &str)> {
        match self {
            Self::Here(program) => {
                let shown = program.shown.as_ref()?;
                Some((shown.svid.not_after(), &program.workload, shown.svid.serial()))
            }
            Self::There(peer) => Some((peer.not_after, &peer.workload, &peer.serial)),
            Self::Outside(_) => None,
        }
    }

    fn quarantined(&self, quarantine: &Quarantine) -> Option<Why> {
        match self {
            Self::Here(program) => program.quarantined(quarantine),
            Self::There(peer) => peer.quarantined(quarantine),
            Self::Outside(_) => None,
        }
    }
}

/// The question a live flow was allowed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The connecting side.
    pub from: Judged,
    /// The listening side.
    pub to: Judged,
    /// The port on which the destination listens.
    pub port: u16,
}

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Side {
    From,
    To,
}

impl Question {
    /// Asks a policy.
    pub fn ask(&self, policy: &Policy) -> Verdict {
        policy.decide(&self.from.subject(), &self.to.subject(), self.port)
    }

    /// Why a flow that was allowed may not go on. Only enforce mode has objections.
    pub(super) fn objection(&self, policy: &Policy, quarantine: &Quarantine) -> Option<Why> {
        if policy.mode() != Mode::Enforce {
            return None;
        }
        let quarantined = self.from.quarantined(quarantine).or_else(|| self.to.quarantined(quarantine));
        quarantined.or_else(|| self.no_longer(policy))
    }

    /// Whether a certificate is about to expire that nobody renewed: a flow ends before it does.
    pub(super) fn expired(&self, now: i64) -> Option<Why> {
        let ends = self.from.expires().into_iter().chain(self.to.expires());
        let (until, workload, serial) =
            ends.min_by_key(|(until, ..)| *until).filter(|(until, ..)| now >= until - MARGIN)?;
        let detail = format!(
            "the certificate {serial} of {workload} is valid until unix time {until}, and there is no later one"
        );
        Some(Why::new(Reason::CertificateExpired, detail))
    }

    fn no_longer(&self, policy: &Policy) -> Option<Why> {
        let lost = self.from.lost_its_name(policy).or_else(|| self.to.lost_its_name(policy));
        let why = match (lost, self.ask(policy)) {
            (Some(why), _) => why,
            (None, Verdict::Deny(denied)) => why_denied(denied),
            (None, Verdict::Allow(_)) => return None,
        };
        let detail = format!("the policy changed and no longer allows it ({}): {}", why.reason, why.detail);
        Some(Why { reason: Reason::PolicyChanged, detail, ..why })
    }

    /// The sides that are programs of this host.
    pub(super) fn programs(&self) -> impl Iterator<Item = (Side, &Program)> {
        [(Side::From, &self.from), (Side::To, &self.to)].into_iter().filter_map(|(side, judged)| match judged {
            Judged::Here(program) => Some((side, &**program)),
            Judged::There(_) | Judged::Outside(_) => None,
        })
    }

    /// The side that is a program of another host.
    pub(super) fn peer_mut(&mut self) -> Option<&mut Peer> {
        [&mut self.from, &mut self.to].into_iter().find_map(|judged| match judged {
            Judged::There(peer) => Some(&mut **peer),
            Judged::Here(_) | Judged::Outside(_) => None,
        })
    }

    /// The sides of which a certificate is shown.
    pub(super) fn shown_mut(&mut self) -> impl Iterator<Item = &mut Program> {
        [&mut self.from, &mut self.to].into_iter().filter_map(|judged| match judged {
            Judged::Here(program) if program.shown.is_some() => Some(&mut **program),
            Judged::Here(_) | Judged::There(_) | Judged::Outside(_) => None,
        })
    }

    pub(super) fn program_mut(&mut self, side: Side) -> Option<&mut Program> {
        let judged = match side {
            Side::From => &mut self.from,
            Side::To => &mut self.to,
        };
        match judged {
            Judged::Here(program) => Some(program),
            Judged::There(_) | Judged::Outside(_) => None,
        }
    }
}

#[cfg(test)]
impl Question {
    pub(super) fn expiries(&self) -> impl Iterator<Item = i64> {
        [&self.from, &self.to].into_iter().filter_map(|judged| judged.expires().map(|(until, ..)| until))
    }
}
