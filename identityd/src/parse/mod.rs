//! Everything that reads text a process may have chosen. Pure: no I/O, and no input makes it panic.

pub(crate) mod cgroup;
pub(crate) mod cgroup_mounts;
pub(crate) mod cmdline;
pub(crate) mod container_id;
pub(crate) mod environ;
pub(crate) mod grammar;
pub(crate) mod interpreter;
pub(crate) mod layout;
pub(crate) mod maps;
pub(crate) mod mountinfo;
pub(crate) mod stat;
pub(crate) mod status;
