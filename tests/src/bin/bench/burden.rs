//! What a process has cost so far.

use std::path::Path;

/// Ticks in a second of what `/proc` says about processor time: 100 for programs, whatever the kernel's own.
const TICKS: f64 = 100.0;

/// Processor time and memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Burden {
    /// Of all processors, by program and kernel, in seconds.
    pub(crate) cpu: f64,
    /// `VmRSS`, in bytes.
    pub(crate) resident: f64,
}

impl Burden {
    /// That of a process until now.
    pub(crate) fn of(pid: u32) -> Result<Self, String> {
        let of = Path::new("/proc").join(pid.to_string());
        let read =
            |name: &str| std::fs::read_to_string(of.join(name)).map_err(|e| format!("{}/{name}: {e}", of.display()));
        let cpu = cpu(&read("stat")?).ok_or_else(|| format!("{}/stat has no times", of.display()))?;
        let resident = resident(&read("status")?).ok_or_else(|| format!("{}/status has no VmRSS", of.display()))?;
        Ok(Self { cpu, resident })
    }

    /// That of this process until now.
    pub(crate) fn ours() -> Result<Self, String> {
        Self::of(std::process::id())
    }
}

/// Fields 14 and 15, counted behind the name, which may contain anything.
fn cpu(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let [user, system]: [f64; 2] = [times.next()?.parse().ok()?, times.next()?.parse().ok()?];
    Some((user + system) / TICKS)
}

fn resident(status: &str) -> Option<f64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))?;
    kib.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_costs_is_read_behind_its_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 1 0";
        assert_eq!(cpu(stat), Some(2.0));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    12 kB\n"), Some(12_288.0));
        assert!(Burden::ours().unwrap().resident > 0.0);
    }
}
