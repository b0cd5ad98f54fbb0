//! What the kernel programs write down at `connect()`, as the enforcer reads it by its own accepted socket.
//!
//! The layout is that of `struct connect_record` in `identityd/bpf/record.h`; all numbers are in the host's byte order.
//! It is evidence only together with an attestation of the execution that it names.

/// Length of a record, in bytes.
pub const RECORD_SIZE: usize = 80;
/// Length of what the kernel programs keep with a socket: its record comes first.
pub const STORED_SIZE: usize = 224;

/// Who connected the socket at the other end of an accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectRecord {
    /// When, in nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub at_ns: u64,
    /// Cookie of the connecting socket.
    pub cookie: u64,
    /// Start of the connecting process, nanoseconds since boot; its clock ticks are [`ConnectRecord::start_ticks`].
    pub start_ns: u64,
    /// What it executed last; 0: not witnessed.
    pub image: u64,
    /// cgroup v2 ID of the connecting task.
    pub cgroup: u64,
    /// Cookie of the network namespace.
    pub netns: u64,
    /// Process ID, in the initial PID namespace.
    pub pid: u32,
    /// Thread ID.
    pub tid: u32,
    /// Effective user ID, in the initial user namespace.
    pub uid: u32,
    /// Effective group ID.
    pub gid: u32,
    /// References to the open file when `connect()` was called.
    pub references: u32,
    /// Initial sequence number of the connection.
    pub isn: u32,
    /// [`Doubts`] of the kernel programs; 0: the connecting process made the socket, asked for the connection, and
    /// nobody else held it then.
    pub doubts: Doubts,
}

/// Why the connecting process need not be the only one to use the socket: a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Doubts(pub u32);

impl Doubts {
    /// Another process, or an earlier execution of this one, made the socket.
    pub const CREATOR_DIFFERS: Self = Self(1);
    /// Another process, or an earlier execution of this one, called `connect()`.
    pub const ASKER_DIFFERS: Self = Self(1 << 1);
    /// More references to the open file than the connecting process accounts for.
    pub const SHARED_FILE: Self = Self(1 << 2);
    /// Another process shares the table of open files.
    pub const SHARED_TABLE: Self = Self(1 << 3);
    /// A kernel thread connected.
    pub const KERNEL_TASK: Self = Self(1 << 4);
    /// The kernel programs did not see its exec.
    pub const UNWITNESSED: Self = Self(1 << 5);
    /// The file it runs now is not the file it executed.
    pub const EXE_REPLACED: Self = Self(1 << 6);
    /// The socket is behind no open file: an io_uring direct descriptor, or an inner socket of MPTCP.
    pub const NO_FILE: Self = Self(1 << 7);

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn contains(self, doubt: Self) -> bool {
        self.0 & doubt.0 == doubt.0
    }
}

/// The bytes are no record of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's record has {0} bytes; this version reads {RECORD_SIZE}")]
pub struct RecordError(pub usize);

impl ConnectRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// Another length.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() != RECORD_SIZE {
            return Err(RecordError(bytes.len()));
        }
        let mut fields = Fields(bytes);
        Ok(Self {
            at_ns: fields.u64(),
            cookie: fields.u64(),
            start_ns: fields.u64(),
            image: fields.u64(),
            cgroup: fields.u64(),
            netns: fields.u64(),
            pid: fields.u32(),
            tid: fields.u32(),
            uid: fields.u32(),
            gid: fields.u32(),
            references: fields.u32(),
            isn: fields.u32(),
            doubts: Doubts(fields.u32()),
        })
    }

    /// Reads what is kept with an accepted socket, as `look` finds it. `None`: nobody wrote down who connected it.
    ///
    /// It is written while others look already, the time last: who sees that looks again, and sees the whole.
    pub fn stored(mut look: impl FnMut() -> Option<[u8; STORED_SIZE]>) -> Option<Self> {
        let mut record = || look()?.first_chunk::<RECORD_SIZE>().and_then(|bytes| Self::parse(bytes).ok());
        record().filter(|early| early.at_ns != 0).and_then(|_| record())
    }

    /// The same as bytes, as the kernel programs write them.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RECORD_SIZE] {
        let longs = [self.at_ns, self.cookie, self.start_ns, self.image, self.cgroup, self.netns];
        let words = [self.pid, self.tid, self.uid, self.gid, self.references, self.isn, self.doubts.0];
        let bytes = longs.into_iter().flat_map(u64::to_ne_bytes).chain(words.into_iter().flat_map(u32::to_ne_bytes));
        let mut record = [0; RECORD_SIZE];
        record.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        record
    }

    /// The process's start in clock ticks (`USER_HZ`, 100 per second), as `/proc/PID/stat` has it.
    #[must_use]
    pub fn start_ticks(&self) -> u64 {
        self.start_ns / (1_000_000_000 / USER_HZ)
    }
}

/// Clock ticks per second that Linux shows to userland on every architecture Rust runs on.
const USER_HZ: u64 = 100;

/// Takes numbers from the front; what is missing is 0, and the length was checked before.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u64(&mut self) -> u64 {
        let (head, tail) = self.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
        self.0 = tail;
        u64::from_ne_bytes(*head)
    }

    fn u32(&mut self) -> u32 {
        let (head, tail) = self.0.split_first_chunk().unwrap_or((&[0; 4], &[]));
        self.0 = tail;
        u32::from_ne_bytes(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let record = ConnectRecord {
            at_ns: 1,
            cookie: 2,
            start_ns: 7_373_202_059_382,
            image: 4,
            cgroup: 5,
            netns: 6,
            pid: 7,
            tid: 8,
            uid: 9,
            gid: 10,
            references: 11,
            isn: 12,
            doubts: Doubts(Doubts::SHARED_FILE.0 | Doubts::UNWITNESSED.0),
        };
        assert_eq!(ConnectRecord::parse(&record.to_bytes()), Ok(record));
        assert_eq!(record.start_ticks(), 737_320);
        assert!(record.doubts.contains(Doubts::UNWITNESSED) && !record.doubts.contains(Doubts::NO_FILE));
        assert_eq!(ConnectRecord::parse(&[0; RECORD_SIZE + 1]), Err(RecordError(RECORD_SIZE + 1)));
        assert_eq!(ConnectRecord::parse(&[]), Err(RecordError(0)));
    }
    #[test]
    fn what_is_kept_is_no_record_before_its_time_is_written_and_is_read_again_after() {
        let mut record = ConnectRecord::parse(&[1; RECORD_SIZE]).unwrap();
        let kept = |record: ConnectRecord| {
            let mut bytes = [7; STORED_SIZE];
            bytes[..RECORD_SIZE].copy_from_slice(&record.to_bytes());
            bytes
        };
        let whole = kept(record);
        // What is read first may be half of one; with its time in place, what is read next is not.
        record.pid = 9;
        let mut looks = [kept(record), whole].into_iter();
        assert_eq!(ConnectRecord::stored(|| looks.next()).unwrap().to_bytes(), whole[..RECORD_SIZE]);
        record.at_ns = 0;
        assert_eq!(ConnectRecord::stored(|| Some(kept(record))), None);
        assert_eq!(ConnectRecord::stored(|| None), None);
        assert_eq!(ConnectRecord::stored(|| Some([0; STORED_SIZE])), None);
    }
}
