//! Captures, decides, encrypts, relays, records.

fn main() {}
