//! Where a workload endpoint is, as others write it (SPIFFE_Workload_Endpoint.md §4): what `SPIFFE_ENDPOINT_SOCKET` holds.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An absolute path of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

impl Endpoint {
    pub(super) fn socket(self) -> PathBuf {
        self.0
    }
}

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = match text.split_once(':') {
            Some(("unix", rest)) => rest,
            Some(("tcp", _)) => return Err("nobody says over TCP who asks; the endpoint of a node is a unix socket"),
            _ => return Err("it has to begin with unix:, as in unix:///run/bonafide/run/identityd/workload.sock"),
        };
        // An authority is allowed by the syntax of URIs, and has to be empty.
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if path.contains(['?', '#']) {
            return Err("it has neither a query nor a fragment");
        }
        match Path::new(path).is_absolute() {
            true => Ok(Self(path.into())),
            false => Err("its path is absolute, and no host is named: unix:///… or unix:/…"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e_3_an_endpoint_is_a_unix_socket_by_its_absolute_path_without_an_authority() {
        for good in ["unix:///run/w.sock", "unix:/run/w.sock"] {
            assert_eq!(good.parse(), Ok(Endpoint("/run/w.sock".into())), "{good}");
        }
        for bad in ["", "/run/w.sock", "unix:", "unix://", "unix:run/w.sock", "unix://host/run/w.sock", "UNIX:///w"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
        for bad in ["unix:///w?a", "unix:///w#a", "tcp://127.0.0.1:80", "http://a", "unix://a@/w"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
