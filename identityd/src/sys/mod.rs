//! The kernel, behind safe functions that answer in our own words. Everything here may block.

pub(crate) mod diag;
pub(crate) mod executable;
pub(crate) mod glance;
pub(crate) mod hierarchy;
pub(crate) mod lines;
pub(crate) mod mounts;
pub(crate) mod namespace;
pub(crate) mod process;
pub(crate) mod regular;
pub(crate) mod storage;
pub(crate) mod uptime;
pub(crate) mod walk;
pub(crate) mod writeback;
