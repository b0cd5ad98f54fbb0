//! Watches a wire with tcpdump.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::netns::{Door, Netns};
use crate::pcap::Traffic;
use crate::process::Program;
use crate::topology::{Family, Site};
use crate::wait::wait_until;

/// Sent last; once it is in the file, everything before it is.
const LAST: &[u8] = b"bonafide-tests: the last packet of this capture";
/// Where nobody listens.
const DISCARD: u16 = 9;

/// A running capture on the router's wire to host a.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Program,
    router: Door,
    file: PathBuf,
}

impl Capture {
    /// Starts one and returns when it watches.
    ///
    /// # Panics
    /// If tcpdump does not start.
    #[must_use]
    pub fn start(router: &Netns, directory: &Path) -> Self {
        let (file, log) = (directory.join("wire.pcap"), directory.join("tcpdump.log"));
        let _ = std::fs::remove_file(&log);
        let mut command = router.command("tcpdump");
        // A large buffer and no filter: a packet that was not seen proves nothing.
        command.args(["-i", &Site::A.wire(), "-B", "65536", "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-w"]);
        let mut tcpdump = Program::start("tcpdump", command.arg(&file), &log);
        tcpdump.wait_for_output("listening on");
        Self { tcpdump, router: router.door(), file }
    }

    /// Ends the capture and returns what was seen.
    ///
    /// # Panics
    /// If packets were lost.
    #[must_use]
    pub fn finish(mut self) -> Traffic {
        self.router.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket can be bound");
            socket.send_to(LAST, Site::A.at(Family::V4, DISCARD)).expect("host a has a route");
        });
        wait_until("the capture to see its last packet", Duration::from_secs(10), || {
            let file = std::fs::read(&self.file).unwrap_or_default();
            file.windows(LAST.len()).any(|window| window == LAST)
        });
        self.tcpdump.signal(Signal::INT);
        self.tcpdump.wait(Duration::from_secs(5));
        let said = self.tcpdump.output();
        assert!(said.contains("\n0 packets dropped by kernel"), "the capture is not complete: {said}");
        Traffic::parse(&std::fs::read(&self.file).expect("the capture was written"))
    }
}
