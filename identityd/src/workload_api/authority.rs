//! gRPC's C core, and so its Python and Ruby, calls a unix socket by its path: `:authority: run%2Fworkload.sock`. That is
//! valid (RFC 3986 §3.2.2), and refused by the `http` crate as a malformed request. Nobody reads it here, so each `%` in it
//! is made a `-` on the way in: as many bytes, and nothing to be decoded.
//!
//! Only the header blocks of HTTP/2 are looked at, for the name written out. Whoever writes it elsewhere garbles their own
//! request, and no other.

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const NAME: &[u8] = b":authority";
/// What the first byte of a length can say by itself (RFC 7541 §5.1, 7 bits), and the bit of Huffman's code before it.
const SHORT: u8 = 0x7f;
const HUFFMAN: u8 = 0x80;
/// Longer than any path of a socket.
const LENGTH_SHIFT_MAX: u32 = 14;

/// Where in a client's bytes the next one is.
///
/// ```text
///   preface ──► frame header ◄──────────────────────────────┐
///                 │ of HEADERS: name ──► length ──► value ──┤
///                 └ of others: skipped ─────────────────────┘
/// ```
#[derive(Debug)]
pub(super) struct Authority {
    place: Place,
    /// Of the payload of the frame.
    left: usize,
    sought: Sought,
}

#[derive(Debug)]
enum Place {
    Preface(usize),
    Header { seen: usize, kind: u8 },
    Payload { kind: u8 },
}

#[derive(Debug, Clone, Copy)]
enum Sought {
    Name { seen: usize },
    Length,
    MoreLength { length: usize, shift: u32 },
    Value { left: usize },
}

impl Default for Authority {
    fn default() -> Self {
        Self { place: Place::Preface(PREFACE), left: 0, sought: Sought::Name { seen: 0 } }
    }
}

impl Authority {
    /// The next bytes of the client, as the server shall read them.
    pub(super) fn reads(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| self.reads_one(byte));
    }

    fn reads_one(&mut self, byte: &mut u8) {
        match &mut self.place {
            Place::Preface(left) => {
                *left -= 1;
                if *left == 0 {
                    self.next_frame();
                }
            }
            Place::Header { seen, kind } => {
                match *seen {
                    0..=2 => self.left = self.left << 8 | usize::from(*byte),
                    3 => *kind = *byte,
                    _ => {}
                }
                *seen += 1;
                if *seen == FRAME_HEADER {
                    self.place = Place::Payload { kind: *kind };
                    if self.left == 0 {
                        self.next_frame();
                    }
                }
            }
            Place::Payload { kind } => {
                if *kind == HEADERS {
                    self.sought = self.sought.after(byte);
                }
                self.left -= 1;
                if self.left == 0 {
                    self.next_frame();
                }
            }
        }
    }

    fn next_frame(&mut self) {
        *self = Self { place: Place::Header { seen: 0, kind: 0 }, left: 0, sought: Sought::Name { seen: 0 } };
    }
}

impl Sought {
    fn after(self, byte: &mut u8) -> Self {
        match self {
            Self::Name { seen } if NAME.get(seen) == Some(byte) => {
                if seen + 1 == NAME.len() {
                    Self::Length
                } else {
                    Self::Name { seen: seen + 1 }
                }
            }
            // No beginning of the name is within it.
            Self::Name { .. } => Self::Name { seen: usize::from(NAME.first() == Some(byte)) },
            Self::Length if *byte & HUFFMAN != 0 => Self::Name { seen: 0 },
            Self::Length if *byte == SHORT => Self::MoreLength { length: usize::from(SHORT), shift: 0 },
            Self::Length => Self::value(usize::from(*byte)),
            Self::MoreLength { length, shift } => {
                let length = length + (usize::from(*byte & SHORT) << shift);
                match *byte & HUFFMAN {
                    0 => Self::value(length),
                    _ if shift < LENGTH_SHIFT_MAX => Self::MoreLength { length, shift: shift + 7 },
                    _ => Self::Name { seen: 0 },
                }
            }
            Self::Value { left } => {
                if *byte == b'%' {
                    *byte = b'-';
                }
                Self::value(left - 1)
            }
        }
    }

    fn value(left: usize) -> Self {
        if left == 0 { Self::Name { seen: 0 } } else { Self::Value { left } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frames.concat()].concat()
    }

    fn read(bytes: &[u8], at_once: usize) -> Vec<u8> {
        let (mut bytes, mut authority) = (bytes.to_vec(), Authority::default());
        bytes.chunks_mut(at_once).for_each(|chunk| authority.reads(chunk));
        bytes
    }

    fn named(path: &str) -> Vec<u8> {
        let length = match path.len() {
            short @ 0..=126 => vec![u8::try_from(short).unwrap()],
            long => {
                vec![127, u8::try_from((long - 127) & 127).unwrap() | 128, u8::try_from((long - 127) >> 7).unwrap()]
            }
        };
        [b"@\x0a:authority".as_slice(), &length, path.as_bytes(), b"@\x01a\x0150%"].concat()
    }

    #[test]
    fn a_path_that_is_an_authority_becomes_one_that_can_be_read() {
        let long = "%2Fa".repeat(60);
        let before = stream(&[
            frame(4, b"%"),
            frame(4, b""),
            frame(HEADERS, &named("tmp%2Fw.sock")),
            frame(0, b":authority\x01%"),
            frame(HEADERS, &named(&long)),
        ]);
        let after = stream(&[
            frame(4, b"%"),
            frame(4, b""),
            frame(HEADERS, &named("tmp-2Fw.sock")),
            frame(0, b":authority\x01%"),
            frame(HEADERS, &named(&long.replace('%', "-"))),
        ]);
        for at_once in [1, 2, 7, 4096] {
            assert_eq!(read(&before, at_once), after, "{at_once} at once");
        }
    }

    #[test]
    fn whatever_it_is_no_byte_is_lost_and_none_but_a_percent_sign_changes() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let whole =
                [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 200, 1, 4, 0, 0, 0, 1], bytes].concat();
            let after = read(&whole, 3);
            assert!(whole.iter().zip(&after).all(|(a, b)| a == b || (*a == b'%' && *b == b'-')));
        });
    }
}
