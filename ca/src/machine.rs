//! What this machine calls itself, as told to the authority when joining. Told, not proven.

use std::fs::File;
use std::io::Read as _;

/// The machine's own identifiers; empty where there is none or it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// SMBIOS system UUID; readable by root only on most machines.
    pub(crate) bios_uuid: String,
    /// `machine-id(5)`.
    pub(crate) machine_id: String,
}

impl Machine {
    /// Reads both.
    pub(crate) fn read() -> Self {
        Self {
            bios_uuid: first_line("/sys/class/dmi/id/product_uuid").to_ascii_lowercase(),
            machine_id: first_line("/etc/machine-id"),
        }
    }
}

fn first_line(path: &str) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(128).read_to_string(&mut text));
    let line = text.lines().next().unwrap_or_default();
    match read {
        Ok(_) if line.chars().all(|c| c.is_ascii_graphic()) => line.to_owned(),
        _ => String::new(),
    }
}
