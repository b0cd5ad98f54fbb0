//! The answer as one line of JSON, for programs.

use bonafide_policy::{Explained, Fit};
use bonafide_proto::container::{Container, Pod};
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Evidence, Fingerprint, HashedFile, Release, Root, Script, Unit};
use bonafide_proto::record::NearMiss;
use bonafide_proto::refusal::AttestRefusal;
use serde_json::{Value, json};

/// What was attested; `explained` only where that was asked for.
pub(super) fn attested(attestation: &Attestation, explained: Option<&[Explained]>) -> Value {
    let executions = attestation.executions.iter();
    let executions = executions.map(|e| json!({ "pid": e.pid, "start_ticks": e.start_ticks, "image": e.image }));
    let mut answer = json!({
        "workload": attestation.workload,
        "source": attestation.source,
        "executions": executions.collect::<Vec<_>>(),
        "fingerprint": fingerprint(&attestation.fingerprint),
        "near_misses": attestation.near_misses.iter().map(miss).collect::<Vec<_>>(),
    });
    if let (Some(all), Some(fields)) = (explained, answer.as_object_mut()) {
        fields.insert("explained".to_owned(), all.iter().map(explanation).collect());
    }
    answer
}

/// Why nobody was named.
pub(super) fn refused(refusal: &AttestRefusal) -> Value {
    json!({ "refused": { "reason": refusal.reason, "detail": refusal.detail } })
}

fn fingerprint(f: &Fingerprint) -> Value {
    json!({
        "root": root(&f.root),
        "exe": file(&f.exe),
        "script": evidence(&f.script, script),
        "libraries": evidence(&f.libraries, |l| json!({ "sha256": l.digest, "count": l.count })),
        "uid": f.uid,
        "gid": f.gid,
        "cgroup": evidence(&f.cgroup, |cgroup| json!(cgroup)),
        "unit": evidence(&f.unit, |Unit { name, invocation }| json!({ "name": name, "invocation": invocation })),
        "container": evidence(&f.container, container),
        "taints": f.taints,
        "release": f.release.map(Release::as_str),
        "host": {
            "node": f.host.node,
            "machine_id": evidence(&f.host.machine_id, |id| json!(id)),
            "bios_uuid": evidence(&f.host.bios_uuid, |uuid| json!(uuid)),
        },
    })
}

fn root(root: &Root) -> Value {
    match root {
        Root::Host => json!("host"),
        Root::Within(which) => json!({ "within": which }),
        Root::Other(why) => json!({ "other": why }),
    }
}

/// Absence carries its reason here, too.
fn evidence<T>(evidence: &Evidence<T>, known: impl Fn(&T) -> Value) -> Value {
    match evidence {
        Evidence::Known(value) => json!({ "known": known(value) }),
        Evidence::Absent(why) => json!({ "absent": why }),
        Evidence::Unavailable(why) => json!({ "unavailable": why }),
    }
}

fn file(HashedFile { path, digest }: &HashedFile) -> Value {
    json!({ "path": path, "sha256": digest })
}

fn script(script: &Script) -> Value {
    match script {
        Script::File(of) => json!({ "file": file(of) }),
        Script::Inline(digest) => json!({ "inline": digest }),
        Script::Stdin => json!("stdin"),
    }
}

fn container(c: &Container) -> Value {
    json!({
        "runtime": c.runtime,
        "id": c.id,
        "name": c.name,
        "image": c.image,
        "image_name": c.image_name,
        "manifests": c.manifests,
        "labels": c.labels,
        "pod": c.pod.as_ref().map(|Pod { namespace, name, uid, service_account, labels }| json!({
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "service_account": service_account,
            "labels": labels,
        })),
    })
}

fn miss(NearMiss { of, field, expected, seen }: &NearMiss) -> Value {
    json!({ "workload": of, "field": field, "expected": expected, "seen": seen })
}

fn explanation(of: &Explained) -> Value {
    let selectors = of.selectors.iter().map(|selector| {
        let (fit, seen) = match &selector.fit {
            Fit::Holds => ("holds", None),
            Fit::Fails(seen) => ("fails", Some(seen)),
            Fit::Unavailable(why) => ("unavailable", Some(why)),
        };
        json!({ "field": selector.field, "expected": selector.expected, "fit": fit, "seen": seen })
    });
    json!({ "workload": of.workload, "selectors": selectors.collect::<Vec<_>>() })
}
