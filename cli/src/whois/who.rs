//! Whom to ask about, as it is typed.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use bonafide_proto::wire::node::AttestProcessRequest;

/// The highest PID there can be (proc(5), `pid_max`).
const PID_MAX: u32 = 4_194_304;
/// The fewest digits of a container's ID.
const ID_MIN: usize = 12;
/// The longest name or ID of a container, in bytes.
const CONTAINER_MAX: usize = 128;

/// Somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A process.
    Process(u32),
    /// The program that has a socket with this local address.
    Socket(SocketAddr),
    /// The first process of a container.
    Container(String),
}

impl Who {
    /// A container by its name, or by any number of its ID's first digits.
    pub(super) fn container(text: &str) -> Result<Self, String> {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        match (1..=CONTAINER_MAX).contains(&text.len()) && text.bytes().all(known) {
            true => Ok(Self::Container(text.to_owned())),
            false => Err("is no container's name or ID: letters, digits and any of _ . -".to_owned()),
        }
    }

    /// As identityd is asked.
    pub(super) fn request(&self) -> AttestProcessRequest {
        let mut request = AttestProcessRequest::default();
        match self {
            Self::Process(pid) => request.pid = *pid,
            Self::Socket(local) => request.socket = Some((*local).into()),
            Self::Container(container) => request.container.clone_from(container),
        }
        request
    }
}

impl FromStr for Who {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let id = text.len() >= ID_MIN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (text.parse::<u32>(), text.parse::<SocketAddr>()) {
            (Ok(pid @ 1..=PID_MAX), _) => Ok(Self::Process(pid)),
            (_, Ok(local)) => Ok(Self::Socket(local)),
            _ if id => Self::container(text),
            _ => Err(format!(
                "is no process ID (1 to {PID_MAX}), no address and port such as \"10.0.0.5:5432\" or \"[::1]:80\", and \
                 not the first {ID_MIN} digits of a container's ID; a container's name is given by --container"
            )),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Socket(local) => write!(f, "socket {local}"),
            Self::Container(container) => write!(f, "container {container}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_sockets_and_containers_are_told_apart() {
        assert_eq!("1".parse(), Ok(Who::Process(1)));
        assert_eq!("4194304".parse(), Ok(Who::Process(PID_MAX)));
        for address in ["10.0.0.5:5432", "[::1]:80", "[fe80::1%2]:80"] {
            assert_eq!(address.parse(), Ok(Who::Socket(address.parse().unwrap())));
        }
        for id in ["0123456789ab", "123456789012", &"f".repeat(64)] {
            assert_eq!(id.parse(), Ok(Who::Container(id.into())));
        }
        assert_eq!(Who::container("shop-web_1.a"), Ok(Who::Container("shop-web_1.a".into())));
        for wrong in ["", "0", "-1", "4194305", "x", "web", "10.0.0.5", "::1:80", "10.0.0.5:99999", "0123456789aB"] {
            wrong.parse::<Who>().unwrap_err();
        }
        for wrong in ["", "a b", "../x", &"x".repeat(129)] {
            Who::container(wrong).unwrap_err();
        }
    }
}
