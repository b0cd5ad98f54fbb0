//! A node on this machine: its directories, configuration files and cgroups, and the commands that start its daemons.
//!
//! Used by `bonafide run` and by the scenario harness, so that both start the very same node. Nothing is started
//! here. Every daemon gets its own uid, cgroup and capabilities, by way of `bonafide launch`.
//!
//! ```text
//! DIR/ca.toml identityd.toml enforcer.toml      root's, 0644
//! DIR/run/{ca,identityd,enforcer}/*.sock        each directory its daemon's
//! DIR/state/{ca,identityd,enforcer}/            each its daemon's, 0700; flow records: state/enforcer/flows.jsonl
//! DIR/log/*.log                                 what the daemons say
//! <cgroup2>/bonafide-INSTANCE/{ca,identityd,enforcer}
//! ```

mod cgroup;
mod command;
mod config;
mod directory;
mod error;
mod evidence;
mod layout;
mod prepare;
mod remove;
mod spec;
mod uids;

pub use cgroup::InstanceCgroup;
pub use command::DaemonCommand;
pub use error::NodeError;
pub use evidence::EvidenceSources;
pub use layout::Layout;
pub use prepare::{PreparedNode, PreparedRoot, prepare_node, prepare_root};
pub use remove::{remove_node, remove_root};
pub use spec::{
    Admission, AuthorityAt, CA_UID, DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT, ENFORCER_UID, IDENTITYD_UID,
    MachineCertificate, NodeSpec, RootSpec,
};
