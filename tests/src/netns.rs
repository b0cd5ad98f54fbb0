//! A network namespace that exists as long as its value, with every process inside it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::must_run;
use crate::wait::wait_until;

/// `ip netns` prepares its mount point once, and not atomically.
static IP_NETNS: Mutex<()> = Mutex::new(());

/// A named network namespace. Dropping it kills the processes inside and removes it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Creates it, with its loopback device up.
    #[must_use]
    pub fn create(name: &str) -> Self {
        {
            let _one_at_a_time = IP_NETNS.lock();
            must_run(Command::new("ip").args(["netns", "add", name]));
        }
        let netns = Self { name: name.to_owned() };
        netns.run(&["ip", "link", "set", "lo", "up"]);
        netns
    }

    /// Takes over a namespace that an earlier run left behind, to remove it.
    #[must_use]
    pub(crate) fn adopt(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Its name, as in `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside. `nsenter` executes it in place: the child's PID is the program's.
    ///
    /// Not `ip netns exec`: that mounts another `/sys` and hides the cgroups.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        // Proxy settings, locales and the like stay outside.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command
    }

    /// Runs a command inside and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, command: &[&str]) -> String {
        let (program, args) = command.split_first().expect("a command has a name");
        must_run(self.command(program).args(args))
    }

    /// A way in that can be kept.
    ///
    /// # Panics
    /// If the namespace is gone.
    #[must_use]
    pub fn door(&self) -> Door {
        Door { file: File::open(self.path()).expect("the namespace exists") }
    }

    /// Runs code in a thread that lives inside. Sockets it creates stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.door().within(work)
    }

    /// The processes inside.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let listed = Command::new("ip").args(["netns", "pids", &self.name]).output();
        let Ok(listed) = listed else { return Vec::new() };
        String::from_utf8_lossy(&listed.stdout).split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    fn kill_all(&self) {
        wait_until("the processes of a namespace to die", Duration::from_secs(5), || {
            let pids = self.pids();
            for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                // It may have died since it was listed.
                let _ = kill_process(pid, Signal::KILL);
            }
            pids.is_empty()
        });
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if crate::kept_for_inspection() {
            return;
        }
        self.kill_all();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A way into a namespace, for code.
#[derive(Debug)]
pub struct Door {
    file: File,
}

impl Door {
    /// Runs code in a thread that lives inside. Sockets it creates stay there.
    ///
    /// # Panics
    /// As the code does, or if the namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
