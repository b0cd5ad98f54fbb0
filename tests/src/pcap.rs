//! Reads a capture file and puts its TCP streams together again.
//!
//! Classic pcap with Ethernet frames, as `tcpdump -w` writes it; nothing else is accepted.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
const ETHERNET: usize = 14;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// One direction of one TCP connection.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Who sends.
    pub from: SocketAddr,
    /// Who receives.
    pub to: SocketAddr,
    /// Whether the sender opened the connection.
    pub from_client: bool,
    /// What was sent, in order, up to the first gap.
    pub payload: Vec<u8>,
    /// Whether a reset was seen in this direction.
    pub reset: bool,
}

/// What was seen on a wire.
#[derive(Debug)]
pub struct Traffic {
    frames: Vec<Vec<u8>>,
    streams: Vec<Stream>,
}

impl Traffic {
    /// Parses a capture file.
    ///
    /// # Panics
    /// If it is not one, or was cut short inside a packet's bytes.
    #[must_use]
    pub fn parse(file: &[u8]) -> Self {
        let frames = frames(file);
        let segments = frames.iter().filter_map(|frame| segment(frame));
        let mut assembly = Assembly::default();
        segments.for_each(|segment| assembly.add(segment));
        Self { streams: assembly.finish(), frames }
    }

    /// Every frame, as it was on the wire.
    #[must_use]
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }

    /// Every direction of every TCP connection, those without payload too.
    #[must_use]
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// Whether these bytes were on the wire, in one packet or across several.
    #[must_use]
    pub fn shows(&self, bytes: &[u8]) -> bool {
        let within = |haystack: &[u8]| haystack.windows(bytes.len()).any(|window| window == bytes);
        self.frames.iter().any(|frame| within(frame)) || self.streams.iter().any(|stream| within(&stream.payload))
    }
}

fn frames(file: &[u8]) -> Vec<Vec<u8>> {
    assert!(file.len() >= FILE_HEADER, "the capture file has no header");
    assert_eq!(u32_le(file, 0), 0xa1b2_c3d4, "the capture file is no pcap of this machine's byte order");
    assert_eq!(u32_le(file, 20), 1, "the capture file holds no Ethernet frames");
    let mut frames = Vec::new();
    let mut rest = &file[FILE_HEADER..];
    while rest.len() >= PACKET_HEADER {
        let (captured, on_wire) = (u32_le(rest, 8) as usize, u32_le(rest, 12) as usize);
        assert_eq!(captured, on_wire, "a packet was cut short by the capture");
        let end = PACKET_HEADER + captured;
        let Some(frame) = rest.get(PACKET_HEADER..end) else { break };
        frames.push(frame.to_vec());
        rest = &rest[end..];
    }
    frames
}

fn u32_le(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_be(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16_be(bytes, at)?) << 16 | u32::from(u16_be(bytes, at + 2)?))
}

struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
}

fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = frame.get(ETHERNET..)?;
    let (source, destination, tcp) = match u16_be(frame, 12)? {
        0x0800 => ipv4(packet)?,
        0x86dd => ipv6(packet)?,
        _ => return None,
    };
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(source, u16_be(tcp, 0)?),
        to: SocketAddr::new(destination, u16_be(tcp, 2)?),
        sequence: u32_be(tcp, 4)?,
        flags: *tcp.get(13)?,
        payload: tcp.get(header..)?,
    })
}

fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16_be(packet, 2)?);
    let address = |at: usize| Some(Ipv4Addr::from(u32_be(packet, at)?).into());
    (*packet.get(9)? == TCP).then_some(())?;
    Some((address(12)?, address(16)?, packet.get(header..total)?))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let length = usize::from(u16_be(packet, 4)?);
    let address = |at: usize| {
        let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes).into())
    };
    // Hosts of ours send no extension headers with TCP.
    (*packet.get(6)? == TCP).then_some(())?;
    Some((address(8)?, address(24)?, packet.get(40..40 + length)?))
}

/// One direction while it is put together: offsets from the first byte to the bytes.
struct Direction {
    stream: Stream,
    /// Sequence number of the first byte.
    start: u32,
    pieces: BTreeMap<u32, Vec<u8>>,
}

#[derive(Default)]
struct Assembly {
    directions: Vec<Direction>,
    latest: HashMap<(SocketAddr, SocketAddr), usize>,
}

impl Assembly {
    fn add(&mut self, segment: Segment<'_>) {
        let key = (segment.from, segment.to);
        let opening = segment.flags & SYN != 0;
        let known = self.latest.get(&key).copied();
        let known = known.filter(|n| !opening || self.directions[*n].start == segment.sequence.wrapping_add(1));
        let n = known.unwrap_or_else(|| self.open(&segment));
        let direction = &mut self.directions[n];
        direction.stream.reset |= segment.flags & RST != 0;
        if !segment.payload.is_empty() && segment.flags & RST == 0 {
            let sequence = segment.sequence.wrapping_add(u32::from(opening));
            let offset = sequence.wrapping_sub(direction.start);
            let piece = direction.pieces.entry(offset).or_default();
            if piece.len() < segment.payload.len() {
                *piece = segment.payload.to_vec();
            }
        }
    }

    fn open(&mut self, segment: &Segment<'_>) -> usize {
        let opening = segment.flags & SYN != 0;
        let acknowledges = segment.flags & 0x10 != 0;
        let stream = Stream {
            from: segment.from,
            to: segment.to,
            from_client: opening && !acknowledges,
            payload: Vec::new(),
            reset: false,
        };
        let start = segment.sequence.wrapping_add(u32::from(opening));
        self.directions.push(Direction { stream, start, pieces: BTreeMap::new() });
        let n = self.directions.len() - 1;
        self.latest.insert((segment.from, segment.to), n);
        n
    }

    fn finish(self) -> Vec<Stream> {
        self.directions.into_iter().map(Direction::finish).collect()
    }
}

impl Direction {
    fn finish(mut self) -> Stream {
        for (offset, piece) in self.pieces {
            let (have, offset) = (self.stream.payload.len(), offset as usize);
            if offset > have {
                break;
            }
            if let Some(new) = piece.get(have - offset..) {
                self.stream.payload.extend_from_slice(new);
            }
        }
        self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
        file.extend([0; 12]);
        file.extend([1, 0, 0, 0]);
        for packet in packets {
            let length = u32::try_from(packet.len()).unwrap().to_le_bytes();
            file.extend([0; 8]);
            file.extend(length);
            file.extend(length);
            file.extend(packet);
        }
        file
    }

    fn packet(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0, 0, 80]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn streams_are_put_together_across_loss_disorder_and_wrap() {
        let start = u32::MAX - 1;
        let file = capture(&[
            packet(start.wrapping_sub(1), SYN, b""),
            packet(start.wrapping_add(4), 0x10, b"efg"),
            packet(start, 0x10, b"ab"),
            packet(start, 0x10, b"abcd"),
            packet(start.wrapping_add(20), 0x10, b"after a gap"),
        ]);
        let traffic = Traffic::parse(&file);
        let [stream] = traffic.streams() else { panic!("{traffic:?}") };
        assert_eq!(stream.payload, b"abcdefg");
        assert!(stream.from_client);
        assert!(traffic.shows(b"cdef"), "a marker across two packets is found");
        assert!(traffic.shows(b"gap"), "a marker after a gap is found in its packet");
        assert!(!traffic.shows(b"xyz"));
    }

    #[test]
    fn a_port_used_again_is_another_stream() {
        let file =
            capture(&[packet(1, SYN, b""), packet(2, 0x10, b"one"), packet(900, SYN, b""), packet(901, 0x10, b"two")]);
        let payloads: Vec<_> = Traffic::parse(&file).streams().iter().map(|s| s.payload.clone()).collect();
        assert_eq!(payloads, [b"one", b"two"]);
    }
}
