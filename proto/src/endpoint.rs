//! How the daemons of one host meet: gRPC over unix sockets, callers admitted by the kernel's word for their uid.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};

/// After a warning, how long the same one is only counted: anybody may connect, so anybody could fill the log.
const QUIET: Duration = Duration::from_secs(60);
/// Different warnings remembered at once. A user namespace gives one caller tens of thousands of uids.
const REMEMBERED: usize = 64;

/// Binds a unix socket that anybody may connect to; [`admit`] decides who is heard.
///
/// A stale socket file of an earlier run is replaced; a live one is not.
///
/// # Errors
/// `AddrInUse` if another daemon answers there; any error of the file system.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists and is no socket; move it away", path.display()),
            ));
        }
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another daemon already serves {}", path.display()),
                ));
            }
            std::fs::remove_file(path)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// The connections of callers whose uid is one of `uids`; all others are closed unheard.
///
/// Refused callers cost a line in the log per uid and minute, which also counts those that got none.
pub fn admit(listener: UnixListener, uids: Vec<u32>) -> impl Stream<Item = io::Result<UnixStream>> + Send {
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let mut complaints = Complaints::default();
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors, most likely: wait for some to come back.
                    complaints.warn(Complaint::Accept, Some(&e));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(cred) if uids.contains(&cred.uid()) => {
                    if tx.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                Ok(cred) => complaints.warn(Complaint::Uid(cred.uid()), None),
                Err(e) => complaints.warn(Complaint::Credentials, Some(&e)),
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(rx)
}

/// What [`admit`] warns about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Complaint {
    /// A caller with a uid that is not admitted.
    Uid(u32),
    /// As `Uid`, while too many others are remembered.
    SomeUid,
    /// A caller whose credentials cannot be read.
    Credentials,
    /// Callers cannot be accepted.
    Accept,
}

/// The warnings of the last minute, and how many like them were left out.
#[derive(Debug, Default)]
struct Complaints(BTreeMap<Complaint, (Instant, u64)>);

impl Complaints {
    fn warn(&mut self, about: Complaint, error: Option<&io::Error>) {
        let Some((about, left_out)) = self.due(about, Instant::now()) else { return };
        let error = error.map(tracing::field::display);
        match about {
            Complaint::Uid(uid) => tracing::warn!(uid, left_out, "caller refused: its uid is not admitted here"),
            Complaint::SomeUid => tracing::warn!(left_out, "callers refused: their many uids are not admitted here"),
            Complaint::Credentials => {
                tracing::warn!(error, left_out, "caller refused: its credentials cannot be read");
            }
            Complaint::Accept => tracing::warn!(error, left_out, "accept failed"),
        }
    }

    /// What to warn about now, if anything, and how often it happened unmentioned before.
    fn due(&mut self, about: Complaint, now: Instant) -> Option<(Complaint, u64)> {
        let about = self.remembered(about, now);
        match self.0.get_mut(&about) {
            Some((since, left_out)) if now.saturating_duration_since(*since) < QUIET => {
                *left_out = left_out.saturating_add(1);
                None
            }
            _ => Some((about, self.0.insert(about, (now, 0)).map_or(0, |(_, left_out)| left_out))),
        }
    }

    /// The complaint, or the one that stands for it when there is no room for another uid.
    fn remembered(&mut self, about: Complaint, now: Instant) -> Complaint {
        if self.0.len() < REMEMBERED || self.0.contains_key(&about) || !matches!(about, Complaint::Uid(_)) {
            return about;
        }
        // With an old one goes its count; that is the price of a bound.
        self.0.retain(|_, (since, _)| now.saturating_duration_since(*since) < QUIET);
        if self.0.len() < REMEMBERED { about } else { Complaint::SomeUid }
    }
}

/// A channel to the daemon behind a unix socket. Connects when first used and again whenever needed.
#[must_use]
pub fn channel(path: impl Into<PathBuf>) -> Channel {
    let path: PathBuf = path.into();
    // The URI is only a placeholder: the connector dials the path.
    Endpoint::from_static("http://bonafide.invalid").connect_with_connector_lazy(tower::service_fn(
        move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::AsyncReadExt as _;
    use tokio_stream::StreamExt as _;

    use super::*;

    /// Counts what is logged.
    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<AtomicUsize>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            metadata.target().starts_with("bonafide")
        }
        fn event(&self, _event: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
        fn enter(&self, _span: &tracing::span::Id) {}
        fn exit(&self, _span: &tracing::span::Id) {}
    }

    #[tokio::test]
    async fn a_thousand_refused_callers_are_one_line_in_the_log() {
        let lines = Lines::default();
        let _guard = tracing::subscriber::set_default(lines.clone());
        let path = std::env::temp_dir().join(format!("bonafide-admit-{}", std::process::id()));
        let nobody = u32::MAX - 1;
        let mut heard = Box::pin(admit(bind(&path).unwrap(), vec![nobody]));
        for _ in 0..1000 {
            let mut caller = UnixStream::connect(&path).await.unwrap();
            assert_eq!(caller.read(&mut [0]).await.unwrap(), 0, "a refused caller was heard");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(lines.0.load(Ordering::Relaxed), 1);
        assert!(tokio::time::timeout(Duration::ZERO, heard.next()).await.is_err());
    }

    #[test]
    fn a_warning_comes_back_after_its_minute_with_what_was_left_out() {
        let mut complaints = Complaints::default();
        let (now, uid) = (Instant::now(), Complaint::Uid(1000));
        assert_eq!(complaints.due(uid, now), Some((uid, 0)));
        for second in 1..60 {
            assert_eq!(complaints.due(uid, now + Duration::from_secs(second)), None);
        }
        assert_eq!(complaints.due(Complaint::Uid(1001), now), Some((Complaint::Uid(1001), 0)));
        assert_eq!(complaints.due(uid, now + QUIET), Some((uid, 59)));
        assert_eq!(complaints.due(uid, now + QUIET * 2), Some((uid, 0)));
    }

    #[test]
    fn many_uids_do_not_get_around_it() {
        let mut complaints = Complaints::default();
        let now = Instant::now();
        let told = (0..65_536).filter(|uid| complaints.due(Complaint::Uid(*uid), now).is_some()).count();
        assert_eq!(told, REMEMBERED + 1);
        assert_eq!(complaints.0.len(), REMEMBERED + 1);
        assert_eq!(
            complaints.due(Complaint::Accept, now),
            Some((Complaint::Accept, 0)),
            "other troubles are still told"
        );
        let later = complaints.due(Complaint::Uid(70_000), now + QUIET);
        assert_eq!(later, Some((Complaint::Uid(70_000), 0)), "old ones make room");
    }
}
