//! Knows which program is behind a socket, and which workload that program has earned.
//!
//! Reading order: [`daemon`] wires the parts; `attest` is the story of one question; `source` is the seam
//! behind which sockets are traced to processes (`kernel`, or else `proc_source`: sock_diag and `/proc`); `witness` turns
//! processes into evidence: `seen` is what one look shows, `script`, `mapped` and `library` the code beyond the executable,
//! `beginning` how it was executed (`earlier`: as an earlier daemon saw it), `container` and `unit` where it runs; `watch` tells what is no longer so; `parse` holds everything that reads hostile text, without I/O; `sys` touches the kernel.
//!
//! # What the kernel programs cannot see
//! * Memory: code that was changed after it was mapped, and whatever a tracer does inside a process.
//! * Who reads a connection by splice(2) or a zero-copy receive after it was handed on. Sending and every other way of
//!   receiving is told of; before Linux 6.3 nothing is, and a reference to a socket that no descriptor explains is a
//!   refusal.
//! * Connections that MPTCP makes inside one of its sockets: they are behind no open file, and refused.
//!
//! # What the `/proc` source cannot see
//! * A process can rewrite its own command line, change its working directory, and (with `CAP_CHECKPOINT_RESTORE`)
//!   its `/proc/PID/exe`. Processes outside the initial user namespace, where anybody has that capability, are refused.
//!   Those inside it that have no privileges may have shared their memory with one outside: they are tainted.
//! * The path of an executable in other mounts than ours (a container) is what that process's root shows. Whoever gave
//!   a process of the initial user namespace other mounts had `CAP_SYS_ADMIN`, so the path is the word of a container
//!   runtime, and of whoever may command one: the `docker` group, or any user where `bwrap`, `firejail` or the like are
//!   setuid root. Where that matters, workloads need `sha256` or `unit` besides `exe`.
//! * A socket in flight in a unix socket, registered with io_uring, or held only by a thread with a file table of
//!   its own that has as many open files as the process's main one.
//! * What an interpreter finds by search paths (`PYTHONPATH`), and an environment that was rewritten before anybody looked.

#[doc(hidden)]
pub mod bench;
pub mod config;
pub mod daemon;

mod accounts;
mod attest;
mod beginning;
mod bundle;
mod container;
mod earlier;
mod events;
mod execs;
#[cfg(test)]
mod fuzz;
mod hash;
mod host;
mod in_force;
mod kernel;
mod lapse;
mod library;
mod looks;
mod lookup;
mod mapped;
mod observe;
mod parse;
mod patience;
mod policy_file;
mod proc_source;
mod published_policy;
mod refuse;
mod releases;
mod script;
mod seen;
mod serve;
mod shares;
mod sockets;
mod source;
mod store;
mod sys;
mod unit;
mod version;
mod walks;
mod watch;
mod witness;
mod workload_api;
