//! Join tokens: whoever has the secret is admitted, once.

use super::{Attestor, Claim, Evidence, Proof, Step};
use crate::refusal::MembershipRefusal;

/// Every token of the authority's store.
#[derive(Debug, Default)]
pub(super) struct Tokens;

impl Attestor for Tokens {
    fn begin(&self, _claim: &Claim, evidence: Evidence) -> Result<Step, MembershipRefusal> {
        match evidence {
            // Whether it is any good is said in the step that spends it: of many at once, one wins.
            Evidence::Token(secret) => Ok(Step::Proven(Proof::Token(secret))),
            Evidence::X509Pop(_) => Err(MembershipRefusal::ProofNotTaken),
        }
    }
}
