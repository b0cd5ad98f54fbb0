//! A connection to one member of a cluster, with TLS where the place says so; and, if there is none, why.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bonafide_proto::clock::SharedClock;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::place::EtcdTls;

/// Why a member could not be talked to the last time; shared by all who talk to it.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(super) fn now(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn over(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What is told again and again is logged once.
    fn is(&self, member: &str, why: String) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.as_ref() != Some(&why) {
            tracing::warn!(member, why, "a member of the store cannot be talked to");
        }
        *trouble = Some(why);
    }
}

/// Dials one member.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    address: String,
    tls: Option<EtcdTls>,
    clock: SharedClock,
    trouble: Trouble,
}

impl Dial {
    pub(super) fn new(address: String, tls: Option<EtcdTls>, clock: SharedClock, trouble: Trouble) -> Self {
        Self { address, tls, clock, trouble }
    }

    pub(super) async fn connect(self) -> io::Result<TokioIo<Stream>> {
        let connected = self.open().await;
        connected.map(TokioIo::new).inspect_err(|e| self.trouble.is(&self.address, self.why(e)))
    }

    async fn open(&self) -> io::Result<Stream> {
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        let kind = match &self.tls {
            None => Kind::Plain(tcp),
            Some(tls) => {
                // Read anew each time: these certificates are renewed while the daemon runs.
                let config = tls.config(&self.clock).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
                let name = ServerName::try_from(self.host().to_owned());
                let name = name.map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
                Kind::Tls(Box::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?))
            }
        };
        Ok(Stream { kind, dial: self.clone(), heard: false })
    }

    fn host(&self) -> &str {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// What happened, and what would be right.
    fn why(&self, e: &io::Error) -> String {
        let tls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match (&self.tls, tls) {
            (Some(files), Some(e)) => self.refused(files, e),
            (Some(_), None) if e.kind() == io::ErrorKind::UnexpectedEof => {
                "it ended the handshake without a word: does it listen for https (--cert-file, --key-file)?".to_owned()
            }
            _ => e.to_string(),
        }
    }

    fn refused(&self, files: &EtcdTls, e: &rustls::Error) -> String {
        use CertificateError as Bad;
        let EtcdTls { ca, cert, .. } = files;
        match e {
            rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
                format!(
                    "its certificate is not of a CA in {}; store_tls.ca has to be the CA of the members",
                    ca.display()
                )
            }
            rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
                "its certificate has expired; renew it on that member".to_owned()
            }
            rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => format!(
                "its certificate is not for {}; name the member as its certificate does, or have it name this",
                self.host()
            ),
            rustls::Error::AlertReceived(alert) if is_about_certificate(*alert) => format!(
                "it does not take {} ({alert:?}): that has to be a valid client certificate of the CA in the member's \
                 --trusted-ca-file",
                cert.display()
            ),
            rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => "it does not speak TLS 1.3".to_owned(),
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                "it answers without TLS; give it --cert-file, --key-file, --trusted-ca-file and --client-cert-auth"
                    .to_owned()
            }
            other => other.to_string(),
        }
    }

    /// It was connected, and is not any more.
    fn lost(&self, e: &io::Error, heard: bool) {
        let tls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if tls.is_some() {
            self.trouble.is(&self.address, self.why(e));
        } else if !heard && self.tls.is_none() {
            self.trouble.is(&self.address, WANTS_TLS.to_owned());
        }
    }
}

const WANTS_TLS: &str =
    "it ends connections without a word, as one does that asks for TLS: say by store_tls how it is known";

fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateUnknown
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied
    )
}

/// A connection to a member.
pub(super) struct Stream {
    kind: Kind,
    dial: Dial,
    /// It has said something.
    heard: bool,
}

enum Kind {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = ready!(match &mut this.kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Kind::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        });
        match &read {
            Ok(()) if buf.filled().len() > before => this.heard = true,
            Ok(()) => this.dial.lost(&io::ErrorKind::UnexpectedEof.into(), this.heard),
            Err(e) => this.dial.lost(e, this.heard),
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Kind::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Kind::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Kind::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
