//! What is to be certified: typed names and a validity, before any X.509.

use bonafide_proto::grant::Mandate;
use bonafide_proto::name::{NodeName, TrustDomain, WorkloadName};
use bonafide_proto::svid::CertifiedProgram;

/// Who will hold the certificate. Decides every field but key, serial and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The trust domain's root, which signs itself.
    Root,
    /// The authority's signing key, where the root's is away: certifies what a root would, never authenticates.
    Issuing,
    /// A node's signing key: issues the leaves that its mandate names, never authenticates.
    Intermediate(NodeName, Mandate),
    /// A node's own SVID: authenticates, signs nothing.
    Node(NodeName),
    /// The authority's own SVID, shown by its server.
    Authority,
    /// Signs policies, and nothing else.
    PolicySigner,
    /// A program that earned a workload.
    Workload(WorkloadName, Box<CertifiedProgram>),
}

impl Holder {
    /// The kind of certificate, as the ledger calls it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuing => "issuing",
            Self::Intermediate(..) => "intermediate",
            Self::Node(_) => "node",
            Self::Authority => "authority",
            Self::PolicySigner => "policy-signer",
            Self::Workload(..) => "workload",
        }
    }

    /// The name it is issued to, as the ledger writes it.
    pub(crate) fn who(&self) -> &str {
        match self {
            Self::Root | Self::Issuing | Self::Authority | Self::PolicySigner => "authority",
            Self::Intermediate(node, _) | Self::Node(node) => node.as_str(),
            Self::Workload(workload, _) => workload.as_str(),
        }
    }
}

/// When a certificate is valid, unix seconds, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    /// First second.
    pub(crate) from: i64,
    /// Last second.
    pub(crate) until: i64,
}

/// How far back certificates start, seconds: clocks of two hosts are never the same.
pub(crate) const BACKDATE: i64 = 60;

impl Validity {
    /// From a minute ago until `ttl` seconds from now, never beyond what the issuer itself has.
    pub(crate) fn within(self, now: i64, ttl: i64) -> Self {
        let from = now.saturating_sub(BACKDATE).max(self.from);
        Self { from, until: now.saturating_add(ttl).min(self.until) }
    }

    /// True at this second.
    pub(crate) fn covers(self, now: i64) -> bool {
        self.from <= now && now <= self.until
    }

    /// The second at which half of the time from `from` to `until` is over.
    pub(crate) fn half(self) -> i64 {
        self.from + (self.until - self.from) / 2
    }
}

/// One certificate, ordered.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// Of which trust domain.
    pub(crate) trust_domain: TrustDomain,
    /// For whom.
    pub(crate) holder: Holder,
    /// For how long.
    pub(crate) validity: Validity,
}
