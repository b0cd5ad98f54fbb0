//! What the kernel programs say of flows, as Rust: twins of the structures in `bpf/flows.h`, which says what each field
//! means. All numbers are in the host's byte order.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use bonafide_proto::fingerprint::Execution;

/// Nanoseconds in a clock tick (`USER_HZ`, 100 per second).
const TICK_NS: u64 = 10_000_000;

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// `enum step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Opened,
    Established,
    Taken,
    Closed,
    Released,
    Refused,
    Knocked,
    Unfinished,
}

/// `struct step_event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepEvent {
    pub(crate) at_ns: u64,
    pub(crate) began_ns: u64,
    pub(crate) cookie: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) who: Option<Execution>,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) step: Step,
    pub(crate) error: u32,
    pub(crate) datagrams: bool,
    pub(crate) source: bool,
    pub(crate) state: u8,
    pub(crate) established: bool,
    /// The remote as the kernel has it: with the cookie, the key of a [`Tally`].
    pub(crate) talk: Talk,
}

/// `sizeof(struct talk)`.
pub(crate) const TALK: usize = 32;
/// `sizeof(struct tally)`.
pub(crate) const TALLY: usize = 88;

/// `struct talk`, as it is.
pub(crate) type Talk = [u8; TALK];

/// `struct tally`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) began_ns: u64,
    pub(crate) last_ns: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) who: Option<Execution>,
    pub(crate) local: SocketAddr,
    pub(crate) source: bool,
    pub(crate) refused: bool,
}

/// `sizeof(struct ends)`.
pub(crate) const ENDS: usize = 48;
/// `sizeof(struct half)`.
pub(crate) const HALF: usize = 56;

/// `struct ends`, as it is.
pub(crate) type RawEnds = [u8; ENDS];

/// `struct half`, with its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Half {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) began_ns: u64,
    pub(crate) last_ns: u64,
    pub(crate) until_ns: u64,
    pub(crate) cookie: u64,
    pub(crate) who: Option<Execution>,
}

impl Half {
    /// Of `struct half_ending`.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            local: fields.end()?,
            remote: fields.end()?,
            began_ns: fields.u64()?,
            last_ns: fields.u64()?,
            until_ns: fields.u64()?,
            cookie: fields.u64()?,
            who: fields.execution()?,
        })
    }
}

/// `struct misses`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Misses {
    pub(crate) lost: u64,
    pub(crate) full: u64,
    pub(crate) living: u64,
    pub(crate) attempts: u64,
}

impl Misses {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self { lost: fields.u64()?, full: fields.u64()?, living: fields.u64()?, attempts: fields.u64()? })
    }
}

impl StepEvent {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (at_ns, began_ns, cookie) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (sent, received, who) = (fields.u64()?, fields.u64()?, fields.execution()?);
        let (local, there) = (fields.end()?, fields.take(24)?);
        let (step, error) = (step(fields.u32()?)?, fields.u32()?);
        let [protocol, source, state, established] = fields.array()?;
        Some(Self {
            at_ns,
            began_ns,
            cookie,
            sent,
            received,
            who,
            local,
            remote: Fields(there).end()?,
            step,
            error,
            datagrams: protocol == UDP,
            source: source != 0,
            state,
            established: established != 0,
            talk: talk(cookie, there)?,
        })
    }
}

impl Tally {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (began_ns, last_ns, sent, received) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let (who, local) = (fields.execution()?, fields.end()?);
        let (source, refused) = (fields.u32()? != 0, fields.u32()? != 0);
        Some(Self { began_ns, last_ns, sent, received, who, local, source, refused })
    }
}

/// The remote in the key of a [`Tally`].
pub(crate) fn remote_of(talk: &[u8]) -> Option<SocketAddr> {
    Fields(talk.get(8..)?).end()
}

fn talk(cookie: u64, there: &[u8]) -> Option<Talk> {
    [&cookie.to_ne_bytes(), there].concat().try_into().ok()
}

fn step(number: u32) -> Option<Step> {
    let known = [
        Step::Opened,
        Step::Established,
        Step::Taken,
        Step::Closed,
        Step::Released,
        Step::Refused,
        Step::Knocked,
        Step::Unfinished,
    ];
    known.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
}

/// Takes fields from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    /// `struct execution`; pid 0: not known.
    fn execution(&mut self) -> Option<Option<Execution>> {
        let (start_ns, image, pid, _padding) = (self.u64()?, self.u64()?, self.u32()?, self.u32()?);
        Some((pid != 0).then_some(Execution { pid, start_ticks: start_ns / TICK_NS, image }))
    }

    /// `struct end`.
    fn end(&mut self) -> Option<SocketAddr> {
        let address = Ipv6Addr::from(self.array::<16>()?);
        let (port, _padding, scope) = (self.u16()?, self.u16()?, self.u32()?);
        let scope = if address.is_unicast_link_local() { scope } else { 0 };
        Some(match address.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
            None => SocketAddr::V6(SocketAddrV6::new(address, port, 0, scope)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_or_unknown_is_not_read() {
        let mut bytes = [0_u8; 128];
        assert_eq!(StepEvent::read(&bytes), None, "there is no step 0");
        bytes[112] = 9;
        assert_eq!(StepEvent::read(&bytes), None, "nor a step 9");
        bytes[112] = 8;
        assert!(StepEvent::read(&bytes).is_some());
        for length in 0..124 {
            assert_eq!(StepEvent::read(&bytes[..length]), None);
        }
        assert_eq!(Tally::read(&[0; 87]), None);
        assert!(Tally::read(&[0; 88]).is_some());
        assert_eq!(Half::read(&[0; ENDS + HALF - 1]), None);
        assert!(Half::read(&[0; ENDS + HALF]).is_some());
    }

    #[test]
    fn a_talk_is_the_cookie_and_the_remote() {
        let mut bytes = [0_u8; 128];
        bytes[16..24].copy_from_slice(&77_u64.to_ne_bytes());
        bytes[88..104].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
        bytes[104..106].copy_from_slice(&53_u16.to_ne_bytes());
        bytes[112] = 1;
        let event = StepEvent::read(&bytes).unwrap();
        assert_eq!((event.cookie, event.remote), (77, "[::1]:53".parse().unwrap()));
        assert_eq!(event.talk[..8], 77_u64.to_ne_bytes());
        assert_eq!(remote_of(&event.talk), Some(event.remote));
    }
}
