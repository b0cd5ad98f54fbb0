//! Programs and scripts reached by links that lead elsewhere since.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use bonafide_proto::fingerprint::Evidence;
use bonafide_proto::taint::Taint;

use crate::node::{NOBODY, Node, Program, digest_of, python, sleep};

/// What changes after it has spoken is later than its exec by any clock.
const NAPS: &str = "import time; time.sleep(0.05); print('runs', flush=True); time.sleep(1000)\n";

/// Has the link lead there, at once.
fn lead(link: &Path, to: &Path) {
    let new = link.with_extension("new");
    symlink(to, &new).unwrap();
    std::fs::rename(new, link).unwrap();
}

fn script(path: &Path) -> Program {
    let mut program = Program::start(Command::new(python()).arg(path));
    assert_eq!(program.line(), "runs");
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_the_file_that_its_link_led_to_when_it_was_executed() {
    let node = Node::start_on("kernel").await;
    let (link, own) = (node.path("link"), std::process::id());
    lead(&link, &sleep());
    let below_root = PathBuf::from(format!("/proc/{own}/root")).join(sleep().strip_prefix("/").unwrap());
    for path in [&link, &below_root] {
        let program = Program::start(Command::new(path).arg("1000"));
        program.runs(&sleep()).await;
        lead(&link, &python());
        let fingerprint = node.process(program.pid()).await.unwrap().fingerprint;
        assert_eq!(Path::new(&fingerprint.exe.path), sleep());
        assert_eq!(fingerprint.exe.digest, digest_of(sleep()));
        assert!(!fingerprint.taints.contains(&Taint::Deleted));
    }
}

/// `/proc/self/exe` is whatever executes it: another image of the same program.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_executes_itself_is_itself() {
    let node = Node::start_on("kernel").await;
    let again = "import os, sys; print('runs', flush=True); sys.stdin.readline(); os.execv('/proc/self/exe', ['sleep', '-c', 'print(\"again\", flush=True); import time; time.sleep(1000)'])";
    let mut program = Program::start(Command::new(python()).args(["-c", again]).stdin(std::process::Stdio::piped()));
    assert_eq!(program.line(), "runs");
    let before = node.process(program.pid()).await.unwrap();
    program.tell("");
    assert_eq!(program.line(), "again");
    let after = node.process(program.pid()).await.unwrap();
    assert_eq!(after.fingerprint.exe, before.fingerprint.exe);
    assert_ne!(after.executions[0].image, before.executions[0].image);
}

/// Who has the link lead elsewhere once it was read is not taken for the script where it leads now.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_whose_link_leads_elsewhere_since_is_no_evidence() {
    let node = Node::start_with(NOBODY, "source = \"kernel\"").await;
    let (link, run, other) = (node.path("link.py"), node.path("run.py"), node.path("other.py"));
    std::fs::write(&run, NAPS).unwrap();
    std::fs::write(&other, "print('something else')\n").unwrap();
    lead(&link, &run);
    let program = script(&link);
    lead(&link, &other);
    let seen = node.process(program.pid()).await.unwrap().fingerprint.script;
    let Evidence::Absent(why) = seen else { panic!("{seen:?}") };
    assert!(why.contains("restart the process"), "{why}");
}

/// A directory's owner exchanges it for another one once the script in it was read.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_whose_directory_is_another_one_since_is_no_evidence() {
    let node = Node::start_with(NOBODY, "source = \"kernel\"").await;
    let site = node.path("site");
    for (directory, code) in [("app", NAPS), ("good", "print('something else')\n")] {
        std::fs::create_dir_all(site.join(directory)).unwrap();
        std::fs::write(site.join(directory).join("run.py"), code).unwrap();
    }
    std::os::unix::fs::chown(&site, Some(74_001), None).unwrap();
    let program = script(&site.join("app/run.py"));
    let mut relative = Program::start(Command::new(python()).arg("run.py").current_dir(site.join("app")));
    assert_eq!(relative.line(), "runs");
    std::fs::write(site.join("app/written"), "by an honest program").unwrap();
    let seen = node.process(relative.pid()).await.unwrap().fingerprint.script;
    assert!(matches!(seen, Evidence::Known(_)), "where a process began is known by itself: {seen:?}");

    std::fs::rename(site.join("app"), site.join("evil")).unwrap();
    std::fs::rename(site.join("good"), site.join("app")).unwrap();
    let seen = node.process(program.pid()).await.unwrap().fingerprint.script;
    let Evidence::Absent(why) = seen else { panic!("{seen:?}") };
    assert!(why.contains("restart the process"), "whether or not somebody had looked before: {why}");
}

/// A path that means another file to each who opens it names none.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_reached_through_a_link_of_proc_is_no_evidence() {
    let node = Node::start_with(NOBODY, "source = \"kernel\"").await;
    let path = node.path("app.py");
    std::fs::write(&path, NAPS).unwrap();
    for process in ["self".to_owned(), std::process::id().to_string()] {
        let below_root = PathBuf::from(format!("/proc/{process}/root")).join(path.strip_prefix("/").unwrap());
        let program = script(&below_root);
        let seen = node.process(program.pid()).await.unwrap().fingerprint.script;
        let Evidence::Absent(why) = seen else { panic!("{seen:?}") };
        assert!(why.contains("cannot be opened"), "{why}");
    }
}
