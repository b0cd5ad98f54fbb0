//! What speaks against a program.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::taint::{Taint, Taints};

use crate::node::{NOBODY, Node, Program, digest_of, needed, python, sleep};

async fn fingerprint(node: &Node, program: &Program) -> Fingerprint {
    node.process(program.pid()).await.unwrap().fingerprint
}

async fn taints(node: &Node, program: &Program) -> Taints {
    fingerprint(node, program).await.taints
}

/// A copy of `sleep` that runs.
async fn napper(path: &Path) -> Program {
    std::fs::copy(sleep(), path).unwrap();
    let program = Program::start(Command::new(path).arg("1000"));
    program.runs(path).await;
    program
}

#[tokio::test]
async fn an_executable_that_was_deleted_keeps_its_digest_and_its_path() {
    let node = Node::start(NOBODY).await;
    let copy = node.path("napper");
    let program = napper(&copy).await;
    assert_eq!(taints(&node, &program).await, [].into());

    std::fs::remove_file(&copy).unwrap();
    let found = fingerprint(&node, &program).await;
    assert_eq!(found.taints, [Taint::Deleted].into());
    assert_eq!((Path::new(&found.exe.path), found.exe.digest), (copy.as_path(), digest_of(sleep())));

    // Another file at its path is not what it runs.
    std::fs::copy(python(), &copy).unwrap();
    let found = fingerprint(&node, &program).await;
    assert_eq!((found.taints, found.exe.digest), ([Taint::Deleted].into(), digest_of(sleep())));
}

#[tokio::test]
async fn a_name_that_ends_like_a_deleted_one_proves_nothing() {
    let node = Node::start(NOBODY).await;
    // It is there under that very name.
    let named = node.path("nginx (deleted)");
    let program = napper(&named).await;
    let found = fingerprint(&node, &program).await;
    assert_eq!((Path::new(&found.exe.path), found.taints), (named.as_path(), [].into()));
    // Gone under that name, it is not taken for one called \"nginx\".
    std::fs::remove_file(&named).unwrap();
    let found = fingerprint(&node, &program).await;
    assert_eq!((Path::new(&found.exe.path), found.taints), (named.as_path(), [Taint::Deleted].into()));
    // Nor is a file that was put where the kernel says that it is.
    let deleted = node.path("napper");
    let program = napper(&deleted).await;
    std::fs::remove_file(&deleted).unwrap();
    std::fs::copy(sleep(), node.path("napper (deleted)")).unwrap();
    let found = fingerprint(&node, &program).await;
    assert_eq!((Path::new(&found.exe.path), found.taints), (deleted.as_path(), [Taint::Deleted].into()));
}

#[tokio::test]
async fn a_deleted_file_whose_directory_is_not_to_be_found_has_no_path() {
    let node = Node::start(NOBODY).await;
    std::fs::create_dir(node.path("bin")).unwrap();
    let program = napper(&node.path("bin/napper")).await;
    std::fs::remove_dir_all(node.path("bin")).unwrap();
    let found = fingerprint(&node, &program).await;
    assert!(found.exe.path.starts_with("(unproven)/"), "{}", found.exe.path);
    assert_eq!((found.taints, found.exe.digest), ([Taint::Deleted].into(), digest_of(sleep())));
}

/// A program deleted in mounts that nobody made for himself, under the name of another one of ours.
#[tokio::test]
async fn a_path_forged_by_mounts_and_deleted_is_none() {
    let node = Node::start(NOBODY).await;
    let inside = format!(
        "cp {0} /tmp/nginx.$$; mount -t tmpfs t /usr/sbin; mv /tmp/nginx.$$ /usr/sbin/nginx; echo ready; exec sleep 1000",
        sleep().display()
    );
    let mut unshare = Command::new(needed(&["/usr/bin/unshare"]));
    unshare.args(["-Urm", "--propagation", "private", "bash", "-ec", &inside]);
    let mut world = Program::start(unshare.uid(65534).gid(65534));
    assert_eq!(world.line(), "ready");
    let inner = format!("/proc/{}/root/usr/sbin/nginx", world.pid());
    let forger = Program::start(Command::new(&inner).arg("1000").uid(65534).gid(65534));
    forger.runs(Path::new("/usr/sbin/nginx")).await;
    std::fs::remove_file(&inner).unwrap();
    let found = fingerprint(&node, &forger).await;
    assert_eq!((found.exe.path.as_str(), found.taints), ("(unproven)/usr/sbin/nginx", [Taint::Deleted].into()));
}

/// Python that runs a copy of `sleep` from memory.
const FROM_MEMORY: &str = r"
import os, sys
fd = os.memfd_create('napper', 0)
os.write(fd, open(sys.argv[1], 'rb').read())
print('ready', flush=True)
os.execve(fd, ['napper', '1000'], {})
";

#[tokio::test]
async fn an_executable_in_memory_has_a_digest_and_no_path() {
    let node = Node::start(NOBODY).await;
    let mut program = Program::start(Command::new(python()).args(["-c", FROM_MEMORY]).arg(sleep()));
    program.line();
    program.runs(Path::new("/memfd:napper (deleted)")).await;
    let found = fingerprint(&node, &program).await;
    assert_eq!((found.exe.path.as_str(), found.exe.digest), ("(memory)/memfd:napper", digest_of(sleep())));
    assert_eq!(found.taints, [Taint::Memfd].into());
}

#[tokio::test]
async fn what_the_loader_was_told_to_load_first_is_seen() {
    let node = Node::start(NOBODY).await;
    for (variable, taint) in [("LD_PRELOAD", Taint::Preload), ("LD_AUDIT", Taint::Audit)] {
        let program = Program::start(Command::new(sleep()).arg("1000").env(variable, "libm.so.6"));
        program.runs(&sleep()).await;
        assert_eq!(taints(&node, &program).await, [taint].into(), "{variable}");
    }
    let program = Program::start(Command::new(sleep()).arg("1000").env("LD_PRELOAD", "").env("MY_LD_PRELOAD", "x"));
    program.runs(&sleep()).await;
    assert_eq!(taints(&node, &program).await, [].into());
}

/// A library that writes its program's environment over before the program begins.
const HIDES: &str = r"
#include <string.h>
extern char **environ;
__attribute__((constructor)) static void hide(void)
{
    for (char **variable = environ; *variable; variable++)
        memset(*variable, 'x', strlen(*variable));
}
";

#[tokio::test]
async fn what_was_loaded_first_cannot_hide_that() {
    let node = Node::start_on("kernel").await;
    let (source, library) = (node.path("hides.c"), node.path("hides.so"));
    std::fs::write(&source, HIDES).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success(), "a C compiler is needed, as for the daemon itself");
    // In front of it, variables that end at, before and behind where the search takes a new turn.
    let fillers = [0, 124, 125, 126, 127, 128, 252, 253, 254, 100_000].map(|length| "a".repeat(length));
    for filler in &fillers {
        let mut command = Command::new(sleep());
        let program = Program::start(command.arg("1000").env_clear().env("A", filler).env("LD_PRELOAD", &library));
        program.runs(&sleep()).await;
        let environment = || std::fs::read(format!("/proc/{}/environ", program.pid())).unwrap();
        crate::node::until(|| !environment().is_empty() && !environment().contains(&b'L')).await;
        assert_eq!(taints(&node, &program).await, [Taint::Preload].into(), "behind {} bytes", filler.len());
    }
    for filler in &fillers {
        let harmless = format!("{filler}LD_PRELOAD=libm.so.6");
        let program = Program::start(Command::new(sleep()).arg("1000").env_clear().env("A", &harmless));
        program.runs(&sleep()).await;
        assert_eq!(taints(&node, &program).await, [].into(), "behind {} bytes", filler.len());
    }
}

#[tokio::test]
async fn what_an_interpreter_was_told_to_run_first_is_seen() {
    let node = Node::start(NOBODY).await;
    let script = node.path("app.sh");
    std::fs::write(&script, "echo ready; read -r _\n").unwrap();
    let bash = needed(&["/usr/bin/bash", "/bin/bash"]);
    for (env, expected) in [("/dev/null", Taints::from([Taint::Preload])), ("", Taints::new())] {
        let mut program = Program::start(Command::new(&bash).arg(&script).env("BASH_ENV", env).stdin(Stdio::piped()));
        assert_eq!(program.line(), "ready");
        assert_eq!(taints(&node, &program).await, expected, "{env}");
    }
}

#[tokio::test]
async fn an_environment_full_of_noise_is_searched_to_its_end() {
    let node = Node::start(NOBODY).await;
    let mut command = Command::new(sleep());
    command.arg("1000").env_clear();
    for i in 0..12 {
        command.env(format!("NOISE{i}"), "x".repeat(100_000));
    }
    let program = Program::start(command.env("Z\n", "\u{1b}[2J").env("LD_PRELOAD", "libm.so.6"));
    program.runs(&sleep()).await;
    assert_eq!(taints(&node, &program).await, [Taint::Preload].into());
}

/// Python that has the process in its argument traced by itself.
const TRACES: &str = r"
import ctypes, sys, time
PTRACE_SEIZE = 0x4206
assert ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None) == 0
print('ready', flush=True)
time.sleep(1000)
";

#[tokio::test]
async fn who_is_traced_is_tainted_as_long_as_it_lasts() {
    let node = Node::start(NOBODY).await;
    let program = Program::start(Command::new(sleep()).arg("1000"));
    program.runs(&sleep()).await;
    let mut tracer = Program::start(Command::new(python()).args(["-c", TRACES, &program.pid().to_string()]));
    assert_eq!(tracer.line(), "ready");
    assert_eq!(taints(&node, &program).await, [Taint::Traced].into());
    drop(tracer);
    assert_eq!(taints(&node, &program).await, [].into());
}

/// Python that maps its first argument as the second says.
const MAPS: &str = r"
import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
protection = {'rwx': mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, 'rx': mmap.PROT_READ | mmap.PROT_EXEC, 'rw': mmap.PROT_READ | mmap.PROT_WRITE}
mapped = mmap.mmap(file, 4096, flags=mmap.MAP_PRIVATE, prot=protection[sys.argv[2]])
print('ready', flush=True)
time.sleep(1000)
";

#[tokio::test]
async fn a_file_mapped_writable_and_executable_at_once_is_seen() {
    let node = Node::start(NOBODY).await;
    let (script, file) = (node.path("maps.py"), node.path("code"));
    std::fs::write(&script, MAPS).unwrap();
    std::fs::write(&file, [0xc3; 4096]).unwrap();
    for (protection, expected) in
        [("rwx", Taints::from([Taint::WritableCode])), ("rx", Taints::new()), ("rw", Taints::new())]
    {
        let mut program = Program::start(Command::new(python()).arg(&script).arg(&file).arg(protection));
        assert_eq!(program.line(), "ready");
        assert_eq!(taints(&node, &program).await, expected, "{protection}");
    }
}

#[tokio::test]
async fn a_tainted_program_earns_only_what_allows_its_taint() {
    let exe = sleep();
    let policy = |allowed: &str| {
        format!("mode = \"enforce\"\n[[workload]]\nname = \"test/nap\"\nexe = \"{}\"\n{allowed}\n", exe.display())
    };
    let preloaded = || Program::start(Command::new(sleep()).arg("1000").env("LD_PRELOAD", "libm.so.6"));
    let node = Node::start(&policy("")).await;
    let program = preloaded();
    program.runs(&exe).await;
    let attested = node.process(program.pid()).await.unwrap();
    assert_eq!(attested.workload, None);
    let miss = &attested.near_misses[0];
    assert_eq!((miss.field.as_str(), miss.expected.as_str(), miss.seen.as_str()), ("allow_taints", "none", "preload"));

    let node = Node::start(&policy("allow_taints = \"preload\"")).await;
    assert_eq!(node.process(program.pid()).await.unwrap().workload, Some("test/nap".parse().unwrap()));
}

/// Python with more mappings than a page of `maps` holds, and hostile names in it.
const MANY: &str = r"
import mmap, os, sys, time
kept = []
for i in range(3000):
    kept.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ if i % 2 else mmap.PROT_READ | mmap.PROT_EXEC))
for name in sys.argv[1:]:
    file = os.open(name, os.O_RDWR)
    kept.append(mmap.mmap(file, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC))
    os.unlink(name)
print('ready', flush=True)
time.sleep(1000)
";

#[tokio::test]
async fn many_mappings_and_hostile_names_confuse_nobody() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let node = Node::start(NOBODY).await;
    let script = node.path("many.py");
    std::fs::write(&script, MANY).unwrap();
    let names = [b"a\n7f00-7f01 rwxp 00000000 fe:00 5 x".as_slice(), b"\xff\x1b[2J", b"lib (deleted)"];
    let files: Vec<_> = names.iter().map(|name| node.dir.path().join(OsStr::from_bytes(name))).collect();
    for (i, file) in (0_u8..).zip(&files) {
        std::fs::write(file, [i; 4096]).unwrap();
    }
    let mut program = Program::start(Command::new(python()).arg(&script).args(&files));
    assert_eq!(program.line(), "ready");
    let found = fingerprint(&node, &program).await;
    assert_eq!(found.taints, [].into());
    assert!(found.libraries.known().unwrap().count >= 3);
}

#[tokio::test]
async fn a_process_that_never_stops_changing_is_refused_by_name() {
    let node = Node::start(NOBODY).await;
    let script = node.path("flips.py");
    let code = "import mmap, os, sys\nfile = os.open(sys.argv[1], os.O_RDWR)\nprint('ready', flush=True)\n\
                while True:\n mmap.mmap(file, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()\n";
    std::fs::write(&script, code).unwrap();
    let file = node.path("code");
    std::fs::write(&file, [0xc3; 4096]).unwrap();
    let mut program = Program::start(Command::new(python()).arg(&script).arg(&file));
    assert_eq!(program.line(), "ready");
    let mut refused = false;
    for _ in 0..200 {
        match node.process_once(program.pid()).await {
            Ok(attested) => assert_eq!(attested.fingerprint.exe.digest, digest_of(python())),
            Err(refusal) => {
                assert_eq!(refusal.reason, AttestReason::GenerationGone, "{refusal}");
                refused = true;
            }
        }
    }
    assert!(refused, "it was never caught between two looks");
}
