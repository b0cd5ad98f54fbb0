//! Knows which program is behind a socket.

fn main() {}
