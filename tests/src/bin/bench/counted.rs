//! How long kernel programs ran, as the kernel counts it.
//!
//! On loopback both ends' programs run inside one `connect()`; between two hosts each end pays for its own.

use std::fs;
use std::path::Path;

/// Where counting is switched on: it costs every program some nanoseconds, and so is off otherwise.
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Kinds of programs that run in a `connect()`: `BPF_PROG_TYPE_SOCK_OPS` and `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const IN_CONNECT: [&str; 2] = ["13", "18"];

/// The kernel counts as long as it lives.
pub(super) struct Counting {
    before: String,
}

impl Counting {
    pub(super) fn begin() -> Result<Self, String> {
        let switched = fs::read_to_string(SWITCH).and_then(|before| fs::write(SWITCH, "1").map(|()| before));
        switched.map(|before| Self { before }).map_err(|e| format!("{SWITCH}: {e}"))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = fs::write(SWITCH, &self.before);
    }
}

/// For how long programs of this process ran so far that run in a `connect()`, in nanoseconds.
pub(super) fn run_time(pid: u32) -> Result<f64, String> {
    let fds = Path::new("/proc").join(pid.to_string()).join("fdinfo");
    let entries = fs::read_dir(&fds).map_err(|e| format!("{}: {e}", fds.display()))?;
    // A descriptor may be gone by now; none of a program is.
    let texts = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    Ok(texts.filter_map(|text| time_of(&text)).sum())
}

/// The time in a program's `fdinfo`.
fn time_of(text: &str) -> Option<f64> {
    let field = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()));
    IN_CONNECT.contains(&field("prog_type")?).then_some(())?;
    field("run_time_ns")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_in_a_connect_are_counted() {
        let text = |kind: u32| format!("pos:\t0\nprog_type:\t{kind}\nprog_id:\t9\nrun_time_ns:\t1234\nrun_cnt:\t3\n");
        assert_eq!([13, 18, 26].map(|kind| time_of(&text(kind))), [Some(1234.0), Some(1234.0), None]);
        assert_eq!(time_of("pos:\t0\nmap_type:\t1\n"), None);
    }
}
