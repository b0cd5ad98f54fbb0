//! What is revoked, on the wire.

use super::{Malformed, bad};
use crate::fingerprint::Digest;
use crate::revoked::{Barred, Revoked};
use crate::wire::{authority, node};

/// The two packages say the same; neither can name the other's message.
macro_rules! wired {
    ($package:ident) => {
        impl From<&Revoked> for $package::Revoked {
            fn from(revoked: &Revoked) -> Self {
                let of = |(name, through): (&crate::name::NodeName, &u64)| $package::revoked::Node {
                    name: name.to_string(),
                    through: *through,
                };
                Self {
                    nodes: revoked.nodes.iter().map(of).collect(),
                    workloads: revoked.workloads.iter().map(ToString::to_string).collect(),
                    serials: revoked.serials.iter().map(|serial| serial.bytes()).collect(),
                }
            }
        }

        impl TryFrom<$package::Revoked> for Revoked {
            type Error = Malformed;
            fn try_from(w: $package::Revoked) -> Result<Self, Malformed> {
                let mut read = Self::default();
                for $package::revoked::Node { name, through } in w.nodes {
                    let name = name.parse().or_else(|e| bad(format!("a revoked node's name {e}")))?;
                    read.nodes.insert(name, through);
                }
                for name in w.workloads {
                    read.workloads.insert(name.parse().or_else(|e| bad(format!("a revoked workload's name {e}")))?);
                }
                for bytes in w.serials {
                    read.serials.insert(bytes.as_slice().try_into().or_else(|e| bad(format!("what is revoked {e}")))?);
                }
                if read.is_bounded() { Ok(read) } else { bad("more is revoked than is told") }
            }
        }
    };
}

wired!(authority);
wired!(node);

impl From<&Barred> for node::Quarantine {
    fn from(barred: &Barred) -> Self {
        let sha256 = barred.digests.iter().map(|digest| digest.0.to_vec()).collect();
        Self { sha256, revoked: Some((&barred.revoked).into()) }
    }
}

impl TryFrom<node::Quarantine> for Barred {
    type Error = Malformed;
    fn try_from(w: node::Quarantine) -> Result<Self, Malformed> {
        let digest = |bytes: &Vec<u8>| Digest::try_from(bytes.as_slice()).or_else(|e| bad(format!("a digest {e}")));
        let digests = w.sha256.iter().map(digest).collect::<Result<_, _>>()?;
        Ok(Self { digests, revoked: w.revoked.map(TryInto::try_into).transpose()?.unwrap_or_default() })
    }
}
