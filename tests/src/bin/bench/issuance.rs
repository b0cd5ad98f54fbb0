//! Leaves, by the real path: identityd's client, the node CA's unix socket, entitlement, leaf, checker, ledger, answer.
//!
//! In it: all that the node CA does, in a process of its own, and its ledger's way to the disk, with everything durable
//! before the answer. Not in it: the key pair and the request, which the enforcer makes before, and the attestation of the
//! program. A disk takes its time to make anything durable, whoever asks; so the same is measured with the ledger
//! in memory, and what the disk takes by itself stands beside it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identityd::bench::Issuing;
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Host};
use bonafide_proto::name::WorkloadName;
use bonafide_tests::node::binaries;
use bonafide_tests::process::{Program, must_write};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::burden::Burden;
use crate::report::{Claim, Report, median, percentile};

/// Leaves in a second of a processor's time.
const PER_CORE: f64 = 2_000.0;
/// In milliseconds, warm, one at a time.
const LATENCY: f64 = 2.0;
/// Requests at once: as many as one client of the CA can have.
const AT_ONCE: usize = 64;
/// How long the CA may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// Measures with the ledger on the disk, and in memory.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    let (one_by_one, at_once) = if quick { (300, 3_000) } else { (3_000, 40_000) };
    for (place, dir) in [("on the disk", std::env::temp_dir()), ("in memory", PathBuf::from("/dev/shm"))] {
        let node = Node::start(&dir)?;
        report.part(&format!("Leaves, by the node CA's socket, its ledger {place} ({})", dir.display()));
        sync_alone(node.dir.path(), report)?;
        runtime.block_on(leaves(&node, one_by_one, at_once, report))?;
    }
    Ok(())
}

/// What it takes to make eight bytes durable there, without us.
fn sync_alone(dir: &Path, report: &mut Report) -> Result<(), String> {
    let took = synced(&dir.join("sync"), 200).map_err(|e| format!("{}: {e}", dir.display()))?;
    report.add("one fdatasync there, by itself, p50", median(took.clone()), "ms", Claim::Nothing);
    report.add("one fdatasync there, by itself, p99", percentile(took, 99), "ms", Claim::Nothing);
    Ok(())
}

fn synced(path: &Path, times: u64) -> std::io::Result<Vec<f64>> {
    let file = File::create(path)?;
    let one = |time: u64| {
        file.write_all_at(&time.to_be_bytes(), 0)?;
        let began = Instant::now();
        file.sync_data()?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    (0..times).map(one).collect()
}

/// A node CA that is a member of its own authority.
struct Node {
    // In the order in which they have to go.
    ca: Program,
    dir: TempDir,
}

impl Node {
    fn start(below: &Path) -> Result<Self, String> {
        let dir = tempfile::tempdir_in(below).map_err(|e| format!("no directory in {}: {e}", below.display()))?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "role = \"local\"\nstate = {:?}\nlog = \"warn\"\n[root]\ntrust_domain = \"bench.example\"\n\
             admin_socket = {:?}\n[node]\nname = \"bench\"\nsocket = {:?}\nleaf_ttl_seconds = 3600\n",
            at("state"),
            at("authority.sock"),
            at("ca.sock")
        );
        let file = dir.path().join("ca.toml");
        must_write(&file, &config);
        let mut command = Command::new(binaries().join("bonafide-ca"));
        let ca = Program::start("ca", command.arg("--config").arg(&file), &dir.path().join("ca.log"));
        Ok(Self { ca, dir })
    }
}

async fn leaves(node: &Node, one_by_one: usize, at_once: usize, report: &mut Report) -> Result<(), String> {
    let customer = Arc::new(Customer::of(node)?);
    customer.warm_up(READY).await?;
    let took = customer.buy(one_by_one, 1).await?;
    report.add("one at a time, p50", median(took.clone()), "ms", Claim::Nothing);
    report.add("one at a time, p99", percentile(took, 99), "ms", Claim::AtMost(LATENCY));
    let (began, before, ours) = (Instant::now(), Burden::of(node.ca.pid())?, Burden::ours()?);
    let took = customer.buy(at_once, AT_ONCE).await?;
    let (seconds, after, ours_after) = (began.elapsed().as_secs_f64(), Burden::of(node.ca.pid())?, Burden::ours()?);
    let count = f64::from(u32::try_from(at_once).unwrap_or(u32::MAX));
    let (cpu, ours) = (after.cpu - before.cpu, ours_after.cpu - ours.cpu);
    report.add(format!("{AT_ONCE} at once, p50"), median(took.clone()), "ms", Claim::Nothing);
    report.add(format!("{AT_ONCE} at once, p99"), percentile(took, 99), "ms", Claim::Nothing);
    report.add(format!("{AT_ONCE} at once, leaves per second"), count / seconds, "/s", Claim::Nothing);
    report.add("leaves per second of processor time of the CA", count / cpu, "/s", Claim::AtLeast(PER_CORE));
    report.add("processor time of the CA for each", cpu / count * 1e6, "us", Claim::Nothing);
    report.add("processor time of its client for each", ours / count * 1e6, "us", Claim::Nothing);
    Ok(())
}

/// Who asks: one client, as identityd is.
struct Customer {
    issuing: Issuing,
    workload: WorkloadName,
    fingerprint: Fingerprint,
    csrs: Vec<Vec<u8>>,
}

impl Customer {
    fn of(node: &Node) -> Result<Self, String> {
        Ok(Self {
            issuing: Issuing::at(node.dir.path().join("ca.sock")),
            workload: "bench/leaf".parse().map_err(|e| format!("the workload name {e}"))?,
            fingerprint: fingerprint(),
            csrs: (0..AT_ONCE).map(|_| csr()).collect::<Result<_, _>>()?,
        })
    }

    /// Until the CA is a member and has issued some.
    async fn warm_up(self: &Arc<Self>, limit: Duration) -> Result<(), String> {
        let began = Instant::now();
        while let Err(why) = self.buy(200, 8).await {
            if began.elapsed() > limit {
                return Err(format!("the CA issues nothing: {why}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// How long each took, in milliseconds.
    async fn buy(self: &Arc<Self>, count: usize, at_once: usize) -> Result<Vec<f64>, String> {
        let mut buyers = JoinSet::new();
        for buyer in 0..at_once {
            buyers.spawn(self.clone().buy_some(count / at_once, buyer));
        }
        let mut took = Vec::with_capacity(count);
        while let Some(some) = buyers.join_next().await {
            took.extend(some.map_err(|e| e.to_string())??);
        }
        Ok(took)
    }

    async fn buy_some(self: Arc<Self>, count: usize, buyer: usize) -> Result<Vec<f64>, String> {
        let mut took = Vec::with_capacity(count);
        for csr in self.csrs.iter().cycle().skip(buyer).take(count) {
            let began = Instant::now();
            let leaf = self.issuing.leaf(&self.workload, &self.fingerprint, csr.clone()).await;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            if leaf.map_err(|e| e.to_string())?.chain.len() != 2 {
                return Err("a leaf came without its issuer".to_owned());
            }
        }
        Ok(took)
    }
}

fn fingerprint() -> Fingerprint {
    let absent = || Evidence::Absent("not looked for".to_owned());
    let exe = HashedFile { path: "/usr/bin/bench".into(), digest: Digest([1; 32]) };
    Fingerprint::of(exe, (1000, 1000), Host { bios_uuid: absent(), machine_id: absent(), node: None })
}

fn csr() -> Result<Vec<u8>, String> {
    let failed = |e: rcgen::Error| format!("no request: {e}");
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    Ok(rcgen::CertificateParams::default().serialize_request(&key).map_err(failed)?.der().to_vec())
}
