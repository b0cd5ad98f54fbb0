//! The enforcer's configuration file, parsed once into a form that cannot be wrong.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::capture::{Backend, Control};
use crate::history::Limits;

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
    /// How much history is kept.
    pub history: Limits,
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
    outbound_port: i64,
    #[serde(default = "default_inbound")]
    inbound_port: i64,
    #[serde(default = "default_log")]
    log: String,
    #[serde(default)]
    control: Vec<RawControl>,
    #[serde(default)]
    history: RawHistory,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHistory {
    days: Option<i64>,
    mebibytes: Option<i64>,
}

impl RawHistory {
    fn checked(&self) -> Result<Limits, (&'static str, String)> {
        let usual = Limits::default();
        let days = self.days.map(|days| u16::try_from(days).ok().filter(|days| (1..=3650).contains(days)).ok_or(days));
        let days =
            days.unwrap_or(Ok(usual.days)).map_err(|days| ("history.days", format!("is {days}; give 1 to 3650")))?;
        let room = |mebibytes: i64| {
            u64::try_from(mebibytes).ok().filter(|room| (16..=1 << 20).contains(room)).ok_or(mebibytes)
        };
        let bytes = self.mebibytes.map(|mebibytes| room(mebibytes).map(|mebibytes| mebibytes << 20));
        let wrong = |mebibytes| ("history.mebibytes", format!("is {mebibytes}; give 16 to 1048576"));
        Ok(Limits { days, bytes: bytes.unwrap_or(Ok(usual.bytes)).map_err(wrong)? })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    cgroup: PathBuf,
    uid: u32,
    to: String,
}

fn default_outbound() -> i64 {
    15001
}

fn default_inbound() -> i64 {
    15006
}

fn default_log() -> String {
    "info".to_owned()
}

impl RawControl {
    fn checked(self) -> Result<Control, (&'static str, String)> {
        if !self.cgroup.is_absolute() {
            return Err(("control.cgroup", not_absolute(&self.cgroup)));
        }
        let to = self.to.parse().ok().filter(|to: &SocketAddr| to.port() != 0).ok_or_else(|| {
            let right = "such as \"10.0.0.9:8443\" or \"[fd77::9]:8443\"";
            ("control.to", format!("{:?} is not an address and port {right}", self.to))
        })?;
        Ok(Control { cgroup: self.cgroup, uid: self.uid, to })
    }
}

fn not_absolute(path: &Path) -> String {
    format!("{path:?} is not an absolute path; write it from the root, beginning with \"/\"")
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
        let port = |field, number: i64| {
            let port = u16::try_from(number).ok().filter(|port| *port != 0);
            port.ok_or_else(|| value(field, format!("{number} is not a port; 1 to 65535 are")))
        };
        let outbound_port = port("outbound_port", raw.outbound_port)?;
        let inbound_port = port("inbound_port", raw.inbound_port)?;
        if outbound_port == inbound_port {
            return Err(value("outbound_port, inbound_port", "must be two different ports".to_owned()));
        }
        if let Err(e) = EnvFilter::try_new(&raw.log) {
            let right = "\"info\", or e.g. \"warn,bonafide_enforcer=debug\", is one";
            return Err(value("log", format!("{:?} is not a log filter: {e}; {right}", raw.log)));
        }
        let absolute = |(field, path): &(_, &PathBuf)| match path.is_absolute() {
            true => Ok(()),
            false => Err(value(*field, not_absolute(path))),
        };
        [
            ("socket", &raw.socket),
            ("identityd_socket", &raw.identityd_socket),
            ("records", &raw.records),
            ("state", &raw.state),
        ]
        .iter()
        .try_for_each(absolute)?;
        let control = raw.control.into_iter().map(|c| c.checked().map_err(|(field, message)| value(field, message)));
        let control = control.collect::<Result<_, _>>()?;
        let history = raw.history.checked().map_err(|(field, message)| value(field, message))?;
        Ok(Self {
            socket: raw.socket,
            identityd_socket: raw.identityd_socket,
            records: raw.records,
            state: raw.state,
            backend,
            outbound_port,
            inbound_port,
            log: raw.log,
            control,
            history,
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
    fn the_history_has_its_limits() {
        let limits =
            |text: &str| Config::parse(Path::new("e.toml"), &format!("{GOOD}{text}")).map(|config| config.history);
        assert_eq!(limits("").unwrap(), Limits { days: 90, bytes: 1 << 30 });
        assert_eq!(limits("[history]\ndays = 7\nmebibytes = 64\n").unwrap(), Limits { days: 7, bytes: 64 << 20 });
        for (wrong, said) in [("days = 0", "history.days is 0"), ("mebibytes = 15", "history.mebibytes is 15")] {
            assert!(limits(&format!("[history]\n{wrong}\n")).unwrap_err().to_string().contains(said), "{wrong}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let wrong = |text: &str| Config::parse(Path::new("e.toml"), text).unwrap_err().to_string();
        let unknown = wrong(&format!("{GOOD}bakend = 'nft'\n"));
        assert!(unknown.contains("line 6") && unknown.contains("bakend"), "{unknown}");
        assert!(wrong(&GOOD.replace("nft", "pf")).contains("backend \"pf\""));
        assert!(wrong(&format!("{GOOD}inbound_port = 15001\n")).contains("two different ports"));
        for port in ["0", "-1", "65536"] {
            let said = wrong(&format!("{GOOD}outbound_port = {port}\n"));
            assert_eq!(said, format!("e.toml: outbound_port {port} is not a port; 1 to 65535 are"));
        }
        assert!(wrong(&format!("{GOOD}log = '=='\n")).starts_with("e.toml: log \"==\" is not a log filter: "));
    }

    #[test]
    fn relative_paths_are_refused() {
        for (field, path) in
            [("socket", "/r/e.sock"), ("identityd_socket", "/r/i.sock"), ("records", "/s/flows.jsonl"), ("state", "/s")]
        {
            let text = GOOD.replace(&format!("{field} = '{path}'"), &format!("{field} = 'here'"));
            let said = Config::parse(Path::new("e.toml"), &text).unwrap_err().to_string();
            assert!(said.starts_with(&format!("e.toml: {field} \"here\" is not an absolute path")), "{said}");
        }
    }

    #[test]
    fn control_needs_a_cgroup_and_an_address_with_a_port() {
        let control = |cgroup: &str, to: &str| {
            let text = format!("{GOOD}[[control]]\ncgroup='{cgroup}'\nuid=1\nto='{to}'\n");
            Config::parse(Path::new("e.toml"), &text)
        };
        for to in ["10.0.0.9:8443", "[fd77::9]:8443"] {
            assert_eq!(control("/c", to).unwrap().control[0].to.to_string(), to);
        }
        for to in ["nowhere", "10.0.0.9", "fd77::9", "10.0.0.9:0", "10.0.0.9:99999"] {
            let said = control("/c", to).unwrap_err().to_string();
            assert!(said.contains(&format!("control.to \"{to}\" is not an address and port such as")), "{said}");
        }
        let said = control("c", "10.0.0.9:8443").unwrap_err().to_string();
        assert!(said.contains("control.cgroup \"c\" is not an absolute path"), "{said}");
    }
}
