//! The tunnel between two enforcers: mutual TLS 1.3 with `bonafide/1` inside, one flow a connection.
//!
//! Reading order: [`frame`] (the words and the state machine), [`session`] (TLS), [`client`] and [`server`]
//! (handshake and opening), [`stream`] (the open flow), [`renewal`] (later certificates of its ends), [`sniff`] (who is knocking).

pub mod client;
pub mod ending;
mod error;
pub mod frame;
mod leaf;
pub mod renewal;
pub mod server;
mod session;
pub mod sniff;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use error::TunnelError;
pub(crate) use leaf::Showing;
pub use leaf::{Leaf, LeafError, Trust};
pub use stream::{Incoming, Tunnel, TunnelReader, TunnelWriter};
