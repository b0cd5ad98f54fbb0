//! A P-256 signing key: generated here, kept in files only their owner reads, never printed.
//!
//! The PKCS#8 form is wiped when dropped. ring keeps its own copy of the scalar, which it cannot wipe.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// The largest key file that is read, in bytes; a P-256 key in PKCS#8 has fewer than 200.
const KEY_FILE_MAX: u64 = 1024;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The random source failed.
    #[error("no key could be generated: the system's random source failed")]
    Generate,
    /// The bytes are no P-256 key.
    #[error("not a P-256 private key in PKCS#8")]
    Malformed,
    /// The file could not be read or written.
    #[error("key file {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The passphrase.
    #[error("the passphrase of the authority's keys {0}")]
    Passphrase(String),
    /// A sealed key without a passphrase, or a bare one with it.
    #[error("key file {}: {why}", path.display())]
    Sealing {
        /// Which file.
        path: PathBuf,
        /// What does not fit, and what helps.
        why: &'static str,
    },
    /// Somebody else could read the key.
    #[error("key file {} has mode {mode:04o} and owner {owner}; it must have mode 0600 and belong to uid {us}", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// The uid of this daemon.
        us: u32,
    },
}

mod sealed;

pub use sealed::PassphraseAt;

/// The root key, wherever it lives: it signs, and is not seen. A file is one such place; a module that keeps the key
/// to itself (PKCS#11, a KMS) is another, as soon as it can do what `rcgen` asks of a signing key.
#[derive(Clone)]
pub struct RootKey {
    signs: Arc<dyn rcgen::SigningKey + Send + Sync>,
    tokens: TokenSecret,
}

/// From which the keys of tokens follow ([`crate::jwt`]). Every place where the root key lives has one, the same as long as
/// the root key is the same, and known to nobody else.
#[derive(Clone)]
pub(crate) struct TokenSecret(pub(crate) ring::hkdf::Prk);

impl TokenSecret {
    /// Of a key that is in memory.
    pub(crate) fn of(key: &Key) -> Self {
        Self(ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"bonafide jwt-svid 1").extract(key.pkcs8()))
    }
}

impl RootKey {
    fn in_memory(key: Key) -> Self {
        let tokens = TokenSecret::of(&key);
        Self { signs: Arc::new(key), tokens }
    }

    /// From which the keys of tokens follow.
    pub(crate) fn tokens(&self) -> &TokenSecret {
        &self.tokens
    }
}

/// Where a root key lives.
pub trait RootKeyHome: fmt::Debug {
    /// Whether there is one.
    fn is_there(&self) -> bool;
    /// The one that is there.
    ///
    /// # Errors
    /// Any [`KeyError`].
    fn open(&self) -> Result<RootKey, KeyError>;
    /// A new one, where there is none, durably.
    ///
    /// # Errors
    /// Any [`KeyError`].
    fn create(&self) -> Result<RootKey, KeyError>;
    /// Takes back what was created and never signed anything.
    ///
    /// # Errors
    /// Any [`KeyError`].
    fn discard(&self) -> Result<(), KeyError>;
}

/// A root key in a file, mode 0600; sealed, if there is a passphrase.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// Where.
    pub path: PathBuf,
    /// By what it is sealed.
    pub passphrase: Option<PassphraseAt>,
}

impl KeyFile {
    /// False if it was sealed before.
    fn seal(&self, passphrase: &[u8]) -> Result<bool, KeyError> {
        let bytes = read_secret(&self.path, KEY_FILE_MAX)?;
        if sealed::is_sealed(&bytes) {
            return Ok(false);
        }
        let key = Key::from_pkcs8(bytes)?;
        let sealed = sealed::seal(key.pkcs8(), passphrase)?;
        let failed = |source| KeyError::File { path: self.path.clone(), source };
        crate::state::replace(&self.path, &sealed).map_err(failed)?;
        Ok(true)
    }
}

/// Seals those of these key files that are bare, all by one passphrase, which is read once; and says which were.
///
/// # Errors
/// Any [`KeyError`], also if none was bare. A file that is named in it stays as it was, and so do those after it; asked again,
/// it goes on there.
pub fn seal(files: &[KeyFile]) -> Result<Vec<PathBuf>, KeyError> {
    let why = |file: &KeyFile, why| KeyError::Sealing { path: file.path.clone(), why };
    let mut sealed = Vec::new();
    let mut told: Option<(&PassphraseAt, Zeroizing<Vec<u8>>)> = None;
    for file in files {
        let passphrase = file.passphrase.as_ref();
        let at =
            passphrase.ok_or_else(|| why(file, "the configuration has no root_key_passphrase by which to seal it"))?;
        let (_, passphrase) = match told.take().filter(|(known, _)| *known == at) {
            Some(known) => told.insert(known),
            None => told.insert((at, at.read()?)),
        };
        if file.seal(passphrase)? {
            sealed.push(file.path.clone());
        }
    }
    match (sealed.is_empty(), files.first()) {
        (true, Some(file)) => Err(why(file, "it is sealed already, and so is every other key")),
        _ => Ok(sealed),
    }
}

impl RootKeyHome for KeyFile {
    fn is_there(&self) -> bool {
        self.path.exists()
    }

    fn open(&self) -> Result<RootKey, KeyError> {
        let bytes = read_secret(&self.path, KEY_FILE_MAX)?;
        let why = |why| KeyError::Sealing { path: self.path.clone(), why };
        let pkcs8 = match (&self.passphrase, sealed::is_sealed(&bytes)) {
            (None, false) => bytes,
            (Some(passphrase), true) => sealed::open(&bytes, &passphrase.read()?)?,
            (None, true) => return Err(why("it is sealed, and the configuration has no root_key_passphrase")),
            (Some(_), false) => {
                return Err(why(
                    "it is not sealed, but the configuration has a root_key_passphrase; see `bonafide-ca seal`",
                ));
            }
        };
        Ok(RootKey::in_memory(Key::from_pkcs8(pkcs8)?))
    }

    fn create(&self) -> Result<RootKey, KeyError> {
        let key = Key::generate()?;
        match &self.passphrase {
            None => key.create_file(&self.path)?,
            Some(passphrase) => {
                let sealed = sealed::seal(key.pkcs8(), &passphrase.read()?)?;
                let failed = |source| KeyError::File { path: self.path.clone(), source };
                write_secret(&self.path, &sealed).map_err(failed)?;
            }
        }
        Ok(RootKey::in_memory(key))
    }

    fn discard(&self) -> Result<(), KeyError> {
        std::fs::remove_file(&self.path).map_err(|source| KeyError::File { path: self.path.clone(), source })
    }
}

impl rcgen::PublicKeyData for RootKey {
    fn der_bytes(&self) -> &[u8] {
        self.signs.der_bytes()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.signs.algorithm()
    }
}

impl rcgen::SigningKey for RootKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signs.sign(message)
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(redacted)")
    }
}

/// A P-256 key pair.
pub struct Key {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
}

impl Key {
    /// A new key from the system's random source.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if that source fails.
    pub fn generate() -> Result<Self, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| KeyError::Generate)?;
        Self::from_pkcs8(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// A key from its PKCS#8 DER form.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] if it is none.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8, &SystemRandom::new())
            .map_err(|_| KeyError::Malformed)?;
        Ok(Self { pkcs8, pair })
    }

    /// The PKCS#8 DER form: the secret itself.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// Writes the key to a file that must not exist yet, mode 0600, and makes it durable.
    ///
    /// # Errors
    /// [`KeyError::File`], also if the file exists.
    pub fn create_file(&self, path: &Path) -> Result<(), KeyError> {
        write_secret(path, &self.pkcs8).map_err(|source| KeyError::File { path: path.to_owned(), source })
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyError::Exposed`] if anybody but this uid could read or change it.
    pub fn open_file(path: &Path) -> Result<Self, KeyError> {
        Self::from_pkcs8(read_secret(path, KEY_FILE_MAX)?)
    }

    /// The key as rustls signs with it.
    pub(crate) fn for_tls(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, KeyError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()));
        rustls::crypto::ring::sign::any_ecdsa_type(&der).map_err(|_| KeyError::Malformed)
    }
}

/// A new file of mode 0600.
pub(crate) fn create_secret(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Writes bytes to a new file, mode 0600 from its first moment (`O_EXCL`: no file of another is followed or reused).
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create_secret(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads a file that only this uid may read.
pub(crate) fn read_secret(path: &Path, max: u64) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(no_follow).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let us = rustix::process::geteuid().as_raw();
    if meta.mode() & 0o077 != 0 || meta.uid() != us {
        let (mode, owner) = (meta.mode() & 0o7777, meta.uid());
        return Err(KeyError::Exposed { path: path.to_owned(), mode, owner, us });
    }
    // Capacity up front: a growing buffer would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(max).unwrap_or(0) + 1));
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {max} bytes"))));
    }
    Ok(bytes)
}

impl rcgen::PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_file_survives_the_round_trip_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.key");
        let key = Key::generate().unwrap();
        key.create_file(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Key::open_file(&path).unwrap().pkcs8(), key.pkcs8());
        assert!(matches!(Key::generate().unwrap().create_file(&path), Err(KeyError::File { .. })));
    }

    #[test]
    fn a_key_file_that_others_could_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.key");
        Key::generate().unwrap().create_file(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let said = Key::open_file(&path).unwrap_err().to_string();
            assert!(said.contains(&format!("mode {mode:04o}")), "{said}");
        }
    }

    #[test]
    fn a_symlink_or_garbage_is_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        Key::generate().unwrap().create_file(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(matches!(Key::open_file(&link), Err(KeyError::File { .. })));
        let garbage = dir.path().join("garbage");
        write_secret(&garbage, b"not a key").unwrap();
        assert!(matches!(Key::open_file(&garbage), Err(KeyError::Malformed)));
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Key::generate().unwrap()), "Key(redacted)");
    }
}
