//! A fuzz target for the frames that another enforcer sends: the same bytes are the same frames, however they arrive, and
//! each is written as it was read. `cargo test` gives it two seconds; ARCHITECTURE.md says how to give it longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "this is a test")]

use std::time::Duration;

use bonafide_enforcer::tunnel::ending::{Cause, Ending, Kind};
use bonafide_enforcer::tunnel::frame::{Accept, FlowId, Frame, FrameError, Open};
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
