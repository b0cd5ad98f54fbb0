//! The evidence about a program, row by row.

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Evidence, Execution, Fingerprint, HashedFile, Root, Script, Unit};

/// Every row: what policies call the evidence, and what was seen. Hostile text is not made harmless yet.
pub(super) fn rows(attestation: &Attestation) -> Vec<(&'static str, String)> {
    let f = &attestation.fingerprint;
    let mut all = vec![("exe", f.exe.path.clone()), ("sha256", f.exe.digest.to_string())];
    all.extend(script(&f.script));
    all.extend(root(&f.root));
    all.push(("libraries", shown(&f.libraries.map(|l| format!("{} ({} files)", l.digest, l.count)))));
    all.extend(container(f));
    all.extend(f.release.map(|release| ("release", release.as_str().to_owned())));
    let executions: Vec<String> = attestation.executions.iter().map(execution).collect();
    all.extend([
        ("unit", shown(&f.unit.map(unit))),
        ("cgroup", shown(&f.cgroup.map(String::clone))),
        ("uid", f.uid.to_string()),
        ("gid", f.gid.to_string()),
        ("taints", taints(f)),
        ("node", f.host.node.as_ref().map_or_else(|| "(not admitted yet)".to_owned(), ToString::to_string)),
        ("machine-id", shown(&f.host.machine_id.map(String::clone))),
        ("bios-uuid", shown(&f.host.bios_uuid.map(String::clone))),
        ("pid@start", executions.join(" ")),
        ("source", attestation.source.clone()),
    ]);
    all
}

fn shown(evidence: &Evidence<String>) -> String {
    match evidence {
        Evidence::Known(value) => value.clone(),
        Evidence::Absent(why) => format!("({why})"),
        Evidence::Unavailable(why) => format!("(cannot be had: {why})"),
    }
}

/// None where paths are the host's, as they mostly are.
fn root(root: &Root) -> Option<(&'static str, String)> {
    match root {
        Root::Host => None,
        Root::Within(which) | Root::Other(which) => Some(("paths", format!("({which})"))),
    }
}

fn script(script: &Evidence<Script>) -> Vec<(&'static str, String)> {
    match script {
        Evidence::Known(Script::File(HashedFile { path, digest })) => {
            vec![("script", path.clone()), ("script_sha256", digest.to_string())]
        }
        Evidence::Known(Script::Inline(digest)) => vec![("inline_sha256", digest.to_string())],
        Evidence::Known(Script::Stdin) => vec![("script", "(its standard input)".to_owned())],
        none => vec![("script", shown(&none.map(|_| String::new())))],
    }
}

/// One row where there is no container.
fn container(f: &Fingerprint) -> Vec<(&'static str, String)> {
    let Some(container) = f.container.known() else {
        return vec![("container", shown(&f.container.map(|_| String::new())))];
    };
    let name = container.name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
    let image_name = container.image_name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
    let mut rows = vec![
        ("container", format!("{}:{}{name}", container.runtime, container.id)),
        ("image", format!("{}{image_name}", container.image)),
    ];
    rows.extend(container.pod.as_ref().map(|pod| {
        let account = pod.service_account.as_deref().map(|account| format!(" as {account}")).unwrap_or_default();
        ("pod", format!("{}/{} {}{account}", pod.namespace, pod.name, pod.uid))
    }));
    rows
}

fn unit(unit: &Unit) -> String {
    match &unit.invocation {
        Some(invocation) => format!("{} (invocation {invocation})", unit.name),
        None => unit.name.clone(),
    }
}

fn taints(f: &Fingerprint) -> String {
    let taints: Vec<String> = f.taints.iter().map(|taint| taint.explained()).collect();
    if taints.is_empty() { "none".to_owned() } else { taints.join(" ") }
}

/// The image number is what tells two executions by one process apart.
fn execution(execution: &Execution) -> String {
    match execution.image {
        0 => format!("{}@{}", execution.pid, execution.start_ticks),
        image => format!("{}@{}#{image}", execution.pid, execution.start_ticks),
    }
}
