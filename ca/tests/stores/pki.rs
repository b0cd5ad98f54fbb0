//! A certificate authority for members of a store and those who talk to them, as an operator of etcd would have one.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bonafide_ca::store::EtcdTls;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::OffsetDateTime;

/// Its files end with it.
pub(crate) struct Pki {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in files.
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

fn at(year: i32) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(0).unwrap().replace_year(year).unwrap()
}

impl Pki {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (at(2020), at(2100));
        let (key, dir) = (KeyPair::generate().unwrap(), tempfile::tempdir().unwrap());
        // Members may run as users of their own.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Good from 2020 to the begin of this year, at 127.0.0.1 and ::1, for both ends of a connection.
    pub(crate) fn issue(&self, name: &str, until: i32) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names =
            ["127.0.0.1", "::1"].map(|ip| SanType::IpAddress(ip.parse::<IpAddr>().unwrap())).to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (at(2020), at(until));
        let key = KeyPair::generate().unwrap();
        let path = |kind: &str| self.dir.path().join(format!("{name}.{kind}"));
        std::fs::write(path("pem"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        secret(&path("key"), &key.serialize_pem());
        Pair { cert: path("pem"), key: path("key") }
    }

    /// What an authority is given.
    pub(crate) fn client(&self, name: &str, until: i32) -> EtcdTls {
        let Pair { cert, key } = self.issue(name, until);
        EtcdTls { ca: self.ca(), cert, key }
    }
}

fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
