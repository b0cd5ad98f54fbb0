//! Taints: evidence against a process. Each may be allowed by the policy for a workload; none is by default.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Something about a process that its files' digests do not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Taint {
    /// Its executable is no longer on disk: deleted or replaced since.
    Deleted,
    /// Its executable never was on disk (memfd_create(2)).
    Memfd,
    /// It was started with `LD_PRELOAD` (ld.so(8)), or with a variable that makes its interpreter run other code first.
    Preload,
    /// It was started with `LD_AUDIT` (ld.so(8)).
    Audit,
    /// Another process traces it (ptrace(2)).
    Traced,
    /// A file is mapped writable and executable at once.
    WritableCode,
    /// An interpreter that runs no script file: code of its command line, or whatever it is told.
    NoScript,
    /// Nobody saw what it executed, and it could have been made to look like another program without any privilege.
    Unwitnessed,
}

impl Taint {
    /// All there are, in the order in which they are written.
    pub const ALL: [Self; 8] = [
        Self::Deleted,
        Self::Memfd,
        Self::Preload,
        Self::Audit,
        Self::Traced,
        Self::WritableCode,
        Self::NoScript,
        Self::Unwitnessed,
    ];

    /// As it is written in policies and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Memfd => "memfd",
            Self::Preload => "preload",
            Self::Audit => "audit",
            Self::Traced => "traced",
            Self::WritableCode => "writable-code",
            Self::NoScript => "no-script",
            Self::Unwitnessed => "unwitnessed",
        }
    }

    /// What a person can do about it, where the name alone does not say so.
    #[must_use]
    pub fn remedy(self) -> Option<&'static str> {
        match self {
            Self::Unwitnessed => Some(
                "it began before identityd watched, or this host has no kernel programs: restart it, \
                 or boot the host with user.max_user_namespaces=0, or allow_taints = [\"unwitnessed\"]",
            ),
            _ => None,
        }
    }

    /// Its name, and the remedy.
    #[must_use]
    pub fn explained(self) -> String {
        match self.remedy() {
            Some(remedy) => format!("{self} ({remedy})"),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no taint; those are deleted, memfd, preload, audit, traced, writable-code, no-script, unwitnessed")]
pub struct TaintError;

impl FromStr for Taint {
    type Err = TaintError;
    fn from_str(text: &str) -> Result<Self, TaintError> {
        Self::ALL.into_iter().find(|taint| taint.as_str() == text).ok_or(TaintError)
    }
}

/// A set of taints.
pub type Taints = BTreeSet<Taint>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_taint_is_written_as_it_is_read() {
        for taint in Taint::ALL {
            assert_eq!(taint.as_str().parse(), Ok(taint));
            assert!(TaintError.to_string().contains(taint.as_str()));
        }
        assert_eq!("Deleted".parse::<Taint>(), Err(TaintError));
    }

    #[test]
    fn what_its_name_does_not_tell_is_explained() {
        assert_eq!(Taint::Traced.explained(), "traced");
        let explained = Taint::Unwitnessed.explained();
        assert!(explained.starts_with("unwitnessed (") && explained.contains("restart it"), "{explained}");
    }
}
