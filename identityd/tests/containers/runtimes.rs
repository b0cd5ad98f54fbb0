//! One containerd, one dockerd and one podman for all tests of this program. They end when it ends, however it does.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use bonafide_proto::fingerprint::Digest;

/// The names of the images.
pub(crate) const ONE: &str = "localhost/one:1";
pub(crate) const TWO: &str = "localhost/two:1";

/// Where the scripts of these tests are.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containers");

pub(crate) struct Runtimes {
    dir: PathBuf,
    tag: String,
    images: Vec<Image>,
    /// Whose end it waits for.
    _until: ChildStdin,
    _script: Child,
}

/// An image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Image {
    pub(crate) config: Digest,
    pub(crate) manifest: Digest,
}

/// A name that nobody else has.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("bt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn runtimes() -> &'static Runtimes {
    static RUNTIMES: OnceLock<Runtimes> = OnceLock::new();
    RUNTIMES.get_or_init(Runtimes::start)
}

impl Runtimes {
    fn start() -> Self {
        let tag = unique();
        let dir = PathBuf::from(format!("/tmp/{tag}"));
        std::fs::create_dir(&dir).unwrap();
        let made = done(Command::new("python3").arg(format!("{HERE}/image.py")).arg(&dir).args([ONE, TWO]));
        let digests = |line: &str| line.split(' ').map(|digest| digest.parse().unwrap()).collect::<Vec<Digest>>();
        let images = made.lines().map(digests).map(|found| Image { config: found[0], manifest: found[1] }).collect();
        let mut script = Command::new(format!("{HERE}/runtimes.sh"));
        script.arg(&dir).arg(&tag).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
        Self { dir, tag, images, _until: script.stdin.take().unwrap(), _script: script }
    }

    /// The namespace of containerd, and the cgroup, below which everything of theirs is.
    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    pub(crate) fn one(&self) -> Image {
        self.images[0]
    }

    pub(crate) fn two(&self) -> Image {
        self.images[1]
    }

    pub(crate) fn socket(&self, runtime: &str) -> PathBuf {
        self.dir.join(format!("{runtime}.sock"))
    }

    /// As it is written for identityd.
    pub(crate) fn config(&self, runtime: &str) -> String {
        config(runtime, &self.socket(runtime), &self.tag)
    }

    pub(crate) fn all(&self) -> String {
        ["containerd", "docker", "podman"].map(|runtime| self.config(runtime)).concat()
    }

    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let socket = self.socket("containerd");
        done(Command::new("ctr").arg("--address").arg(socket).args(["--namespace", &self.tag]).args(args))
    }

    pub(crate) fn docker(&self, args: &[&str]) -> String {
        let host = format!("unix://{}", self.socket("docker").display());
        done(Command::new("docker").args(["--host", &host]).args(args))
    }

    pub(crate) fn podman(&self, args: &[&str]) -> String {
        let mut podman = Command::new("podman");
        podman.env("CONTAINERS_CONF", self.dir.join("podman.toml"));
        done(podman.env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.toml")).args(args))
    }

    /// Starts a container of containerd's, and tells the PID of its program.
    pub(crate) fn start_native(&self, id: &str, image: &str) -> u32 {
        // With a file of its own for the PID: `ctr task list` would list all.
        let file = self.dir.join(format!("{id}.pid"));
        let pid_file = file.display().to_string();
        self.ctr(&["run", "--detach", "--pid-file", &pid_file, "--label", "made-by=hand", image, id]);
        std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    /// Starts a container of Docker's: its ID, and the PID of its program.
    pub(crate) fn start_docker(&self, args: &[&str]) -> (String, u32) {
        let id = self.docker(&[&["run", "--detach", "--network", "none"], args, &[ONE]].concat());
        let pid = self.docker(&["inspect", "--format", "{{.State.Pid}}", &id]).parse().unwrap();
        (id, pid)
    }

    /// The same of Podman's, under this name.
    pub(crate) fn start_podman(&self, name: &str) -> (String, u32) {
        let parent = format!("/{}", self.tag);
        let options = ["--network", "none", "--cgroup-parent", &parent, "--name", name];
        let id = self.podman(&[&["run", "--detach"], options.as_slice(), &[ONE]].concat());
        let pid = self.podman(&["inspect", "--format", "{{.State.Pid}}", &id]).parse().unwrap();
        (id, pid)
    }
}

pub(crate) fn config(kind: &str, socket: &Path, tag: &str) -> String {
    let more = match kind {
        "containerd" => format!("namespaces = [\"k8s.io\", \"{tag}\"]\nservice_account = \"example.org/account\"\n"),
        _ => String::new(),
    };
    format!("[[runtime]]\nkind = \"{kind}\"\nsocket = \"{}\"\n{more}", socket.display())
}

/// What a command printed that must succeed.
pub(crate) fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
