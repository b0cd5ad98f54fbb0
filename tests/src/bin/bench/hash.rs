//! Hashing a file that is in the page cache: our first look beside `openssl dgst -sha256` of the same file, and our
//! second look.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identityd::bench::Hashing;
use bonafide_proto::clock::{Clock, SystemClock};

use crate::report::{Claim, Report, median, percentile};

/// As fast as openssl, within this.
const OF_OPENSSL: f64 = 0.95;
/// A second look, in microseconds.
const SECOND_LOOK: f64 = 10.0;

/// An hour ahead, by which every file has settled.
#[derive(Debug)]
struct Later;

impl Clock for Later {
    fn now(&self) -> Duration {
        SystemClock.now() + Duration::from_secs(3600)
    }
}

/// Measures both looks.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    let dir = tempfile::tempdir().map_err(|e| format!("no directory for the files: {e}"))?;
    let (rounds, sizes): (_, &[u64]) = if quick { (5, &[64]) } else { (11, &[64, 256, 1024]) };
    report.part("Hashing, file in the page cache");
    for mebibytes in sizes {
        let path = dir.path().join(format!("{mebibytes}-MiB"));
        random_file(&path, *mebibytes).map_err(|e| format!("{}: {e}", path.display()))?;
        runtime.block_on(first_look(&path, *mebibytes, rounds, report))?;
    }
    let path = dir.path().join(format!("{}-MiB", sizes.first().copied().unwrap_or_default()));
    runtime.block_on(second_look(&path, if quick { 10_000 } else { 100_000 }, report))
}

/// A file that only root can write, of bytes that do not compress.
fn random_file(path: &Path, mebibytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    std::io::copy(&mut std::io::Read::take(File::open("/dev/urandom")?, mebibytes << 20), &mut file)?;
    file.flush()?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// Ours, nothing known, and openssl's, in turns.
async fn first_look(path: &Path, mebibytes: u64, rounds: usize, report: &mut Report) -> Result<(), String> {
    let empty = path.with_extension("empty");
    File::create(&empty).map_err(|e| e.to_string())?;
    let file = Arc::new(File::open(path).map_err(|e| e.to_string())?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let hashing = Hashing::new(Arc::new(Later)).map_err(|e| e.to_string())?;
        let began = Instant::now();
        let digest = hashing.digest(&file, 0).await.map_err(|e| e.to_string())?;
        ours.push(began.elapsed().as_secs_f64());
        let (took, said) = openssl(path)?;
        // Its start is not its hashing: what it takes for no bytes at all is not held against it.
        theirs.push(took - openssl(&empty)?.0);
        if !digest.to_string().ends_with(&said) {
            return Err(format!("openssl says {said} of {}, and we say {digest}", path.display()));
        }
    }
    let speed = |seconds: f64| f64::from(u32::try_from(mebibytes).unwrap_or(u32::MAX)) / seconds;
    let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| theirs / ours).collect();
    report.add(format!("{mebibytes} MiB, first look"), speed(median(ours)), "MiB/s", Claim::Nothing);
    report.add(
        format!("{mebibytes} MiB, openssl dgst -sha256, its start left out"),
        speed(median(theirs)),
        "MiB/s",
        Claim::Nothing,
    );
    report.add(format!("{mebibytes} MiB, our speed / openssl's"), median(ratios), "", Claim::AtLeast(OF_OPENSSL));
    Ok(())
}

/// How long it takes, in seconds, and the digest, in hexadecimal digits.
fn openssl(path: &Path) -> Result<(f64, String), String> {
    let began = Instant::now();
    let mut command = Command::new("openssl");
    let ended = command.args(["dgst", "-sha256", "-r"]).arg(path).stderr(Stdio::inherit()).output();
    let took = began.elapsed().as_secs_f64();
    let output = ended.map_err(|e| format!("openssl cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.split_once(' ') {
        Some((digest, _)) if output.status.success() => Ok((took, digest.to_owned())),
        _ => Err(format!("openssl dgst ended with {}", output.status)),
    }
}

/// Ours of a file that lasts, already known: opened once, and looked at as often as that.
async fn second_look(path: &Path, looks: u32, report: &mut Report) -> Result<(), String> {
    let hashing = Hashing::new(Arc::new(Later)).map_err(|e| e.to_string())?;
    let file = Arc::new(File::open(path).map_err(|e| e.to_string())?);
    let first = hashing.digest(&file, 0).await.map_err(|e| e.to_string())?;
    let mut took = Vec::new();
    for _ in 0..looks {
        let began = Instant::now();
        let again = hashing.digest(&file, 0).await.map_err(|e| e.to_string())?;
        took.push(began.elapsed().as_secs_f64() * 1e6);
        if again != first {
            return Err(format!("{} has another digest at the second look", path.display()));
        }
    }
    report.add("second look, p50", median(took.clone()), "us", Claim::AtMost(SECOND_LOOK));
    report.add("second look, p99", percentile(took, 99), "us", Claim::AtMost(SECOND_LOOK));
    Ok(())
}
