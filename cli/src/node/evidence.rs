//! What an operator settles of `identityd.toml`: where evidence comes from. All else in it is the node's own.
//!
//! ```toml
//! source = "kernel"      # refuse to start where the kernel programs cannot run; "auto" is the default
//!
//! [[runtime]]            # container runtimes elsewhere than usual; once there is one, the usual ones are not asked
//! kind = "podman"        # or "containerd", "docker"
//! socket = "/run/user/1000/podman/podman.sock"
//! user = 1000            # whose runtime it is, if not root's
//! ```

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The longest such file, in bytes.
const FILE_MAX: u64 = 64 << 10;

/// Where container runtimes usually answer: identityd asks those that are there.
const USUAL: [&str; 3] = ["/run/containerd/containerd.sock", "/run/docker.sock", "/run/podman/podman.sock"];

/// Where evidence comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceSources {
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<Vec<Runtime>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    Auto,
    Kernel,
    Proc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Containerd,
    Docker,
    Podman,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Runtime {
    kind: Kind,
    socket: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<u32>,
}

impl EvidenceSources {
    /// The sockets of the container runtimes that are asked.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        match &self.runtime {
            Some(runtimes) => runtimes.iter().map(|runtime| runtime.socket.clone()).collect(),
            None => USUAL.map(PathBuf::from).to_vec(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file, and what is wrong with it.
    pub fn load(file: &Path) -> Result<Self, String> {
        let mut text = String::new();
        let read = fs::File::open(file).and_then(|opened| opened.take(FILE_MAX + 1).read_to_string(&mut text));
        let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
        match read {
            Err(e) => Err(wrong(&e)),
            Ok(_) if text.len() as u64 > FILE_MAX => Err(wrong(&format!("is longer than {FILE_MAX} bytes"))),
            Ok(_) => toml::from_str(&text).map_err(|e| wrong(&e)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_operators_to_settle_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("evidence.toml");
        let load = |text: &str| {
            fs::write(&file, text).unwrap();
            EvidenceSources::load(&file)
        };
        assert_eq!(load(""), Ok(EvidenceSources::default()));
        assert!(load("").unwrap().sockets().contains(&"/run/docker.sock".into()));
        let other = load("[[runtime]]\nkind = \"docker\"\nsocket = \"/s\"\n").unwrap();
        assert_eq!(other.sockets(), [PathBuf::from("/s")]);
        assert_eq!(load("source = \"proc\"\n").unwrap().source, Some(Source::Proc));
        for (text, named) in [
            ("callers = [0]\n", "callers"),
            ("source = \"guess\"\n", "guess"),
            ("[[runtime]]\nkind = \"lxc\"\nsocket = \"/s\"\n", "lxc"),
            ("[[runtime]]\nkind = \"docker\"\n", "socket"),
            ("[[runtime]]\nkind = \"docker\"\nsocket = \"/s\"\nroot = true\n", "root"),
            (&"#".repeat(70_000), "longer than"),
        ] {
            let why = load(text).unwrap_err();
            assert!(why.contains(named) && why.contains("evidence.toml"), "{why}");
        }
        assert!(EvidenceSources::load(&dir.path().join("none.toml")).is_err());
    }
}
