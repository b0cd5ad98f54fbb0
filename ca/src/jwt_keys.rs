//! The keys of JWT-SVIDs as this node knows them, on disk: cut off from its authority, it checks by the last ones.

use std::io::Read as _;
use std::path::Path;

use bonafide_proto::jwt::{JwtKey, KEYS_MAX};

use crate::state;

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 16 * 1024;

/// What the file holds. None of it, if it is not there or cannot be understood: the authority tells again.
pub(crate) fn load(path: &Path) -> Vec<JwtKey> {
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(FILE_MAX).read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    let Ok(text) = read() else { return Vec::new() };
    let keys = serde_json::from_str::<Vec<String>>(&text).ok();
    let keys: Option<Vec<JwtKey>> = keys.and_then(|keys| keys.iter().take(KEYS_MAX).map(|key| parsed(key)).collect());
    keys.unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "the keys of JWT-SVIDs are damaged; the authority will tell them");
        Vec::new()
    })
}

fn parsed(key: &str) -> Option<JwtKey> {
    JwtKey::new(hex::decode(key).ok()?).ok()
}

/// Keeps them instead of what there was.
pub(crate) fn save(path: &Path, keys: &[JwtKey]) -> std::io::Result<()> {
    let keys: Vec<String> = keys.iter().map(|key| hex::encode(key.point())).collect();
    state::replace(path, &serde_json::to_vec_pretty(&keys)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_again_and_damaged_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        assert_eq!(load(&path), []);
        let key = JwtKey::new([&[4], [7; 64].as_slice()].concat()).unwrap();
        save(&path, std::slice::from_ref(&key)).unwrap();
        assert_eq!(load(&path), [key]);
        for damaged in ["[", "[\"04\"]", "{}"] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load(&path), []);
        }
    }
}
