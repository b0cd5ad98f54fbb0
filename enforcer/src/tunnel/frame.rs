//! The frames of `bonafide/1`: bytes to types and back, no I/O.
//!
//! ```text
//!  0       1       2               4                               8
//! +-------+-------+---------------+-------------------------------+----------------+
//! | type  | flags | reserved = 0  | length of the payload, BE     | payload        |
//! +-------+-------+---------------+-------------------------------+----------------+
//! ```
//!
//! | type | payload |
//! |---|---|
//! | 1 OPEN | flow id (16), the client's address, the address it asked for |
//! | 2 ACCEPT | port on which the destination program listens (2) |
//! | 3 REFUSE | [`RefuseCode`] (1) |
//! | 4 DATA | 1 to [`MAX_PAYLOAD`] bytes of the application |
//! | 5 FIN | nothing |
//! | 7 RENEW | a certificate's length (2) and the certificate, two or three times, leaf first; a signature ([`super::renewal`]) |
//! | 6 RESET | [`Cause`](super::ending::Cause) (1), the [`Kind`](super::ending::Kind) of evidence that changed (1), or 0 |
//!
//! An address is its family (4 or 6), 4 or 16 bytes, and the port (2); IPv4-mapped addresses and port 0 are
//! refused, so that one connection has one spelling. No flag is defined: any that is set is an error, as are an
//! unknown type, an unknown code of REFUSE, a RESET without a cause, a length that does not fit the type, and DATA without data.
//!
//! Each stream walks through these states; the client opens, then both ways live on their own:
//!
//! ```text
//!            OPEN              ACCEPT            DATA*         FIN both ways
//!   [fresh] ------> [offered] --------> [open] -------> [open] -------------> [clean]
//!                       |                  |                (could serve the next OPEN)
//!                       | REFUSE           | RESET, either way, also after that way's FIN
//!                       v                  v
//!                   [refused]           [reset]
//! ```
//!
//! RENEW shows a later certificate of the program at the sender's end. It may come at any time in an open stream, also after
//! that way's FIN. Nothing but RENEW and RESET may follow a FIN in its direction, and nothing at all a RESET. A connection that ends in any
//! other state was cut: the end of TLS itself (`close_notify`) never stands for the end of an application's stream.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bonafide_proto::flow::canonical;
use bonafide_proto::record::Reason;
use bonafide_proto::svid::{CERTIFICATE_MAX, CHAIN_MAX};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use rustls::pki_types::CertificateDer;

use super::ending::{self, Cause, Ending};
use super::renewal::{Renewal, SIGNATURE_MAX};

/// Bytes before each payload.
pub const HEADER: usize = 8;
/// The largest payload, in bytes; a longer one is a protocol error.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// The payload that, with its header, fills four TLS records exactly: the best size of a DATA frame.
pub const BEST_PAYLOAD: usize = 4 * 16 * 1024 - HEADER;

/// Names one flow at both of its ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId([u8; 16]);

impl FlowId {
    /// A new one.
    #[must_use]
    #[allow(clippy::expect_used, reason = "getrandom(2) does not fail for 16 bytes on any kernel with TPROXY for IPv6")]
    pub fn random() -> Self {
        use ring::rand::SecureRandom as _;
        let mut bytes = [0; 16];
        ring::rand::SystemRandom::new().fill(&mut bytes).expect("the kernel's random numbers");
        Self(bytes)
    }
}

impl From<[u8; 16]> for FlowId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the source enforcer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The flow's name in the records of both ends.
    pub id: FlowId,
    /// The client program's own address.
    pub client: SocketAddr,
    /// The address it asked for, before any translation on its host.
    pub asked: SocketAddr,
}

/// The destination enforcer's yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// The port on which the destination program listens; the source decides its policy on it, too.
    pub port: u16,
}

macro_rules! codes {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)* }
        impl $name {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)* }
            }
            fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }
    };
}

codes! {
    /// Why a destination refused, as far as the source may learn it.
    pub enum RefuseCode {
        /// Its policy does not allow it.
        Policy = 1 "its policy does not allow it",
        /// It could not tell which program listens.
        Unattributed = 2 "it cannot tell which program listens there",
        /// The program did not accept the connection.
        Unreachable = 3 "the program does not accept the connection",
        /// It has no certificate for that program.
        NoSvid = 4 "it has no certificate for the program",
        /// It has reached a limit.
        Busy = 5 "it has reached a limit",
        /// What the issuing node of either certificate issued is revoked.
        NodeRevoked = 7 "node-revoked",
        /// The workload of either certificate is revoked.
        WorkloadRevoked = 8 "workload-revoked",
        /// Either certificate is revoked.
        SerialRevoked = 9 "serial-revoked",
        /// Something inside it failed.
        Internal = 6 "something inside it failed",
    }
}

impl From<Reason> for RefuseCode {
    /// The one place that decides what a refused peer learns.
    fn from(reason: Reason) -> Self {
        use Reason as R;
        match reason {
            R::NoWorkload
            | R::RuleDenies
            | R::NoRule
            | R::NoPolicy
            | R::UnknownAddress
            | R::PolicyChanged
            | R::Quarantined => Self::Policy,
            R::Unattributed | R::IdentityChanged => Self::Unattributed,
            R::NodeRevoked => Self::NodeRevoked,
            R::WorkloadRevoked => Self::WorkloadRevoked,
            R::SerialRevoked => Self::SerialRevoked,
            R::Unreachable => Self::Unreachable,
            R::NoSvid => Self::NoSvid,
            R::Limit | R::EnforcerStopped => Self::Busy,
            R::OwnListener
            | R::NotBonafide
            | R::Handshake
            | R::PeerCertificate
            | R::CertificateExpired
            | R::NotGranted
            | R::RefusedByPeer
            | R::Protocol
            | R::EndedByPeer
            | R::TunnelBroken
            | R::EnforcerKilled
            | R::Internal => Self::Internal,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The client asks.
    Open(Open),
    /// The server agrees.
    Accept(Accept),
    /// The server refuses.
    Refuse(RefuseCode),
    /// Bytes of the application; never empty.
    Data(Bytes),
    /// This direction has ended in order.
    Fin,
    /// The stream was cut.
    Reset(Ending),
    /// The sender's program has a later certificate.
    Renew(Renewal),
}

impl Frame {
    /// The frame's type, as it is written in errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        let at = out.len();
        out.put_slice(&[0; HEADER]);
        match self {
            Self::Open(open) => put_open(out, open),
            Self::Accept(accept) => out.put_u16(accept.port),
            Self::Refuse(code) => out.put_u8(code.code()),
            Self::Data(data) => out.put_slice(data),
            Self::Fin => {}
            Self::Reset(ending) => put_ending(out, *ending),
            Self::Renew(renewal) => put_renewal(out, renewal),
        }
        let length = out.len() - at - HEADER;
        if let Some(header) = out.get_mut(at..at + HEADER) {
            header.copy_from_slice(&header_bytes(self.kind(), length));
        }
    }

    /// Takes one frame from the front of `buf`, or nothing while it is incomplete.
    ///
    /// A header that breaks a rule is refused before any of its payload is waited for.
    ///
    /// # Errors
    /// The first rule it breaks; the connection is of no further use then.
    pub fn decode(buf: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some((kind, length)) = peek_header(buf)? else { return Ok(None) };
        let whole = HEADER + length;
        if buf.len() < whole {
            return Ok(None);
        }
        let mut payload = buf.split_to(whole).freeze();
        payload.advance(HEADER);
        parse(kind, payload).map(Some)
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Open(_) => Kind::Open,
            Self::Accept(_) => Kind::Accept,
            Self::Refuse(_) => Kind::Refuse,
            Self::Data(_) => Kind::Data,
            Self::Fin => Kind::Fin,
            Self::Reset(_) => Kind::Reset,
            Self::Renew(_) => Kind::Renew,
        }
    }
}

/// The header of a DATA frame with `length` bytes of payload.
pub(super) fn data_header(length: usize) -> [u8; HEADER] {
    header_bytes(Kind::Data, length)
}

/// How bytes broke the rules of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type this version does not have.
    #[error("frame type {0} is unknown")]
    Kind(u8),
    /// A flag or a reserved bit is set.
    #[error("a frame has flags or reserved bits set")]
    Bits,
    /// The length does not fit the type.
    #[error("a {kind} frame has a payload of {length} bytes")]
    Length {
        /// Its type.
        kind: &'static str,
        /// Its length, in bytes.
        length: u32,
    },
    /// The payload of OPEN or ACCEPT names no address.
    #[error("a {0} frame has a malformed address or port")]
    Address(&'static str),
    /// The lengths inside of RENEW do not add up.
    #[error("a RENEW frame has malformed certificates")]
    Renewal,
    /// A code this version does not have.
    #[error("a {0} frame has the unknown code {1}")]
    Code(&'static str, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Accept,
    Refuse,
    Data,
    Fin,
    Reset,
    Renew,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Accept => "ACCEPT",
            Self::Refuse => "REFUSE",
            Self::Data => "DATA",
            Self::Fin => "FIN",
            Self::Reset => "RESET",
            Self::Renew => "RENEW",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Accept => 2,
            Self::Refuse => 3,
            Self::Data => 4,
            Self::Fin => 5,
            Self::Reset => 6,
            Self::Renew => 7,
        }
    }

    fn from_code(code: u8) -> Result<Self, FrameError> {
        Ok(match code {
            1 => Self::Open,
            2 => Self::Accept,
            3 => Self::Refuse,
            4 => Self::Data,
            5 => Self::Fin,
            6 => Self::Reset,
            7 => Self::Renew,
            other => return Err(FrameError::Kind(other)),
        })
    }

    fn lengths(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Open => 16 + 2 * 7..=16 + 2 * 19,
            Self::Accept | Self::Reset => 2..=2,
            Self::Refuse => 1..=1,
            Self::Data => 1..=MAX_PAYLOAD,
            Self::Fin => 0..=0,
            Self::Renew => 2 * 3 + 1..=2 * (2 + CERTIFICATE_MAX) + SIGNATURE_MAX,
        }
    }
}

fn header_bytes(kind: Kind, length: usize) -> [u8; HEADER] {
    // A caller that exceeds MAX_PAYLOAD gets its frame refused by the peer, never a shorter one sent.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind.code(), 0, 0, 0, a, b, c, d]
}

fn peek_header(buf: &[u8]) -> Result<Option<(Kind, usize)>, FrameError> {
    let Some(&[code, flags, r1, r2, a, b, c, d]) = buf.first_chunk::<HEADER>() else { return Ok(None) };
    let kind = Kind::from_code(code)?;
    if flags != 0 || r1 != 0 || r2 != 0 {
        return Err(FrameError::Bits);
    }
    let length = u32::from_be_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(fits) if kind.lengths().contains(&fits) => Ok(Some((kind, fits))),
        _ => Err(FrameError::Length { kind: kind.name(), length }),
    }
}

fn parse(kind: Kind, mut payload: Bytes) -> Result<Frame, FrameError> {
    let name = kind.name();
    match kind {
        Kind::Open => take_open(&mut payload).ok_or(FrameError::Address(name)).map(Frame::Open),
        Kind::Accept => match payload.try_get_u16() {
            Ok(port) if port != 0 => Ok(Frame::Accept(Accept { port })),
            _ => Err(FrameError::Address(name)),
        },
        Kind::Refuse => {
            let code = payload.try_get_u8().unwrap_or(0);
            RefuseCode::from_code(code).map(Frame::Refuse).ok_or(FrameError::Code(name, code))
        }
        Kind::Data => Ok(Frame::Data(payload)),
        Kind::Fin => Ok(Frame::Fin),
        Kind::Renew => take_renewal(&mut payload).map(Frame::Renew).ok_or(FrameError::Renewal),
        Kind::Reset => take_ending(&mut payload).map(Frame::Reset).ok_or(FrameError::Code(name, 0)),
    }
}

fn put_ending(out: &mut BytesMut, ending: Ending) {
    out.put_u8(ending.cause.code());
    out.put_u8(ending.changed.map_or(0, ending::Kind::code));
}

fn take_ending(payload: &mut Bytes) -> Option<Ending> {
    let cause = Cause::from_code(payload.try_get_u8().ok()?)?;
    let changed = ending::Kind::from_code(payload.try_get_u8().ok()?);
    Some(Ending { cause, changed })
}

fn put_renewal(out: &mut BytesMut, renewal: &Renewal) {
    for cert in &renewal.chain {
        // One that is too long makes a frame that the other end refuses.
        out.put_u16(u16::try_from(cert.len()).unwrap_or(u16::MAX));
        out.put_slice(cert);
    }
    out.put_slice(&renewal.signature);
}

fn take_renewal(payload: &mut Bytes) -> Option<Renewal> {
    let mut chain = vec![take_certificate(payload)?, take_certificate(payload)?];
    // Every certificate is longer than the longest signature.
    while payload.len() > SIGNATURE_MAX && chain.len() < CHAIN_MAX {
        chain.push(take_certificate(payload)?);
    }
    let signature = std::mem::take(payload);
    (1..=SIGNATURE_MAX).contains(&signature.len()).then_some(Renewal { chain, signature })
}

fn take_certificate(payload: &mut Bytes) -> Option<CertificateDer<'static>> {
    let length = usize::from(payload.try_get_u16().ok()?);
    let fits = (1..=CERTIFICATE_MAX).contains(&length) && length <= payload.len();
    fits.then(|| payload.split_to(length).to_vec().into())
}

fn put_open(out: &mut BytesMut, open: &Open) {
    out.put_slice(&open.id.0);
    put_address(out, open.client);
    put_address(out, open.asked);
}

fn take_open(payload: &mut Bytes) -> Option<Open> {
    let mut id = [0; 16];
    payload.try_copy_to_slice(&mut id).ok()?;
    let open = Open { id: FlowId(id), client: take_address(payload)?, asked: take_address(payload)? };
    payload.is_empty().then_some(open)
}

fn put_address(out: &mut BytesMut, addr: SocketAddr) {
    match canonical(addr).ip() {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(addr.port());
}

fn take_address(payload: &mut Bytes) -> Option<SocketAddr> {
    let ip = match payload.try_get_u8().ok()? {
        4 => IpAddr::from(payload.try_get_u32().ok()?.to_be_bytes()),
        6 => IpAddr::from(payload.try_get_u128().ok()?.to_be_bytes()),
        _ => return None,
    };
    let addr = SocketAddr::new(ip, payload.try_get_u16().ok()?);
    (addr.port() != 0 && canonical(addr) == addr).then_some(addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), 1..=u16::MAX).prop_map(|(ip, port)| canonical(SocketAddr::new(ip, port)))
    }

    fn ending() -> impl Strategy<Value = Ending> {
        let causes = 1..=u8::MAX;
        let ending = |(cause, changed)| Some(Ending { cause: Cause::from_code(cause)?, changed });
        (causes, any::<u8>().prop_map(ending::Kind::from_code)).prop_filter_map("0 is no cause", ending)
    }

    fn renewal() -> impl Strategy<Value = Renewal> {
        let some = |most| proptest::collection::vec(any::<u8>(), 1..=most);
        let longer = proptest::option::of(proptest::collection::vec(any::<u8>(), SIGNATURE_MAX..=300));
        (some(CERTIFICATE_MAX), some(300), longer, some(SIGNATURE_MAX)).prop_map(|(leaf, issuer, above, signature)| {
            let chain = [Some(leaf), Some(issuer), above].into_iter().flatten().map(Into::into).collect();
            Renewal { chain, signature: signature.into() }
        })
    }

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (any::<[u8; 16]>(), address(), address()).prop_map(|(id, client, asked)| Frame::Open(Open {
                id: FlowId(id),
                client,
                asked
            })),
            (1..=u16::MAX).prop_map(|port| Frame::Accept(Accept { port })),
            proptest::sample::select(RefuseCode::ALL).prop_map(Frame::Refuse),
            proptest::collection::vec(any::<u8>(), 1..2000).prop_map(|v| Frame::Data(v.into())),
            Just(Frame::Fin),
            ending().prop_map(Frame::Reset),
            renewal().prop_map(Frame::Renew),
        ]
    }

    fn decode_all(buf: &mut BytesMut) -> Result<Vec<Frame>, FrameError> {
        let mut out = Vec::new();
        while let Some(frame) = Frame::decode(buf)? {
            out.push(frame);
        }
        Ok(out)
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire_however_it_cuts_them(frames in proptest::collection::vec(frame(), 1..8), step in 1usize..700) {
            let mut wire = BytesMut::new();
            for f in &frames {
                f.encode(&mut wire);
            }
            let (mut buf, mut seen) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                buf.extend_from_slice(piece);
                seen.extend(decode_all(&mut buf).unwrap());
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(buf.is_empty());
        }

        #[test]
        fn hostile_bytes_are_refused_or_mean_exactly_what_they_say(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buf = BytesMut::from(bytes.as_slice());
            if let Ok(Some(frame)) = Frame::decode(&mut buf) {
                let mut again = BytesMut::new();
                frame.encode(&mut again);
                prop_assert_eq!(&bytes[..again.len()], &again[..]);
            }
        }

        #[test]
        fn hostile_payloads_behind_a_valid_header_too(code in 0u8..9, payload in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut wire = BytesMut::from(&[code, 0, 0, 0, 0, 0, 0, u8::try_from(payload.len()).unwrap()][..]);
            wire.extend_from_slice(&payload);
            let sent = wire.clone();
            if let Ok(Some(frame)) = Frame::decode(&mut wire) {
                let mut again = BytesMut::new();
                frame.encode(&mut again);
                prop_assert_eq!(again, sent);
            }
        }
    }

    fn refused(bytes: &[u8]) -> FrameError {
        Frame::decode(&mut BytesMut::from(bytes)).unwrap_err()
    }

    #[test]
    fn a_bad_header_is_refused_before_its_payload_arrives() {
        assert_eq!(refused(&[8, 0, 0, 0, 0, 0, 0, 0]), FrameError::Kind(8));
        assert_eq!(refused(&[0, 0, 0, 0, 0, 0, 0, 0]), FrameError::Kind(0));
        assert_eq!(refused(&[4, 1, 0, 0, 0, 0, 0, 1]), FrameError::Bits);
        assert_eq!(refused(&[4, 0, 0, 1, 0, 0, 0, 1]), FrameError::Bits);
        assert_eq!(refused(&[4, 0, 0, 0, 0, 1, 0, 1]), FrameError::Length { kind: "DATA", length: 65537 });
        assert_eq!(refused(&[4, 0, 0, 0, 255, 255, 255, 255]), FrameError::Length { kind: "DATA", length: u32::MAX });
        assert_eq!(refused(&[4, 0, 0, 0, 0, 0, 0, 0]), FrameError::Length { kind: "DATA", length: 0 });
        assert_eq!(refused(&[5, 0, 0, 0, 0, 0, 0, 1]), FrameError::Length { kind: "FIN", length: 1 });
        assert_eq!(Frame::decode(&mut BytesMut::from(&[4, 0, 0, 0, 0, 1, 0, 0][..])), Ok(None), "64 KiB is allowed");
    }

    #[test]
    fn a_reset_has_a_cause_and_says_what_it_is_though_it_be_unknown() {
        assert_eq!(refused(&[6, 0, 0, 0, 0, 0, 0, 1, 1]), FrameError::Length { kind: "RESET", length: 1 });
        assert_eq!(refused(&[6, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0]), FrameError::Length { kind: "RESET", length: 3 });
        assert_eq!(refused(&[6, 0, 0, 0, 0, 0, 0, 2, 0, 1]), FrameError::Code("RESET", 0));
        let read = |bytes: [u8; 2]| {
            let mut wire = BytesMut::from(&[&[6, 0, 0, 0, 0, 0, 0, 2], &bytes[..]].concat()[..]);
            Frame::decode(&mut wire).unwrap().unwrap()
        };
        let script = Ending { cause: Cause::IdentityChanged, changed: Some(ending::Kind::Script) };
        assert_eq!(read([4, 2]), Frame::Reset(script));
        assert_eq!(read([5, 0]), Frame::Reset(Cause::Quarantined.into()));
        let later = Ending { cause: Cause::Unknown(200), changed: Some(ending::Kind::Unknown(201)) };
        assert_eq!(read([200, 201]), Frame::Reset(later));
    }

    #[test]
    fn a_renewal_is_bounded_and_its_lengths_add_up() {
        let malformed =
            [&[7, 0, 0, 0, 0, 0, 0, 7, 0, 2, 1, 0, 1, 1, 1][..], &[7, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 1, 1, 1]];
        for bytes in malformed {
            assert_eq!(refused(bytes), FrameError::Renewal);
        }
        assert_eq!(refused(&[7, 0, 0, 0, 0, 0, 0, 6]), FrameError::Length { kind: "RENEW", length: 6 });
        assert_eq!(refused(&[7, 0, 0, 0, 0, 0, 0x80, 0]), FrameError::Length { kind: "RENEW", length: 0x8000 });
    }

    #[test]
    fn an_address_has_one_spelling() {
        let open = |client: &str| Open {
            id: FlowId([7; 16]),
            client: client.parse().unwrap(),
            asked: "10.0.0.1:80".parse().unwrap(),
        };
        let mut wire = BytesMut::new();
        Frame::Open(open("[::ffff:10.0.0.2]:5000")).encode(&mut wire);
        assert_eq!(Frame::decode(&mut wire), Ok(Some(Frame::Open(open("10.0.0.2:5000")))));

        let mut mapped = vec![1, 0, 0, 0, 0, 0, 0, 42];
        mapped.extend([7; 16]);
        mapped.push(6);
        mapped.extend("::ffff:10.0.0.2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        mapped.extend([0x13, 0x88, 4, 10, 0, 0, 1, 0, 80]);
        assert_eq!(refused(&mapped), FrameError::Address("OPEN"));
    }

    #[test]
    fn flow_ids_are_32_hex_digits_and_differ() {
        let (a, b) = (FlowId::random(), FlowId::random());
        assert_ne!(a, b);
        assert!(a.to_string().len() == 32 && a.to_string().bytes().all(|c| c.is_ascii_hexdigit()));
    }
}
