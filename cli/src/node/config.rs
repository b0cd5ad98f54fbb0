//! The configuration files of a node's daemons, as text.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bonafide_proto::name::{NodeName, TrustDomain};
use serde::Serialize;

use super::evidence::EvidenceSources;
use super::layout::Layout;
use super::spec::{
    Admission, AuthorityAt, CA_UID, ENFORCER_UID, IDENTITYD_UID, MachineCertificate, NodeSpec, RootSpec,
};

/// `ca.toml`.
#[derive(Serialize)]
pub(super) struct CaToml<'a> {
    role: &'static str,
    state: PathBuf,
    log: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<RootTable<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeTable<'a>>,
}

#[derive(Serialize)]
struct RootTable<'a> {
    trust_domain: &'a TrustDomain,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    listen: &'a [SocketAddr],
    admin_socket: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    intermediate_ttl_seconds: Option<u32>,
}

#[derive(Serialize)]
struct NodeTable<'a> {
    name: &'a NodeName,
    socket: PathBuf,
    callers: [u32; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a [SocketAddr]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf_ttl_seconds: Option<u32>,
    /// Only root may read it, and the CA is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    bios_uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x509pop: Option<X509PopTable>,
}

#[derive(Serialize)]
struct X509PopTable {
    certificate_file: PathBuf,
    key_file: PathBuf,
    root_file: PathBuf,
}

/// `identityd.toml`.
#[derive(Serialize)]
pub(super) struct IdentitydToml<'a> {
    node: &'a NodeName,
    socket: PathBuf,
    workload_socket: PathBuf,
    ca_socket: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_from: Option<&'static str>,
    state: PathBuf,
    callers: [u32; 1],
    log: &'static str,
    #[serde(flatten)]
    evidence: &'a EvidenceSources,
}

/// `enforcer.toml`.
#[derive(Serialize)]
pub(super) struct EnforcerToml<'a> {
    socket: PathBuf,
    identityd_socket: PathBuf,
    records: PathBuf,
    state: PathBuf,
    backend: &'a str,
    outbound_port: u16,
    inbound_port: u16,
    log: &'static str,
    control: Vec<Control>,
}

/// What a daemon of ours may reach uncaptured.
#[derive(Serialize)]
struct Control {
    cgroup: PathBuf,
    uid: u32,
    to: SocketAddr,
}

impl<'a> CaToml<'a> {
    pub(super) fn of_node(spec: &'a NodeSpec, layout: &Layout, bios_uuid: Option<String>) -> Self {
        let mut node = NodeTable {
            name: &spec.name,
            socket: layout.ca_socket(),
            callers: [IDENTITYD_UID],
            authority: None,
            join_token_file: None,
            leaf_ttl_seconds: spec.leaf_ttl_seconds,
            bios_uuid,
            x509pop: None,
        };
        let (role, root) = match &spec.authority {
            AuthorityAt::Embedded { trust_domain } => {
                let admin_socket = layout.authority_socket();
                let root = RootTable { trust_domain, listen: &[], admin_socket, intermediate_ttl_seconds: None };
                ("local", Some(root))
            }
            AuthorityAt::Remote { addrs, by } => {
                node.authority = Some(addrs);
                match by {
                    Some(Admission::Certificate(_)) => node.x509pop = Some(X509PopTable::of(layout)),
                    Some(Admission::Token(_)) | None => node.join_token_file = Some(layout.join_token()),
                }
                ("node", None)
            }
        };
        Self { role, state: layout.ca_state(), log: "info", root, node: Some(node) }
    }

    pub(super) fn of_root(spec: &'a RootSpec, layout: &Layout) -> Self {
        let root = RootTable {
            trust_domain: &spec.trust_domain,
            listen: &spec.listen,
            admin_socket: layout.authority_socket(),
            intermediate_ttl_seconds: spec.intermediate_ttl_seconds,
        };
        Self { role: "root", state: layout.ca_state(), log: "info", root: Some(root), node: None }
    }
}

impl X509PopTable {
    /// The copies that the CA may read.
    fn of(layout: &Layout) -> Self {
        let MachineCertificate { certificate, key, root } = layout.join_certificate();
        Self { certificate_file: certificate, key_file: key, root_file: root }
    }
}

impl<'a> IdentitydToml<'a> {
    pub(super) fn of(spec: &'a NodeSpec, layout: &Layout, policy: Option<&'a Path>) -> Self {
        Self {
            node: &spec.name,
            socket: layout.identityd_socket(),
            workload_socket: layout.workload_socket(),
            ca_socket: layout.ca_socket(),
            policy,
            policy_from: policy.is_none().then_some("authority"),
            state: layout.identityd_state(),
            callers: [ENFORCER_UID],
            log: "info",
            evidence: &spec.evidence,
        }
    }
}

impl<'a> EnforcerToml<'a> {
    /// `ca_cgroup` is where the CA lives, which alone may reach a remote authority uncaptured.
    pub(super) fn of(spec: &'a NodeSpec, layout: &Layout, ca_cgroup: PathBuf) -> Self {
        let control = match &spec.authority {
            AuthorityAt::Embedded { .. } => Vec::new(),
            AuthorityAt::Remote { addrs, .. } => {
                addrs.iter().map(|to| Control { cgroup: ca_cgroup.clone(), uid: CA_UID, to: *to }).collect()
            }
        };
        Self {
            socket: layout.enforcer_socket(),
            identityd_socket: layout.identityd_socket(),
            records: layout.records(),
            state: layout.enforcer_state(),
            backend: &spec.backend,
            outbound_port: spec.outbound_port,
            inbound_port: spec.inbound_port,
            log: "info",
            control,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    pub(crate) fn spec(authority: AuthorityAt) -> NodeSpec {
        NodeSpec {
            instance: "t".into(),
            name: "a".parse().unwrap(),
            dir: "/n".into(),
            policy: Some("/p.toml".into()),
            evidence: EvidenceSources::default(),
            backend: "nft".into(),
            authority,
            binaries: "/b".into(),
            leaf_ttl_seconds: Some(90),
            outbound_port: 15001,
            inbound_port: 15006,
        }
    }

    fn embedded() -> AuthorityAt {
        AuthorityAt::Embedded { trust_domain: "example.org".parse().unwrap() }
    }

    fn remote() -> AuthorityAt {
        AuthorityAt::Remote {
            addrs: vec!["[fd77::9]:8443".parse().unwrap()],
            by: Some(Admission::Token("s3cret".into())),
        }
    }

    #[test]
    fn an_embedded_authority_makes_the_ca_local() {
        let text =
            toml::to_string(&CaToml::of_node(&spec(embedded()), &Layout::new("/n"), Some("4c4c4544".into()))).unwrap();
        let expected = r#"role = "local"
state = "/n/state/ca"
log = "info"

[root]
trust_domain = "example.org"
admin_socket = "/n/run/ca/authority.sock"

[node]
name = "a"
socket = "/n/run/ca/ca.sock"
callers = [74702]
leaf_ttl_seconds = 90
bios_uuid = "4c4c4544"
"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn a_remote_authority_is_joined_and_exempted_for_the_ca_alone() {
        let spec = spec(remote());
        let layout = Layout::new("/n");
        let ca = toml::to_string(&CaToml::of_node(&spec, &layout, None)).unwrap();
        assert!(ca.starts_with("role = \"node\"\n") && !ca.contains("[root]"), "{ca}");
        assert!(
            ca.contains("authority = [\"[fd77::9]:8443\"]\njoin_token_file = \"/n/state/ca/join.token\"\n"),
            "{ca}"
        );
        let enforcer = toml::to_string(&EnforcerToml::of(&spec, &layout, "/cg/bonafide-t/ca".into())).unwrap();
        let control = "[[control]]\ncgroup = \"/cg/bonafide-t/ca\"\nuid = 74701\nto = \"[fd77::9]:8443\"\n";
        assert!(enforcer.contains(control), "{enforcer}");
    }

    #[test]
    fn a_node_with_a_certificate_joins_by_the_copies_that_its_ca_may_read() {
        let files =
            MachineCertificate { certificate: "/etc/m.crt".into(), key: "/etc/m.key".into(), root: "/etc/r".into() };
        let AuthorityAt::Remote { addrs, .. } = remote() else { unreachable!() };
        let spec = spec(AuthorityAt::Remote { addrs, by: Some(Admission::Certificate(files)) });
        let ca = toml::to_string(&CaToml::of_node(&spec, &Layout::new("/n"), Some("4c4c".into()))).unwrap();
        let table = "\n[node.x509pop]\ncertificate_file = \"/n/state/ca/join.crt\"\nkey_file = \"/n/state/ca/join.key\"\n\
                     root_file = \"/n/state/ca/join.root\"\n";
        assert!(ca.ends_with(table) && !ca.contains("join_token_file"), "{ca}");
    }

    #[test]
    fn the_join_token_is_in_no_configuration_and_no_debug_output() {
        let spec = spec(remote());
        let layout = Layout::new("/n");
        let texts = [
            toml::to_string(&CaToml::of_node(&spec, &layout, None)).unwrap(),
            toml::to_string(&EnforcerToml::of(&spec, &layout, "/c".into())).unwrap(),
            toml::to_string(&IdentitydToml::of(&spec, &layout, spec.policy.as_deref())).unwrap(),
            format!("{spec:?}"),
        ];
        assert!(texts.iter().all(|t| !t.contains("s3cret")), "{texts:?}");
    }

    #[test]
    fn identityd_has_its_evidence_from_where_the_operator_says() {
        let settled = "source = \"kernel\"\n\n[[runtime]]\nkind = \"podman\"\nsocket = \"/s\"\nuser = 1000\n";
        let spec = NodeSpec { evidence: toml::from_str(settled).unwrap(), ..spec(embedded()) };
        let text = toml::to_string(&IdentitydToml::of(&spec, &Layout::new("/n"), spec.policy.as_deref())).unwrap();
        assert!(text.starts_with("node = \"a\"\n") && text.ends_with(&format!("log = \"info\"\n{settled}")), "{text}");
    }

    #[test]
    fn the_policy_is_a_file_or_the_authoritys() {
        let text = |spec: &NodeSpec| {
            toml::to_string(&IdentitydToml::of(spec, &Layout::new("/n"), spec.policy.as_deref())).unwrap()
        };
        let file = text(&spec(embedded()));
        assert!(file.contains("\npolicy = \"/p.toml\"\n") && !file.contains("policy_from"), "{file}");
        let published = text(&NodeSpec { policy: None, ..spec(embedded()) });
        assert!(
            published.contains("\npolicy_from = \"authority\"\n") && !published.contains("policy ="),
            "{published}"
        );
    }

    #[test]
    fn a_root_listens_and_has_no_node_role() {
        let spec = RootSpec {
            instance: "r".into(),
            dir: "/r".into(),
            trust_domain: "example.org".parse().unwrap(),
            listen: vec!["10.0.0.9:8443".parse().unwrap(), "[fd77::9]:8443".parse().unwrap()],
            binaries: "/b".into(),
            intermediate_ttl_seconds: Some(600),
        };
        let text = toml::to_string(&CaToml::of_root(&spec, &Layout::new("/r"))).unwrap();
        assert!(text.contains("listen = [\"10.0.0.9:8443\", \"[fd77::9]:8443\"]"), "{text}");
        assert!(text.contains("intermediate_ttl_seconds = 600") && !text.contains("[node]"), "{text}");
    }
}
