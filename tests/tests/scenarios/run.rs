//! `bonafide run` as an operator types it: a whole node, its flows, its answers, and nothing left after Ctrl-C.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bonafide_cli::node::InstanceCgroup;
use bonafide_tests::node::{Backend, binaries};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{Finished, Program, run};
use bonafide_tests::programs::{echo_server, say, script};
use bonafide_tests::topology::Family;
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::BareWorld;
use rustix::process::Signal;

use super::stop::{network, use_iptables};

on_each_backend! {
    a_run_serves_until_ctrl_c_and_leaves_nothing,
}

fn ask(dir: &Path, words: &[&str]) -> Finished {
    run(Command::new(binaries().join("bonafide")).arg("--dir").arg(dir).args(words))
}

fn a_run_serves_until_ctrl_c_and_leaves_nothing(backend: Backend) {
    let world = BareWorld::create();
    let (netns, dir, log) = (&world.topology().a, world.dir().join("node"), world.dir().join("run.log"));
    let client = script(&world, "say.py");
    let policy = Policy::shadow()
        .script("test/client", &client)
        .script("test/server", &script(&world, "echo_server.py"))
        .allow("client to server", "test/client", "test/server");
    let policy = world.file("policy.toml", policy.text());
    if backend == Backend::Iptables {
        use_iptables(netns);
    }
    let before = network(netns);
    let instance = format!("{}-run", world.instance());

    let mut command = netns.command(&binaries().join("bonafide").to_string_lossy());
    command.arg("--dir").arg(&dir).args(["run", "--instance", &instance, "--name", "a"]);
    command.args(["--backend", backend.as_str()]).arg("--policy").arg(&policy);
    let mut node = Program::start("bonafide run", &mut command, &log);
    node.wait_for_output("the node is up");

    let status = ask(&dir, &["status"]);
    assert_eq!(status.code(), Some(0), "{status:#?}");
    for daemon in ["ca", "identityd", "enforcer"] {
        let line = status.stdout.lines().find(|line| line.starts_with(daemon)).unwrap_or_default();
        assert!(line.split_whitespace().nth(1) == Some("ok"), "{daemon}: {status:#?}");
    }

    let mut server = echo_server(&world, netns, 7);
    for family in Family::BOTH {
        let to = std::net::SocketAddr::new(family.loopback(), 7);
        assert_eq!(run(&mut say(netns, &client, to, "hello")).success(), "hello\n");
    }
    let shown = |text: &str| text.lines().filter(|l| l.contains("test/client") && l.contains("test/server")).count();
    wait_until("both flows to be shown", Duration::from_secs(8), || shown(&node.output()) >= 2);

    let who = ask(&dir, &["whois", &server.pid().to_string()]).success();
    assert!(who.contains("test/server") && who.contains("echo_server.py"), "{who}");
    server.kill();

    let cgroup = InstanceCgroup::find(&instance).unwrap();
    assert!(cgroup.path().exists() && dir.exists(), "the checks for what is left are blind");
    node.signal(Signal::INT);
    let status = node.wait(Duration::from_secs(15));
    assert_eq!(status.code(), Some(0), "{}", node.output());
    assert!(!cgroup.path().exists() && !dir.exists(), "{} or {} stays", cgroup.path().display(), dir.display());
    for ((question, before), (_, after)) in before.into_iter().zip(network(netns)) {
        assert_eq!(before, after, "{question} is not as it was");
    }
    assert_eq!(netns.pids(), Vec::<i32>::new(), "processes stay");
}
