//! Captures, decides, encrypts, relays, records.
