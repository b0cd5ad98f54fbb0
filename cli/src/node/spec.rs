//! What a node should be, before anything of it exists.

use std::net::SocketAddr;
use std::path::PathBuf;

use bonafide_proto::name::{NodeName, TrustDomain};

use super::evidence::EvidenceSources;

/// The uid and gid of the `ca` daemon.
///
/// 65536 to 99999 is what nobody hands out by default: Debian gives packages 60000 to 64999 and its adduser(8) stops
/// at 59999 (Debian Policy 9.2.2), systemd uses 60001 to 65519 in several ranges, DynamicUser= among them, and again
/// from 524288 (its UIDS-GIDS document), and subordinate ids of user namespaces begin at 100000 (login.defs(5)).
pub const CA_UID: u32 = 74701;
/// The uid and gid of `identityd`. Chosen as [`CA_UID`].
pub const IDENTITYD_UID: u32 = 74702;
/// The uid and gid of the `enforcer`. Chosen as [`CA_UID`].
pub const ENFORCER_UID: u32 = 74703;
/// Where outgoing connections are captured to.
pub const DEFAULT_OUTBOUND_PORT: u16 = 15001;
/// Where incoming connections are captured to.
pub const DEFAULT_INBOUND_PORT: u16 = 15006;

/// Where the node's authority is.
#[derive(Debug, Clone)]
pub enum AuthorityAt {
    /// In the node's own `ca` daemon: a mesh of one host.
    Embedded {
        /// The trust domain it is the authority of.
        trust_domain: TrustDomain,
    },
    /// On the network.
    Remote {
        /// Its address, or those of all that share a store.
        addrs: Vec<SocketAddr>,
        /// How it is admitted; needed once, not by a node that is a member already.
        by: Option<Admission>,
    },
}

/// What admits a node.
#[derive(Clone)]
pub enum Admission {
    /// A join token.
    Token(String),
    /// A certificate of an existing PKI, that this authority takes.
    Certificate(MachineCertificate),
}

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineCertificate {
    /// Leaf first, then what leads to a CA that the authority knows.
    pub certificate: PathBuf,
    /// Of the leaf.
    pub key: PathBuf,
    /// The authority's root.
    pub root: PathBuf,
}

impl std::fmt::Debug for Admission {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(_) => f.write_str("Token(secret)"),
            Self::Certificate(files) => files.fmt(f),
        }
    }
}

/// One node: the three daemons of a host.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Tells nodes on one machine apart: `[a-z0-9-]{1,16}`. Its cgroup is `bonafide-<instance>`.
    pub instance: String,
    /// The name under which the authority admits it.
    pub name: NodeName,
    /// Gets everything the node writes; its parent directories must let the daemons' uids through.
    pub dir: PathBuf,
    /// The policy file, watched by identityd; `None`: the policy that the authority publishes.
    pub policy: Option<PathBuf>,
    /// Where identityd has its evidence from.
    pub evidence: EvidenceSources,
    /// How capture rules are installed: `nft` or `iptables`.
    pub backend: String,
    /// Where its authority is.
    pub authority: AuthorityAt,
    /// Where `bonafide` and the daemons' binaries are.
    pub binaries: PathBuf,
    /// Lifetime of leaves, in seconds; the CA's default if absent.
    pub leaf_ttl_seconds: Option<u32>,
    /// Port of the outbound capture listeners.
    pub outbound_port: u16,
    /// Port of the inbound capture listeners.
    pub inbound_port: u16,
}

/// The authority of a trust domain, as a daemon of its own.
#[derive(Debug, Clone)]
pub struct RootSpec {
    /// As in [`NodeSpec::instance`].
    pub instance: String,
    /// As in [`NodeSpec::dir`].
    pub dir: PathBuf,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Where nodes reach it.
    pub listen: Vec<SocketAddr>,
    /// Where the binaries are.
    pub binaries: PathBuf,
    /// Lifetime of node intermediates, in seconds; the CA's default if absent.
    pub intermediate_ttl_seconds: Option<u32>,
}
