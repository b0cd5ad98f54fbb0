//! The enforcer's configuration file, parsed once into a form that cannot be wrong.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::capture::{Backend, Control};

/// The largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// What the daemon needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Unix socket on which `Enforcement` is served.
    pub socket: PathBuf,
    /// Unix socket of identityd.
    pub identityd_socket: PathBuf,
    /// File of flow records, JSON lines.
    pub records: PathBuf,
    /// Directory for the journal of live flows.
    pub state: PathBuf,
    /// Engine of the capture rules.
    pub backend: Backend,
    /// Loopback port to which outgoing connections are captured.
    pub outbound_port: u16,
    /// Loopback port to which incoming connections are captured.
    pub inbound_port: u16,
    /// Level of the log: `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter.
    pub log: String,
    /// What other daemons of this node may reach uncaptured.
    pub control: Vec<Control>,
}

/// Why a configuration file was refused. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: {source}; give the path of the enforcer's configuration with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no valid TOML, or a field is unknown, missing or of the wrong type; the message names line and column.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value has no meaning.
    #[error("{path}: {field} {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    socket: PathBuf,
    identityd_socket: PathBuf,
    records: PathBuf,
    state: PathBuf,
    backend: String,
    #[serde(default = "default_outbound")]
    outbound_port: u16,
    #[serde(default = "default_inbound")]
    inbound_port: u16,
    #[serde(default = "default_log")]
    log: String,
    #[serde(default)]
    control: Vec<RawControl>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    cgroup: PathBuf,
    uid: u32,
    to: SocketAddr,
}

fn default_outbound() -> u16 {
    15001
}

fn default_inbound() -> u16 {
    15006
}

fn default_log() -> String {
    "info".to_owned()
}

impl Config {
    /// Reads and checks a file of at most 1 MiB.
    ///
    /// # Errors
    /// Names the file, and the line or field that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > FILE_MAX {
            return Err(read(std::io::Error::other("larger than 1 MiB")));
        }
        Self::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig =
            toml::from_str(text).map_err(|e| ConfigError::Parse { path: path.to_owned(), message: e.to_string() })?;
        let value = |field, message: String| ConfigError::Value { path: path.to_owned(), field, message };
        let backend = raw.backend.parse().map_err(|_| {
            value("backend", format!("{:?} is not an engine; \"nft\" and \"iptables\" are", raw.backend))
        })?;
        if raw.outbound_port == 0 || raw.inbound_port == 0 || raw.outbound_port == raw.inbound_port {
            return Err(value("outbound_port, inbound_port", "must be two different ports above 0".to_owned()));
        }
        let control = raw.control.into_iter().map(|c| Control { cgroup: c.cgroup, uid: c.uid, to: c.to }).collect();
        Ok(Self {
            socket: raw.socket,
            identityd_socket: raw.identityd_socket,
            records: raw.records,
            state: raw.state,
            backend,
            outbound_port: raw.outbound_port,
            inbound_port: raw.inbound_port,
            log: raw.log,
            control,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "socket = '/r/e.sock'\nidentityd_socket = '/r/i.sock'\nrecords = '/s/flows.jsonl'\nstate = '/s'\nbackend = 'nft'\n";

    #[test]
    fn defaults_fill_the_ports() {
        let config = Config::parse(Path::new("e.toml"), GOOD).unwrap();
        assert_eq!((config.outbound_port, config.inbound_port), (15001, 15006));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let wrong = |text: &str| Config::parse(Path::new("e.toml"), text).unwrap_err().to_string();
        let unknown = wrong(&format!("{GOOD}bakend = 'nft'\n"));
        assert!(unknown.contains("line 6") && unknown.contains("bakend"), "{unknown}");
        assert!(wrong(&GOOD.replace("nft", "pf")).contains("backend \"pf\""));
        assert!(wrong(&format!("{GOOD}inbound_port = 15001\n")).contains("two different ports"));
        assert!(wrong(&format!("{GOOD}[[control]]\ncgroup='/c'\nuid=1\nto='nowhere'\n")).contains("line 9"));
    }
}
