//! What `bonafide-bench` needs of this crate: a node without a disk, which asks its authority as the daemon does.

use std::time::Duration;

use bonafide_proto::name::NodeName;
use bonafide_proto::token::JoinToken;

use crate::authority::{Application, Membership};
use crate::checker;
use crate::link::{AuthorityLink, LinkError};
use crate::machine::Machine;
use crate::member::{Candidate, Member};
use crate::node::MembershipError;
use crate::upkeep::{AWAY_MAX, AWAY_MIN, PAUSE_MAX, PAUSE_MIN, jittered};

/// A node that is no member yet, with its keys and its requests.
#[derive(Debug)]
pub struct Newcomer {
    candidate: Candidate,
    application: Application,
}

impl Newcomer {
    /// With new keys.
    ///
    /// # Errors
    /// No keys, or no requests.
    pub fn new(node: NodeName, machine: &Machine) -> Result<Self, MembershipError> {
        let candidate = Candidate::generate()?;
        let (signing_csr, authentication_csr) = candidate.requests()?;
        let Machine { bios_uuid, machine_id } = machine.clone();
        let application = Application { node, signing_csr, authentication_csr, bios_uuid, machine_id };
        Ok(Self { candidate, application })
    }

    /// Asks to be admitted.
    ///
    /// # Errors
    /// Any [`LinkError`].
    pub async fn ask(&self, link: &dyn AuthorityLink, token: &JoinToken) -> Result<Membership, LinkError> {
        link.join(token, &self.application).await
    }

    /// Takes what it was given, if it is what it asked for.
    ///
    /// # Errors
    /// Any [`MembershipError`].
    pub fn take(self, issued: Membership, token: &JoinToken) -> Result<Member, MembershipError> {
        let expected = checker::read_root(token.root()).map_err(MembershipError::TokenRoot)?.trust_domain;
        Ok(Member::take(&self.application.node, self.candidate, issued, &expected, None)?)
    }
}

/// The pauses between attempts, as the daemon makes them.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// Of a node that is to become a member.
    #[must_use]
    pub fn of_joining() -> Self {
        Self { next: PAUSE_MIN, longest: PAUSE_MAX }
    }

    /// Of a member that listens.
    #[must_use]
    pub fn of_following() -> Self {
        Self { next: AWAY_MIN * 2, longest: AWAY_MAX }
    }

    /// How long to wait now.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        jittered(pause)
    }
}
