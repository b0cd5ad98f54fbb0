//! What RESET says: why an open stream was cut, by the name that the record has for it, and which kind of evidence
//! changed. The other end learns no more of it: no path, no digest, no name.

use std::fmt;

use bonafide_proto::record::Reason;

macro_rules! bytes {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal $text:expr,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// One of a later version, by its code.
            Unknown(u8),
        }
        impl $name {
            /// All that this version knows.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            pub(super) fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)* Self::Unknown(code) => code }
            }
            /// 0 is none.
            pub(super) fn from_code(code: u8) -> Option<Self> {
                match code { 0 => None, $($code => Some(Self::$variant),)* _ => Some(Self::Unknown(code)) }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($text),)*
                    Self::Unknown(code) => write!(f, "code {code}, which is unknown here"),
                }
            }
        }
    };
}

bytes! {
    /// Why an open stream was cut.
    pub enum Cause {
        /// The application itself reset its connection.
        ApplicationReset = 1 "the application reset it",
        /// It was refused after all, before it carried a byte.
        Refused = 2 "refused",
        /// The policy no longer allows it.
        PolicyChanged = 3 Reason::PolicyChanged.as_str(),
        /// A program at its end is no longer what it was.
        IdentityChanged = 4 Reason::IdentityChanged.as_str(),
        /// A digest of either program is in quarantine.
        Quarantined = 5 Reason::Quarantined.as_str(),
        /// The enforcer is being stopped.
        EnforcerStopped = 6 Reason::EnforcerStopped.as_str(),
        /// What the issuing node of either program's certificate issued is revoked.
        NodeRevoked = 8 Reason::NodeRevoked.as_str(),
        /// The workload of either program is revoked.
        WorkloadRevoked = 9 Reason::WorkloadRevoked.as_str(),
        /// The certificate of either program is revoked.
        SerialRevoked = 10 Reason::SerialRevoked.as_str(),
        /// The certificate of either program expires, and nobody renewed it.
        CertificateExpired = 11 Reason::CertificateExpired.as_str(),
        /// Something inside the enforcer failed.
        Internal = 7 Reason::Internal.as_str(),
    }
}

bytes! {
    /// A kind of evidence about a program.
    pub enum Kind {
        /// What it executed.
        Executable = 1 "executable",
        /// What it interprets.
        Script = 2 "script",
        /// What else it has mapped as code.
        Libraries = 3 "libraries",
        /// Its user or group.
        User = 4 "user",
        /// Its cgroup, or the unit that this is of.
        Cgroup = 5 "cgroup",
        /// Its container, image or pod.
        Container = 6 "container",
        /// Evidence against it.
        Taint = 7 "taint",
        /// Who uses its socket.
        Socket = 8 "socket",
    }
}

impl Kind {
    /// What a workload's field in the policy is about (`bonafide_policy::LANGUAGE`).
    pub(crate) fn of_field(field: &str) -> Option<Self> {
        Some(match field {
            "exe" | "sha256" => Self::Executable,
            "script" | "script_sha256" | "inline_sha256" => Self::Script,
            "libraries" => Self::Libraries,
            "uid" | "gid" => Self::User,
            "unit" => Self::Cgroup,
            "image" | "image_name" | "container" | "runtime" | "container_labels" => Self::Container,
            "pod" | "pod_namespace" | "pod_labels" | "service_account" => Self::Container,
            "allow_taints" => Self::Taint,
            _ => return None,
        })
    }
}

/// Why, and what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub cause: Cause,
    /// Which kind of evidence changed, where that is why.
    pub changed: Option<Kind>,
}

impl Ending {
    /// What the other end learns of an end for this reason.
    pub(crate) fn of(reason: Reason, changed: Option<Kind>) -> Self {
        use Reason as R;
        let cause = match reason {
            R::PolicyChanged => Cause::PolicyChanged,
            R::IdentityChanged => Cause::IdentityChanged,
            R::Quarantined => Cause::Quarantined,
            R::NodeRevoked => Cause::NodeRevoked,
            R::WorkloadRevoked => Cause::WorkloadRevoked,
            R::SerialRevoked => Cause::SerialRevoked,
            R::CertificateExpired => Cause::CertificateExpired,
            R::EnforcerStopped => Cause::EnforcerStopped,
            // None ends an open stream.
            R::OwnListener
            | R::Unattributed
            | R::NoWorkload
            | R::RuleDenies
            | R::NoRule
            | R::NoPolicy
            | R::UnknownAddress
            | R::Unreachable
            | R::NotBonafide
            | R::Handshake
            | R::PeerCertificate
            | R::NotGranted
            | R::RefusedByPeer
            | R::NoSvid
            | R::Protocol
            | R::Limit
            | R::EndedByPeer
            | R::TunnelBroken
            | R::EnforcerKilled
            | R::Internal => Cause::Internal,
        };
        Self { cause, changed }
    }
}

impl From<Cause> for Ending {
    fn from(cause: Cause) -> Self {
        Self { cause, changed: None }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.changed {
            Some(kind) => write!(f, "{} ({kind})", self.cause),
            None => write!(f, "{}", self.cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_reads_the_reasons_name_and_the_kind_and_of_a_later_version_the_code() {
        let said = |reason, kind| Ending::of(reason, kind).to_string();
        assert_eq!(said(Reason::IdentityChanged, Some(Kind::Libraries)), "identity-changed (libraries)");
        let revoked = [Reason::NodeRevoked, Reason::WorkloadRevoked, Reason::SerialRevoked];
        let others = [
            Reason::CertificateExpired,
            Reason::PolicyChanged,
            Reason::Quarantined,
            Reason::EnforcerStopped,
            Reason::Internal,
        ];
        for reason in revoked.into_iter().chain(others) {
            assert_eq!(said(reason, None), reason.as_str());
        }
        assert_eq!(said(Reason::Protocol, None), "internal-error");
        let later = Ending { cause: Cause::Unknown(77), changed: Some(Kind::Unknown(88)) };
        assert_eq!(later.to_string(), "code 77, which is unknown here (code 88, which is unknown here)");
    }

    #[test]
    fn every_field_of_a_workload_is_about_some_kind_of_evidence() {
        let workload = bonafide_policy::LANGUAGE.iter().find(|table| table.name == "[[workload]]").unwrap();
        for (field, _) in workload.fields {
            // None changes while a program runs.
            let constant = ["name", "labels", "nodes", "owner", "workload_api", "releases", "retires"].contains(field);
            assert_eq!(Kind::of_field(field).is_none(), constant, "{field}");
        }
    }
}
