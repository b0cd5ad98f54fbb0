//! Fuzz targets for the frames that another enforcer sends, and for the journal that a killed one left: the same bytes are
//! the same frames, however they arrive, and a flow is accounted for once. `cargo test` gives each two seconds;
//! ARCHITECTURE.md says how to give one longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "this is a test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bonafide_enforcer::record::{Account, Records};
use bonafide_enforcer::tunnel::ending::{Cause, Ending, Kind};
use bonafide_enforcer::tunnel::frame::{Accept, FlowId, Frame, FrameError, Open};
use bonafide_proto::clock::SystemClock;
use bonafide_proto::record::{End, FlowRecord, Reason};
use bytes::{Bytes, BytesMut};

/// What is read, and whether it ended with a mistake.
fn frames(pieces: &[&[u8]]) -> (Vec<Frame>, Option<FrameError>, BytesMut) {
    let (mut read, mut buffer) = (Vec::new(), BytesMut::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match Frame::decode(&mut buffer) {
                Ok(Some(frame)) => read.push(frame),
                Ok(None) => break,
                Err(e) => return (read, Some(e), buffer),
            }
        }
    }
    (read, None, buffer)
}

fn whole() -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let open = |client: &str, asked: &str| {
        Frame::Open(Open { id: FlowId::random(), client: client.parse().unwrap(), asked: asked.parse().unwrap() })
    };
    for frame in [
        open("10.0.0.1:1", "10.0.0.2:2"),
        open("[fd77::1]:1", "[fd77::2]:2"),
        Frame::Accept(Accept { port: 443 }),
        Frame::Data(Bytes::from_static(b"some bytes")),
        Frame::Fin,
        Frame::Reset(Cause::Quarantined.into()),
        Frame::Reset(Ending { cause: Cause::IdentityChanged, changed: Some(Kind::Script) }),
    ] {
        frame.encode(&mut bytes);
    }
    bytes.to_vec()
}

#[test]
fn tunnel_frames() {
    let seed = whole();
    bolero::check!()
        .with_type::<(u16, u16, u16, Vec<u8>)>()
        .with_iterations(1_000_000)
        .with_test_time(Duration::from_secs(2))
        .for_each(|(at, cut, split, noise)| {
            let at = usize::from(*at) % (seed.len() + 1);
            let cut = usize::from(*cut) % (seed.len() - at + 1);
            let bytes = [&seed[..at], noise, &seed[at + cut..]].concat();
            let (read, mistake, rest) = frames(&[&bytes]);
            let (before, after) = bytes.split_at(usize::from(*split) % (bytes.len() + 1));
            let (again, same_mistake, _) = frames(&[before, after]);
            assert_eq!((&read, mistake), (&again, same_mistake));
            let mut written = BytesMut::new();
            read.iter().for_each(|frame| frame.encode(&mut written));
            assert!(bytes.starts_with(&written), "{read:?}");
            assert!(mistake.is_some() || written.len() + rest.len() == bytes.len());
        });
}

fn open(dir: &Path) -> Arc<Records> {
    Records::open(&dir.join("flows.jsonl"), dir, Arc::new(SystemClock)).unwrap()
}

/// The journal of three flows, one of which has ended.
fn journal() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let records = open(dir.path());
    for end in [End::Source, End::Destination] {
        let mut killed = Account::open(&records, end, "enforce");
        killed.addresses("10.0.0.1:1".parse().unwrap(), "[fd77::2]:2".parse().unwrap(), None);
        std::mem::forget(killed);
    }
    drop(Account::open(&records, End::Source, "enforce"));
    std::fs::read(dir.path().join("live.jsonl")).unwrap()
}

/// However the journal is damaged, what is written of it are whole records of flows that were cut off, and once.
#[test]
fn journals() {
    let (seed, dir) = (journal(), tempfile::tempdir().unwrap());
    let [records, live] = ["flows.jsonl", "live.jsonl"].map(|name| dir.path().join(name));
    bolero::check!()
        .with_type::<(u16, u16, Vec<u8>)>()
        .with_iterations(1_000_000)
        .with_test_time(Duration::from_secs(2))
        .for_each(|(at, cut, noise)| {
            let at = usize::from(*at) % (seed.len() + 1);
            let cut = usize::from(*cut) % (seed.len() - at + 1);
            let bytes = [&seed[..at], noise, &seed[at + cut..]].concat();
            std::fs::write(&records, "").unwrap();
            std::fs::write(&live, &bytes).unwrap();
            drop(open(dir.path()));
            let written = std::fs::read_to_string(&records).unwrap();
            let ended: Vec<FlowRecord> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert!(ended.len() <= 2 * bytes.split(|b| *b == b'\n').count(), "{written}");
            assert!(ended.iter().all(|record| record.reason == Some(Reason::EnforcerKilled)), "{written}");
            assert_eq!(std::fs::read(&live).unwrap(), b"");
            std::fs::write(&live, &bytes).unwrap();
            drop(open(dir.path()));
            assert_eq!(std::fs::read_to_string(&records).unwrap(), written);
        });
}
