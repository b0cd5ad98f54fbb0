//! What the kernel and this daemon's programs in it say, and what an earlier daemon kept: damaged or cut off, it is a
//! doubt and never something else.

use std::net::{IpAddr, SocketAddr};

use bonafide_proto::fingerprint::{Digest, Execution};
use bonafide_proto::taint::Taint;
use netlink_packet_core::{DoneMessage, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{InetResponse, InetResponseHeader, SocketId};

use crate::earlier::{self, Memory};
use crate::events::Event;
use crate::execs::{Arguments, AtExec};
use crate::hash::kept;
use crate::kernel::Outlet;
use crate::kernel::layout::{Counters, Holder, Image, Process, unseen, watched_image};
use crate::kernel::walk::rows;
use crate::observe::layout::{StepEvent, Tally, remote_of};
use crate::store::{content, sealed};
use crate::sys::diag::{Found, datagram};
use crate::sys::executable::FileId;
use crate::version::FileVersion;

/// Each byte its own place.
fn counting<const N: usize>() -> [u8; N] {
    std::array::from_fn(|place| place.to_le_bytes()[0])
}

/// An address of one spelling.
fn canonical(address: SocketAddr) {
    let IpAddr::V6(v6) = address.ip() else { return };
    assert_eq!(v6.to_ipv4_mapped(), None, "{address}");
}

/// What is read of a record is read of it alone: neither of a part of it, nor of what follows it.
fn of_so_many<T: PartialEq + std::fmt::Debug>(bytes: &[u8], size: usize, read: impl Fn(&[u8]) -> Option<T>) {
    match read(bytes) {
        Some(record) => {
            assert!(bytes.len() >= size, "{record:?}");
            assert_eq!(read(&bytes[..size]).as_ref(), Some(&record));
            assert_eq!(read(&bytes[..size - 1]), None);
        }
        None => assert!(bytes.len() < size, "{bytes:?}"),
    }
}

#[test]
fn maps_of_the_programs() {
    fuzz!(&[&counting::<432>(), &[0; 432], &[0xff; 432], &[1; 64], &[]], |bytes| {
        of_so_many(bytes, 16, Process::read);
        of_so_many(bytes, 24, Counters::read);
        of_so_many(bytes, 16, watched_image);
        of_so_many(bytes, 432, Image::read);
        of_so_many(bytes, 88, Tally::read);
        of_so_many(bytes, 32, remote_of);
        if let Some(process) = Process::read(bytes) {
            assert_eq!(watched_image(&unseen(process.start_ns, process.image)), Some(process.image));
        }
        if let Some(image) = Image::read(bytes) {
            assert_eq!(image.arguments.len(), image.arguments_length.min(352));
            assert!(image.loaded.is_subset(&[Taint::Preload, Taint::Audit].into()), "{:?}", image.loaded);
        }
        remote_of(bytes).into_iter().chain(Tally::read(bytes).map(|tally| tally.local)).for_each(canonical);
    });
}

fn event(kind: u32, change: u32) -> Vec<u8> {
    let mut bytes = counting::<128>();
    bytes[8..12].copy_from_slice(&kind.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes.to_vec()
}

/// What is not understood counts as lost, and is told of before what comes after it.
#[test]
fn events_of_the_programs() {
    let seeds =
        [event(1, 0), event(2, 0), event(3, 5), event(3, 6), event(4, 0), event(5, 0), event(6, 0), vec![0; 127]];
    fuzz!(&seeds.each_ref().map(|seed| seed.as_slice()), |bytes| {
        let (mut outlet, mut heard) = Outlet::new();
        outlet.hear(bytes);
        outlet.hear(&event(2, 0));
        match heard.try_recv().unwrap() {
            Event::Lost(lost) => assert_eq!(lost, 1),
            Event::Used { used, .. } | Event::UsedByKin(used) => {
                [used.local, used.remote].into_iter().for_each(canonical)
            }
            _ => assert!(bytes.len() >= 128),
        }
        assert!(matches!(heard.try_recv(), Ok(Event::Ended(_))));
        assert!(heard.try_recv().is_err());
    });
}

#[test]
fn steps_of_flows() {
    let step = |number: u32| {
        let mut bytes = counting::<128>();
        bytes[112..116].copy_from_slice(&number.to_ne_bytes());
        bytes
    };
    fuzz!(&[&step(1), &step(3), &step(6), &step(7), &[0; 128]], |bytes| {
        let Some(step) = StepEvent::read(bytes) else {
            let number = bytes.get(112..116).map(|number| u32::from_ne_bytes(number.try_into().unwrap()));
            assert!(bytes.len() < 124 || number.is_none_or(|number| !(1..=6).contains(&number)), "{number:?}");
            return;
        };
        assert_eq!(StepEvent::read(&bytes[..124]), Some(step));
        assert!(step.who.is_none_or(|who| who.pid != 0));
        assert_eq!((&step.talk[..8], remote_of(&step.talk)), (&step.cookie.to_ne_bytes()[..], Some(step.remote)));
        [step.local, step.remote].into_iter().for_each(canonical);
    });
}

#[test]
fn holders() {
    fuzz!(&[&counting::<112>(), &[0; 56], &[0xff; 168], &[]], |said| {
        match rows(said) {
            Ok(rows) => assert_eq!(rows.len() * Holder::SIZE, said.len()),
            Err(_) => assert_ne!(said.len() % Holder::SIZE, 0),
        }
    });
}

fn message(payload: NetlinkPayload<SockDiagMessage>) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn socket(local: &str, remote: &str) -> Vec<u8> {
    let ends: [SocketAddr; 2] = [local, remote].map(|end| end.parse().unwrap());
    let socket_id = SocketId {
        source_port: ends[0].port(),
        destination_port: ends[1].port(),
        source_address: ends[0].ip(),
        destination_address: ends[1].ip(),
        interface_id: 2,
        cookie: [1, 2, 3, 4, 5, 6, 7, 8],
    };
    let header = InetResponseHeader {
        family: if ends[0].is_ipv4() { 2 } else { 10 },
        state: 1,
        timer: None,
        socket_id,
        recv_queue: 0,
        send_queue: 0,
        uid: 33,
        inode: 4711,
    };
    message(SockDiagMessage::InetResponse(Box::new(InetResponse { header, nlas: Default::default() })).into())
}

/// `struct nlmsgerr` with this code.
fn error(code: i32) -> Vec<u8> {
    let header = [36_u32.to_ne_bytes(), [2, 0, 0, 0], [0; 4], [0; 4]].concat();
    [header, code.to_ne_bytes().to_vec(), vec![0; 16]].concat()
}

#[test]
fn sock_diag() {
    let v4 = socket("10.0.0.1:443", "10.0.0.2:41000");
    let v6 = socket("[fe80::1]:443", "[::ffff:10.0.0.2]:41000");
    let done = message(NetlinkPayload::Done(DoneMessage::default()));
    let mut found = Vec::new();
    assert!(datagram(&[v4.as_slice(), &v6, &done].concat(), &mut found).unwrap());
    assert_eq!(found.iter().map(|found| found.inode).collect::<Vec<_>>(), [4711, 4711]);
    let seeds =
        [[v4.as_slice(), &v6].concat(), [v6, done.clone()].concat(), v4, done, error(-2), error(i32::MIN), error(0)];
    fuzz!(&seeds.each_ref().map(|seed| seed.as_slice()), |bytes| {
        let mut found: Vec<Found> = Vec::new();
        let answer = datagram(bytes, &mut found);
        // A message has a header of 16 bytes, and a socket 72.
        assert!(found.len() * 88 <= bytes.len(), "{found:?}");
        for Found { local, remote, cookie, .. } in &found {
            [*local, *remote].into_iter().for_each(canonical);
            assert!(bytes.windows(8).any(|part| part == cookie), "{cookie:?}");
        }
        // What comes behind the end of an answer is none of it.
        if answer.is_ok_and(|whole| whole) {
            let mut again = Vec::new();
            assert!(datagram(&[bytes, bytes].concat(), &mut again).unwrap());
            assert_eq!(again, found);
        }
    });
}

fn version() -> FileVersion {
    FileVersion::of(&std::fs::File::open("/proc/self/exe").unwrap()).unwrap()
}

fn memory() -> Memory {
    let file = FileId { dev: 1, ino: 2 };
    let seen = AtExec {
        image: 1,
        file,
        size: 3,
        modified: -4,
        executed_ns: Some(5),
        execs: 6,
        arguments: Arguments::Recorded { bytes: b"a\0b\0".to_vec(), whole: true },
        directory: Some(file),
        taints: [Taint::Preload].into(),
        witnessed: true,
    };
    Memory::of(Execution { pid: std::process::id(), start_ticks: 7, image: 1 }, &seen, &[Taint::Preload].into())
}

/// What was kept is what is read, and what is damaged is nothing.
#[test]
fn kept_records() {
    const KEY: &[u8] = &[0, 0, 0x12, 0x67];
    let (version, memory) = (kept::key(&version()).unwrap(), serde_json::to_vec(&memory()).unwrap());
    assert!(kept::record(&version, &[7; 32]).is_some() && earlier::record(KEY, &memory).is_some());
    let seeds = [sealed(KEY, &memory), sealed(KEY, b""), memory, version];
    fuzz!(&seeds.each_ref().map(|seed| seed.as_slice()), |bytes| {
        if let Some(kept) = content(KEY, bytes) {
            assert_eq!(sealed(KEY, kept), bytes);
            assert!(kept.len() <= 2048 && content(b"another", bytes).is_none());
        }
        if let Some((version, digest)) = kept::record(bytes, &[7; 32]) {
            assert_eq!(digest, Digest([7; 32]));
            assert_eq!(kept::record(&kept::key(&version).unwrap(), &[7; 32]), Some((version, digest)));
            assert_eq!(kept::record(bytes, &[7; 31]), None);
        }
        if let Some((pid, memory)) = earlier::record(KEY, bytes) {
            let again = serde_json::to_vec(&memory).unwrap();
            assert_eq!(earlier::record(KEY, &again), Some((pid, memory)));
            assert_eq!((pid, earlier::record(&KEY[1..], bytes)), (0x1267, None));
        }
    });
}
