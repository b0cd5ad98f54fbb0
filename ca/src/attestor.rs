//! How a node proves that it may join, and under which name. Each kind of proof is an [`Attestor`]; who admits asks for no
//! more than that.
//!
//! ```text
//!   node                                    authority
//!     | -- application, evidence -----------> | begin  --> proven, or refused
//!     | <------------------------ challenge - |        --> challenged
//!     | -- answer --------------------------> | answer --> proven, refused, or challenged again (4 times at most)
//! ```
//! Another kind needs a file here with its attestor and its prover, a variant in [`Evidence`] (and [`Challenge`] and
//! [`Answer`], if it has rounds) with its wire form in `wire.rs` and the `.proto`, and a line in [`Attestors::begin`].

mod token;
mod wire;
pub mod x509pop;

use std::fmt;

use bonafide_proto::grant::Grant;
use bonafide_proto::name::NodeName;
use bonafide_proto::token::Secret;
use sha2::{Digest as _, Sha256};

use crate::authority::Application;
use crate::machine::Machine;
use crate::refusal::MembershipRefusal;
use token::Tokens;
use x509pop::X509Pop;

/// The most rounds of challenge and answer.
pub(crate) const ROUNDS_MAX: usize = 4;

/// What is the same at both ends of one TLS session, and of no other: its exporter (RFC 8446 §7.5).
pub type Session = [u8; 32];

/// The label of the exporter.
pub(crate) const SESSION_LABEL: &[u8] = b"EXPORTER-Bonafide-enrolment";

/// Who asks to be admitted.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The name it wants.
    pub node: NodeName,
    /// What it says of its machine.
    pub machine: Machine,
    /// Digest of this TLS session and all that the node asks for: a proof over it is good for nothing else.
    pub binding: [u8; 32],
    /// Unix seconds.
    pub now: i64,
}

impl Claim {
    /// What this application claims in this session.
    #[must_use]
    pub fn new(application: &Application, session: &Session, now: i64) -> Self {
        let Application { node, bios_uuid, machine_id, .. } = application.clone();
        Self { node, machine: Machine { bios_uuid, machine_id }, binding: binding(application, session), now }
    }
}

/// The digest over session and application that both ends make.
#[must_use]
pub fn binding(application: &Application, session: &Session) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(session);
    let Application { node, signing_csr, authentication_csr, bios_uuid, machine_id } = application;
    for part in [node.as_str().as_bytes(), signing_csr, authentication_csr, bios_uuid.as_bytes(), machine_id.as_bytes()]
    {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// What a node shows first.
#[derive(Debug, Clone)]
pub enum Evidence {
    /// A join token's secret.
    Token(Secret),
    /// A certificate of an existing PKI.
    X509Pop(x509pop::Shown),
}

/// What the authority asks then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// That this be signed by the certificate's key.
    X509Pop(x509pop::Nonce),
}

/// What the node answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is signed.
    X509Pop(x509pop::Signed),
}

/// What was made of evidence, or of an answer.
pub enum Step {
    /// It may join.
    Proven(Proof),
    /// It has to answer first.
    Challenged(Challenge, Box<dyn Round>),
}

/// That a node may join.
#[derive(Debug)]
pub enum Proof {
    /// By a token, which is looked at and spent in the one step in which the node is admitted.
    Token(Secret),
    /// By a certificate that names it. What it may issue; `None`: what its name was granted before, else nothing.
    Certified(Option<Grant>),
}

/// One kind of proof, at the authority.
pub trait Attestor: Send + Sync + fmt::Debug {
    /// Judges what a node shows first. Blocks for no longer than a look into the store.
    ///
    /// # Errors
    /// The named refusal.
    fn begin(&self, claim: &Claim, evidence: Evidence) -> Result<Step, MembershipRefusal>;
}

/// A challenge that waits for its answer: one.
pub trait Round: Send {
    /// Judges the answer.
    ///
    /// # Errors
    /// The named refusal.
    fn answer(self: Box<Self>, claim: &Claim, answer: Answer) -> Result<Step, MembershipRefusal>;
}

/// One kind of proof, at the node.
pub trait Prover: Send + Sync + fmt::Debug {
    /// What is shown first.
    ///
    /// # Errors
    /// Why nothing can be, in words.
    fn begin(&self) -> Result<Evidence, String>;
    /// The answer to a challenge, by whoever showed `begun` in the session of this binding.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn answer(&self, begun: &Evidence, binding: &[u8; 32], challenge: &Challenge) -> Result<Answer, String>;
}

/// The kinds that this authority takes.
#[derive(Debug, Default)]
pub(crate) struct Attestors {
    tokens: Tokens,
    x509pop: Option<X509Pop>,
}

impl Attestors {
    /// From now on certificates of these CAs, too.
    pub(crate) fn accept(&mut self, x509pop: X509Pop) {
        self.x509pop = Some(x509pop);
    }

    /// Judges what a node shows first, by the attestor of its kind.
    pub(crate) fn begin(&self, claim: &Claim, evidence: Evidence) -> Result<Step, MembershipRefusal> {
        let attestor: Option<&dyn Attestor> = match &evidence {
            Evidence::Token(_) => Some(&self.tokens),
            Evidence::X509Pop(_) => self.x509pop.as_ref().map(|attestor| attestor as &dyn Attestor),
        };
        attestor.ok_or(MembershipRefusal::ProofNotTaken)?.begin(claim, evidence)
    }
}
