//! Knows which program is behind a socket.
