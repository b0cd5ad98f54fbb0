//! Proves that a connection seen on the wire is TLS 1.3 with the hybrid key exchange, and nothing else.
//!
//! RFC 8446 §4.1.3 (ServerHello), §4.2.1 (supported_versions), §4.2.8 (key_share), §5.1 (records).

use crate::pcap::{Stream, Traffic};

/// X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem).
const HYBRID_GROUP: u16 = 0x11ec;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
/// Of a ServerHello that is a HelloRetryRequest: the group offered first was not the one wanted.
const RETRY_RANDOM: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];

/// Counts the connections with payload, each of which is hybrid TLS 1.3 and nothing else.
///
/// `exempt` names connections that are none of the mesh's, by either direction.
///
/// # Errors
/// What the first one that is not begins with.
pub fn tunnels_in(traffic: &Traffic, exempt: impl Fn(&Stream) -> bool) -> Result<usize, String> {
    let mut connections = 0;
    for stream in traffic.streams().iter().filter(|s| !s.payload.is_empty() && !exempt(s)) {
        check(stream).map_err(|problem| {
            let head = &stream.payload[..stream.payload.len().min(64)];
            format!("{} to {}: {problem}; it begins with {:?}", stream.from, stream.to, String::from_utf8_lossy(head))
        })?;
        connections += usize::from(!stream.from_client);
    }
    Ok(connections)
}

/// As [`tunnels_in`].
///
/// # Panics
/// If any connection is something else.
#[track_caller]
pub fn assert_only_hybrid_tls(traffic: &Traffic, exempt: impl Fn(&Stream) -> bool) -> usize {
    tunnels_in(traffic, exempt).unwrap_or_else(|problem| panic!("{problem}"))
}

fn check(stream: &Stream) -> Result<(), String> {
    let records = records(&stream.payload)?;
    let (kind, body) = records.first().ok_or("not even one complete TLS record")?;
    let hello = if stream.from_client { CLIENT_HELLO } else { SERVER_HELLO };
    if *kind != HANDSHAKE || body.first() != Some(&hello) {
        return Err(format!("the first record is of type {kind}, not a hello"));
    }
    if !stream.from_client {
        check_server_hello(body).ok_or("the ServerHello is not TLS 1.3 with X25519MLKEM768")?;
    }
    // After the hellos: protected records, the compatibility ChangeCipherSpec (RFC 8446 §D.4), or an alert of
    // two bytes that ends the handshake. Nothing that could carry payload in the clear.
    for (kind, body) in records.iter().skip(1) {
        match (*kind, body.len()) {
            (APPLICATION_DATA, _) | (20, 1) | (21, 2) => {}
            (kind, length) => return Err(format!("a record of type {kind} with {length} bytes follows the hello")),
        }
    }
    Ok(())
}

/// The records of a stream; the last may be cut off where the connection broke.
fn records(mut payload: &[u8]) -> Result<Vec<(u8, &[u8])>, String> {
    let mut records = Vec::new();
    while let [kind, 3, minor, high, low, rest @ ..] = payload {
        if !(20..=23).contains(kind) || !(1..=3).contains(minor) {
            return Err(format!("{kind} {minor} is no TLS record header"));
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(body) = rest.get(..length) else { return Ok(records) };
        records.push((*kind, body));
        payload = &rest[length..];
    }
    if payload.len() >= 5 { Err(format!("{:02x?} is no TLS record header", &payload[..5])) } else { Ok(records) }
}

fn check_server_hello(body: &[u8]) -> Option<()> {
    // type 1, length 3, legacy_version 2, random 32
    let random = body.get(6..38)?;
    let session_id = usize::from(*body.get(38)?);
    // session ID, cipher suite 2, compression 1, length of the extensions 2
    let mut extensions = body.get(39 + session_id + 5..)?;
    let (mut version, mut group) = (None, None);
    while extensions.len() >= 4 {
        let kind = u16::from_be_bytes([extensions[0], extensions[1]]);
        let length = usize::from(u16::from_be_bytes([extensions[2], extensions[3]]));
        let value = extensions.get(4..4 + length)?;
        match (kind, value) {
            (43, [high, low]) => version = Some(u16::from_be_bytes([*high, *low])),
            (51, [high, low, ..]) => group = Some(u16::from_be_bytes([*high, *low])),
            _ => {}
        }
        extensions = extensions.get(4 + length..)?;
    }
    (version == Some(0x0304) && group == Some(HYBRID_GROUP) && !random.starts_with(&RETRY_RANDOM)).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_hello(version: u16, group: u16) -> Vec<u8> {
        let mut body = vec![SERVER_HELLO, 0, 0, 0, 3, 3];
        body.extend([7; 32]);
        body.extend([0, 0x13, 0x01, 0, 0, 14, 0, 43, 0, 2]);
        body.extend(version.to_be_bytes());
        body.extend([0, 51, 0, 4]);
        body.extend(group.to_be_bytes());
        body.extend([0, 0]);
        let mut record = vec![HANDSHAKE, 3, 3, 0, u8::try_from(body.len()).unwrap()];
        record.extend(body);
        record
    }

    fn stream(payload: Vec<u8>) -> Stream {
        let at = "10.0.0.1:80".parse().unwrap();
        Stream { from: at, to: at, from_client: false, payload, reset: false }
    }

    #[test]
    fn only_the_hybrid_group_in_tls_1_3_passes() {
        assert_eq!(check(&stream(server_hello(0x0304, HYBRID_GROUP))), Ok(()));
        assert!(check(&stream(server_hello(0x0304, 0x001d))).is_err(), "X25519 alone passed");
        assert!(check(&stream(server_hello(0x0303, HYBRID_GROUP))).is_err(), "TLS 1.2 passed");
        assert!(check(&stream(b"HTTP/1.1 200 OK\r\n".to_vec())).is_err(), "plaintext passed");
    }

    #[test]
    fn plaintext_after_the_hello_is_noticed() {
        let mut payload = server_hello(0x0304, HYBRID_GROUP);
        payload.extend(b"HTTP/1.1 200 OK");
        assert!(check(&stream(payload)).is_err());
        let mut alert = server_hello(0x0304, HYBRID_GROUP);
        alert.extend([21, 3, 3, 0, 5]);
        alert.extend(b"hello");
        assert!(check(&stream(alert)).is_err(), "payload in an alert passed");
    }
}
