//! A node without an enforcer: CA and identityd in this process, on sockets in a directory of their own.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bonafide_identityd::config::Config;
use bonafide_proto::clock::{Clock, SharedClock, SystemClock};
use bonafide_proto::endpoint;
use bonafide_proto::wire::authority::RevokeRequest;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use bonafide_proto::wire::authority::revoke_request::What;
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::attestation_client::AttestationClient;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::program::own_exe;

/// Long enough for a busy machine; nothing waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How long certificates last here, seconds.
pub(crate) const LEAF_TTL: i64 = 3600;

/// The machine's time, and so many seconds.
#[derive(Debug, Default)]
struct Travel(AtomicI64);

impl Clock for Travel {
    fn now(&self) -> Duration {
        SystemClock.now() + Duration::from_secs(u64::try_from(self.0.load(Ordering::SeqCst)).unwrap())
    }
}

/// The node; its daemons end with it.
pub(crate) struct Endpoint {
    pub(crate) dir: TempDir,
    leaf_ttl: i64,
    clock: Arc<Travel>,
    ca: Option<Running>,
    _identityd: Running,
}

struct Running {
    _stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn new<F: Future<Output = ()> + Send + 'static>(run: impl FnOnce(oneshot::Receiver<()>) -> F) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { _stop: stop, task: tokio::spawn(run(stopped)) }
    }
}

/// A workload for this very program, run by that user.
pub(crate) fn policy(name: &str, more: &str) -> String {
    format!("mode = \"observe\"\n[[workload]]\nname = \"{name}\"\nexe = \"{}\"\n{more}\n", own_exe())
}

pub(crate) const ENTITLED: &str = "workload_api = true";

impl Endpoint {
    /// Where the programs of these tests are `shop/web`, and may ask.
    pub(crate) async fn start() -> Self {
        Self::with(&policy("shop/web", ENTITLED)).await
    }

    pub(crate) async fn with(policy: &str) -> Self {
        let mut endpoint = Self::without_ca(policy).await;
        endpoint.start_ca().await;
        endpoint
    }

    /// Where certificates last so many seconds.
    pub(crate) async fn with_leaf_ttl(leaf_ttl: i64, policy: &str) -> Self {
        let mut endpoint = Self { leaf_ttl, ..Self::without_ca(policy).await };
        endpoint.start_ca().await;
        endpoint
    }

    pub(crate) async fn without_ca(policy: &str) -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::<Travel>::default());
        let at = dir.path().display();
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        let config = format!(
            "node = \"a\"\nsocket = \"{at}/i.sock\"\nworkload_socket = \"{at}/w.sock\"\nca_socket = \"{at}/ca.sock\"\n\
             policy = \"{at}/policy.toml\"\nsource = \"kernel\"\ncallers = []\nruntime = []\n"
        );
        let config = Config::parse(Path::new("test"), &config).unwrap();
        let shared: SharedClock = clock.clone();
        let identityd = Running::new(|stopped| async {
            let stop = async { drop(stopped.await) };
            bonafide_identityd::daemon::run(config, shared, stop).await.unwrap();
        });
        let endpoint = Self { dir, leaf_ttl: LEAF_TTL, clock, ca: None, _identityd: identityd };
        endpoint.answers(&endpoint.socket()).await;
        endpoint
    }

    /// The CA, with the state that an earlier one left.
    pub(crate) async fn start_ca(&mut self) {
        let (at, leaf_ttl) = (self.dir.path().display(), self.leaf_ttl);
        let config = format!(
            "role = \"local\"\nstate = \"{at}/ca\"\n[root]\ntrust_domain = \"example.org\"\n\
             admin_socket = \"{at}/authority.sock\"\n[node]\nname = \"a\"\nsocket = \"{at}/ca.sock\"\n\
             callers = []\nleaf_ttl_seconds = {leaf_ttl}\n"
        );
        let config = bonafide_ca::config::Config::parse(&config).unwrap();
        let daemon = bonafide_ca::daemon::Daemon::bind(&config, self.clock.clone()).await.unwrap();
        self.ca = Some(Running::new(|stopped| async {
            let stop = async { drop(stopped.await) };
            daemon.run(stop).await.unwrap();
        }));
        self.answers(&self.dir.path().join("ca.sock")).await;
        tokio::time::timeout(PATIENCE, self.trusts()).await.expect("identityd is told whom to trust");
    }

    /// identityd follows the CA, and has its trust bundle.
    async fn trusts(&self) {
        let mut identityd = AttestationClient::new(endpoint::channel(self.dir.path().join("i.sock")));
        while !identityd.status(wire::StatusRequest {}).await.is_ok_and(|status| status.get_ref().ca_connected) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut bundles = identityd.watch_bundle(wire::WatchBundleRequest {}).await.unwrap().into_inner();
        bundles.message().await.unwrap().expect("a bundle");
    }

    /// Without a CA from now on.
    pub(crate) async fn stop_ca(&mut self) {
        let Running { _stop: stop, task } = self.ca.take().unwrap();
        drop(stop);
        task.await.unwrap();
    }

    async fn answers(&self, socket: &Path) {
        until("the daemon answers", || std::os::unix::net::UnixStream::connect(socket).is_ok()).await;
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("w.sock")
    }

    /// So many seconds go by.
    pub(crate) fn travel(&self, seconds: i64) {
        self.clock.0.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> i64 {
        self.clock.unix()
    }

    pub(crate) fn set_policy(&self, text: &str) {
        let (new, file) = (self.dir.path().join("policy.new"), self.dir.path().join("policy.toml"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// Its authority takes something back, or lifts that.
    pub(crate) async fn revoke(&self, what: What, lift: bool) {
        let mut authority = AdmissionClient::new(endpoint::channel(self.dir.path().join("authority.sock")));
        let request = RevokeRequest { what: Some(what), lift, reason: String::new() };
        assert!(authority.revoke(request).await.unwrap().into_inner().changed);
    }

    /// How many certificates its CA has issued.
    pub(crate) async fn issued(&self) -> u64 {
        let mut ca = IssuanceClient::new(endpoint::channel(self.dir.path().join("ca.sock")));
        ca.status(wire::StatusRequest {}).await.unwrap().into_inner().issued
    }
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("it never came true: {what}"));
}
