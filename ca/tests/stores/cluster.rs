//! etcd members as processes of their own, which can be killed and started again.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_ca::store::engine::{Engine as _, Key, Tree};
use bonafide_ca::store::{Etcd, EtcdPlace, EtcdTls};
use bonafide_proto::clock::SystemClock;
use tempfile::TempDir;

use crate::pki::{Pair, Pki};

/// A cluster; its members end with it.
pub(crate) struct Cluster {
    _dir: TempDir,
    members: Vec<Member>,
    /// By whom members and clients know each other; `None`: by nothing.
    pki: Option<Pki>,
}

struct Member {
    /// Whom it runs as, if not as this test.
    uid: Option<u32>,
    arguments: Vec<String>,
    client: u16,
    log: PathBuf,
    process: Option<Child>,
}

/// What a cluster is like.
#[derive(Default)]
struct Shape {
    count: usize,
    /// Each member runs as a user of its own, from this uid on, and is reached at every address of its host.
    first_uid: Option<u32>,
    tls: bool,
    /// The bytes that it may take.
    quota: Option<u64>,
}

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    /// So many members that have elected a leader.
    pub(crate) fn of(count: usize) -> Self {
        Self::like(&Shape { count, ..Shape::default() })
    }

    /// So many members that ask for certificates.
    pub(crate) fn with_tls(count: usize) -> Self {
        Self::like(&Shape { count, tls: true, ..Shape::default() })
    }

    /// One member that may take so many bytes.
    pub(crate) fn of_room(quota: u64) -> Self {
        Self::like(&Shape { count: 1, quota: Some(quota), ..Shape::default() })
    }

    /// So many members, of which each runs as a user of its own: from this uid on.
    pub(crate) fn as_users(count: usize, first: u32) -> Self {
        Self::like(&Shape { count, first_uid: Some(first), ..Shape::default() })
    }

    fn like(shape: &Shape) -> Self {
        // Somebody else may take a port before its member does; then all begin anew.
        (0..5).find_map(|_| Self::try_like(shape)).expect("an etcd cluster starts (deploy/install-deps installs etcd)")
    }

    fn try_like(shape: &Shape) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let pki = shape.tls.then(|| Pki::new("Store CA"));
        pki.iter().for_each(|pki| drop(pki.issue("client", 2100)));
        let ports: Vec<(u16, u16)> = (0..shape.count).map(|_| (free_port(), free_port())).collect();
        let peer = |n: usize| format!("http://127.0.0.1:{}", ports[n].1);
        let all: Vec<String> = (0..shape.count).map(|n| format!("m{n}={}", peer(n))).collect();
        let members = ports.iter().enumerate().map(|(n, (client, _))| {
            let data = dir.path().join(format!("m{n}"));
            let scheme = if pki.is_some() { "https" } else { "http" };
            let host = if shape.first_uid.is_some() { "0.0.0.0" } else { "127.0.0.1" };
            let mut arguments = vec![
                format!("--name=m{n}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={scheme}://{host}:{client}"),
                format!("--advertise-client-urls={scheme}://127.0.0.1:{client}"),
                format!("--listen-peer-urls={}", peer(n)),
                format!("--initial-advertise-peer-urls={}", peer(n)),
                format!("--initial-cluster={}", all.join(",")),
                "--logger=zap".to_owned(),
            ];
            arguments.extend(shape.quota.map(|bytes| format!("--quota-backend-bytes={bytes}")));
            if let Some(pki) = &pki {
                let Pair { cert, key } = pki.issue(&format!("m{n}"), 2090);
                arguments.push("--client-cert-auth".to_owned());
                let files = [("cert-file", &cert), ("key-file", &key), ("trusted-ca-file", &pki.ca())];
                arguments.extend(files.map(|(name, file)| format!("--{name}={}", file.display())));
            }
            let uid = shape.first_uid.map(|first| first + u32::try_from(n).unwrap());
            if let Some(uid) = uid {
                std::fs::create_dir(&data).unwrap();
                std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
                std::os::unix::fs::chown(&data, Some(uid), Some(uid)).unwrap();
            }
            Member { uid, arguments, client: *client, log: dir.path().join(format!("m{n}.log")), process: None }
        });
        let members = members.collect();
        let mut cluster = Self { members, _dir: dir, pki };
        for n in 0..shape.count {
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

    /// Ends it as its supervisor would.
    pub(crate) fn stop(&mut self, n: usize) {
        terminate(self.members[n].process.take().unwrap());
    }

    /// Waits until this one takes part again.
    pub(crate) fn takes_part(&self, n: usize) {
        let only = self.place_of(&[format!("127.0.0.1:{}", self.members[n].client)], "is-it-there");
        let engine = Etcd::open(&only, &(Arc::new(SystemClock) as _)).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while engine.get(&Key::new(Tree::Meta, "x")).is_err() {
            assert!(Instant::now() < until, "member {n} takes no part");
        }
    }

    /// The member that was elected last, by what members wrote down.
    pub(crate) fn leader(&self) -> usize {
        let elected = self.members.iter().enumerate().filter_map(|(n, member)| {
            let log = std::fs::read_to_string(&member.log).unwrap();
            let (_, after) = log.rsplit_once(" became leader at term ")?;
            let term: String = after.chars().take_while(char::is_ascii_digit).collect();
            Some((term.parse::<u64>().unwrap(), n))
        });
        elected.max().expect("somebody was elected").1
    }

    pub(crate) fn pki(&self) -> &Pki {
        self.pki.as_ref().expect("it asks for certificates")
    }

    /// `host:port` of each, with commas.
    pub(crate) fn members(&self) -> String {
        self.addresses("127.0.0.1").join(",")
    }

    fn addresses(&self, host: &str) -> Vec<String> {
        self.members.iter().map(|m| format!("{host}:{}", m.client)).collect()
    }

    /// Where it is, for this prefix.
    pub(crate) fn place(&self, prefix: &str) -> EtcdPlace {
        self.place_of(&self.addresses("127.0.0.1"), prefix)
    }

    fn place_of(&self, members: &[String], prefix: &str) -> EtcdPlace {
        let tls = self.pki.as_ref().map(|pki| {
            let [cert, key] = ["client.pem", "client.key"].map(|file| pki.ca().with_file_name(file));
            EtcdTls { ca: pki.ca(), cert, key }
        });
        EtcdPlace::new(&format!("etcd://{}/{prefix}", members.join(",")), tls).unwrap()
    }

    /// The same as an authority is told it.
    pub(crate) fn configured(&self, prefix: &str) -> String {
        self.configured_at("127.0.0.1", prefix)
    }

    /// The same, by another address of this host.
    pub(crate) fn configured_at(&self, host: &str, prefix: &str) -> String {
        let place = self.place_of(&self.addresses(host), prefix);
        let tls = self.pki.as_ref().map(|pki| {
            let of = |kind: &str| pki.ca().with_file_name(format!("client.{kind}"));
            format!("store_tls = {{ ca = {:?}, cert = {:?}, key = {:?} }}", pki.ca(), of("pem"), of("key"))
        });
        format!("store = \"{place}\"\n{}\n", tls.unwrap_or_default())
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

/// Asks a process to end, and waits until it has.
pub(crate) fn terminate(mut process: Child) {
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    process.wait().unwrap();
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
