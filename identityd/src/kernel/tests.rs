//! What has no room: the programs with small maps. As root.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::{MapCore as _, MapFlags, OpenObject};

use super::events;
use super::layout::Process;
use super::load::Programs;
use crate::events::Event;

/// Long enough for a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

fn resize(open: &mut OpenObject, name: &str, entries: u32) -> libbpf_rs::Result<()> {
    open.maps_mut().find(|map| map.name() == name).unwrap().set_max_entries(entries)
}

/// A shell that forks when it is told to, and says the number of its child.
struct Shell(Child);

impl Shell {
    fn start() -> Self {
        let script = "read -r _; (read -r _) & echo $!; wait";
        let mut shell = Command::new("/bin/sh");
        Self(shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn forks(&mut self) -> u32 {
        writeln!(self.0.stdin.as_mut().unwrap()).unwrap();
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim_end().parse().unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn recorded(programs: &Programs, pid: u32) -> Option<Process> {
    Process::read(&programs.processes.lookup(&pid.to_ne_bytes(), MapFlags::ANY).unwrap()?)
}

fn programs_that_run() -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| fs::read_link(entry.path().join("exe")).is_ok()).count()
}

/// Shells, of which some found room and some did not, if it turned out so.
fn room_for_some() -> Option<(Programs, Vec<Shell>, Vec<Shell>)> {
    const SHELLS: usize = 200;
    let room = u32::try_from(programs_that_run() + SHELLS / 2).unwrap();
    let shells: Vec<Shell> = (0..SHELLS).map(|_| Shell::start()).collect();
    let programs = Programs::load_with(|open| resize(open, "images", room)).unwrap();
    let (entered, left_out): (Vec<Shell>, Vec<Shell>) =
        shells.into_iter().partition(|shell| recorded(&programs, shell.0.id()).is_some());
    (!entered.is_empty() && !left_out.is_empty()).then_some((programs, entered, left_out))
}

#[test]
fn a_process_that_found_no_room_is_nobody_when_it_forks_either() {
    // How many other programs run may change while it is counted.
    let (programs, entered, mut left_out) = (0..20).find_map(|_| room_for_some()).expect("room for some of them");
    assert!(programs.counted().unwrap().full > 0);
    // Now there is room.
    drop(entered);
    let mut left_out = left_out.pop().unwrap();
    let child = left_out.forks();
    assert_eq!((recorded(&programs, left_out.0.id()), recorded(&programs, child)), (None, None));
    assert!(recorded(&programs, Shell::start().0.id()).is_some());
}

#[tokio::test]
async fn what_the_ring_has_no_room_for_is_counted_and_told_of() {
    let programs = Arc::new(Programs::load_with(|open| resize(open, "events", 4096)).unwrap());
    while programs.counted().unwrap().lost == 0 {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }
    let (_reader, mut heard) = events::start(&programs).unwrap();
    let told = async {
        loop {
            if let Event::Lost(lost) = heard.recv().await.unwrap() {
                return lost;
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, told).await.unwrap() > 0);
}
