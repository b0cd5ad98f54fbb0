//! Rules to generate text from, for the tests of both engines.

use std::path::Path;

use bonafide_policy::Mode;

use super::exemption::{Cgroup, Holder};
use super::{Exempted, Rules};

pub(super) struct Sample {
    mode: Mode,
    own: Cgroup,
    controls: Vec<Exempted>,
}

impl Sample {
    /// An enforcer in the cgroup `name`, and a CA that may reach its authority at either address.
    pub(super) fn of(mode: Mode, name: &str) -> Self {
        let ca = |to: &str| Exempted { cgroup: cgroup("/mesh/ca"), uid: 64_701, to: to.parse().unwrap() };
        Self { mode, own: cgroup(name), controls: vec![ca("10.0.0.9:8443"), ca("[fd00::9]:8443")] }
    }

    pub(super) fn rules(&self) -> Rules<'_> {
        let own = Holder { cgroup: &self.own, uid: 64_703 };
        Rules { mode: self.mode, outbound_port: 15_001, inbound_port: 15_006, own, controls: &self.controls }
    }
}

pub(super) fn enforcing() -> Sample {
    Sample::of(Mode::Enforce, "/mesh/enforcer")
}

pub(super) fn shadowing() -> Sample {
    Sample::of(Mode::Shadow, "/mesh/enforcer")
}

fn cgroup(name: &str) -> Cgroup {
    Cgroup::below_root(Path::new("/sys/fs/cgroup"), name).unwrap()
}
