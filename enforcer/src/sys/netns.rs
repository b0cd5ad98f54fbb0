//! Which network namespace this is.

use std::io;
use std::os::unix::fs::MetadataExt;

use bonafide_proto::flow::NetNs;

/// The network namespace of the calling thread.
///
/// # Errors
/// Where `/proc` is not mounted or not readable.
pub fn own() -> io::Result<NetNs> {
    Ok(NetNs(std::fs::metadata("/proc/thread-self/ns/net")?.ino()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_the_inode_everybody_else_sees() {
        let link = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(link.to_str().unwrap(), format!("net:[{}]", super::own().unwrap().0));
    }
}
