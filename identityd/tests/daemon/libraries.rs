//! What else it has mapped as code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use bonafide_proto::fingerprint::{Digest, Evidence, Libraries};

use crate::node::{NOBODY, Node, Program, digest_of, python, sleep};

/// Python that loads the libraries in its arguments.
const LOADS: &str = r"
import ctypes, sys, time
for name in sys.argv[1:]:
    ctypes.CDLL(name)
print('ready', flush=True)
time.sleep(1000)
";

struct World {
    node: Node,
    script: PathBuf,
}

impl World {
    async fn start() -> Self {
        let node = Node::start(NOBODY).await;
        let script = node.path("loads.py");
        std::fs::write(&script, LOADS).unwrap();
        Self { node, script }
    }

    fn program(&self, libraries: &[&Path]) -> Program {
        let mut program = Program::start(Command::new(python()).arg(&self.script).args(libraries));
        assert_eq!(program.line(), "ready");
        program
    }

    async fn libraries(&self, program: &Program) -> Evidence<Libraries> {
        self.node.process(program.pid()).await.unwrap().fingerprint.libraries
    }

    async fn known(&self, program: &Program) -> Libraries {
        match self.libraries(program).await {
            Evidence::Known(libraries) => libraries,
            other => panic!("{other:?}"),
        }
    }

    /// A library that nobody else has, which does nothing.
    fn library(&self, name: &str, what: &str) -> PathBuf {
        let (source, library) = (self.node.path(&format!("{name}.c")), self.node.path(name));
        std::fs::write(&source, format!("const char *{what}(void) {{ return \"{what}\"; }}\n")).unwrap();
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
        assert!(built.success(), "a C compiler is needed, as for the daemon itself");
        library
    }
}

/// What `maps` says, read by other code than the daemon's.
fn composite(program: &Program, exe: &Path) -> Libraries {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
    let paths: BTreeSet<&str> = maps
        .lines()
        .filter(|line| line.split_whitespace().nth(1).unwrap().contains('x'))
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .filter(|path| Path::new(path) != exe)
        .collect();
    let digests: BTreeSet<[u8; 32]> = paths.iter().map(|path| digest_of(path).0).collect();
    let joined: Vec<u8> = digests.iter().flatten().copied().collect();
    Libraries { digest: Digest::of(&joined), count: u32::try_from(digests.len()).unwrap() }
}

#[tokio::test]
async fn the_libraries_of_a_program_have_one_digest() {
    let world = World::start().await;
    let napper = Program::start(Command::new(sleep()).arg("1000"));
    napper.runs(&sleep()).await;
    let plain = world.program(&[]);
    for (program, exe) in [(&napper, sleep()), (&plain, python())] {
        let expected = composite(program, &exe);
        assert!(expected.count >= 1, "it is no static program");
        assert_eq!(world.known(program).await, expected);
    }
}

#[tokio::test]
async fn one_more_library_is_another_digest_and_the_same_ones_are_the_same() {
    let world = World::start().await;
    let (a, b) = (world.library("a.so", "a"), world.library("b.so", "b"));
    let [plain, with_a, again, with_b] = [
        world.known(&world.program(&[])).await,
        world.known(&world.program(&[&a])).await,
        world.known(&world.program(&[&a])).await,
        world.known(&world.program(&[&b])).await,
    ];
    assert_eq!(with_a, again);
    assert_eq!(with_a.count, plain.count + 1);
    let distinct: BTreeSet<_> = [plain.digest, with_a.digest, with_b.digest].into();
    assert_eq!(distinct.len(), 3);
}

#[tokio::test]
async fn what_is_mapped_counts_and_not_what_lies_at_its_path_now() {
    let world = World::start().await;
    let a = world.library("a.so", "a");
    let program = world.program(&[&a]);
    let before = world.known(&program).await;
    // Replaced by another library, then removed: the mapping is of the first.
    let b = world.library("b.so", "b");
    std::fs::rename(&b, &a).unwrap();
    assert_eq!(world.known(&program).await, before);
    std::fs::remove_file(&a).unwrap();
    assert_eq!(world.known(&program).await, before);
}

#[tokio::test]
async fn a_library_that_was_written_to_has_another_digest() {
    let world = World::start().await;
    let a = world.library("a.so", "a");
    let program = world.program(&[&a]);
    let before = world.known(&program).await;
    // In place: behind the code, so that the program does not fall over.
    let mut bytes = std::fs::read(&a).unwrap();
    bytes.push(0);
    std::fs::write(&a, bytes).unwrap();
    assert_ne!(world.known(&program).await.digest, before.digest);
}

#[tokio::test]
async fn a_library_from_memory_is_one_too() {
    let world = World::start().await;
    let a = world.library("a.so", "a");
    let on_disk = world.known(&world.program(&[&a])).await;
    let script = world.node.path("memory.py");
    let code = "import ctypes, os, sys, time\nfd = os.memfd_create('a', 0)\nos.write(fd, open(sys.argv[1], 'rb').read())\n\
                ctypes.CDLL(f'/proc/self/fd/{fd}')\nprint('ready', flush=True)\ntime.sleep(1000)\n";
    std::fs::write(&script, code).unwrap();
    let mut program = Program::start(Command::new(python()).arg(&script).arg(&a));
    assert_eq!(program.line(), "ready");
    assert_eq!(world.known(&program).await, on_disk, "the same bytes, wherever they are");
}

#[tokio::test]
async fn a_library_too_large_to_be_hashed_is_absence_and_no_refusal() {
    let world = World::start().await;
    let a = world.library("a.so", "a");
    std::os::unix::fs::chown(&a, Some(65534), None).unwrap();
    std::fs::File::options().write(true).open(&a).unwrap().set_len((256 << 20) + 1).unwrap();
    let program = world.program(&[&a]);
    let attested = world.node.process(program.pid()).await.unwrap().fingerprint;
    assert_eq!(attested.exe.digest, digest_of(python()));
    assert!(matches!(&attested.libraries, Evidence::Absent(why) if why.contains("cannot be hashed")), "{attested:?}");
}
