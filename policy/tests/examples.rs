//! Every shipped example is held to the verdicts it promises, in its lines that begin with `#=`:
//!
//! ```text
//! #= mode observe
//! #= allow from=A to=B port=N rule="which"
//! #= deny from=A to=B port=N rule="which"              denied by a rule
//! #= deny from=A to=B port=N nearest="rule: field"     no rule; without nearest= there must be none
//! #= … tried="which"                                   what a rule on trial would decide; without it there must be none
//! #= earns NAME exe=… [sha256=… script=… script_sha256=… inline_sha256=… libraries=… unit=… uid=… gid=… node=…
//!               image=… manifest=… image_name=… container=… runtime=… container_labels=a=b,c=d
//!               pod=NAMESPACE/NAME service_account=… pod_labels=a=b taints=a,b runtime_down=yes]
//! #= earns nothing exe=… near="workload: selector"     the nearest of the near misses
//! #= earns unavailable exe=… near="workload: selector" evidence that somebody should have told
//! #= certified NAME sha256=… [script_sha256=… libraries=… image=… node=… near=selector]
//! #= workload_api NAME on=yes                          on=no: its programs are not given its identity
//! #= outside ADDRESS port=N name=NAME                  name=none: no [[outside]] covers it
//! ```
//! `A` and `B` are names of workloads, or addresses.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use bonafide_policy::{Certified, Denied, Identified, LANGUAGE, LintKind, Policy, Subject, Verdict};
use bonafide_proto::container::{Container, Pod};
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Host, Libraries, Script, Unit};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::program::CertifiedProgram;
use bonafide_proto::record::{NearMiss, Tried};

/// When the examples are tried, unix seconds.
const NOW: i64 = 1_800_000_000;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policy-examples")
}

/// Every example: its file name and its text.
fn examples() -> Vec<(String, String)> {
    let files = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let mut examples: Vec<(String, String)> = files
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap()))
        .collect();
    examples.sort();
    assert!(examples.len() >= 5, "the examples are found");
    examples
}

/// One `#=` line: its first word, the words after it, and its `key=value` pairs.
#[derive(Debug)]
struct Expectation {
    verb: String,
    subject: String,
    pairs: BTreeMap<String, String>,
}

impl Expectation {
    fn parse(line: &str) -> Self {
        let mut words = words(line).into_iter().peekable();
        let verb = words.next().unwrap();
        let subject = words.next_if(|word| !word.contains('=')).unwrap_or_default();
        let pairs =
            words.map(|word| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect();
        Self { verb, subject, pairs }
    }

    /// Takes a pair, so that what is left at the end was not understood.
    fn take(&mut self, key: &str) -> Option<String> {
        self.pairs.remove(key)
    }

    fn must(&mut self, key: &str) -> String {
        self.take(key).unwrap_or_else(|| panic!("it has no {key}="))
    }

    fn port(&mut self) -> u16 {
        self.must("port").parse().unwrap()
    }
}

/// Words between spaces; quotes hold a word together and are dropped.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in line.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().unwrap().push(other),
        }
    }
    assert!(!quoted, "a quote is not closed");
    words.retain(|word| !word.is_empty());
    words
}

/// Checks one line; returns the rule that decided, if one did.
fn check(policy: &Policy, mut line: Expectation) -> Option<String> {
    let decided = match line.verb.as_str() {
        "mode" => {
            assert_eq!(policy.mode().as_str(), line.subject);
            None
        }
        "allow" => check_allow(policy, &mut line),
        "deny" => check_deny(policy, &mut line),
        "earns" => check_earns(policy, &mut line),
        "certified" => check_certified(policy, &mut line),
        "workload_api" => check_workload_api(policy, &mut line),
        "outside" => check_outside(policy, &mut line),
        other => panic!("{other} is no expectation"),
    };
    assert!(line.pairs.is_empty(), "not understood: {:?}", line.pairs);
    decided
}

fn verdict(policy: &Policy, line: &mut Expectation) -> Verdict {
    let (from, to, port) = (line.must("from"), line.must("to"), line.port());
    let names = (from.parse::<WorkloadName>(), to.parse::<WorkloadName>());
    let known = |name: &WorkloadName| assert!(policy.workloads().any(|w| w == name), "{name} is a workload");
    let subject = |text: &str, name: Option<&'_ WorkloadName>| -> Option<SocketAddr> {
        let addr = text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
        if addr.is_none() {
            known(name.unwrap());
        }
        addr
    };
    let (from_addr, to_addr) = (subject(&from, names.0.as_ref().ok()), subject(&to, names.1.as_ref().ok()));
    let from = from_addr.map_or_else(|| Subject::Workload(names.0.as_ref().unwrap()), Subject::Outside);
    let to = to_addr.map_or_else(|| Subject::Workload(names.1.as_ref().unwrap()), Subject::Outside);
    policy.decide(&from, &to, port)
}

fn check_allow(policy: &Policy, line: &mut Expectation) -> Option<String> {
    match verdict(policy, line) {
        Verdict::Allow(allowed) => {
            assert_eq!(allowed.rule, line.must("rule"));
            check_tried(line, allowed.tried.as_ref());
            Some(allowed.rule)
        }
        denied @ Verdict::Deny(_) => panic!("it is {denied}"),
    }
}

fn check_deny(policy: &Policy, line: &mut Expectation) -> Option<String> {
    match verdict(policy, line) {
        Verdict::Deny(Denied { rule, nearest, tried, .. }) => {
            assert_eq!(rule, line.take("rule"), "nearest: {nearest:?}");
            assert_eq!(nearest.as_ref().map(short), line.take("nearest"));
            check_tried(line, tried.as_ref());
            rule
        }
        allowed @ Verdict::Allow(_) => panic!("it is {allowed}"),
    }
}

fn check_tried(line: &mut Expectation, tried: Option<&Tried>) {
    assert_eq!(tried.map(|tried| tried.rule.clone()), line.take("tried"), "{tried:?}");
}

fn check_earns(policy: &Policy, line: &mut Expectation) -> Option<String> {
    let fingerprint = fingerprint(line);
    match policy.identify(&fingerprint) {
        Identified::Workload(name) => assert_eq!(name.as_str(), line.subject),
        Identified::Nothing { near } => {
            assert_eq!(line.subject, "nothing", "near: {near:?}");
            assert_eq!(near.first().map(short), line.take("near"));
        }
        Identified::Unavailable { workload, field, .. } => {
            assert_eq!(line.subject, "unavailable");
            assert_eq!(format!("{workload}: {field}"), line.must("near"));
        }
        Identified::Ambiguous(several) => panic!("it is ambiguous: {several:?}"),
    }
    None
}

fn check_outside(policy: &Policy, line: &mut Expectation) -> Option<String> {
    let addr = SocketAddr::new(line.subject.parse().unwrap(), line.port());
    assert_eq!(policy.outside(addr).unwrap_or("none"), line.must("name"));
    None
}

fn check_workload_api(policy: &Policy, line: &mut Expectation) -> Option<String> {
    let name = line.subject.parse().unwrap();
    assert!(policy.knows(&name));
    assert_eq!(if policy.serves_workload_api(&name) { "yes" } else { "no" }, line.must("on"));
    None
}

fn short(miss: &NearMiss) -> String {
    format!("{}: {}", miss.of, miss.field)
}

fn check_certified(policy: &Policy, line: &mut Expectation) -> Option<String> {
    let image = digest(line, "image");
    let node = line.take("node").map(|text| text.parse().unwrap());
    let program = CertifiedProgram { image, ..CertifiedProgram::of(&fingerprint(line)) };
    let certified = Certified { program: &program, node: node.as_ref() };
    let accepted = policy.accepts_certified(&line.subject.parse().unwrap(), &certified);
    assert_eq!(accepted.err().map(|miss| miss.field), line.take("near"));
    None
}

/// Evidence as far as the line gives it; a digest that it does not give is one that no policy has.
fn fingerprint(line: &mut Expectation) -> Fingerprint {
    let exe = HashedFile { path: line.must("exe"), digest: digest(line, "sha256").unwrap_or(NO_DIGEST) };
    let uid = line.take("uid").map_or(65534, |uid| uid.parse().unwrap());
    let gid = line.take("gid").map_or(65534, |gid| gid.parse().unwrap());
    let node = line.take("node").map(|text| text.parse().unwrap());
    let host = Host { bios_uuid: given(None), machine_id: given(None), node };
    Fingerprint {
        script: given(script(line)),
        libraries: given(digest(line, "libraries").map(|digest| Libraries { digest, count: 1 })),
        unit: given(line.take("unit").map(|name| Unit { name, invocation: None })),
        container: container(line),
        taints: list(line, "taints").iter().map(|taint| taint.parse().unwrap()).collect(),
        ..Fingerprint::of(exe, (uid, gid), host)
    }
}

const NO_DIGEST: Digest = Digest([0; 32]);

fn given<T>(evidence: Option<T>) -> Evidence<T> {
    evidence.map_or_else(|| Evidence::Absent("the example gives none".to_owned()), Evidence::Known)
}

fn digest(line: &mut Expectation, key: &str) -> Option<Digest> {
    line.take(key).map(|text| text.parse().unwrap())
}

fn list(line: &mut Expectation, key: &str) -> Vec<String> {
    line.take(key).map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default()
}

fn labels(line: &mut Expectation, key: &str) -> BTreeMap<String, String> {
    let pair = |pair: String| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap();
    list(line, key).into_iter().map(pair).collect()
}

fn script(line: &mut Expectation) -> Option<Script> {
    let file = digest(line, "script_sha256").unwrap_or(NO_DIGEST);
    let inline = digest(line, "inline_sha256").map(Script::Inline);
    line.take("script").map(|path| Script::File(HashedFile { path, digest: file })).or(inline)
}

fn container(line: &mut Expectation) -> Evidence<Container> {
    if line.take("runtime_down").is_some() {
        return Evidence::Unavailable("the runtime does not answer".to_owned());
    }
    let Some(image) = digest(line, "image") else { return given(None) };
    let pod = line.take("pod").map(|text| text.split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap());
    let pod = pod.map(|(namespace, name)| Pod {
        namespace,
        name,
        uid: "1".to_owned(),
        service_account: line.take("service_account"),
        labels: labels(line, "pod_labels"),
    });
    Evidence::Known(Container {
        runtime: line.take("runtime").unwrap_or_else(|| "docker".to_owned()),
        id: "1".to_owned(),
        name: line.take("container"),
        image,
        image_name: line.take("image_name"),
        manifests: digest(line, "manifest").into_iter().collect(),
        labels: labels(line, "container_labels"),
        pod,
    })
}

#[test]
fn examples_keep_their_promises() {
    for (file, text) in examples() {
        let policy = Policy::parse(&file, &text).unwrap_or_else(|e| panic!("{e}"));
        let (mut verbs, mut deciding) = (BTreeSet::new(), BTreeSet::new());
        for (number, line) in (1..).zip(text.lines()) {
            let Some(promise) = line.strip_prefix("#=") else { continue };
            let promise = Expectation::parse(promise);
            verbs.insert(promise.verb.clone());
            let shown = format!("{file}:{number}: {line}");
            let checked = std::panic::catch_unwind(|| check(&policy, promise));
            deciding.extend(checked.unwrap_or_else(|_| panic!("not kept: {shown}")));
        }
        let failed: Vec<_> = policy.at(NOW).try_cases().into_iter().filter(|case| case.failure.is_some()).collect();
        assert!(failed.is_empty(), "{file}: {failed:?}");
        assert!(verbs.contains("allow") && verbs.contains("deny"), "{file} promises what it allows and what it denies");
        let rules = text
            .lines()
            .filter(|line| ["[[rule]]", "[[guard]]"].contains(&line.split_whitespace().next().unwrap_or_default()))
            .count();
        // Nor does one that is only tried decide; what it would decide is promised all the same.
        let on_trial =
            text.lines().skip_while(|line| !line.starts_with("[[")).filter(|line| line.starts_with("mode = "));
        let rules = rules - on_trial.count();
        // A rule that expires decides nothing for those who do not say what time it is.
        let rules = rules - text.lines().filter(|line| line.starts_with("expires = ")).count();
        assert_eq!(deciding.len(), rules, "{file} shows each of its rules decide; seen: {deciding:?}");
    }
}

#[test]
fn examples_are_free_of_warnings() {
    for (file, text) in examples() {
        // What has expired is the point of one of them; others show who earns a name, and no more.
        let meant = [LintKind::Expired, LintKind::Unreachable];
        let lints = Policy::parse(&file, &text).unwrap().at(NOW).lint(&text);
        let lints: Vec<_> = lints.iter().filter(|lint| !meant.contains(&lint.kind)).collect();
        assert!(lints.is_empty(), "{file}: {lints:#?}");
    }
}

#[test]
fn examples_begin_with_what_they_show() {
    for (file, text) in examples() {
        assert!(text.starts_with("# "), "{file} begins with its case in a sentence");
    }
}

#[test]
fn the_page_names_every_field_and_every_example() {
    let page = std::fs::read_to_string(directory().join("README.md")).unwrap();
    for table in LANGUAGE {
        for (field, _) in table.fields {
            assert!(page.contains(&format!("`{field}`")), "the page does not explain {field} of {}", table.name);
        }
    }
    for (file, _) in examples() {
        assert!(page.contains(&format!("[{file}]({file})")), "the page does not list {file}");
    }
}

#[test]
fn the_policies_in_the_page_are_right() {
    let page = std::fs::read_to_string(directory().join("README.md")).unwrap();
    let policies: Vec<&str> = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!policies.is_empty());
    for policy in policies {
        Policy::parse("README.md", policy).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn a_promise_that_is_not_kept_fails() {
    let (_, text) = examples().into_iter().find(|(file, _)| file == "two-tier.toml").unwrap();
    let policy = Policy::parse("p", &text).unwrap();
    for wrong in [
        "allow from=shop/web to=shop/db port=5432 rule=\"app to db\"",
        "allow from=shop/web to=shop/app port=8080 rule=\"app to db\"",
        "deny from=shop/web to=shop/app port=8080",
        "deny from=shop/web to=shop/db port=5432 nearest=\"app to db: to\"",
        "deny from=shop/wbe to=shop/db port=5432",
        "deny from=shop/web to=shop/db port=5432 nearest=\"app to db: from\" colour=red",
        "earns shop/web exe=/usr/sbin/nginx",
        "mode observe",
        "permit from=shop/web to=shop/app port=8080",
    ] {
        let kept = std::panic::catch_unwind(|| check(&policy, Expectation::parse(wrong)));
        assert!(kept.is_err(), "{wrong} was kept");
    }
}
