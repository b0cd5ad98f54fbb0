//! Every table and field of the language, with an example of each: the reader accepts these and no others.

/// One kind of table in a policy file.
#[derive(Debug)]
pub struct TableKind {
    /// As error messages call it.
    pub name: &'static str,
    /// Field names, each with an example of its value.
    pub fields: &'static [(&'static str, &'static str)],
}

const PORTS: &str = "[53, \"8000-8100\"]";
const OWNER: &str = "\"payments@example.org\"";
const TICKET: &str = "\"SEC-4711\"";
const DIGEST: &str = "\"sha256:<64 hex digits>\"";

/// Fields of rules that are kept for what is said inside a connection. Ignored, they would let through more than they say.
pub(crate) const RESERVED: [&str; 7] = ["http", "grpc", "postgres", "mysql", "redis", "kafka", "dns"];

/// The top level of the file.
pub(crate) const TOP: &TableKind = &TableKind {
    name: "the policy",
    fields: &[
        ("mode", "\"enforce\""),
        ("mesh", "[\"10.77.0.0/16\", \"fd77::/16\"]"),
        ("same_host", "\"verified\""),
        ("include", "[\"teams/payments.toml\"]"),
        ("team", "[[team]] tables"),
        ("workload", "[[workload]] tables"),
        ("group", "[[group]] tables"),
        ("outside", "[[outside]] tables"),
        ("guard", "[[guard]] tables"),
        ("rule", "[[rule]] tables"),
        ("test", "[[test]] tables"),
    ],
};

/// Who may say in files of their own who reaches their workloads.
pub(crate) const TEAM: &TableKind = &TableKind {
    name: "[[team]]",
    fields: &[("name", OWNER), ("files", "[\"teams/payments.toml\"]"), ("workloads", "[\"payments/*\"]")],
};

/// A program that earns a name.
pub(crate) const WORKLOAD: &TableKind = &TableKind {
    name: "[[workload]]",
    fields: &[
        ("name", "\"shop/web\""),
        ("labels", "{ app = \"shop\", tier = \"web\" }"),
        ("exe", "\"/usr/sbin/nginx\""),
        ("sha256", DIGEST),
        ("script", "\"/srv/app.py\""),
        ("script_sha256", DIGEST),
        ("inline_sha256", DIGEST),
        ("libraries", DIGEST),
        ("image", DIGEST),
        ("image_name", "\"docker.io/library/nginx:1.27\""),
        ("container", "\"shop-web\""),
        ("runtime", "\"docker\""),
        ("container_labels", "{ app = \"web\" }"),
        ("pod_namespace", "\"shop\""),
        ("pod", "\"web-0\""),
        ("service_account", "\"web\""),
        ("pod_labels", "{ app = \"web\" }"),
        ("unit", "\"nginx.service\""),
        ("uid", "33"),
        ("gid", "33"),
        ("nodes", "[\"host-a\", \"host-b\"]"),
        ("allow_taints", "[\"no-script\"]"),
        ("owner", OWNER),
        ("workload_api", "true"),
        ("releases", "{ new = \"24h\", approve = \"dpkg\", live = 4, retire = \"7d\" }"),
        ("retires", "{ \"sha256:<64 hex digits>\" = 2027-01-31T18:00:00Z }"),
    ],
};

/// Many workloads under one name.
pub(crate) const GROUP: &TableKind = &TableKind {
    name: "[[group]]",
    fields: &[
        ("name", "\"shop/backend\""),
        ("members", "[\"shop/api\", \"shop/db\"]"),
        ("all", "{ app = \"shop\" }"),
        ("any", "[{ tier = \"api\" }, { tier = \"db\" }]"),
        ("none", "[{ env = \"test\" }]"),
    ],
};

/// Addresses that are not in the mesh.
pub(crate) const OUTSIDE: &TableKind = &TableKind {
    name: "[[outside]]",
    fields: &[("name", "\"dns\""), ("prefixes", "[\"192.0.2.0/24\"]"), ("ports", PORTS)],
};

/// Who may not reach whom, whatever the rules say.
pub(crate) const GUARD: &TableKind = &TableKind {
    name: "[[guard]]",
    fields: &[
        ("name", "\"tests stay out of production\""),
        ("from", "[\"test\"]"),
        ("to", "[\"production\"]"),
        ("ports", PORTS),
        ("mode", "\"shadow\""),
        ("owner", OWNER),
        ("ticket", TICKET),
    ],
};

/// Who may reach whom.
pub(crate) const RULE: &TableKind = &TableKind {
    name: "[[rule]]",
    fields: &[
        ("name", "\"web to db\""),
        ("from", "[\"shop/web\"]"),
        ("to", "[\"shop/db\"]"),
        ("ports", PORTS),
        ("action", "\"allow\""),
        ("mode", "\"shadow\""),
        ("expires", "2027-01-31T18:00:00Z"),
        ("schedule", "[\"Mon-Fri 08:00-18:00\"]"),
        ("owner", OWNER),
        ("ticket", TICKET),
    ],
};

/// What the author expects of the policy.
pub(crate) const TEST: &TableKind = &TableKind {
    name: "[[test]]",
    fields: &[
        ("name", "\"the web reaches its database\""),
        ("from", "\"shop/web\""),
        ("to", "\"shop/db\""),
        ("port", "5432"),
        ("expect", "\"allow\""),
        ("rule", "\"web to db\""),
    ],
};

/// The whole language.
pub const LANGUAGE: [&TableKind; 8] = [TOP, TEAM, WORKLOAD, GROUP, OUTSIDE, GUARD, RULE, TEST];

impl TableKind {
    /// What a right value of this field looks like.
    pub(crate) fn example(&self, field: &str) -> &'static str {
        self.fields.iter().find(|(name, _)| *name == field).map_or("", |(_, example)| example)
    }
}
