//! The commands as a shell sees them: output, stderr, exit codes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "what fails here fails the test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bonafide_proto::token::{JoinToken, Secret};

fn bonafide(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bonafide")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn line(workload: &str, verdict: &str, rule: &str) -> String {
    format!(
        r#"{{"v":1,"id":"{:032}","end":"source","started":"2026-03-04T05:06:07Z","ended":"2026-03-04T05:06:08Z","duration_us":5,"mode":"enforce","verdict":"{verdict}","rule":"{rule}","transport":"mtls","source":{{"addr":"10.0.0.1:1","workload":"{workload}"}},"destination":{{"addr":"10.0.0.2:80"}},"bytes_sent":1,"bytes_received":2,"ended_by":"closed"}}
"#,
        0
    )
}

fn records(dir: &Path, text: &str) -> String {
    let path = dir.join("flows.jsonl");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn flows_filters_and_tells_of_lines_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let text = line("web", "allowed", "r1") + "garbage\u{1b}[2J\n" + &line("db", "refused", "r2") + r#"{"v":1,"id":"#;
    let path = records(dir.path(), &text);
    let output = bonafide(&["flows", &path]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output).lines().count(), 6, "{}", stdout(&output));
    assert!(stderr(&output).contains("flows.jsonl:2: not a flow record"), "{}", stderr(&output));
    assert!(stderr(&output).contains("flows.jsonl:4: not a flow record"), "{}", stderr(&output));
    assert!(!stderr(&output).contains('\u{1b}'));

    let rules = |args: &[&str]| {
        let output = bonafide(&[&["flows", &path, "--json"], args].concat());
        let rule = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["rule"].as_str().unwrap().to_owned();
        stdout(&output).lines().map(rule).collect::<Vec<_>>()
    };
    assert_eq!(rules(&[]), ["r1", "r2"]);
    assert_eq!(rules(&["--workload", "db"]), ["r2"]);
    assert_eq!(rules(&["--verdict", "allowed"]), ["r1"]);
    assert_eq!(rules(&["--last", "1"]), ["r2"]);
    assert!(rules(&["--last", "0"]).is_empty());
}

#[test]
fn flows_of_a_workload_that_never_appears_are_hinted_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = records(dir.path(), &(line("web", "allowed", "r1") + line("db", "allowed", "r2").trim_end()));
    let output = bonafide(&["flows", &path, "-w", "wbe", "-w", "web", "-w", "db", "--verdict", "refused"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), ""));
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("flows.jsonl: no flow from or to the workload wbe; "), "{said}");
}

#[test]
fn an_authority_that_is_no_address_and_port_is_answered_with_one() {
    for wrong in ["nope", "10.0.0.9"] {
        let output = bonafide(&["run", "--authority", wrong]);
        assert_eq!(output.status.code(), Some(2));
        let right = format!("\"{wrong}\" is not an address and port such as \"10.0.0.9:8443\" or \"[fd77::9]:8443\"");
        assert!(stderr(&output).contains(&right), "{}", stderr(&output));
    }
}

#[test]
fn flows_without_records_and_with_bad_filters_is_bad_input() {
    for args in [&["flows", "/no/such"] as &[&str], &["flows", "--verdict", "x"], &["flows", "--workload", "a//b"]] {
        let output = bonafide(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!stderr(&output).is_empty());
    }
}

#[test]
fn following_survives_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let path = records(dir.path(), &line("web", "allowed", "r1"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_bonafide"))
        .args(["flows", &path, "--follow", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert!(next().contains("\"r1\""));
    std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(line("w", "allowed", "r2").as_bytes())
        .unwrap();
    assert!(next().contains("\"r2\""));
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    records(dir.path(), &line("w", "allowed", "r3"));
    assert!(next().contains("\"r3\""));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_node_that_is_not_there_is_exit_code_1_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    for args in [
        &["status"] as &[&str],
        &["whois", "1"],
        &["token", "create"],
        &["node", "list"],
        &["quarantine", "--list"],
        &["workload", "add", "--from-pid", "1"],
    ] {
        let output = bonafide(&[&["--dir", dir], args].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let said = stdout(&output) + &stderr(&output);
        assert!(said.contains("no socket at") && said.contains("start the node"), "{args:?}: {said}");
    }
}

#[test]
fn policy_check_names_every_mistake_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, "mode = \"sleep\"\nmesh = [\"nowhere\"]\n").unwrap();
    let output = bonafide(&["policy", "check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("p.toml:1:8: ") && said.contains("p.toml:2:9: "), "{said}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [&[] as &[&str], &["whois", "0"], &["whois", "x"], &["token", "create", "--ttl", "601"], &["sing"]] {
        assert_eq!(bonafide(args).status.code(), Some(2), "{args:?}");
    }
    let both = bonafide(&["run", "--authority", "10.0.0.9:1", "--trust-domain", "a.b"]);
    assert_eq!(both.status.code(), Some(2));
}

/// A join token admits once: a node that forgets its membership could never join again.
#[test]
fn run_refuses_to_join_where_the_membership_would_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/run", &link).unwrap();
    let join = |more: &[&str]| {
        let output =
            bonafide(&[&["run", "--name", "a", "--instance", "never", "--authority", "127.0.0.1:1"], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        stderr(&output)
    };
    let said = join(&["--dir", node.to_str().unwrap()]);
    assert!(said.contains("--authority needs --keep") && said.contains("add --keep --dir /var/lib/bonafide"), "{said}");
    for lost in ["/run/bonafide-never", "/var/run/bonafide-never/x", "/var/../run/bonafide-never"] {
        let said = join(&["--keep", "--dir", lost]);
        assert!(said.contains("survives a reboot") && said.contains("add --dir /var/lib/bonafide"), "{said}");
    }
    join(&["--keep", "--dir", link.join("bonafide-never").to_str().unwrap()]);
    assert!(!node.exists() && !Path::new("/run/bonafide-never").exists());
    let help = stdout(&bonafide(&["run", "--help"]));
    assert!(help.contains("removes capture, and so opens the host"), "{help}");
}

#[test]
fn run_refuses_what_is_no_join_token_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let (node, file) = (dir.path().join("node"), dir.path().join("b.token"));
    let token = JoinToken::new(Secret::generate().unwrap(), vec![7; 400].into()).reveal().to_string();
    let cut = token.get(..token.len() - 1).unwrap();
    for (text, expected) in [("hello", "must start with"), ("", "must start with"), (cut, "not copied whole")] {
        std::fs::write(&file, text).unwrap();
        let (node, file) = (node.to_str().unwrap(), file.to_str().unwrap());
        let join = ["--authority", "127.0.0.1:1", "--token-file", file, "--keep", "--dir", node];
        let output = bonafide(&[&["run", "--name", "a", "--instance", "never"], &join[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(stderr(&output).contains("b.token: ") && stderr(&output).contains(expected), "{}", stderr(&output));
    }
    assert!(!node.exists());
}

#[test]
fn run_without_root_and_with_a_broken_policy_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    let policy = dir.path().join("p.toml");
    std::fs::write(&policy, "mode = 1\n").unwrap();
    let args = ["run", "--dir", node.to_str().unwrap(), "--policy", policy.to_str().unwrap(), "--instance", "never"];
    let output = bonafide(&args);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("p.toml:1:8"), "{}", stderr(&output));
    // Where nobody else can read the workspace, the program is reached through an open file.
    let program = std::fs::File::open(env!("CARGO_BIN_EXE_bonafide")).unwrap();
    let other = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "--", "/proc/self/fd/0"])
        .args(args)
        .stdin(program)
        .output()
        .unwrap();
    assert_eq!(other.status.code(), Some(2));
    assert!(stderr(&other).contains("only root"), "{}", stderr(&other));
    assert!(!node.exists());
}
