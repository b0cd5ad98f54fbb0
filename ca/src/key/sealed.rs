//! A key as it lies in a file that a passphrase seals: AES-256-GCM under PBKDF2-HMAC-SHA256, all from ring.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::{KeyError, read_secret};
use crate::store::base64_bytes;

/// Rounds of PBKDF2 for new files; OWASP's number for SHA-256.
const ROUNDS: u32 = 600_000;
/// The fewest and the most that a file may ask for.
const ROUNDS_TAKEN: std::ops::RangeInclusive<u32> = 100_000..=10_000_000;
const SALT_LEN: usize = 16;
/// The shortest passphrase for a new file, in bytes.
const PASSPHRASE_MIN: usize = 12;
/// The longest, in bytes.
const PASSPHRASE_MAX: u64 = 1024;
/// What a sealed file says it is, and what is authenticated with the key.
const FORMAT: &str = "bonafide-sealed-key-1";

/// Where a passphrase is read from: never from an argument or the environment, which others can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassphraseAt {
    /// A file that only this uid may read, such as a systemd credential.
    File(PathBuf),
    /// A descriptor that this process was started with.
    Descriptor(u32),
}

impl PassphraseAt {
    pub(super) fn read(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let mut text = match self {
            Self::File(path) => read_secret(path, PASSPHRASE_MAX)?,
            Self::Descriptor(number) => read_open(&PathBuf::from(format!("/proc/self/fd/{number}")))?,
        };
        if text.last() == Some(&b'\n') {
            text.pop();
        }
        Ok(text)
    }
}

fn read_open(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    use std::io::Read as _;
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(PASSPHRASE_MAX).unwrap_or(0)));
    file.take(PASSPHRASE_MAX).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedFile {
    format: String,
    rounds: u32,
    #[serde(with = "base64_bytes")]
    salt: Vec<u8>,
    #[serde(with = "base64_bytes")]
    nonce: Vec<u8>,
    #[serde(with = "base64_bytes")]
    sealed: Vec<u8>,
}

/// Whether these bytes are of a sealed file; a bare key is DER.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'{')
}

/// The file's bytes for this secret.
pub(super) fn seal(secret: &[u8], passphrase: &[u8]) -> Result<Vec<u8>, KeyError> {
    if passphrase.len() < PASSPHRASE_MIN {
        return Err(KeyError::Passphrase(format!("is shorter than {PASSPHRASE_MIN} bytes")));
    }
    let (mut salt, mut nonce) = ([0; SALT_LEN], [0; NONCE_LEN]);
    let random = SystemRandom::new();
    random.fill(&mut salt).and_then(|()| random.fill(&mut nonce)).map_err(|_| KeyError::Generate)?;
    let mut sealed = secret.to_vec();
    let done = cipher(passphrase, &salt, ROUNDS).and_then(|cipher| {
        cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(FORMAT), &mut sealed).ok()
    });
    if done.is_none() {
        sealed.zeroize();
        return Err(KeyError::Generate);
    }
    let file = SealedFile { format: FORMAT.into(), rounds: ROUNDS, salt: salt.into(), nonce: nonce.into(), sealed };
    serde_json::to_vec_pretty(&file).map_err(|_| KeyError::Generate)
}

/// The secret in a file's bytes.
pub(super) fn open(bytes: &[u8], passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let file: SealedFile = serde_json::from_slice(bytes).map_err(|_| KeyError::Malformed)?;
    if file.format != FORMAT || !ROUNDS_TAKEN.contains(&file.rounds) {
        return Err(KeyError::Malformed);
    }
    let nonce = Nonce::try_assume_unique_for_key(&file.nonce).map_err(|_| KeyError::Malformed)?;
    let cipher = cipher(passphrase, &file.salt, file.rounds).ok_or(KeyError::Malformed)?;
    let mut secret = Zeroizing::new(file.sealed);
    let opened = cipher.open_in_place(nonce, Aad::from(FORMAT), &mut secret);
    let length = opened.map_err(|_| KeyError::Passphrase("is not the one that it was sealed with".into()))?.len();
    secret.truncate(length);
    Ok(secret)
}

fn cipher(passphrase: &[u8], salt: &[u8], rounds: u32) -> Option<LessSafeKey> {
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, NonZeroU32::new(rounds)?, salt, passphrase, &mut *key);
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_by_its_passphrase_alone() {
        let sealed = seal(b"the secret", b"correct horse battery").unwrap();
        assert!(is_sealed(&sealed) && !String::from_utf8_lossy(&sealed).contains("secret\""));
        assert_eq!(&*open(&sealed, b"correct horse battery").unwrap(), b"the secret");
        assert!(matches!(open(&sealed, b"correct horse batterx"), Err(KeyError::Passphrase(_))));
        assert!(matches!(seal(b"the secret", b"short"), Err(KeyError::Passphrase(_))));
        let text = String::from_utf8(sealed).unwrap();
        for bad in [text.replace("600000", "1"), text.replace("key-1", "key-2"), text[..text.len() / 2].to_owned()] {
            assert!(matches!(open(bad.as_bytes(), b"correct horse battery"), Err(KeyError::Malformed)), "{bad}");
        }
    }
}
