//! `identityd.toml`.
//!
//! ```toml
//! node = "a"
//! socket = "/run/bonafide/identityd.sock"
//! workload_socket = "/run/bonafide/workload.sock"   # where programs ask for their own identity; default: nowhere
//! ca_socket = "/run/bonafide/ca.sock"
//! policy = "/etc/bonafide/policy.toml"    # or policy_from = "authority": what the authority publishes; needs `state`
//! state = "/var/lib/bonafide/identityd"   # where digests of files, and what was witnessed, outlive a restart; default: nowhere
//! callers = [74703]   # uids that may ask, besides root; default: the enforcer's
//! source = "auto"     # or "kernel": refuse to start where the kernel programs cannot run; or "proc": without them
//! log = "info"        # off, error, warn, info, debug or trace
//! ```
//!
//! and, for container runtimes elsewhere than usual, any number of `[[runtime]]`; see [`RuntimeConfig`].

use std::path::{Path, PathBuf};

use bonafide_proto::name::NodeName;

use crate::container::config::{RawRuntime, well_known};
pub use crate::container::config::{RuntimeConfig, RuntimeKind};
use serde::Deserialize;
use tracing::level_filters::LevelFilter;

/// The longest configuration file, in bytes.
const FILE_MAX: u64 = 64 << 10;

/// The enforcer's usual uid.
const ENFORCER_UID: u32 = 74703;

/// What this daemon was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node's name in the mesh.
    pub node: NodeName,
    /// Where it is asked. Absolute.
    pub socket: PathBuf,
    /// Where programs ask for their own identity (SPIFFE Workload API, SDS). Absolute. None: nowhere.
    pub workload_socket: Option<PathBuf>,
    /// Where the node's CA answers. Absolute.
    pub ca_socket: PathBuf,
    /// Where the policy comes from.
    pub policy: PolicyFrom,
    /// The directory, its own, in which it keeps digests of files, which executions it witnessed, and the authority's
    /// policy; absolute. None: after
    /// each restart files are hashed again, and running programs without privileges are unwitnessed.
    pub state: Option<PathBuf>,
    /// Uids that may ask; root is always among them.
    pub callers: Vec<u32>,
    /// Where answers come from.
    pub source: SourceChoice,
    /// How much is logged.
    pub log: LevelFilter,
    /// Container runtimes that are asked; by default those at the usual sockets.
    pub runtimes: Vec<RuntimeConfig>,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}; give the path of identityd's configuration with --config", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is no TOML, has a field that does not exist, or lacks one.
    #[error("{}: {message}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// What and where, as the parser says it.
        message: String,
    },
    /// A field has no sensible value.
    #[error("{}: {field} = {value:?} {expected}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What would be right.
        expected: String,
    },
}

/// Where the policy comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyFrom {
    /// A file. Absolute; it need not exist yet.
    File(PathBuf),
    /// The trust domain's authority, by the node's CA. It is verified and kept in this directory.
    Authority(PathBuf),
}

/// Which source of evidence answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceChoice {
    /// The kernel programs where they can run, else `/proc`.
    #[default]
    Auto,
    /// The kernel programs, or the daemon does not start.
    Kernel,
    /// sock_diag and `/proc`, which see less.
    Proc,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    node: String,
    socket: PathBuf,
    workload_socket: Option<PathBuf>,
    ca_socket: PathBuf,
    policy: Option<PathBuf>,
    #[serde(default)]
    policy_from: RawPolicyFrom,
    state: Option<PathBuf>,
    #[serde(default = "enforcer")]
    callers: RawCallers,
    #[serde(default)]
    source: SourceChoice,
    #[serde(default = "info")]
    log: String,
    runtime: Option<Vec<RawRuntime>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawPolicyFrom {
    #[default]
    File,
    Authority,
}

/// A list; what is none is answered with one.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a list of uids, such as [74703]")]
enum RawCallers {
    Listed(Vec<u32>),
}

fn enforcer() -> RawCallers {
    RawCallers::Listed(vec![ENFORCER_UID])
}

fn info() -> String {
    "info".to_owned()
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`ConfigError`]; the first mistake found.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        use std::io::Read as _;
        let read = || {
            let mut text = String::new();
            std::fs::File::open(file)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
            if text.len() as u64 > FILE_MAX {
                return Err(std::io::Error::other(format!("it is longer than {FILE_MAX} bytes")));
            }
            Ok(text)
        };
        let text = read().map_err(|error| ConfigError::Read { file: file.to_owned(), error })?;
        Self::parse(file, &text)
    }

    /// Understands a text; `file` is only for the messages.
    ///
    /// # Errors
    /// See [`ConfigError`]; the first mistake found.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text)
            .map_err(|e| ConfigError::Shape { file: file.to_owned(), message: e.to_string().trim_end().to_owned() })?;
        let wrong = |field, value: String, expected: String| ConfigError::Value {
            file: file.to_owned(),
            field,
            value,
            expected,
        };
        let node = raw.node.parse().map_err(|e| wrong("node", raw.node.clone(), format!("{e}")))?;
        let log = raw.log.parse().map_err(|_| {
            wrong("log", raw.log.clone(), "is not one of off, error, warn, info, debug, trace".to_owned())
        })?;
        let paths = [("socket", &raw.socket), ("ca_socket", &raw.ca_socket)];
        let optional = [("policy", &raw.policy), ("state", &raw.state), ("workload_socket", &raw.workload_socket)];
        let optional = optional.into_iter().filter_map(|(field, path)| Some((field, path.as_ref()?)));
        for (field, path) in paths.into_iter().chain(optional) {
            if !path.is_absolute() {
                return Err(wrong(field, path.display().to_string(), "is not an absolute path".to_owned()));
            }
        }
        let policy = policy_from(&raw).map_err(|message| ConfigError::Shape { file: file.to_owned(), message })?;
        let RawConfig { socket, workload_socket, ca_socket, state, source, callers, .. } = raw;
        let RawCallers::Listed(mut callers) = callers;
        callers.push(0);
        callers.sort_unstable();
        callers.dedup();
        let runtimes = match raw.runtime {
            None => well_known(),
            Some(listed) => listed
                .into_iter()
                .map(|runtime| RuntimeConfig::try_from(runtime).map_err(|e| wrong(e.field, e.value, e.expected)))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self { node, socket, workload_socket, ca_socket, policy, state, callers, source, log, runtimes })
    }
}

fn policy_from(raw: &RawConfig) -> Result<PolicyFrom, String> {
    match (raw.policy_from, &raw.policy, &raw.state) {
        (RawPolicyFrom::File, Some(file), _) => Ok(PolicyFrom::File(file.clone())),
        (RawPolicyFrom::File, None, _) => {
            Err("missing field `policy`: the path of the policy file; or say policy_from = \"authority\"".to_owned())
        }
        (RawPolicyFrom::Authority, None, Some(state)) => Ok(PolicyFrom::Authority(state.clone())),
        (RawPolicyFrom::Authority, None, None) => {
            Err("policy_from = \"authority\" needs `state`: the directory in which the policy is kept".to_owned())
        }
        (RawPolicyFrom::Authority, Some(_), _) => {
            Err("policy_from = \"authority\" leaves no room for `policy`, a file of this node; remove one".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"node = "a"
socket = "/run/i.sock"
ca_socket = "/run/c.sock"
policy = "/etc/p.toml"
"#;

    fn error(text: &str) -> String {
        Config::parse(Path::new("identityd.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_the_enforcer_and_info() {
        let config = Config::parse(Path::new("x"), GOOD).unwrap();
        assert_eq!((config.callers, config.log, config.state), (vec![0, 74703], LevelFilter::INFO, None));
        let config = Config::parse(Path::new("x"), &format!("{GOOD}callers = [7, 0]\nlog = \"debug\"")).unwrap();
        assert_eq!((config.callers, config.log), (vec![0, 7], LevelFilter::DEBUG));
    }

    #[test]
    fn the_policy_is_a_files_or_the_authoritys_and_never_both() {
        let policy = |text: &str| Config::parse(Path::new("x"), text).map(|config| config.policy);
        assert_eq!(policy(GOOD).unwrap(), PolicyFrom::File("/etc/p.toml".into()));
        let without = GOOD.replace("policy = \"/etc/p.toml\"\n", "policy_from = \"authority\"\n");
        let from = policy(&format!("{without}state = \"/s\""));
        assert_eq!(from.unwrap(), PolicyFrom::Authority("/s".into()));
        assert!(error(&without).contains("needs `state`"));
        assert!(error(&format!("{GOOD}policy_from = \"authority\"\nstate = \"/s\"")).contains("remove one"));
        assert!(error(&GOOD.replace("policy = \"/etc/p.toml\"\n", "")).contains("missing field `policy`"));
    }

    #[test]
    fn runtimes_are_the_usual_ones_unless_some_are_named() {
        let runtimes = |more: &str| Config::parse(Path::new("x"), &format!("{GOOD}{more}")).unwrap().runtimes;
        let kinds: Vec<RuntimeKind> = runtimes("").iter().map(|runtime| runtime.kind).collect();
        assert_eq!(kinds, [RuntimeKind::Containerd, RuntimeKind::Docker, RuntimeKind::Podman]);
        assert!(runtimes("").iter().all(|runtime| runtime.usual));
        assert_eq!(runtimes("runtime = []"), []);
        let named = runtimes("[[runtime]]\nkind = \"podman\"\nsocket = \"/run/user/7/p.sock\"\nuser = 7");
        assert_eq!((named.len(), named[0].user, named[0].usual), (1, 7, false));
        assert_eq!(
            runtimes("[[runtime]]\nkind = \"containerd\"\nsocket = \"/c\"")[0].namespaces,
            ["k8s.io", "default"]
        );
    }

    #[test]
    fn each_mistake_about_a_runtime_is_named() {
        let said = |more: &str| error(&format!("{GOOD}[[runtime]]\n{more}"));
        assert!(
            said("kind = \"docker\"\nsocket = \"d.sock\"")
                .contains("runtime.socket = \"d.sock\" is not an absolute path")
        );
        assert!(said("kind = \"rkt\"\nsocket = \"/d\"").contains("rkt"));
        let containerd = "kind = \"containerd\"\nsocket = \"/c\"\n";
        assert!(said(&format!("{containerd}namespaces = [\"moby\"]")).contains("Docker's own"));
        assert!(said(&format!("{containerd}namespaces = [\"a b\"]")).contains("a b"));
        assert!(said(&format!("{containerd}user = 7")).contains("runtime.user = \"7\""));
        assert!(said("kind = \"docker\"\nsocket = \"/d\"\nnamespaces = [\"x\"]").contains("containerd only"));
        assert!(said("kind = \"docker\"\nsocket = \"/d\"\nservice_account = \"x\"").contains("containerd only"));
    }

    #[test]
    fn the_source_of_evidence_is_chosen_by_name() {
        let source = |text: &str| Config::parse(Path::new("x"), &format!("{GOOD}{text}")).unwrap().source;
        assert_eq!(source(""), SourceChoice::Auto);
        assert_eq!(source("source = \"kernel\""), SourceChoice::Kernel);
        assert_eq!(source("source = \"proc\""), SourceChoice::Proc);
        let said = error(&format!("{GOOD}source = \"guess\""));
        assert!(said.contains("line 5") && said.contains("`auto`, `kernel`"), "{said}");
    }

    #[test]
    fn a_missing_file_is_named_with_a_remedy() {
        let said = Config::load(Path::new("/no/such/identityd.toml")).unwrap_err().to_string();
        assert!(said.starts_with("/no/such/identityd.toml: No such file"), "{said}");
        assert!(said.ends_with("; give the path of identityd's configuration with --config"), "{said}");
    }

    #[test]
    fn each_mistake_is_named() {
        assert!(error(&format!("{GOOD}colour = 1")).contains("colour"));
        assert!(error(&GOOD.replace("node = \"a\"\n", "")).contains("node"));
        assert!(error(&GOOD.replace("\"a\"", "\"A b\"")).contains("identityd.toml: node = \"A b\""));
        assert!(error(&GOOD.replace("/run/i.sock", "i.sock")).contains("socket = \"i.sock\" is not an absolute path"));
        for field in ["state", "workload_socket"] {
            let said = error(&format!("{GOOD}{field} = \"s\""));
            assert!(said.contains(&format!("{field} = \"s\" is not an absolute path")), "{said}");
        }
        assert!(error(&format!("{GOOD}log = \"loud\"")).contains("log = \"loud\""));
        for callers in ["[-1]", "7"] {
            let said = error(&format!("{GOOD}callers = {callers}"));
            assert!(said.contains("line 5") && said.contains("expected a list of uids, such as [74703]"), "{said}");
        }
    }
}
