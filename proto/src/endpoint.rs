//! How the daemons of one host meet: gRPC over unix sockets, callers admitted by the kernel's word for their uid.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};

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
pub fn admit(listener: UnixListener, uids: Vec<u32>) -> impl Stream<Item = io::Result<UnixStream>> + Send {
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors, most likely: wait for some to come back.
                    tracing::warn!(error = %e, "accept failed");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(cred) if uids.contains(&cred.uid()) => {
                    if tx.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                Ok(cred) => tracing::warn!(uid = cred.uid(), "caller refused: its uid is not admitted here"),
                Err(e) => tracing::warn!(error = %e, "caller refused: its credentials cannot be read"),
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(rx)
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
