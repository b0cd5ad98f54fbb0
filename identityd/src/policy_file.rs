//! The policy file, whose only reader is this daemon. A file that does not parse never replaces one that did; it is
//! looked at five times a second.

use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bonafide_policy::{ENTRIES_MAX, POLICY_MAX, Policy};
use bonafide_proto::clock::SharedClock;
use tokio::sync::watch;

use crate::in_force::{InForce, Loaded, State};

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(200);

/// The longest policy, in bytes.
const TEXT_MAX: u64 = POLICY_MAX as u64;

/// A file changed less than this ago may change again without its times changing; it is read once more.
const SETTLED: Duration = Duration::from_millis(100);

/// Looks at the file; `run` it.
#[derive(Debug)]
pub(crate) struct PolicyFile {
    path: PathBuf,
    clock: SharedClock,
    /// The versions last read, of the file and of those it includes, if reading them again cannot tell anything new.
    read: Option<Vec<(PathBuf, Version)>>,
    state: watch::Sender<State>,
}

/// A version of the file, as far as `stat` can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&std::fs::Metadata> for Version {
    fn from(m: &std::fs::Metadata) -> Self {
        Self {
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }
    }
}

impl PolicyFile {
    /// Reads the file for the first time; a missing or broken one is picked up when it is mended.
    pub(crate) fn open(path: PathBuf, clock: SharedClock) -> (Self, InForce) {
        let (state, watched) = watch::channel(State::default());
        let in_force = InForce::new(path.display().to_string(), watched);
        let mut file = Self { path, clock, read: None, state };
        file.look();
        (file, in_force)
    }

    /// Looks again and again.
    pub(crate) async fn run(mut self) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A look at an unchanged file is one stat; parsing a changed one takes milliseconds and is rare.
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(file) => self = file,
                Err(e) => {
                    tracing::error!(error = %e, "the policy file is no longer looked at");
                    return;
                }
            }
        }
    }

    fn look(&mut self) {
        let is_as_read = |(path, version): &(PathBuf, Version)| {
            std::fs::metadata(path).is_ok_and(|now| Version::from(&now) == *version)
        };
        if self.read.as_ref().is_some_and(|read| read.iter().all(is_as_read)) {
            return;
        }
        let (read, text) = self.whole();
        let settled = read.iter().all(|(_, version)| self.settled(*version));
        match text {
            Ok(text) => {
                self.read = settled.then_some(read);
                self.take(text);
            }
            Err(why) => {
                self.read = None;
                self.fail(why);
            }
        }
    }

    /// The file, put together with those it includes; and what was read for that.
    fn whole(&self) -> (Vec<(PathBuf, Version)>, Result<String, String>) {
        let versions = RefCell::new(Vec::new());
        let name = self.path.display().to_string();
        let text = read(&self.path).map_err(|e| format!("{name}: {e}")).and_then(|(version, text)| {
            versions.borrow_mut().push((self.path.clone(), version));
            let beside = self.path.parent().map(Path::to_owned).unwrap_or_default();
            let included = |name: &str| {
                let path = beside.join(name);
                let (version, text) = read(&path).map_err(|e| e.to_string())?;
                versions.borrow_mut().push((path, version));
                Ok(text)
            };
            let listed = |name: &str| {
                let path = beside.join(name);
                // What comes and goes there changes its times.
                let (version, names) = list(&path).map_err(|e| e.to_string())?;
                versions.borrow_mut().push((path, version));
                Ok(names)
            };
            bonafide_policy::assemble(&name, &text, included, listed).map_err(|e| e.to_string())
        });
        (versions.into_inner(), text)
    }

    fn settled(&self, version: Version) -> bool {
        let changed = u64::try_from(version.changed.0).unwrap_or(0);
        let nanos = u32::try_from(version.changed.1).unwrap_or(0);
        self.clock.now() >= Duration::new(changed, nanos) + SETTLED
    }

    fn take(&self, text: String) {
        let same = |loaded: &Arc<Loaded>| loaded.text == text;
        if self.state.borrow().loaded.as_ref().is_some_and(same) {
            self.state.send_if_modified(|state| state.error.take().is_some());
            return;
        }
        match Policy::parse(&self.path.display().to_string(), &text) {
            Ok(policy) => {
                tracing::info!(digest = %policy.digest(), mode = policy.mode().as_str(), "policy in force");
                let loaded = Some(Arc::new(Loaded { policy, text, version: 0 }));
                self.state.send_replace(State { loaded, error: None });
            }
            Err(e) => self.fail(e.to_string()),
        }
    }

    /// Keeps the policy that was in force; says why once.
    fn fail(&self, error: String) {
        if self.state.borrow().error.as_deref() == Some(&error) {
            return;
        }
        let kept = self.state.borrow().loaded.is_some();
        tracing::error!(%error, kept, "the policy file is not in force");
        self.state.send_modify(|state| state.error = Some(error));
    }
}

/// Why the file was not read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no regular file")]
    NotRegular,
    #[error("it is no directory")]
    NotDirectory,
    #[error("it belongs to uid {0}; it must belong to root or to uid {1}")]
    Owner(u32, u32),
    #[error("its mode {0:04o} lets others write it; take that away (chmod go-w)")]
    Mode(u32),
    #[error("it is longer than {TEXT_MAX} bytes")]
    TooLong,
    #[error("it is not UTF-8")]
    NotText,
    #[error("it changed while it was read")]
    Changed,
}

fn read(path: &Path) -> Result<(Version, String), ReadError> {
    // Nothing hangs on a pipe that was put there.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let version = trusted(&file)?;
    let mut text = Vec::new();
    (&file).take(TEXT_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > TEXT_MAX {
        return Err(ReadError::TooLong);
    }
    if Version::from(&file.metadata()?) != version {
        return Err(ReadError::Changed);
    }
    Ok((version, String::from_utf8(text).map_err(|_| ReadError::NotText)?))
}

/// The names in a directory. What is not UTF-8 in one is replaced, so that it is refused by name and not passed over.
fn list(directory: &Path) -> Result<(Version, Vec<String>), ReadError> {
    let opened = File::open(directory)?;
    let metadata = opened.metadata()?;
    if !metadata.is_dir() {
        return Err(ReadError::NotDirectory);
    }
    owned(&metadata)?;
    let entries = std::fs::read_dir(directory)?.take(ENTRIES_MAX + 1);
    let names =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<_>>()?;
    if Version::from(&std::fs::metadata(directory)?) != Version::from(&metadata) {
        return Err(ReadError::Changed);
    }
    Ok((Version::from(&metadata), names))
}

fn trusted(file: &File) -> Result<Version, ReadError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NotRegular);
    }
    owned(&metadata)?;
    Ok(Version::from(&metadata))
}

/// Nobody but root and this daemon's own user may have written it.
fn owned(metadata: &Metadata) -> Result<(), ReadError> {
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != own {
        return Err(ReadError::Owner(metadata.uid(), own));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(ReadError::Mode(metadata.mode() & 0o7777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use bonafide_proto::clock::SystemClock;
    use bonafide_proto::refusal::AttestReason;

    use super::*;

    const OBSERVE: &str = "mode = \"observe\"\n";
    const ENFORCE: &str = "mode = \"enforce\"\n";

    struct Fixture {
        dir: tempfile::TempDir,
        policy: InForce,
        seen: watch::Receiver<State>,
    }

    impl Fixture {
        fn start(text: Option<&str>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            if let Some(text) = text {
                std::fs::write(dir.path().join("policy.toml"), text).unwrap();
            }
            let (file, policy) = PolicyFile::open(dir.path().join("policy.toml"), Arc::new(SystemClock));
            tokio::spawn(file.run());
            let seen = policy.watch();
            Self { dir, policy, seen }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("policy.toml")
        }

        fn write(&self, text: &str) {
            std::fs::write(self.path(), text).unwrap();
        }

        async fn until(&mut self, what: impl Fn(&State) -> bool) -> State {
            tokio::time::timeout(Duration::from_secs(20), self.seen.wait_for(|s| what(s)))
                .await
                .unwrap()
                .unwrap()
                .clone()
        }

        async fn error(&mut self, containing: &str) -> State {
            self.until(|s| s.error.as_ref().is_some_and(|e| e.contains(containing))).await
        }
    }

    fn text(state: &State) -> Option<&str> {
        state.loaded.as_ref().map(|l| l.text.as_str())
    }

    #[tokio::test]
    async fn what_is_included_is_part_of_the_policy_and_a_change_of_it_is_noticed() {
        let mut fixture = Fixture::start(None);
        let part = fixture.dir.path().join("part.toml");
        let with = |exe: &str| format!("[[workload]]\nname = \"a\"\nexe = \"{exe}\"\n");
        std::fs::write(&part, with("/a")).unwrap();
        fixture.write(&format!("{ENFORCE}include = [\"part.toml\"]\n"));
        let has = |state: &State, exe: &str| state.loaded.as_ref().is_some_and(|loaded| loaded.text.contains(exe));
        fixture.seen.wait_for(|state| has(state, "\"/a\"")).await.unwrap();
        std::fs::write(&part, with("/b")).unwrap();
        fixture.seen.wait_for(|state| has(state, "\"/b\"")).await.unwrap();
        // A part that is broken, or that others could write, never replaces what works.
        std::fs::write(&part, "[[workload").unwrap();
        let state = fixture.seen.wait_for(|state| state.error.is_some()).await.unwrap().clone();
        assert!(state.error.as_ref().unwrap().contains("part.toml:1:") && has(&state, "\"/b\""), "{:?}", state.error);
        std::fs::write(&part, with("/c")).unwrap();
        fixture.seen.wait_for(|state| state.error.is_none() && has(state, "\"/c\"")).await.unwrap();
        // A directory's policies are looked for anew when one comes or goes.
        std::fs::create_dir(fixture.dir.path().join("d")).unwrap();
        std::fs::write(fixture.dir.path().join("d/one.toml"), with("/one")).unwrap();
        fixture.write(&format!("{ENFORCE}include = [\"d/\"]\n"));
        fixture.seen.wait_for(|state| has(state, "\"/one\"") && !has(state, "\"/c\"")).await.unwrap();
        let two = with("/two").replace("\"a\"", "\"b\"");
        std::fs::write(fixture.dir.path().join("d/two.toml"), two).unwrap();
        fixture.seen.wait_for(|state| has(state, "\"/one\"") && has(state, "\"/two\"")).await.unwrap();
        std::fs::remove_file(fixture.dir.path().join("d/one.toml")).unwrap();
        fixture.seen.wait_for(|state| !has(state, "\"/one\"") && has(state, "\"/two\"")).await.unwrap();
        fixture.write(&format!("{ENFORCE}include = [\"part.toml\"]\n"));
        fixture.seen.wait_for(|state| has(state, "\"/c\"")).await.unwrap();
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o666)).unwrap();
        let writable =
            |state: &State| state.error.as_ref().is_some_and(|why| why.contains("its mode 0666 lets others write it"));
        let state = fixture.seen.wait_for(writable).await.unwrap().clone();
        assert!(has(&state, "\"/c\""));
    }

    #[tokio::test]
    async fn a_broken_file_never_replaces_a_working_one() {
        let mut f = Fixture::start(Some(OBSERVE));
        assert_eq!(text(&f.policy.state()), Some(OBSERVE));
        f.write("mode = \"shrug\"\n");
        let broken = f.error("policy.toml:1:").await;
        assert_eq!(text(&broken), Some(OBSERVE));
        f.write(ENFORCE);
        let mended = f.until(|s| text(s) == Some(ENFORCE)).await;
        assert_eq!(mended.error, None);
    }

    #[tokio::test]
    async fn a_missing_file_is_picked_up_when_it_comes_and_kept_when_it_goes() {
        let mut f = Fixture::start(None);
        let refusal = f.policy.get().unwrap_err();
        assert_eq!(refusal.reason, AttestReason::NoPolicy);
        assert!(refusal.detail.contains("policy.toml"), "{refusal}");
        f.write(OBSERVE);
        f.until(|s| text(s) == Some(OBSERVE) && s.error.is_none()).await;
        std::fs::remove_file(f.path()).unwrap();
        assert_eq!(text(&f.error("No such file").await), Some(OBSERVE));
        // The same text again is no new policy, but the error is over.
        let before = f.policy.get().unwrap();
        f.write(OBSERVE);
        f.until(|s| s.error.is_none()).await;
        assert!(Arc::ptr_eq(&before, &f.policy.get().unwrap()));
    }

    #[tokio::test]
    async fn a_file_that_others_may_write_is_not_trusted() {
        let mut f = Fixture::start(Some(OBSERVE));
        f.write(ENFORCE);
        std::fs::set_permissions(f.path(), std::fs::Permissions::from_mode(0o664)).unwrap();
        let state = f.error("0664 lets others write").await;
        assert!(state.loaded.is_some());
        std::fs::set_permissions(f.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        f.until(|s| s.error.is_none() && text(s) == Some(ENFORCE)).await;
    }

    #[test]
    fn pipes_directories_and_monsters_are_no_policy() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(matches!(read(&pipe), Err(ReadError::NotRegular)));
        assert!(matches!(read(dir.path()), Err(ReadError::NotRegular)));
        let monster = dir.path().join("monster");
        File::create(&monster).unwrap().set_len(TEXT_MAX + 1).unwrap();
        assert!(matches!(read(&monster), Err(ReadError::TooLong)));
        let binary = dir.path().join("binary");
        std::fs::write(&binary, b"\xff").unwrap();
        assert!(matches!(read(&binary), Err(ReadError::NotText)));
    }
}
