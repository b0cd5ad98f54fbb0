//! Where an etcd store is, and how its members are told from others: `etcd://host:port,host:port/prefix`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bonafide_proto::clock::{SharedClock, TlsTime};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::key;

/// The most members.
const MEMBERS_MAX: usize = 16;
/// The longest prefix, in bytes.
const PREFIX_MAX: usize = 128;
/// The largest PEM file that is read, in bytes.
const PEM_MAX: u64 = 256 * 1024;
/// HTTP/2, which gRPC goes over.
const ALPN: &[u8] = b"h2";

/// Members and a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdPlace {
    members: Vec<String>,
    prefix: String,
    tls: Option<EtcdTls>,
}

/// The files by which members and authority know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// Certificates of those who may vouch for members, PEM.
    pub ca: PathBuf,
    /// The authority's own certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM, mode 0600.
    pub key: PathBuf,
}

/// Why a text is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; e.g. \"etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/bonafide\"")]
pub struct PlaceError(String);

impl EtcdPlace {
    /// The place that a text names.
    ///
    /// # Errors
    /// [`PlaceError`]; also without TLS, unless every member is on this very host.
    pub fn new(text: &str, tls: Option<EtcdTls>) -> Result<Self, PlaceError> {
        let wrong = |why: &str| Err(PlaceError(why.to_owned()));
        let Some(rest) = text.strip_prefix("etcd://") else { return wrong("it does not begin with etcd://") };
        let Some((members, prefix)) = rest.split_once('/') else { return wrong("it has no prefix") };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if prefix.len() > PREFIX_MAX || prefix.split('/').any(|part| part.is_empty() || !part.chars().all(plain)) {
            return wrong("its prefix is not made of letters, digits, '-', '_', '.', with single '/' between");
        }
        let members: Vec<String> = members.split(',').map(ToOwned::to_owned).collect();
        if members.len() > MEMBERS_MAX {
            return wrong("it has too many members");
        }
        if let Some(bad) = members.iter().find(|member| host(member).is_none()) {
            return Err(PlaceError(format!("{bad:?} is not a host and a port")));
        }
        let here = |member: &String| host(member).is_some_and(is_loopback);
        if tls.is_none() && !members.iter().all(here) {
            return wrong("its members are on other hosts, so store_tls must say how they are told from others");
        }
        Ok(Self { members, prefix: prefix.to_owned(), tls })
    }

    /// `host:port` of each.
    #[must_use]
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// Without slashes at its ends.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn tls(&self) -> Option<&EtcdTls> {
        self.tls.as_ref()
    }
}

impl fmt::Display for EtcdPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}/{}", self.members.join(","), self.prefix)
    }
}

/// The host of `host:port`.
fn host(member: &str) -> Option<&str> {
    let (host, port) = member.rsplit_once(':')?;
    let named = |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let whole = match bracketed {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && named(host),
    };
    (whole && port.parse::<u16>().is_ok_and(|port| port != 0)).then_some(bracketed.unwrap_or(host))
}

fn is_loopback(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl EtcdTls {
    pub(super) fn config(&self, clock: &SharedClock) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|e| at(&self.ca, &e))?;
        }
        let chain = certificates(&self.cert)?;
        chain.first().map_or(Ok(()), |own| lasts(own, clock.unix())).map_err(|e| at(&self.cert, &e))?;
        let key = key::read_secret(&self.key, PEM_MAX).map_err(|e| e.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| at(&self.key, &e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_details(provider, Arc::new(TlsTime(clock.clone())))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| at(&self.cert, &e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|e| at(path, &e))?;
    let mut pem = Vec::new();
    file.take(PEM_MAX).read_to_end(&mut pem).map_err(|e| at(path, &e))?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| at(path, &e))?;
    if found.is_empty() {
        return Err(at(path, &"there is no certificate in it"));
    }
    Ok(found)
}

/// Members would refuse it, and could not say why.
fn lasts(certificate: &CertificateDer<'_>, now: i64) -> Result<(), String> {
    let (_, read) =
        x509_parser::parse_x509_certificate(certificate).map_err(|e| format!("it is no certificate: {e}"))?;
    let (from, until) = (read.validity().not_before, read.validity().not_after);
    match (from.timestamp() <= now, now <= until.timestamp()) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("the certificate is not valid before {from}; is the clock right?")),
        (true, false) => Err(format!("the certificate expired on {until}; put a renewed one there")),
    }
}

fn at(path: &Path, why: &dyn fmt::Display) -> String {
    format!("{}: {why}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> Option<EtcdTls> {
        Some(EtcdTls { ca: "/ca".into(), cert: "/cert".into(), key: "/key".into() })
    }

    #[test]
    fn a_place_has_members_and_a_prefix() {
        for text in [
            "etcd://10.0.0.1:2379,[fd00::1]:2379,store-3.example.org:2379/bonafide/example.org",
            "etcd://127.0.0.1:1/a",
        ] {
            assert_eq!(EtcdPlace::new(text, tls()).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "http://127.0.0.1:2379/a",
            "etcd://127.0.0.1:2379",
            "etcd://127.0.0.1:2379/",
            "etcd:///a",
            "etcd://127.0.0.1/a",
            "etcd://127.0.0.1:0/a",
            "etcd://127.0.0.1:2379,/a",
            "etcd://127.0.0.1:2379/a//b",
            "etcd://127.0.0.1:2379/a/",
            "etcd://a@b:2379/a",
            "etcd://fd00::1:2379/a",
            "etcd://127.0.0.1:2379/a b",
        ] {
            assert!(EtcdPlace::new(bad, tls()).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_tls_every_member_is_on_this_host() {
        assert!(EtcdPlace::new("etcd://127.0.0.1:2379,[::1]:2380/a", None).is_ok());
        for other in ["etcd://10.0.0.1:2379/a", "etcd://127.0.0.1:2379,10.0.0.1:2379/a", "etcd://localhost:2379/a"] {
            let said = EtcdPlace::new(other, None).unwrap_err().to_string();
            assert!(said.contains("store_tls"), "{said}");
        }
    }
}
