//! The program itself: a whole node on its unix sockets, exit codes, and nothing left behind.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::endpoint;
use bonafide_proto::svid::{Expect, TrustBundle};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::process::{Child, Command};

use crate::bench::{csr, fingerprint};

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bonafide-ca"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn said(command: &mut Command) -> (i32, String, String) {
    let output = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

pub(crate) fn local(dir: &Path) -> PathBuf {
    let path = dir.join("ca.toml");
    let at = dir.display();
    let text = format!(
        "role = \"local\"\nstate = \"{at}/state\"\n\
         [root]\ntrust_domain = \"example.org\"\nadmin_socket = \"{at}/authority.sock\"\n\
         [node]\nname = \"a\"\nsocket = \"{at}/ca.sock\"\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

pub(crate) async fn ask(dir: &Path) -> IssuanceClient<tonic::transport::Channel> {
    let mut client = IssuanceClient::new(endpoint::channel(dir.join("ca.sock")));
    for _ in 0..600 {
        match client.status(wire::StatusRequest {}).await {
            Ok(status) if status.get_ref().authority_reachable => return client,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the daemon does not answer");
}

pub(crate) async fn end(mut child: Child, signal: rustix::process::Signal) -> i32 {
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    child.wait().await.unwrap().code().unwrap()
}

#[tokio::test]
async fn the_local_role_serves_a_whole_node_and_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let config = local(dir.path());
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let child = program().arg("--config").arg(&config).spawn().unwrap();
        let mut client = ask(dir.path()).await;
        let mut watch = client.watch_bundle(wire::WatchBundleRequest {}).await.unwrap().into_inner();
        let bundle = watch.message().await.unwrap().unwrap();
        assert_eq!((bundle.trust_domain.as_str(), bundle.node.as_str()), ("example.org", "a"));
        let request = wire::IssueLeafRequest {
            workload: "shop/web".into(),
            fingerprint: Some((&fingerprint()).into()),
            csr: csr(&[]),
        };
        let Some(wire::issue_leaf_response::Of::Svid(svid)) = client.issue_leaf(request).await.unwrap().into_inner().of
        else {
            panic!("refused")
        };
        let ders = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
        let trust = TrustBundle::new("example.org".parse().unwrap(), ders(bundle.roots)).unwrap();
        let now = UnixTime::since_unix_epoch(SystemClock.now());
        trust.verify(&ders(svid.chain), now, Expect::Workload).unwrap();

        assert_eq!(end(child, signal).await, 0);
        assert!(!dir.path().join("ca.sock").exists() && !dir.path().join("authority.sock").exists());
    }
}

/// The kernel gives root the files of a process that leaves no core file (proc(5), `/proc/PID`).
#[tokio::test]
async fn its_keys_are_in_no_core_file_and_for_no_other_process_of_its_user() {
    const UID: u32 = 64_790;
    let dir = tempfile::tempdir().unwrap();
    let config = local(dir.path());
    std::os::unix::fs::chown(dir.path(), Some(UID), Some(UID)).unwrap();
    let child = program().arg("--config").arg(&config).uid(UID).gid(UID).spawn().unwrap();
    ask(dir.path()).await;
    let process = PathBuf::from(format!("/proc/{}", child.id().unwrap()));
    assert!(std::fs::read_to_string(process.join("status")).unwrap().contains(&format!("Uid:\t{UID}")));
    assert_eq!(std::fs::metadata(process.join("mem")).unwrap().uid(), 0, "readable for its user");
    assert_eq!(end(child, rustix::process::Signal::TERM).await, 0);
}

#[tokio::test]
async fn malformed_questions_are_answered_without_harm() {
    let dir = tempfile::tempdir().unwrap();
    let child = program().arg("--config").arg(local(dir.path())).spawn().unwrap();
    let mut client = ask(dir.path()).await;
    let question = |workload: &str, csr: Vec<u8>| wire::IssueLeafRequest {
        workload: workload.into(),
        fingerprint: Some((&fingerprint()).into()),
        csr,
    };
    for name in ["", "bonafide/node/a", "a//b", "../x"] {
        let refused = client.issue_leaf(question(name, csr(&[]))).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{name}");
    }
    let without = wire::IssueLeafRequest { workload: "web".into(), fingerprint: None, csr: csr(&[]) };
    assert_eq!(client.issue_leaf(without).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let answer = client.issue_leaf(question("web", vec![0x30; 5000])).await.unwrap().into_inner();
    let Some(wire::issue_leaf_response::Of::Refused(refused)) = answer.of else { panic!("not refused") };
    assert_eq!(refused.reason, "bad-request");
    let huge = client.issue_leaf(question("web", vec![0; 1_000_000])).await.unwrap_err();
    assert_eq!(huge.code(), tonic::Code::OutOfRange, "{huge}");
    assert_eq!(client.status(wire::StatusRequest {}).await.unwrap().into_inner().issued, 0);
    assert_eq!(end(child, rustix::process::Signal::TERM).await, 0);
}

#[tokio::test]
async fn an_operator_lists_nodes_and_gets_no_token_that_admits_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let child = program().arg("--config").arg(local(dir.path())).spawn().unwrap();
    ask(dir.path()).await;
    let socket = dir.path().join("authority.sock");
    let (code, out, err) = said(program().arg("token").arg("--socket").arg(&socket)).await;
    assert_eq!((code, out.as_str()), (1, ""), "a token that admits nobody");
    assert!(err.contains("no network listener") && err.contains("deploy/authority.toml.example"), "{err}");
    let (code, out, _) = said(program().arg("nodes").arg("--socket").arg(&socket)).await;
    assert_eq!(code, 0);
    assert!(out.lines().nth(1).unwrap().starts_with("a "), "{out}");

    let (code, _, err) = said(program().arg("--config").arg(dir.path().join("ca.toml"))).await;
    assert_eq!(code, 1, "a second daemon ran");
    assert!(err.contains("in use by another daemon"), "{err}");
    assert!(socket.exists(), "the second daemon took the first one's socket");
    assert_eq!(end(child, rustix::process::Signal::TERM).await, 0);
}

#[tokio::test]
async fn a_root_is_made_elsewhere_and_certifies_the_authority_again() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = networked(dir.path(), free_port(), "a");
    let (root, socket) = (dir.path().join("carried-away"), dir.path().join("authority.sock"));
    let init = async || said(program().args(["init", "--config"]).arg(&config).arg("--offline-root").arg(&root)).await;
    let (code, out, err) = init().await;
    assert!(code == 0 && out.contains("issuing.key") && out.contains("carry that away"), "{out}{err}");
    let (code, _, err) = init().await;
    assert!(code == 1 && err.contains("has an authority already"), "{err}");
    assert!(!dir.path().join("root/authority/root.key").exists() && root.join("root.key").exists());

    let authority = program().arg("--config").arg(&config).spawn().unwrap();
    token(&socket).await;
    let status = said(program().args(["issuing", "status", "--socket"]).arg(&socket)).await.1;
    assert!(status.contains("Root 1 is offline"), "{status}");
    let (code, request, err) = said(program().args(["issuing", "request", "--config"]).arg(&config)).await;
    assert!(code == 0 && request.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{err}");
    let (csr, next) = (dir.path().join("next.csr"), dir.path().join("next.pem"));
    std::fs::write(&csr, request).unwrap();
    let sign = |days: &str, request: &Path| {
        let mut command = program();
        command.args(["issuing", "sign", "--days", days, "--root-dir"]).arg(&root).arg(request);
        command
    };
    assert_eq!(said(&mut sign("731", &csr)).await.0, 2);
    let (code, _, err) = said(&mut sign("400", &config)).await;
    assert!(code == 1 && err.contains("no certificate request"), "{err}");
    let (code, certificate, err) = said(&mut sign("400", &csr)).await;
    assert_eq!(code, 0, "{err}");
    std::fs::write(&next, certificate).unwrap();
    let install = async || said(program().args(["issuing", "install", "--socket"]).arg(&socket).arg(&next)).await;
    let (code, after, err) = install().await;
    assert!(code == 0 && after.contains("Root 1 is offline") && after != status, "{after}{err}");
    assert!(install().await.1.starts_with("It was so before."));
    let (code, _, err) = said(program().args(["rotate", "prepare", "--socket"]).arg(&socket)).await;
    assert!(code == 1 && err.contains("offline-root") && err.contains("request --next"), "{err}");

    // The next one is made elsewhere as well.
    let request = said(program().args(["issuing", "request", "--next", "--config"]).arg(&config)).await.1;
    std::fs::write(&csr, request).unwrap();
    let aside = dir.path().join("carried-away-too");
    let mut sign = program();
    sign.args(["issuing", "sign", "--new-root", "example.org", "--root-dir"]).arg(&aside).arg(&csr);
    let (code, both, err) = said(&mut sign).await;
    assert!(code == 0 && both.matches("BEGIN CERTIFICATE").count() == 2, "{err}");
    let mut prepare = program();
    prepare.args(["rotate", "prepare", "--socket"]).arg(&socket).arg("--issuing").arg(&next);
    let (code, _, err) = said(&mut prepare).await;
    assert!(code == 1 && err.contains("two certificates are expected"), "{err}");
    std::fs::write(&next, both).unwrap();
    let (code, shown, err) = said(&mut prepare).await;
    assert!(code == 0 && shown.contains("prepared") && shown.contains("Root 2 is offline"), "{shown}{err}");
    assert_eq!(end(authority, rustix::process::Signal::TERM).await, 0);
}

#[tokio::test]
async fn mistakes_have_their_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("wrong.toml");
    std::fs::write(&wrong, "role = \"local\"\nstat = \"/x\"\n").unwrap();
    let (code, _, err) = said(program().arg("--config").arg(&wrong)).await;
    assert_eq!(code, 2);
    assert!(err.contains("wrong.toml") && err.contains("line 2") && err.contains("stat"), "{err}");

    let missing = dir.path().join("missing");
    assert_eq!(said(program().arg("--config").arg(&missing)).await.0, 2);
    assert_eq!(said(&mut program()).await.0, 2);
    assert_eq!(said(program().args(["token", "--socket", "/x", "--ttl", "601"])).await.0, 2);
    assert_eq!(said(program().args(["token", "--socket", "/x", "--node", "a/b"])).await.0, 2);
    let (code, _, err) = said(program().arg("nodes").arg("--socket").arg(&missing)).await;
    assert_eq!(code, 1);
    assert!(err.contains("does not answer"), "{err}");
}

#[tokio::test]
async fn a_node_without_a_usable_token_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let config = dir.path().join("node.toml");
    let text = format!(
        "role = \"node\"\nstate = \"{at}/state\"\n[node]\nname = \"a\"\nsocket = \"{at}/ca.sock\"\n\
         authority = \"127.0.0.1:1\"\njoin_token_file = \"{at}/join.token\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let (code, _, err) = said(program().arg("--config").arg(&config)).await;
    assert_eq!(code, 2);
    assert!(err.contains("join.token") && err.contains("bonafide-ca token"), "{err}");
    assert!(!dir.path().join("ca.sock").exists());
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn token(socket: &Path) -> String {
    for _ in 0..600 {
        let (code, out, _) = said(program().args(["token", "--workloads", "*", "--socket"]).arg(socket)).await;
        if code == 0 {
            return out;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no token")
}

/// Writes the configurations of an authority and of node `name`, both below `dir`.
fn networked(dir: &Path, port: u16, name: &str) -> (PathBuf, PathBuf) {
    let at = dir.display();
    let (root, node) = (dir.join("root.toml"), dir.join(format!("{name}.toml")));
    let text = format!(
        "role = \"root\"\nstate = \"{at}/root\"\n[root]\ntrust_domain = \"example.org\"\n\
         listen = [\"127.0.0.1:{port}\"]\nadmin_socket = \"{at}/authority.sock\"\n"
    );
    std::fs::write(&root, text).unwrap();
    let text = format!(
        "role = \"node\"\nstate = \"{at}/{name}\"\n[node]\nname = \"{name}\"\nsocket = \"{at}/ca.sock\"\n\
         authority = \"127.0.0.1:{port}\"\njoin_token_file = \"{at}/join.token\"\n"
    );
    std::fs::write(&node, text).unwrap();
    (root, node)
}

#[tokio::test]
async fn a_refused_join_is_the_operators_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let (root, a) = networked(dir.path(), port, "a");
    let (_, b) = networked(dir.path(), port, "b");
    let authority = program().arg("--config").arg(&root).spawn().unwrap();
    let (socket, file) = (dir.path().join("authority.sock"), dir.path().join("join.token"));
    let used = token(&socket).await;
    std::fs::write(&file, &used).unwrap();
    let member = program().arg("--config").arg(&a).spawn().unwrap();
    ask(dir.path()).await;
    assert_eq!(end(member, rustix::process::Signal::TERM).await, 0);

    let bound = said(program().args(["token", "--node", "c", "--socket"]).arg(&socket)).await.1;
    let (again, fresh) = (dir.path().join("again"), token(&socket).await);
    std::fs::create_dir(&again).unwrap();
    let (_, a_again) = networked(&again, port, "a");
    let refused = [
        (&b, file.clone(), used.as_str(), "used already"),
        (&b, file, bound.as_str(), "for node c"),
        (&a_again, again.join("join.token"), fresh.as_str(), "a member already"),
    ];
    for (config, file, token, expected) in refused {
        std::fs::write(&file, token).unwrap();
        let (code, _, err) = said(program().arg("--config").arg(config)).await;
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(expected), "{err}");
    }
    assert_eq!(end(authority, rustix::process::Signal::TERM).await, 0);
    let help = said(program().arg("--help")).await.1;
    assert!(help.contains("Exit codes:\n  0  stopped as asked"), "{help}");
}

#[tokio::test]
async fn root_and_node_meet_over_the_network_and_survive_being_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (root, node) = networked(dir.path(), free_port(), "a");
    let mut authority = program().arg("--config").arg(&root).spawn().unwrap();
    let file = dir.path().join("join.token");
    let made = token(&dir.path().join("authority.sock")).await;
    made.parse::<bonafide_ca::JoinToken>().unwrap();
    std::fs::write(&file, made).unwrap();
    let mut member = program().arg("--config").arg(&node).spawn().unwrap();
    ask(dir.path()).await;
    assert!(!file.exists(), "the used token stays");

    authority.kill().await.unwrap();
    member.kill().await.unwrap();
    let member = program().arg("--config").arg(&node).spawn().unwrap();
    let request =
        || wire::IssueLeafRequest { workload: "web".into(), fingerprint: Some((&fingerprint()).into()), csr: csr(&[]) };
    let mut client = IssuanceClient::new(endpoint::channel(dir.path().join("ca.sock")));
    let mut answer = client.issue_leaf(request()).await;
    for _ in 0..600 {
        if answer.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer = client.issue_leaf(request()).await;
    }
    let issued = matches!(answer.unwrap().into_inner().of, Some(wire::issue_leaf_response::Of::Svid(_)));
    assert!(issued, "no leaf while the authority is away");

    let authority = program().arg("--config").arg(&root).spawn().unwrap();
    token(&dir.path().join("authority.sock")).await;
    assert_eq!(end(member, rustix::process::Signal::TERM).await, 0);
    assert_eq!(end(authority, rustix::process::Signal::TERM).await, 0);
}
