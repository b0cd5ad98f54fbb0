//! etcd members as processes of their own, which can be killed and started again.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_ca::store::engine::{Engine as _, Key, Tree};
use bonafide_ca::store::{Etcd, EtcdPlace};
use bonafide_proto::clock::SystemClock;
use tempfile::TempDir;

/// A cluster; its members end with it.
pub(crate) struct Cluster {
    _dir: TempDir,
    members: Vec<Member>,
}

struct Member {
    /// Whom it runs as, if not as this test.
    uid: Option<u32>,
    arguments: Vec<String>,
    client: u16,
    log: PathBuf,
    process: Option<Child>,
}

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    /// So many members that have elected a leader.
    pub(crate) fn of(count: usize) -> Self {
        // Somebody else may take a port before its member does; then all begin anew.
        (0..5).find_map(|_| Self::try_of(count)).expect("an etcd cluster starts (deploy/install-deps installs etcd)")
    }

    /// So many members, of which each runs as a user of its own: from this uid on.
    pub(crate) fn as_users(count: usize, first: u32) -> Self {
        (0..5).find_map(|_| Self::try_as(count, Some(first))).expect("an etcd cluster starts")
    }

    fn try_of(count: usize) -> Option<Self> {
        Self::try_as(count, None)
    }

    fn try_as(count: usize, first_uid: Option<u32>) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<String> = ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}={}", url(*peer))).collect();
        let members = ports.iter().enumerate().map(|(n, (client, peer))| {
            let data = dir.path().join(format!("m{n}"));
            let arguments = [
                ("--name", format!("m{n}")),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", url(*client)),
                ("--advertise-client-urls", url(*client)),
                ("--listen-peer-urls", url(*peer)),
                ("--initial-advertise-peer-urls", url(*peer)),
                ("--initial-cluster", all.join(",")),
                ("--logger", "zap".to_owned()),
            ];
            let uid = first_uid.map(|first| first + u32::try_from(n).unwrap());
            if let Some(uid) = uid {
                std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
                std::fs::create_dir(&data).unwrap();
                std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
                std::os::unix::fs::chown(&data, Some(uid), Some(uid)).unwrap();
            }
            let arguments = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
            Member { uid, arguments, client: *client, log: dir.path().join(format!("m{n}.log")), process: None }
        });
        let mut cluster = Self { members: members.collect(), _dir: dir };
        for n in 0..count {
            cluster.start(n);
        }
        cluster.serves().then_some(cluster)
    }

    pub(crate) fn start(&mut self, n: usize) {
        let member = &mut self.members[n];
        let log = std::fs::OpenOptions::new().append(true).create(true).open(&member.log).unwrap();
        let mut etcd = match member.uid {
            None => Command::new("etcd"),
            Some(uid) => {
                let mut as_user = Command::new("setpriv");
                as_user.args([format!("--reuid={uid}"), format!("--regid={uid}")]).args(["--clear-groups", "etcd"]);
                as_user
            }
        };
        let process = etcd.args(&member.arguments).stdout(Stdio::null()).stderr(log).spawn();
        member.process = Some(process.expect("etcd is installed: deploy/install-deps"));
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, n: usize) {
        let mut process = self.members[n].process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Where it is, for this prefix.
    pub(crate) fn place(&self, prefix: &str) -> EtcdPlace {
        let members: Vec<String> = self.members.iter().map(|m| format!("127.0.0.1:{}", m.client)).collect();
        EtcdPlace::new(&format!("etcd://{}/{prefix}", members.join(",")), None).unwrap()
    }

    pub(crate) fn engine(&self, prefix: &str) -> Arc<Etcd> {
        Arc::new(Etcd::open(&self.place(prefix), &(Arc::new(SystemClock) as _)).unwrap())
    }

    fn serves(&mut self) -> bool {
        let engine = self.engine("is-it-there");
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            let ended = |m: &mut Member| m.process.as_mut().is_none_or(|p| p.try_wait().unwrap().is_some());
            if self.members.iter_mut().any(ended) {
                return false;
            }
            if engine.get(&Key::new(Tree::Meta, "x")).is_ok() {
                return true;
            }
        }
        false
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}
