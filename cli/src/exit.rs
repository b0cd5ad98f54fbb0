//! How a command ends: its exit code, or what went wrong.

use std::io;
use std::process::ExitCode;

/// Printed below `--help`; the one place where the codes are explained.
pub(crate) const EXIT_CODES: &str = "Exit codes:
  0  done; everything asked about is well
  1  failed: something does not answer, is not serving, or broke
  2  wrong usage or bad input, a join token that is refused included: nothing was changed
  3  answered, and the answer is no (refused; a program without a workload; a policy whose tests fail)";

/// The codes of [`EXIT_CODES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Done,
    /// 1
    Failed,
    /// 2
    BadInput,
    /// 3
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::FAILURE,
            Exit::BadInput => Self::from(2),
            Exit::Refused => Self::from(3),
        }
    }
}

/// A command that could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Exit code 2.
    #[error("{0}")]
    BadInput(String),
    /// Exit code 3.
    #[error("{0}")]
    Refused(String),
    /// Nobody reads our output any more, or it cannot be written.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            // `bonafide flows | head` is no failure.
            Self::Print(e) if e.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Failed(_) | Self::Print(_) => Exit::Failed,
            Self::BadInput(_) => Exit::BadInput,
            Self::Refused(_) => Exit::Refused,
        }
    }

    /// Whether a person should be told.
    pub(crate) fn is_worth_telling(&self) -> bool {
        !matches!(self, Self::Print(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }
}
