//! `ca.toml`: the file's shape, and the configuration it means.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bonafide_proto::grant::Grant;
use bonafide_proto::name::{NodeName, TrustDomain};
use serde::Deserialize;

use crate::attestor::x509pop::NameRule;
use crate::founding::Charter;
use crate::key::PassphraseAt;
use crate::node::NodeSetup;
use crate::store::{EtcdPlace, EtcdTls};

/// The largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 64 * 1024;
/// The most authorities of one node.
const AUTHORITIES_MAX: usize = 16;
/// Lifetime of node certificates, seconds, where the file says nothing.
const INTERMEDIATE_TTL: u32 = 86_400;
/// Lifetime of leaves, seconds, where the file says nothing.
const LEAF_TTL: u32 = 3600;

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct ConfigError {
    /// Which file.
    pub path: PathBuf,
    /// Where in it, what is wrong, and what would be right.
    pub why: String,
}

/// What `bonafide-ca` should run.
#[derive(Debug, Clone)]
pub struct Config {
    /// A `tracing` filter, e.g. `info`.
    pub log: String,
    /// The directory that holds the roles' own ones.
    pub state: PathBuf,
    /// The roles.
    pub role: Role,
}

/// The roles of one process.
#[derive(Debug, Clone)]
pub enum Role {
    /// The authority alone.
    Root(RootConfig),
    /// A node of an authority elsewhere.
    Node(NodeConfig, Joining),
    /// Both, without a network.
    Local(RootConfig, NodeConfig),
}

/// The root role.
#[derive(Debug, Clone)]
pub struct RootConfig {
    /// What it is founded on.
    pub charter: Charter,
    /// Where nodes reach it; empty in the local role.
    pub listen: Vec<SocketAddr>,
    /// Where the operator reaches it.
    pub admin_socket: PathBuf,
    /// Certificates by which nodes are admitted without a token.
    pub x509pop: Option<RootX509Pop>,
}

/// An existing PKI, whose certificates admit nodes.
#[derive(Debug, Clone)]
pub struct RootX509Pop {
    /// PEM files of its CAs.
    pub ca_files: Vec<PathBuf>,
    /// PEM files of its revocation lists.
    pub crl_files: Vec<PathBuf>,
    /// Where a certificate names its node.
    pub name: NameRule,
    /// What nodes that come so may issue; `None`: what their names were granted before, else nothing.
    pub workloads: Option<Grant>,
}

/// The certificate of an existing PKI by which a node is admitted.
#[derive(Debug, Clone)]
pub struct NodeX509Pop {
    /// PEM file of its chain, leaf first.
    pub certificate_file: PathBuf,
    /// PEM file of its key.
    pub key_file: PathBuf,
    /// PEM file of the authority's root: `bonafide-ca root` prints it.
    pub root_file: PathBuf,
}

/// The node role.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// What it is made of.
    pub setup: NodeSetup,
    /// Where identityd reaches it.
    pub socket: PathBuf,
    /// Who may ask for leaves, besides root.
    pub callers: Vec<u32>,
}

/// How a node becomes a member.
#[derive(Debug, Clone)]
pub struct Joining {
    /// `host:port` of the authority, or of each of those that share a store: the first that answers is asked.
    pub authorities: Vec<String>,
    /// How it is admitted.
    pub by: Admittance,
}

/// How a node is admitted.
#[derive(Debug, Clone)]
pub enum Admittance {
    /// By the token that its operator puts there.
    Token(PathBuf),
    /// By a certificate of an existing PKI.
    X509Pop(NodeX509Pop),
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file, the line where there is one, and what would be right.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        use std::io::Read as _;
        let failed = |why: String| ConfigError { path: path.to_owned(), why };
        let mut text = String::new();
        let unopened = |e| failed(format!("{e}; give the path of the ca's configuration with --config"));
        let file = std::fs::File::open(path).map_err(unopened)?;
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
        if text.len() as u64 > FILE_MAX {
            return Err(failed(format!("it is larger than {FILE_MAX} bytes")));
        }
        Self::parse(&text).map_err(failed)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// Where, what is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        raw.try_into()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    role: RawRole,
    state: PathBuf,
    #[serde(default = "default_log")]
    log: String,
    root: Option<RawRoot>,
    node: Option<RawNode>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum RawRole {
    Root,
    Node,
    Local,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoot {
    trust_domain: TrustDomain,
    #[serde(default)]
    listen: RawListen,
    admin_socket: PathBuf,
    #[serde(default = "default_intermediate_ttl")]
    intermediate_ttl_seconds: u32,
    store: Option<String>,
    store_tls: Option<RawStoreTls>,
    root_key_passphrase: Option<String>,
    x509pop: Option<RawRootX509Pop>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRootX509Pop {
    ca_files: Vec<PathBuf>,
    #[serde(default)]
    crl_files: Vec<PathBuf>,
    node_name: RawNameRule,
    workloads: Option<Vec<String>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum RawNameRule {
    Cn,
    Dns,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNodeX509Pop {
    certificate_file: PathBuf,
    key_file: PathBuf,
    root_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStoreTls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

/// One, or a list.
#[derive(Deserialize, Clone)]
#[serde(untagged, expecting = "expected \"host:port\", or a list of them")]
enum RawAuthorities {
    One(String),
    Listed(Vec<String>),
}

/// A list; what is none is answered with one.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of addresses and ports, such as [\"10.0.0.9:8443\"]")]
enum RawListen {
    Listed(Vec<String>),
}

impl Default for RawListen {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

/// A list; what is none is answered with one.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of uids, such as [74702]")]
enum RawCallers {
    Listed(Vec<u32>),
}

impl Default for RawCallers {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    name: NodeName,
    socket: PathBuf,
    #[serde(default)]
    callers: RawCallers,
    authority: Option<RawAuthorities>,
    join_token_file: Option<PathBuf>,
    x509pop: Option<RawNodeX509Pop>,
    #[serde(default = "default_leaf_ttl")]
    leaf_ttl_seconds: u32,
    bios_uuid: Option<String>,
}

fn default_log() -> String {
    "info".to_owned()
}

fn default_intermediate_ttl() -> u32 {
    INTERMEDIATE_TTL
}

fn default_leaf_ttl() -> u32 {
    LEAF_TTL
}

impl TryFrom<RawConfig> for Config {
    type Error = String;
    fn try_from(raw: RawConfig) -> Result<Self, String> {
        let RawConfig { role, state, log, root, node } = raw;
        absolute("state", &state)?;
        log.parse::<tracing_subscriber::EnvFilter>().map_err(|e| format!("log = {log:?}: {e}; e.g. \"info\""))?;
        let role = match (role, root, node) {
            (RawRole::Root, Some(root), None) => Role::Root(networked(root, &state)?),
            (RawRole::Node, None, Some(node)) => joining(node, &state)?,
            (RawRole::Local, Some(root), Some(node)) => Role::Local(unlistening(root, &state)?, alone(node, &state)?),
            (RawRole::Root, ..) => return Err("role = \"root\" needs a [root] section and no [node]".into()),
            (RawRole::Node, ..) => return Err("role = \"node\" needs a [node] section and no [root]".into()),
            (RawRole::Local, ..) => return Err("role = \"local\" needs both sections, [root] and [node]".into()),
        };
        Ok(Self { log, state, role })
    }
}

fn networked(root: RawRoot, state: &Path) -> Result<RootConfig, String> {
    let RawListen::Listed(listen) = &root.listen;
    if listen.is_empty() {
        return Err("[root] listen: a root needs at least one address, e.g. [\"[::]:8443\"]".into());
    }
    root_config(root, state)
}

fn unlistening(root: RawRoot, state: &Path) -> Result<RootConfig, String> {
    let RawListen::Listed(listen) = &root.listen;
    if !listen.is_empty() {
        return Err("[root] listen: the local role uses no network; remove it, or use role = \"root\"".into());
    }
    root_config(root, state)
}

fn root_config(root: RawRoot, state: &Path) -> Result<RootConfig, String> {
    absolute("[root] admin_socket", &root.admin_socket)?;
    let ttl = within("[root] intermediate_ttl_seconds", root.intermediate_ttl_seconds, 60, 30 * 86_400)?;
    let state = state.join("authority");
    let shared = shared_store(root.store, root.store_tls)?;
    let passphrase = root.root_key_passphrase.as_deref().map(passphrase_at).transpose()?;
    let charter = Charter { state, trust_domain: root.trust_domain, intermediate_ttl: ttl, shared, passphrase };
    let RawListen::Listed(listen) = root.listen;
    let listen = listen.iter().map(|text| listening_at(text)).collect::<Result<_, _>>()?;
    let x509pop = root.x509pop.map(root_x509pop).transpose()?;
    Ok(RootConfig { charter, listen, admin_socket: root.admin_socket, x509pop })
}

fn root_x509pop(raw: RawRootX509Pop) -> Result<RootX509Pop, String> {
    let RawRootX509Pop { ca_files, crl_files, node_name, workloads } = raw;
    if ca_files.is_empty() {
        return Err("[root.x509pop] ca_files: it takes at least one file of a CA".into());
    }
    for path in ca_files.iter().chain(&crl_files) {
        absolute("[root.x509pop] ca_files, crl_files", path)?;
    }
    let name = match node_name {
        RawNameRule::Cn => NameRule::CommonName,
        RawNameRule::Dns => NameRule::Dns,
    };
    let grant = |texts: Vec<String>| Grant::of(texts.iter().map(String::as_str));
    let workloads = workloads.map(grant).transpose().map_err(|e| format!("[root.x509pop] workloads: {e}"))?;
    Ok(RootX509Pop { ca_files, crl_files, name, workloads })
}

fn passphrase_at(text: &str) -> Result<PassphraseAt, String> {
    let descriptor = text.strip_prefix("fd:").and_then(|number| number.parse().ok());
    match descriptor {
        Some(number) => Ok(PassphraseAt::Descriptor(number)),
        None if Path::new(text).is_absolute() => Ok(PassphraseAt::File(text.into())),
        None => Err(format!(
            "[root] root_key_passphrase = {text:?}: the path of a file, such as a systemd credential, or \"fd:3\""
        )),
    }
}

fn shared_store(store: Option<String>, tls: Option<RawStoreTls>) -> Result<Option<EtcdPlace>, String> {
    let Some(store) = store else {
        return match tls {
            None => Ok(None),
            Some(_) => {
                Err("[root] store_tls: it says how the members of `store` are told from others; there is none".into())
            }
        };
    };
    if let Some(RawStoreTls { ca, cert, key }) = &tls {
        for (field, path) in [("ca", ca), ("cert", cert), ("key", key)] {
            absolute(&format!("[root] store_tls.{field}"), path)?;
        }
    }
    let tls = tls.map(|RawStoreTls { ca, cert, key }| EtcdTls { ca, cert, key });
    EtcdPlace::new(&store, tls).map(Some).map_err(|e| format!("[root] store = {store:?}: {e}"))
}

fn listening_at(text: &str) -> Result<SocketAddr, String> {
    let right = "such as \"10.0.0.9:8443\" or \"[fd77::9]:8443\"";
    text.parse().map_err(|_| format!("[root] listen: {text:?} is not an address and port {right}"))
}

fn joining(node: RawNode, state: &Path) -> Result<Role, String> {
    let authorities = match node.authority.clone() {
        Some(RawAuthorities::One(one)) => vec![one],
        Some(RawAuthorities::Listed(all)) => all,
        None => Vec::new(),
    };
    if !matches!(authorities.len(), 1..=AUTHORITIES_MAX) {
        return Err(format!(
            "[node] authority: role = \"node\" needs \"host:port\", or 1 to {AUTHORITIES_MAX} of them"
        ));
    }
    authorities.iter().try_for_each(|authority| check_address(authority))?;
    let by = match (node.join_token_file.clone(), &node.x509pop) {
        (Some(file), None) => {
            absolute("[node] join_token_file", &file)?;
            Admittance::Token(file)
        }
        (None, Some(RawNodeX509Pop { certificate_file, key_file, root_file })) => {
            for path in [certificate_file, key_file, root_file] {
                absolute("[node.x509pop] files", path)?;
            }
            let [certificate_file, key_file, root_file] = [certificate_file, key_file, root_file].map(Clone::clone);
            Admittance::X509Pop(NodeX509Pop { certificate_file, key_file, root_file })
        }
        (None, None) => {
            return Err("[node] join_token_file: role = \"node\" needs a path, or a [node.x509pop] section".into());
        }
        (Some(_), Some(_)) => return Err("[node] has both join_token_file and x509pop; a node joins by one".into()),
    };
    Ok(Role::Node(node_config(node, state)?, Joining { authorities, by }))
}

fn alone(node: RawNode, state: &Path) -> Result<NodeConfig, String> {
    if node.authority.is_some() || node.join_token_file.is_some() || node.x509pop.is_some() {
        return Err("[node] authority and join_token_file are for role = \"node\"; the local role needs neither".into());
    }
    node_config(node, state)
}

fn node_config(node: RawNode, state: &Path) -> Result<NodeConfig, String> {
    absolute("[node] socket", &node.socket)?;
    let leaf_ttl = within("[node] leaf_ttl_seconds", node.leaf_ttl_seconds, 60, 86_400)?;
    let plain = |id: &String| matches!(id.len(), 1..=128) && id.chars().all(|c| c.is_ascii_graphic());
    if let Some(id) = node.bios_uuid.as_ref().filter(|id| !plain(id)) {
        return Err(format!("[node] bios_uuid = {id:?}: 1 to 128 plain ASCII characters, or leave it out"));
    }
    let setup = NodeSetup { state: state.join("node"), name: node.name, leaf_ttl, bios_uuid: node.bios_uuid };
    let RawCallers::Listed(callers) = node.callers;
    Ok(NodeConfig { setup, socket: node.socket, callers })
}

fn absolute(field: &str, path: &Path) -> Result<(), String> {
    if path.is_absolute() { Ok(()) } else { Err(format!("{field} = {path:?}: a path must be absolute")) }
}

fn within(field: &str, value: u32, low: u32, high: u32) -> Result<u32, String> {
    if (low..=high).contains(&value) { Ok(value) } else { Err(format!("{field} = {value}: must be {low} to {high}")) }
}

fn check_address(text: &str) -> Result<(), String> {
    let host_and_port = || {
        let (host, port) = text.rsplit_once(':')?;
        let plain = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
        plain.then(|| port.parse::<u16>().ok()).flatten()
    };
    let port = text.parse::<SocketAddr>().map(|a| a.port()).ok().or_else(host_and_port);
    match port {
        Some(port) if port != 0 => Ok(()),
        _ => Err(format!(
            "[node] authority = {text:?}: must be \"host:port\", \"192.0.2.1:8443\" or \"[2001:db8::1]:8443\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = r#"
        role = "local"
        state = "/var/lib/bonafide/ca"
        [root]
        trust_domain = "example.org"
        admin_socket = "/run/bonafide/authority.sock"
        [node]
        name = "a"
        socket = "/run/bonafide/ca.sock"
        callers = [74702]
    "#;

    const ROOT: &str = r#"
        role = "root"
        state = "/var/lib/bonafide/ca"
        [root]
        trust_domain = "example.org"
        listen = ["10.0.0.9:8443", "[fd77::9]:8443"]
        admin_socket = "/run/bonafide/authority.sock"
    "#;

    #[test]
    fn a_missing_file_is_named_with_a_remedy() {
        let said = Config::read(Path::new("/no/such/ca.toml")).unwrap_err().to_string();
        assert!(said.starts_with("/no/such/ca.toml: No such file"), "{said}");
        assert!(said.ends_with("; give the path of the ca's configuration with --config"), "{said}");
    }

    #[test]
    fn the_local_role_has_sensible_defaults() {
        let config = Config::parse(LOCAL).unwrap();
        let Role::Local(root, node) = config.role else { panic!("not local") };
        assert_eq!((root.charter.intermediate_ttl, node.setup.leaf_ttl), (86_400, 3600));
        assert_eq!(config.log, "info");
    }

    #[test]
    fn the_shipped_example_is_an_authority_with_its_defaults() {
        let text = include_str!("../../deploy/authority.toml.example");
        let optional: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(option) if option.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{option}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(optional.lines().filter(|line| !text.lines().any(|was| was == *line)).count(), 2);
        let [shipped, with_defaults] = [text, &optional].map(|text| Config::parse(text).unwrap());
        assert_eq!(format!("{shipped:?}"), format!("{with_defaults:?}"));
        let shared = Config::parse(&text.replace("#   store", "store")).unwrap();
        assert!(matches!(shared.role, Role::Root(root) if root.charter.shared.is_some()));
        let Role::Root(root) = shipped.role else { panic!("not root") };
        assert!(root.listen.iter().any(SocketAddr::is_ipv4) && root.listen.iter().any(SocketAddr::is_ipv6));
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        let mistakes = [
            (LOCAL.replace("\"local\"", "\"boss\""), "unknown variant `boss`"),
            (LOCAL.replace("\"local\"", "\"root\""), "no [node]"),
            (LOCAL.replace("\"local\"", "\"node\""), "no [root]"),
            (LOCAL.replace("callers", "caller"), "unknown field `caller`"),
            (LOCAL.replace("example.org", "Example.org"), "lower-case letters"),
            (LOCAL.replace("\"/var", "\"var"), "must be absolute"),
            (LOCAL.replace("callers = [74702]", "leaf_ttl_seconds = 59"), "must be 60 to 86400"),
            (LOCAL.replace("callers = [74702]", "authority = \"x:1\""), "role = \"node\""),
            (LOCAL.replace("name = \"a\"", "name = \"a/b\""), "\"a/b\" contains '/'"),
            (LOCAL.replace("[node]", "listen = [\"[::]:1\"]\n[node]"), "no network"),
            (ROOT.replace("10.0.0.9:8443", "nope"), "[root] listen: \"nope\" is not an address and port such as \"10"),
            (ROOT.replace("10.0.0.9:8443", "10.0.0.9"), "[root] listen: \"10.0.0.9\" is not an address and port"),
            (
                ROOT.replace("[\"10.0.0.9:8443\", \"[fd77::9]:8443\"]", "\"[::]:1\""),
                "expected a list of addresses and ports",
            ),
            (LOCAL.replace("callers = [74702]", "bios_uuid = \"a b\""), "1 to 128 plain ASCII"),
            (LOCAL.replace("[74702]", "74702"), "expected a list of uids, such as [74702]"),
        ];
        Config::parse(ROOT).unwrap();
        for (text, expected) in mistakes {
            let said = Config::parse(&text).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn authorities_may_share_a_store_and_a_node_may_know_several() {
        let root = |more: &str| Config::parse(&ROOT.replace("[root]", &format!("[root]\n{more}\n")));
        let shared =
            root("store = \"etcd://10.0.0.1:2379/b\"\nstore_tls = { ca = \"/c\", cert = \"/d\", key = \"/k\" }");
        let Role::Root(shared) = shared.unwrap().role else { panic!("no root") };
        assert_eq!(shared.charter.shared.unwrap().to_string(), "etcd://10.0.0.1:2379/b");
        for (more, expected) in [
            ("store = \"etcd://10.0.0.1:2379/b\"", "store_tls must say"),
            ("store = \"sled\"", "does not begin with etcd://"),
            ("store_tls = { ca = \"/c\", cert = \"/d\", key = \"/k\" }", "there is none"),
            (
                "store = \"etcd://127.0.0.1:2379/b\"\nstore_tls = { ca = \"c\", cert = \"/d\", key = \"/k\" }",
                "store_tls.ca",
            ),
        ] {
            let said = root(more).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn an_authority_has_a_host_and_a_port() {
        for good in ["10.0.0.9:8443", "[fd00::9]:8443", "ca.example.org:8443"] {
            assert_eq!(check_address(good), Ok(()));
        }
        for bad in ["", "10.0.0.9", "10.0.0.9:0", ":8443", "https://x:1", "fd00::9:8443", "x:99999"] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
