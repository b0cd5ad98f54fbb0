//! The messages of nfnetlink: a family, and attributes whose numbers are big-endian.

use std::convert::Infallible;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
    NlasIterator,
};

/// A request or an answer: `struct nfgenmsg` and attributes.
pub(super) struct Message {
    kind: u16,
    pub(super) family: u8,
    attributes: Vec<u8>,
}

impl Message {
    /// `subsystem` is the upper byte of a message's type.
    pub(super) fn new(subsystem: u16, request: u16, family: u8, attributes: &[DefaultNla]) -> Self {
        Self { kind: subsystem | request, family, attributes: bytes(attributes) }
    }

    pub(super) fn attribute(&self, kind: u16) -> Option<&[u8]> {
        let all = NlasIterator::new(self.attributes.as_slice()).map_while(Result::ok);
        all.filter(|found| found.kind() == kind)
            .find_map(|found| found.into_inner().get(NLA_HEADER_SIZE..usize::from(found.length())))
    }

    /// A number of four or eight bytes.
    pub(super) fn number(&self, kind: u16) -> Option<u64> {
        let bytes = self.attribute(kind).filter(|bytes| bytes.len() <= 8)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    pub(super) fn name(&self, kind: u16) -> Option<String> {
        let bytes = self.attribute(kind)?;
        Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
    }
}

/// An attribute that is a name.
pub(super) fn named(kind: u16, name: &str) -> DefaultNla {
    DefaultNla::new(kind, [name.as_bytes(), b"\0"].concat())
}

/// An attribute that is a number of four bytes.
pub(super) fn numbered(kind: u16, number: u32) -> DefaultNla {
    DefaultNla::new(kind, number.to_be_bytes().to_vec())
}

/// An attribute that holds others.
pub(super) fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, bytes(inner))
}

fn bytes(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        4 + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = [&[self.family, 0, 0, 0], self.attributes.as_slice()].concat();
        buffer.copy_from_slice(&bytes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let family = payload.first().copied().unwrap_or_default();
        Ok(Self { kind: header.message_type, family, attributes: payload.get(4..).unwrap_or_default().to_vec() })
    }
}
