//! What names the host itself.

use std::io::Read as _;
use std::path::Path;

use bonafide_proto::fingerprint::{Evidence, Host};
use bonafide_proto::name::NodeName;

/// Reads it once: none of it changes while the machine runs.
pub(crate) fn read(node: NodeName) -> Host {
    Host {
        bios_uuid: bios_uuid(Path::new("/sys/class/dmi/id/product_uuid")),
        machine_id: machine_id(Path::new("/etc/machine-id")),
        node: Some(node),
    }
}

fn bios_uuid(file: &Path) -> Evidence<String> {
    let uuid = match line(file) {
        Evidence::Known(line) => line.to_ascii_lowercase(),
        absent => return absent,
    };
    let digits: String = uuid.split('-').collect();
    let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
    if lengths != [8, 4, 4, 4, 12] || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Evidence::Absent(format!("{} holds no UUID", file.display()));
    }
    // SMBIOS 3.x, 7.2.1: all 00h or all FFh means "not set".
    if digits.bytes().all(|b| b == b'0') || digits.bytes().all(|b| b == b'f') {
        return Evidence::Absent("the firmware has no UUID set".to_owned());
    }
    Evidence::Known(uuid)
}

/// machine-id(5): 32 lower-case hex digits.
fn machine_id(file: &Path) -> Evidence<String> {
    match line(file) {
        Evidence::Known(id) if id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
            Evidence::Known(id)
        }
        Evidence::Known(_) => Evidence::Absent(format!("{} holds no machine ID", file.display())),
        absent => absent,
    }
}

fn line(file: &Path) -> Evidence<String> {
    let mut text = String::new();
    match std::fs::File::open(file).and_then(|f| f.take(256).read_to_string(&mut text)) {
        Ok(_) => Evidence::Known(text.trim_end().to_owned()),
        Err(e) => Evidence::Absent(format!("{}: {e}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_uuid_is_lower_case_and_set() {
        let uuid = |text| bios_uuid(file(text).path());
        let good = "4c4c4544-0042-3010-8051-b4c04f4d3233";
        assert_eq!(uuid("4C4C4544-0042-3010-8051-B4C04F4D3233\n"), Evidence::Known(good.to_owned()));
        for bad in ["", "Not Settable\n", "00000000-0000-0000-0000-000000000000", "4c4c4544004230108051b4c04f4d3233"] {
            assert_eq!(uuid(bad).known(), None, "{bad}");
        }
        assert!(
            matches!(bios_uuid(Path::new("/nothing/here")), Evidence::Absent(why) if why.contains("/nothing/here"))
        );
    }

    #[test]
    fn a_machine_id_has_32_hex_digits() {
        let id = |text: &str| machine_id(file(text).path());
        let good = "3d1219c7c4c5404aaa1f6d2a48adfda4";
        assert_eq!(id(&format!("{good}\n")), Evidence::Known(good.to_owned()));
        assert_eq!(id("uninitialized\n").known(), None);
        assert_eq!(id(&good.to_uppercase()).known(), None);
    }
}
