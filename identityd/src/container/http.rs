//! HTTP/1.1 over a unix socket: one kind of request, answers bounded in size. Time is the caller's to bound.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::circuit::{AT_ONCE, AskError};
use super::dial::Dial;

/// The largest answer, in bytes.
pub(crate) const BODY_MAX: usize = 1 << 20;
/// The largest head of an answer, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Connections that are kept for later: as many as there are questions at once.
const IDLE_MAX: usize = AT_ONCE;

/// The longest line of an answer that comes in lines, in bytes.
pub(crate) const LINE_MAX: usize = 1 << 20;

/// A connection.
pub(super) type Sender = http1::SendRequest<Empty<Bytes>>;

/// A line of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// As it is.
    Whole(&'a [u8]),
    /// Longer than anybody may keep.
    TooLong,
}

/// Puts lines together of the pieces in which they come; empty ones are none.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
    too_long: bool,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Http {
    dial: Dial,
    idle: Mutex<Vec<Sender>>,
}

impl Http {
    /// Of whoever answers there.
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, idle: Mutex::default() }
    }

    /// Changes whenever a connection to it ended.
    pub(crate) fn generation(&self) -> u64 {
        self.dial.generation()
    }

    /// The body at this path; `None` if it is not found.
    ///
    /// # Errors
    /// No connection, no HTTP, another status, or a body beyond the bound.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<Bytes>, AskError> {
        if let Some(mut idle) = self.idle() {
            // The server may have closed it just now; a fresh one tells more.
            if let Ok(response) = idle.send_request(request(path)?).await {
                return self.read(idle, response).await;
            }
        }
        let mut fresh = self.fresh().await?;
        let response = fresh.send_request(request(path)?).await.map_err(spoken)?;
        self.read(fresh, response).await
    }

    fn idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(http1::SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// No connection.
    pub(super) async fn fresh(&self) -> Result<Sender, AskError> {
        let connection = self.dial.connect().await?;
        greeted(connection).await
    }

    async fn read(&self, sender: Sender, response: Response<Incoming>) -> Result<Option<Bytes>, AskError> {
        let (status, body) = whole(response).await?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
        meant(status, body)
    }
}

impl Lines {
    /// Hands over each line that ends in this piece.
    ///
    /// # Errors
    /// The first one of `line`.
    pub(crate) fn add(
        &mut self,
        piece: &[u8],
        mut line: impl FnMut(Line<'_>) -> Result<(), AskError>,
    ) -> Result<(), AskError> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            self.go_on(text);
            if !ends {
                continue;
            }
            if std::mem::take(&mut self.too_long) {
                line(Line::TooLong)?;
            } else if !self.begun.is_empty() {
                line(Line::Whole(&self.begun))?;
            }
            self.begun.clear();
        }
        Ok(())
    }

    fn go_on(&mut self, text: &[u8]) {
        self.too_long |= self.begun.len() + text.len() > LINE_MAX;
        if self.too_long {
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(text);
        }
    }
}

/// Asks for what comes line by line, as long as it does.
///
/// # Errors
/// Whatever ends it; the first one of `line`.
pub(super) async fn lines(
    mut connection: Sender,
    path: &str,
    mut line: impl FnMut(Line<'_>) -> Result<(), AskError>,
) -> Result<Infallible, AskError> {
    let response = connection.send_request(request(path)?).await.map_err(spoken)?;
    if response.status() != StatusCode::OK {
        return Err(AskError::failed(response.status().as_str()));
    }
    let (mut body, mut lines) = (response.into_body(), Lines::default());
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.map_err(spoken)?.into_data() {
            lines.add(&piece, &mut line)?;
        }
    }
    Err(AskError::ended())
}

/// The answer of whoever is at the other end; what they say before they are asked is none.
#[cfg(test)]
pub(crate) async fn asked<S>(connection: S, path: &str) -> Result<Option<Bytes>, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut sender = greeted(connection).await?;
    let (status, body) = whole(sender.send_request(request(path)?).await.map_err(spoken)?).await?;
    meant(status, body)
}

async fn greeted<S>(connection: S) -> Result<Sender, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(connection));
    let (sender, driver) = handshake.await.map_err(spoken)?;
    // It ends when the server closes the connection, or when the sender is dropped.
    tokio::spawn(driver);
    Ok(sender)
}

async fn whole(response: Response<Incoming>) -> Result<(StatusCode, Bytes), AskError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_MAX).collect().await.map_err(|e| cut(e.as_ref()))?;
    Ok((status, body.to_bytes()))
}

fn meant(status: StatusCode, body: Bytes) -> Result<Option<Bytes>, AskError> {
    match status {
        StatusCode::OK => Ok(Some(body)),
        StatusCode::NOT_FOUND => Ok(None),
        other => Err(AskError::failed(other.as_str())),
    }
}

fn request(path: &str) -> Result<Request<Empty<Bytes>>, AskError> {
    let request = Request::get(path).header(hyper::header::HOST, "runtime").body(Empty::new());
    request.map_err(|e| AskError::failed(e.to_string()))
}

fn spoken(e: hyper::Error) -> AskError {
    if e.is_parse() { AskError::garbage(e.to_string()) } else { AskError::Unreachable(std::io::Error::other(e)) }
}

fn cut(e: &(dyn std::error::Error + Send + Sync + 'static)) -> AskError {
    if e.is::<LengthLimitError>() {
        return AskError::Garbage(format!("more than {BODY_MAX} bytes"));
    }
    AskError::garbage(e.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::Barrier;
    use tokio::task::JoinSet;

    use super::*;

    /// Answers nobody before so many ask at once.
    async fn serve(mut stream: UnixStream, together: Arc<Barrier>) {
        let mut question = [0; 4096];
        while stream.read(&mut question).await.is_ok_and(|read| read > 0) {
            together.wait().await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_told_as_such_and_the_next_is_whole() {
        let (mut lines, mut told) = (Lines::default(), Vec::new());
        let mut hear = |piece: &[u8]| {
            lines.add(piece, |line| {
                told.push(match line {
                    Line::Whole(line) => Some(line.to_vec()),
                    Line::TooLong => None,
                });
                Ok(())
            })
        };
        hear(b"a\n\nb").unwrap();
        hear(b"c\n").unwrap();
        for _ in 0..=LINE_MAX / 4096 {
            hear(&[b'x'; 4096]).unwrap();
        }
        hear(b"\nd\n").unwrap();
        assert_eq!(told, [Some(b"a".to_vec()), Some(b"bc".to_vec()), None, Some(b"d".to_vec())]);
    }

    #[tokio::test]
    async fn many_questions_at_once_end_no_connection() {
        let dir = tempfile::tempdir().unwrap();
        let dial = Dial::new(dir.path().join("s"), 0);
        let server = UnixListener::bind(&dial.socket).unwrap();
        let serving = tokio::spawn(async move {
            let (mut serving, together) = (JoinSet::new(), Arc::new(Barrier::new(AT_ONCE)));
            while let Ok((stream, _)) = server.accept().await {
                serving.spawn(serve(stream, Arc::clone(&together)));
            }
        });
        let http = Arc::new(Http::new(dial.clone()));
        for _ in 0..3 {
            let mut asking = JoinSet::new();
            for _ in 0..AT_ONCE {
                let http = Arc::clone(&http);
                asking.spawn(async move { http.get("/x").await.unwrap() });
            }
            assert!(asking.join_all().await.iter().all(Option::is_some));
            assert_eq!(http.idle.lock().unwrap().len(), AT_ONCE);
        }
        assert_eq!(dial.generation(), 0);
        serving.abort();
    }
}
