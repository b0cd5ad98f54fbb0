//! One open flow inside TLS: frames in, frames out, each way ended on its own.

use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::ending::Ending;
use super::error::TunnelError;
use super::frame::{BEST_PAYLOAD, Frame, HEADER, MAX_PAYLOAD, data_header};
use super::leaf::Leaf;
use super::renewal::{Allowance, Binding, Shown};
use super::session::{Session, bindings};

/// An open flow.
#[derive(Debug)]
pub struct Tunnel<S> {
    session: Session<S>,
    read: BytesMut,
    /// Of later certificates, this end's and the other's.
    bindings: [Binding; 2],
}

impl<S> Tunnel<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    pub(super) fn new(session: Session<S>, read: BytesMut) -> Result<Self, TunnelError> {
        Ok(Self { bindings: bindings(&session)?, session, read })
    }

    /// The connection under TLS.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        self.session.get_ref().0.get_ref()
    }

    /// Both directions, to be served by two tasks.
    #[must_use]
    pub fn into_split(self) -> (TunnelReader<S>, TunnelWriter<S>) {
        let (reader, writer) = tokio::io::split(self.session);
        let ([ours, theirs], state) = (self.bindings, State::Open);
        let reader =
            TunnelReader { half: reader, read: self.read, state, binding: theirs, renewals: Allowance::default() };
        let writer = TunnelWriter { half: writer, unsent: BytesMut::new(), state, binding: ours };
        (reader, writer)
    }
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes of the application; never empty.
    Data(Bytes),
    /// The peer's direction has ended in order.
    Fin,
    /// The peer cut the stream.
    Reset(Ending),
    /// The peer's program has a later certificate.
    Renewed(Shown),
}

/// How far one direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Finished,
    Reset(Ending),
}

/// What the peer sends.
#[derive(Debug)]
pub struct TunnelReader<S> {
    half: ReadHalf<Session<S>>,
    read: BytesMut,
    state: State,
    binding: Binding,
    renewals: Allowance,
}

impl<S> TunnelReader<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// What comes next. Safe to cancel: nothing is lost.
    ///
    /// May be called again after [`Incoming::Fin`], to hear of a reset or a renewal while our own direction still runs; it then
    /// answers `Fin` once more when the peer closes. After a reset it repeats the reset.
    ///
    /// # Errors
    /// [`TunnelError::Truncated`] if the connection ends without FIN or RESET, or after FIN without `close_notify`.
    pub async fn next(&mut self) -> Result<Incoming, TunnelError> {
        match self.state {
            State::Open => {
                let frame = read_frame(&mut self.half, &mut self.read).await?;
                self.take(frame)
            }
            State::Finished => match read_frame_or_end(&mut self.half, &mut self.read).await? {
                None => Ok(Incoming::Fin),
                Some(frame @ (Frame::Reset(_) | Frame::Renew(_))) => self.take(frame),
                Some(other) => Err(TunnelError::Protocol(format!("{} after FIN", other.name()))),
            },
            State::Reset(why) => Ok(Incoming::Reset(why)),
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Incoming, TunnelError> {
        match frame {
            Frame::Data(data) => Ok(Incoming::Data(data)),
            Frame::Fin => {
                self.state = State::Finished;
                Ok(Incoming::Fin)
            }
            Frame::Reset(why) => {
                self.state = State::Reset(why);
                Ok(Incoming::Reset(why))
            }
            Frame::Renew(renewal) => {
                self.renewals.take()?;
                Ok(Incoming::Renewed(Shown { renewal, binding: self.binding }))
            }
            other => Err(TunnelError::Protocol(format!("{} in an open stream", other.name()))),
        }
    }

    async fn discard(mut self) {
        // Any outcome is an end.
        drop(tokio::io::copy(&mut self.half, &mut tokio::io::sink()).await);
    }
}

/// What we send. Every method flushes; each may be cancelled, and the stream of frames stays whole: the next call
/// first sends the rest of a frame that was begun. (Whether cancelled data arrives is then open, as with a socket.)
#[derive(Debug)]
pub struct TunnelWriter<S> {
    half: WriteHalf<Session<S>>,
    /// The rest of a frame whose sending was cancelled. At most one frame.
    unsent: BytesMut,
    state: State,
    binding: Binding,
}

impl<S> TunnelWriter<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Sends bytes of the application, in as few frames as possible.
    /// Multiples of [`BEST_PAYLOAD`](super::frame::BEST_PAYLOAD) waste nothing.
    ///
    /// # Errors
    /// The connection failed, or this direction has ended.
    pub async fn data(&mut self, data: &[u8]) -> Result<(), TunnelError> {
        self.must_be_open("DATA")?;
        self.send_rest().await?;
        let frame_size = if data.len() <= MAX_PAYLOAD { MAX_PAYLOAD } else { BEST_PAYLOAD };
        for payload in data.chunks(frame_size) {
            let header = data_header(payload.len());
            let mut frame = Begun { half: &mut self.half, unsent: &mut self.unsent, header: &header, payload, sent: 0 };
            frame.send().await?;
        }
        Ok(self.half.flush().await?)
    }

    /// Ends this direction in order.
    ///
    /// # Errors
    /// The connection failed, or this direction has ended.
    pub async fn fin(&mut self) -> Result<(), TunnelError> {
        self.must_be_open("FIN")?;
        self.state = State::Finished;
        Frame::Fin.encode(&mut self.unsent);
        self.flush().await
    }

    /// Shows a later certificate of the program at this end, also after FIN.
    ///
    /// # Errors
    /// The connection failed, the stream was cut, or the leaf is none of ours.
    pub async fn renew(&mut self, leaf: &Leaf) -> Result<(), TunnelError> {
        if matches!(self.state, State::Reset(_)) {
            return Err(TunnelError::Protocol("RENEW after our own RESET".into()));
        }
        Frame::Renew(self.binding.show(leaf)?).encode(&mut self.unsent);
        self.flush().await
    }

    /// Cuts the stream, also after FIN. Cutting it again does nothing.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn reset(&mut self, why: Ending) -> Result<(), TunnelError> {
        if !matches!(self.state, State::Reset(_)) {
            self.state = State::Reset(why);
            Frame::Reset(why).encode(&mut self.unsent);
        }
        self.flush().await
    }

    /// Closes TLS and the connection's sending side: after both FINs, or after a reset.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn shutdown(&mut self) -> Result<(), TunnelError> {
        self.send_rest().await?;
        Ok(self.half.shutdown().await?)
    }

    /// Cuts the stream and closes, so that the peer reads our RESET before it sees the connection end.
    ///
    /// Closing a socket over bytes that were not read makes the kernel reset the connection, which can destroy a
    /// RESET the peer has not read yet: what still comes is therefore discarded until the peer closes, too.
    ///
    /// # Errors
    /// The connection failed, or the peer did not take our RESET within `patience`.
    pub async fn cut(mut self, reader: TunnelReader<S>, why: Ending, patience: Duration) -> Result<(), TunnelError> {
        timeout(patience, async {
            self.reset(why).await?;
            self.shutdown().await?;
            reader.discard().await;
            Ok(())
        })
        .await?
    }

    fn must_be_open(&self, what: &str) -> Result<(), TunnelError> {
        match self.state {
            State::Open => Ok(()),
            State::Finished => Err(TunnelError::Protocol(format!("{what} after our own FIN"))),
            State::Reset(_) => Err(TunnelError::Protocol(format!("{what} after our own RESET"))),
        }
    }

    async fn send_rest(&mut self) -> Result<(), TunnelError> {
        while !self.unsent.is_empty() {
            no_progress_is_an_error(self.half.write_buf(&mut self.unsent).await?)?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), TunnelError> {
        self.send_rest().await?;
        Ok(self.half.flush().await?)
    }
}

/// A DATA frame on its way. Dropped half-way, it leaves its rest with the writer.
struct Begun<'a, W> {
    half: &'a mut W,
    unsent: &'a mut BytesMut,
    header: &'a [u8; HEADER],
    payload: &'a [u8],
    sent: usize,
}

impl<W: AsyncWrite + Unpin> Begun<'_, W> {
    /// Header and payload leave together, without being copied together.
    async fn send(&mut self) -> io::Result<()> {
        loop {
            let (header, payload) = self.rest();
            if payload.is_empty() {
                return Ok(());
            }
            let slices = [IoSlice::new(header), IoSlice::new(payload)];
            let n = self.half.write_vectored(&slices).await?;
            self.sent += no_progress_is_an_error(n)?;
        }
    }
}

impl<'a, W> Begun<'a, W> {
    fn rest(&self) -> (&'a [u8], &'a [u8]) {
        let header = self.header.get(self.sent..).unwrap_or_default();
        let payload = self.payload.get(self.sent.saturating_sub(HEADER)..).unwrap_or_default();
        (header, payload)
    }
}

impl<W> Drop for Begun<'_, W> {
    fn drop(&mut self) {
        if self.sent > 0 {
            let (header, payload) = self.rest();
            self.unsent.extend_from_slice(header);
            self.unsent.extend_from_slice(payload);
        }
    }
}

fn no_progress_is_an_error(n: usize) -> io::Result<usize> {
    if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) }
}

/// Reads one frame. Safe to cancel: what was read stays in `buf`.
pub(super) async fn read_frame<R>(from: &mut R, buf: &mut BytesMut) -> Result<Frame, TunnelError>
where
    R: AsyncRead + Unpin,
{
    read_frame_or_end(from, buf).await?.ok_or(TunnelError::Truncated)
}

/// Reads one frame, or `None` where the peer closed TLS in order and between two frames.
async fn read_frame_or_end<R>(from: &mut R, buf: &mut BytesMut) -> Result<Option<Frame>, TunnelError>
where
    R: AsyncRead + Unpin,
{
    loop {
        if let Some(frame) = Frame::decode(buf)? {
            return Ok(Some(frame));
        }
        // Reclaims the memory of frames that were consumed; never grows beyond one frame and a bit.
        buf.reserve(HEADER + MAX_PAYLOAD - buf.len().min(MAX_PAYLOAD));
        if from.read_buf(buf).await? == 0 {
            return if buf.has_remaining() { Err(TunnelError::Truncated) } else { Ok(None) };
        }
    }
}

/// Writes one frame of the opening.
pub(super) async fn write_frame<W>(to: &mut W, frame: &Frame) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let mut bytes = BytesMut::with_capacity(HEADER + 64);
    frame.encode(&mut bytes);
    to.write_all(&bytes).await?;
    to.flush().await
}

#[cfg(test)]
impl<S> Tunnel<S> {
    pub(super) fn session_mut(&mut self) -> &mut Session<S> {
        &mut self.session
    }
}
