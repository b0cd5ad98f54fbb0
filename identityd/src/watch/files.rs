//! Changes of files: inotify(7) on the file itself, wherever its path leads by then. Where the user's watches
//! (`fs.inotify.max_user_watches`) are used up, or inotify is not to be had, the file is looked at every
//! [`POLL`] instead.
//!
//! A store through a shared mapping is told by neither before it is written back; whoever can make one can also write
//! the file before it is run.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::sys::executable::FileId;
use crate::version::FileVersion;

/// How often files are looked at that inotify does not watch.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// Files that are looked at: each costs a descriptor.
const POLLED_MAX: usize = 4096;
/// Read at once, in bytes; an event of a file has 16.
const READ: usize = 16 << 10;

/// Buffers that may wait to be heard.
const BUFFERS_MAX: usize = 16;

/// A file that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Spot {
    /// By the kernel; its number is never used twice.
    Told(i32),
    /// By looking at it; it is open, so that nobody else gets its number.
    Looked(FileId),
}

/// What inotify told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Its content, name, owner or link count changed.
    File(Spot),
    /// It is gone, and not watched any more.
    Gone(Spot),
    /// More than could be kept: any file may have changed.
    Any,
}

/// The files that are watched.
#[derive(Debug)]
pub(crate) struct Files {
    inotify: Option<Arc<OwnedFd>>,
    looked: HashMap<FileId, Looked>,
    /// Whether it was said that inotify has no room.
    said: bool,
}

#[derive(Debug)]
struct Looked {
    file: Arc<File>,
    state: State,
}

/// What a look at a file shows; a rename shows in its change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    version: FileVersion,
    links: u64,
}

impl State {
    fn of(file: &File) -> io::Result<Self> {
        Ok(Self { version: FileVersion::of(file)?, links: file.metadata()?.nlink() })
    }
}

impl Files {
    /// None yet.
    pub(crate) fn open() -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map(Arc::new);
        if let Err(e) = &inotify {
            tracing::warn!(error = %e, "no inotify: files are looked at every {POLL:?}");
        }
        Self { said: inotify.is_err(), inotify: inotify.ok(), looked: HashMap::new() }
    }

    /// Where inotify tells, if it does.
    pub(crate) fn inotify(&self) -> Option<Arc<OwnedFd>> {
        self.inotify.clone()
    }

    /// Watches an open file from now on. Watching twice is watching once.
    ///
    /// # Errors
    /// There is room neither in inotify nor here.
    pub(crate) fn watch(&mut self, file: &Arc<File>) -> io::Result<Spot> {
        match self.tell(file) {
            Some(Ok(number)) => Ok(Spot::Told(number)),
            Some(Err(e)) if e != Errno::NOSPC => Err(e.into()),
            _ => self.look_at(file),
        }
    }

    fn tell(&self, file: &File) -> Option<Result<i32, Errno>> {
        let what = WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::CLOSE_WRITE;
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.inotify.as_ref().map(|inotify| inotify::add_watch(inotify, link, what))
    }

    fn look_at(&mut self, file: &Arc<File>) -> io::Result<Spot> {
        if !self.said {
            self.said = true;
            tracing::warn!("fs.inotify.max_user_watches is used up: files are looked at every {POLL:?}");
        }
        let state = State::of(file)?;
        let id = state.version.id;
        if self.looked.len() >= POLLED_MAX && !self.looked.contains_key(&id) {
            return Err(io::Error::other(format!("{POLLED_MAX} files are looked at already")));
        }
        self.looked.entry(id).or_insert_with(|| Looked { file: Arc::clone(file), state });
        Ok(Spot::Looked(id))
    }

    /// Watches it no longer.
    pub(crate) fn forget(&mut self, spot: Spot) {
        match (spot, &self.inotify) {
            (Spot::Told(number), Some(inotify)) => {
                // It may have gone by itself, with its file.
                let _ = inotify::remove_watch(inotify, number);
            }
            (Spot::Told(_), None) => {}
            (Spot::Looked(id), _) => drop(self.looked.remove(&id)),
        }
    }

    /// The files to be looked at.
    pub(crate) fn looked(&self) -> Vec<(FileId, Arc<File>)> {
        self.looked.iter().map(|(id, looked)| (*id, Arc::clone(&looked.file))).collect()
    }

    /// Those of them that look different now.
    pub(crate) fn different(&mut self, looks: Vec<(FileId, io::Result<State>)>) -> Vec<Spot> {
        let mut different = Vec::new();
        for (id, look) in looks {
            let Some(looked) = self.looked.get_mut(&id) else { continue };
            match look {
                Ok(state) if state == looked.state => {}
                Ok(state) => {
                    looked.state = state;
                    different.push(Spot::Looked(id));
                }
                Err(_) => different.push(Spot::Looked(id)),
            }
        }
        different
    }
}

/// Looks at files; may block.
pub(crate) fn look(files: Vec<(FileId, Arc<File>)>) -> Vec<(FileId, io::Result<State>)> {
    files.into_iter().map(|(id, file)| (id, State::of(&file))).collect()
}

/// Hears inotify, in a thread of its own, as long as somebody hears that; it ends too when inotify fails.
///
/// # Errors
/// No thread can be started.
pub(crate) fn listen(inotify: Arc<OwnedFd>) -> io::Result<mpsc::Receiver<Vec<Touched>>> {
    let (to, told) = mpsc::channel(BUFFERS_MAX);
    let hear = move || {
        while !to.is_closed() {
            match wait(&inotify).and_then(|()| read(&inotify)) {
                // The kernel keeps what is not read, and says when that was too much.
                Ok(touched) => drop(to.blocking_send(touched)),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return tracing::error!(error = %e, "inotify"),
            }
        }
    };
    std::thread::Builder::new().name("inotify".to_owned()).spawn(hear)?;
    Ok(told)
}

fn wait(inotify: &OwnedFd) -> io::Result<()> {
    // Now and then it looks whether anybody still hears.
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    rustix::event::poll(&mut [PollFd::new(inotify, PollFlags::IN)], Some(&second))?;
    Ok(())
}

/// What inotify tells by now, one buffer of it.
///
/// # Errors
/// `WouldBlock` if there is nothing; the system's.
fn read(inotify: &OwnedFd) -> io::Result<Vec<Touched>> {
    let mut buffer = [MaybeUninit::uninit(); READ];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut all = Vec::new();
    loop {
        let event = reader.next()?;
        let (flags, spot) = (event.events(), Spot::Told(event.wd()));
        all.push(match () {
            () if flags.contains(ReadFlags::QUEUE_OVERFLOW) => Touched::Any,
            () if flags.contains(ReadFlags::IGNORED) => Touched::Gone(spot),
            () => Touched::File(spot),
        });
        if reader.is_buffer_empty() {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Watched {
        dir: tempfile::TempDir,
        files: Files,
        spot: Spot,
    }

    impl Watched {
        fn start(mut files: Files) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("file"), "one").unwrap();
            let open = Arc::new(File::open(dir.path().join("file")).unwrap());
            let spot = files.watch(&open).unwrap();
            assert_eq!(files.watch(&open).unwrap(), spot);
            Self { dir, files, spot }
        }

        fn told(&self) -> Vec<Touched> {
            let mut all = Vec::new();
            while let Ok(some) = read(&self.files.inotify().unwrap()) {
                all.extend(some);
            }
            all
        }

        fn different(&mut self) -> bool {
            let looks = look(self.files.looked());
            self.files.different(looks) == [self.spot]
        }
    }

    fn looking() -> Files {
        Files { inotify: None, looked: HashMap::new(), said: true }
    }

    type Change = fn(&std::path::Path);

    const CHANGES: [Change; 4] = [
        |dir| fs::write(dir.join("file"), "another").unwrap(),
        |dir| {
            fs::write(dir.join("new"), "one").unwrap();
            fs::rename(dir.join("new"), dir.join("file")).unwrap();
        },
        |dir| fs::rename(dir.join("file"), dir.join("elsewhere")).unwrap(),
        |dir| fs::remove_file(dir.join("file")).unwrap(),
    ];

    #[test]
    fn inotify_tells_every_change_of_the_file_and_none_of_another() {
        for change in CHANGES {
            let watched = Watched::start(Files::open());
            fs::write(watched.dir.path().join("other"), "x").unwrap();
            fs::read(watched.dir.path().join("file")).unwrap();
            assert_eq!(watched.told(), []);
            change(watched.dir.path());
            assert!(watched.told().contains(&Touched::File(watched.spot)));
        }
    }

    #[test]
    fn a_file_that_is_gone_says_so() {
        let watched = Watched::start(Files::open());
        fs::remove_file(watched.dir.path().join("file")).unwrap();
        assert_eq!(watched.told().last(), Some(&Touched::Gone(watched.spot)));
    }

    #[test]
    fn looking_shows_every_change_too() {
        for change in CHANGES {
            let mut watched = Watched::start(looking());
            assert!(!watched.different());
            change(watched.dir.path());
            assert!(watched.different());
            assert!(!watched.different(), "each change once");
        }
    }

    #[test]
    fn what_is_forgotten_is_told_no_more() {
        let mut told = Watched::start(Files::open());
        told.files.forget(told.spot);
        assert_eq!(told.told(), [Touched::Gone(told.spot)]);
        fs::write(told.dir.path().join("file"), "another").unwrap();
        assert_eq!(told.told(), []);
        let mut looked = Watched::start(looking());
        looked.files.forget(looked.spot);
        assert!(looked.files.looked().is_empty());
    }

    #[test]
    fn files_that_are_looked_at_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = looking();
        let one = Arc::new(File::open("/dev/null").unwrap());
        let state = State::of(&one).unwrap();
        for ino in 0..POLLED_MAX as u64 {
            files.looked.insert(FileId { dev: u64::MAX, ino }, Looked { file: Arc::clone(&one), state });
        }
        fs::write(dir.path().join("file"), "one").unwrap();
        let open = Arc::new(File::open(dir.path().join("file")).unwrap());
        assert!(files.watch(&open).unwrap_err().to_string().contains("looked at already"));
    }
}
