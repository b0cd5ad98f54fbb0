//! The client against an identityd that does what a test says, over a real unix socket.

mod attesting;
mod fake;
mod leaves;
mod remembering;
mod renewing;
mod reverifying;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Digest, Evidence, Execution, Fingerprint, HashedFile, Host};
use bonafide_proto::flow::{FlowKey, NetNs, SocketRole};
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

use super::Identity;
use fake::Fake;

/// Nothing that works takes this long.
const LONG: Duration = Duration::from_secs(20);

fn key() -> FlowKey {
    FlowKey {
        netns: NetNs(4_026_531_840),
        local: "[::1]:40000".parse().unwrap(),
        remote: "[::1]:5432".parse().unwrap(),
        role: SocketRole::Connector,
    }
}

fn attestation(workload: Option<&str>) -> Attestation {
    let absent = || Evidence::Absent("none here".to_owned());
    // The program that the mesh's leaves certify.
    let exe = HashedFile { path: "/usr/bin/x".to_owned(), digest: Digest([7; 32]) };
    let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
    Attestation {
        executions: vec![Execution { pid: 4711, start_ticks: 99, image: 0 }],
        fingerprint: Fingerprint::of(exe, (33, 33), host),
        account: 33,
        workload: workload.map(|w| w.parse().unwrap()),
        near_misses: vec![],
        source: "proc".to_owned(),
    }
}

fn client(fake: &Fake) -> Identity {
    Identity::connect(fake.socket.clone(), fake.mesh.hand.clone() as SharedClock)
}

async fn arrived<T: Clone>(watched: &mut Receiver<Option<T>>, fits: impl Fn(&T) -> bool) -> T {
    let wait = watched.wait_for(|seen| seen.as_ref().is_some_and(&fits));
    timeout(LONG, wait).await.expect("in time").unwrap().clone().unwrap()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
