//! What this machine calls itself, as told to the authority when joining and ever after. Told, not proven.

use std::fs::File;
use std::io::Read as _;

/// The machine's own identifiers; empty where there is none or it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// SMBIOS system UUID, lower case; readable by root only on most machines.
    pub bios_uuid: String,
    /// `machine-id(5)`.
    pub machine_id: String,
}

/// The longest identifier, in bytes.
const TEXT_MAX: usize = 128;

impl Machine {
    /// Whether both can be what a machine says: short, and plain ASCII.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let plain = |text: &String| text.len() <= TEXT_MAX && text.chars().all(|c| c.is_ascii_graphic());
        plain(&self.bios_uuid) && plain(&self.machine_id)
    }

    /// What may be the same machine set up anew still says as before: its BIOS UUID, or what there is where it has none.
    pub(crate) fn hardware(&self) -> &str {
        if self.bios_uuid.is_empty() { &self.machine_id } else { &self.bios_uuid }
    }

    /// Reads both. `told`: the UUID as root read it, for a daemon that is not root.
    pub(crate) fn read(told: Option<&str>) -> Self {
        let read = first_line("/sys/class/dmi/id/product_uuid");
        let bios_uuid = if read.is_empty() { told.unwrap_or_default().to_owned() } else { read };
        Self {
            bios_uuid: if is_set(&bios_uuid) { bios_uuid.to_ascii_lowercase() } else { String::new() },
            machine_id: first_line("/etc/machine-id"),
        }
    }
}

/// SMBIOS 3.x, 7.2.1: all 00h or all FFh means "not set".
fn is_set(uuid: &str) -> bool {
    ['0', 'f', 'F'].iter().all(|digit| uuid.chars().any(|c| c != *digit && c != '-'))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_that_is_not_set_is_none() {
        for unset in ["", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "FFFF-FFFF"] {
            assert!(!is_set(unset), "{unset}");
        }
        assert!(is_set("4c4c4544-0042-3510-8052-b4c04f4d3132") && is_set("0f"));
    }

    #[test]
    fn what_root_read_stands_in_for_what_this_daemon_may_not_read() {
        let own = first_line("/sys/class/dmi/id/product_uuid");
        let read = Machine::read(Some("4C4C4544-0042")).bios_uuid;
        match is_set(&own) {
            true => assert_eq!(read, own.to_ascii_lowercase()),
            false if own.is_empty() => assert_eq!(read, "4c4c4544-0042"),
            false => assert_eq!(read, ""),
        }
    }
}
