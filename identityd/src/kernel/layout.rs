//! What the kernel programs write, as Rust: twins of the structures in `bpf/record.h`, which says what each field means.
//! All numbers are in the host's byte order.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::taint::{Taint, Taints};

use crate::sys::executable::FileId;

/// Nanoseconds in a clock tick (`USER_HZ`, 100 per second).
const TICK_NS: u64 = 10_000_000;

/// Argument bytes that an [`Image`] holds itself.
pub(crate) const SHORT_ARGUMENTS: usize = 352;
/// Argument bytes at most.
pub(crate) const LONG_ARGUMENTS: usize = 1984;

/// `PRELOADED` and `AUDITED`.
const LOADED: [(u8, Taint); 2] = [(1, Taint::Preload), (2, Taint::Audit)];

/// `struct process`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) start_ns: u64,
    pub(crate) image: u64,
}

/// `struct image`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// As the kernel names it, which on some file systems is not as stat(2) does.
    pub(crate) file: FileId,
    pub(crate) directory: FileId,
    pub(crate) size: u64,
    pub(crate) modified: i128,
    pub(crate) executed_ns: u64,
    pub(crate) execs: u64,
    pub(crate) witnessed: bool,
    pub(crate) arguments_whole: bool,
    pub(crate) arguments_length: usize,
    pub(crate) loaded: Taints,
    pub(crate) arguments: Vec<u8>,
}

/// `struct holder`: a descriptor of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) cookie: u64,
    pub(crate) table: u64,
    pub(crate) execution: Execution,
    pub(crate) fd: u32,
    pub(crate) references: u32,
    pub(crate) threads: u32,
    pub(crate) uses_io_uring: bool,
}

/// `struct counters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    pub(crate) next_image: u64,
    pub(crate) lost: u64,
    pub(crate) full: u64,
}

/// `struct event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) at_ns: u64,
    pub(crate) kind: u32,
    pub(crate) change: u32,
    pub(crate) now: u64,
    pub(crate) of: Execution,
    pub(crate) by: Execution,
    pub(crate) parent: u32,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl Process {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self { start_ns: fields.u64()?, image: fields.u64()? })
    }

    /// Clock ticks since boot, as in `/proc/PID/stat`.
    pub(crate) fn start_ticks(self) -> u64 {
        self.start_ns / TICK_NS
    }
}

impl Image {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (file, directory) = (fields.file()?, fields.file()?);
        let (size, modified_sec) = (fields.u64()?, fields.u64()?);
        let (executed_ns, execs, modified_nsec) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let _users = fields.u32()?;
        let (witnessed, arguments_whole) = (fields.u8()? != 0, fields.u8()? != 0);
        let arguments_length = usize::from(fields.u16()?);
        let loaded = fields.u8()?;
        let _padding = fields.array::<3>()?;
        let short = arguments_length.min(SHORT_ARGUMENTS);
        Some(Self {
            file,
            directory,
            size,
            modified: i128::from(modified_sec.cast_signed()) * 1_000_000_000 + i128::from(modified_nsec),
            executed_ns,
            execs,
            witnessed,
            arguments_whole,
            arguments_length,
            loaded: LOADED.into_iter().filter(|(bit, _)| loaded & bit != 0).map(|(_, taint)| taint).collect(),
            arguments: fields.take(SHORT_ARGUMENTS)?.get(..short)?.to_vec(),
        })
    }
}

impl Holder {
    /// Its length in bytes.
    pub(crate) const SIZE: usize = 56;

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (cookie, table) = (fields.u64()?, fields.u64()?);
        let execution = fields.execution()?;
        Some(Self {
            cookie,
            table,
            execution,
            fd: fields.u32()?,
            references: fields.u32()?,
            threads: fields.u32()?,
            uses_io_uring: fields.u32()? != 0,
        })
    }
}

impl Counters {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self { next_image: fields.u64()?, lost: fields.u64()?, full: fields.u64()? })
    }
}

impl Event {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let at_ns = fields.u64()?;
        let (kind, change, now) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let of = fields.execution()?;
        let _padding = fields.u32()?;
        let by = fields.execution()?;
        let _padding = fields.u32()?;
        let parent = fields.u32()?;
        let _padding = fields.u32()?;
        Some(Self { at_ns, kind, change, now, of, by, parent, local: fields.end()?, remote: fields.end()? })
    }
}

/// `struct watched` before it is seen.
pub(crate) fn unseen(start_ns: u64, image: u64) -> [u8; 64] {
    let mut bytes = [0; 64];
    let numbers = start_ns.to_ne_bytes().into_iter().chain(image.to_ne_bytes());
    bytes.iter_mut().zip(numbers).for_each(|(to, byte)| *to = byte);
    bytes
}

/// The image in a `struct watched`.
pub(crate) fn watched_image(bytes: &[u8]) -> Option<u64> {
    let mut fields = Fields(bytes);
    let _start_ns = fields.u64()?;
    fields.u64()
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

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_ne_bytes)
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

    /// `struct file_name`.
    fn file(&mut self) -> Option<FileId> {
        let (ino, dev, _generation) = (self.u64()?, self.u32()?, self.u32()?);
        Some(FileId { dev: rustix::fs::makedev(dev >> 20, dev & 0xf_ffff), ino })
    }

    /// `struct execution`, but for its padding.
    fn execution(&mut self) -> Option<Execution> {
        let (start_ns, image, pid) = (self.u64()?, self.u64()?, self.u32()?);
        Some(Execution { pid, start_ticks: start_ns / TICK_NS, image })
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
    fn what_is_cut_short_is_not_read() {
        for length in 0..432 {
            assert_eq!(Image::read(&vec![1; length]), None);
        }
        assert!(Image::read(&[1; 432]).is_some());
        assert_eq!(Holder::read(&[0; 51]), None);
        assert_eq!(Event::read(&[0; 127]), None);
        assert_eq!(Process::read(&[0; 15]), None);
    }

    #[test]
    fn a_kernel_device_number_becomes_that_of_stat() {
        let mut bytes = [0; 432];
        bytes[..8].copy_from_slice(&77_u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&(254_u32 << 20 | 65_537).to_ne_bytes());
        let image = Image::read(&bytes).unwrap();
        assert_eq!(image.file, FileId { dev: rustix::fs::makedev(254, 65_537), ino: 77 });
    }

    #[test]
    fn mapped_addresses_are_spelled_as_ipv4() {
        let mut bytes = Vec::from(Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1]).octets());
        bytes.extend(443_u16.to_ne_bytes());
        bytes.extend([0; 6]);
        assert_eq!(Fields(&bytes).end(), Some("127.0.0.1:443".parse().unwrap()));
        let mut bytes = Vec::from(Ipv6Addr::LOCALHOST.octets());
        bytes.extend(443_u16.to_ne_bytes());
        bytes.extend([0, 0, 7, 0, 0, 0]);
        assert_eq!(Fields(&bytes).end(), Some("[::1]:443".parse().unwrap()));
    }
}
