//! Knows which program is behind a socket, and which workload that program has earned.
//!
//! Reading order: [`daemon`] wires the parts; `attest` is the story of one question; `source` is the seam
//! behind which sockets are traced to processes (`proc_source` today: sock_diag and `/proc`); `witness` turns
//! processes into evidence; `parse` holds everything that reads hostile text, without I/O; `sys` touches the kernel.
//!
//! # What the `/proc` source cannot see
//! * A process can rewrite its own command line, change its working directory, and (with `CAP_CHECKPOINT_RESTORE`)
//!   its `/proc/PID/exe`. Processes outside the initial user namespace, where anybody has that capability, are refused.
//! * The path of an executable in other mounts than ours (a container) is what that process's root shows. Whoever gave
//!   a process of the initial user namespace other mounts had `CAP_SYS_ADMIN`, so the path is the word of a container
//!   runtime, and of whoever may command one: the `docker` group, or any user where `bwrap`, `firejail` or the like are
//!   setuid root. Where that matters, workloads need `sha256` or `unit` besides `exe`.
//! * A socket in flight in a unix socket, registered with io_uring, or held only by a thread with a file table of
//!   its own that has as many open files as the process's main one.
//! * Libraries, `LD_PRELOAD`, and variables such as `PYTHONPATH` or `NODE_OPTIONS`.

pub mod config;
pub mod daemon;

mod attest;
mod bundle;
mod hash;
mod host;
mod parse;
mod policy_file;
mod proc_source;
mod refuse;
mod script;
mod serve;
mod slots;
mod source;
mod sys;
mod version;
mod walks;
mod witness;
