//! Policies as scenarios write them.

use std::net::IpAddr;
use std::path::Path;

use bonafide_proto::fingerprint::Digest;

use crate::topology::MESH;

/// A policy file under construction. Rules are tried in the order in which they were added.
#[derive(Debug, Clone)]
pub struct Policy {
    text: String,
}

impl Policy {
    /// A policy that refuses what no rule allows.
    #[must_use]
    pub fn enforce() -> Self {
        Self::with_mode("enforce")
    }

    /// A policy that captures everything, refuses nothing, and records what it would refuse.
    #[must_use]
    pub fn shadow() -> Self {
        Self::with_mode("shadow")
    }

    /// A policy under which nothing is captured and everything is recorded.
    #[must_use]
    pub fn observe() -> Self {
        Self::with_mode("observe")
    }

    /// A policy that somebody else wrote.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self { text: text.to_owned() }
    }

    fn with_mode(mode: &str) -> Self {
        Self { text: format!("mode = \"{mode}\"\nmesh = {MESH}\n") }
    }

    /// A workload: whatever runs this executable.
    #[must_use]
    pub fn program(self, name: &str, exe: &Path) -> Self {
        self.lines(&format!("[[workload]]\nname = \"{name}\"\nexe = \"{}\"", exe.display()))
    }

    /// A workload: this executable with exactly this content.
    #[must_use]
    pub fn pinned(self, name: &str, exe: &Path, digest: Digest) -> Self {
        self.program(name, exe).lines(&format!("sha256 = \"{digest}\""))
    }

    /// A workload: whatever interprets this script.
    #[must_use]
    pub fn script(self, name: &str, script: &Path) -> Self {
        self.lines(&format!("[[workload]]\nname = \"{name}\"\nscript = \"{}\"", script.display()))
    }

    /// Addresses outside the mesh, under one name.
    #[must_use]
    pub fn outside(self, name: &str, addresses: [IpAddr; 2]) -> Self {
        self.lines(&format!("[[outside]]\nname = \"{name}\"\nprefixes = {:?}", addresses.map(host_prefix)))
    }

    /// A rule that allows.
    #[must_use]
    pub fn allow(self, name: &str, from: &str, to: &str) -> Self {
        self.rule(name, from, to, "allow")
    }

    /// A rule that denies.
    #[must_use]
    pub fn deny(self, name: &str, from: &str, to: &str) -> Self {
        self.rule(name, from, to, "deny")
    }

    fn rule(self, name: &str, from: &str, to: &str, action: &str) -> Self {
        self.lines(&format!("[[rule]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = \"{to}\"\naction = \"{action}\""))
    }

    /// More lines, as they stand.
    #[must_use]
    pub fn lines(mut self, lines: &str) -> Self {
        self.text.push_str(lines);
        self.text.push('\n');
        self
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn host_prefix(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}
