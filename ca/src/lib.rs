//! The certificate authority: root role and node role.
//!
//! Reading order: [`authority`] admits nodes, [`node`] issues leaves; both through `certify`, which builds
//! (`template`, `mint`), has a stranger look (`checker`), writes down ([`store`]) and only then hands out.

pub mod attestor;
pub mod authority;
#[doc(hidden)]
pub mod bench;
mod certify;
mod checker;
pub mod cli;
pub mod config;
pub mod csr;
pub mod daemon;
mod draft;
pub mod followers;
pub mod founding;
#[cfg(test)]
mod fuzz;
mod issuers;
pub mod jwt;
mod jwt_keys;
mod kept_policy;
pub mod key;
mod known;
pub mod link;
pub mod listener;
pub mod machine;
pub mod member;
pub mod mesh;
mod mint;
pub mod node;
pub mod offline;
mod order;
mod places;
pub mod policies;
pub mod quarantine;
pub mod refusal;
pub mod remote;
mod retention;
mod revocation;
pub mod roots;
pub mod rotation;
pub mod serve;
pub mod sharing;
pub mod state;
pub mod store;
mod template;
pub mod upkeep;

pub use bonafide_proto::token::JoinToken;

pub use authority::{Application, Authority, Membership};
pub use certify::IssueError;
pub use checker::CheckError;
pub use founding::{Charter, OpenError};
pub use link::{AuthorityLink, Embedded, LinkError};
pub use machine::Machine;
pub use mesh::MeshState;
pub use mint::MintError;
pub use node::{Leaf, NodeCa, NodeSetup};
