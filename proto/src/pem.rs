//! DER as text (RFC 7468): one block after another, lines of 64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// As many blocks of that label as there are pieces of DER.
#[must_use]
pub fn pem<T: AsRef<[u8]>>(label: &str, ders: &[T]) -> Vec<u8> {
    let mut text = Vec::new();
    for der in ders {
        let encoded = Zeroizing::new(STANDARD.encode(der));
        text.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
        for line in encoded.as_bytes().chunks(64) {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        text.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_has_lines_of_64() {
        let text = String::from_utf8(pem("X", &[[0; 49]])).unwrap();
        assert_eq!(text.lines().map(str::len).collect::<Vec<_>>(), [17, 64, 4, 15]);
    }
}
