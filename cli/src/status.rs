//! `bonafide status`: for each daemon of the node, whether it serves, what is wrong, and what would help.

use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::wire::authority::{ListNodesRequest, ListNodesResponse};
use bonafide_proto::wire::node::{AttestationStatus, EnforcementStatus, IssuanceStatus};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::ask::{self, NoAnswer};
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::printable;
use crate::screen::{Screen, Tone};

/// One daemon, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Judged {
    daemon: &'static str,
    state: State,
    facts: String,
    /// What is wrong, and what would help.
    faults: Vec<(String, &'static str)>,
}

/// How a daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    /// It serves, but something about it needs a look.
    Impaired,
    /// It does not serve.
    Down,
}

/// Asks every daemon of this directory; the answer is [`Exit::Failed`] if one of them is not serving.
pub(crate) fn status(layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    if layout.config("ca").exists() && !layout.config("identityd").exists() {
        return authority_status(layout, screen);
    }
    let (ca, identityd, enforcer) = ask::block_on(async {
        (
            ask::issuance_status(&layout.ca_socket()).await,
            ask::attestation_status(&layout.identityd_socket()).await,
            ask::enforcement_status(&layout.enforcer_socket()).await,
        )
    })?;
    let policy = identityd.as_ref().map(|s| s.policy_sha256.clone()).unwrap_or_default();
    let judged = [
        judged("ca", ca, |s| ca_faults(s, SystemClock.unix()), ca_facts),
        judged("identityd", identityd, identityd_faults, identityd_facts),
        judged("enforcer", enforcer, |s| enforcer_faults(s, &policy), enforcer_facts),
    ];
    conclude(&judged, screen)
}

/// An authority alone on its host has no daemon but the ca.
fn authority_status(layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = layout.authority_socket();
    let nodes =
        ask::block_on(async { ask::ask(&socket, ask::admission(&socket).list_nodes(ListNodesRequest {})).await })?;
    let facts = |answer: &ListNodesResponse| format!("{} nodes admitted", answer.nodes.len());
    conclude(&[judged("authority", nodes, |_| Faults::new(), facts)], screen)
}

fn conclude(judged: &[Judged], screen: &mut Screen) -> Result<Exit, Failure> {
    judged.iter().try_for_each(|j| show(j, screen))?;
    Ok(if judged.iter().any(|j| j.state == State::Down) { Exit::Failed } else { Exit::Done })
}

type Faults = Vec<(State, String, &'static str)>;

fn judged<T>(
    daemon: &'static str,
    answer: Result<T, NoAnswer>,
    faults: impl Fn(&T) -> Faults,
    facts: impl Fn(&T) -> String,
) -> Judged {
    let answer = match answer {
        Ok(answer) => answer,
        Err(e) => {
            let faults = vec![(e.to_string(), e.remedy())];
            return Judged { daemon, state: State::Down, facts: String::new(), faults };
        }
    };
    let faults = faults(&answer);
    let worst = |w, (s, ..): &(State, _, _)| if w == State::Down || *s == State::Down { State::Down } else { *s };
    let state = faults.iter().fold(State::Ok, worst);
    let faults = faults.into_iter().map(|(_, what, remedy)| (what, remedy)).collect();
    Judged { daemon, state, facts: facts(&answer), faults }
}

fn show(judged: &Judged, screen: &mut Screen) -> std::io::Result<()> {
    let (word, tone) = match judged.state {
        State::Ok => ("ok", Tone::Good),
        State::Impaired => ("impaired", Tone::Doubtful),
        State::Down => ("down", Tone::Bad),
    };
    let word = screen.tint(tone, &format!("{word:<9}"));
    screen.line(format!("{:<10} {word} {}", judged.daemon, printable(&judged.facts)).trim_end())?;
    for (what, remedy) in &judged.faults {
        screen.line(&format!("{:21}{}", "", printable(what)))?;
        screen.line(&format!("{:21}remedy: {remedy}", ""))?;
    }
    Ok(())
}

fn ca_facts(s: &IssuanceStatus) -> String {
    format!(
        "{} of {}; {} certificates issued; may issue until {}",
        s.node,
        s.trust_domain,
        s.issued,
        when(s.intermediate_not_after)
    )
}

fn ca_faults(s: &IssuanceStatus, now: i64) -> Faults {
    let mut faults = Faults::new();
    if s.intermediate_not_after <= now {
        let what = "it has no valid intermediate, so it issues nothing".to_owned();
        faults.push((State::Down, what, "join the authority: a fresh token from `bonafide token create` there"));
    }
    if !s.policy_refused.is_empty() {
        let what = format!("the policy that the authority told is refused: {}", s.policy_refused);
        faults.push((State::Impaired, what, "see `bonafide policy status` where the authority runs"));
    }
    if !s.authority_reachable {
        let what = format!("the authority does not answer: {}", s.authority_error);
        faults.push((
            State::Impaired,
            what,
            "certificates are issued and renewed until the time above; restore the authority before it",
        ));
    }
    faults
}

fn identityd_facts(s: &AttestationStatus) -> String {
    let policy = match s.policy_version {
        0 => s.policy_file.clone(),
        version => format!("{}, version {version},", s.policy_file),
    };
    let mut facts = format!("evidence from {}; policy {policy} {}", s.source, short(&s.policy_sha256));
    if !s.not_observed.is_empty() {
        facts.push_str(&format!("; this kernel does not show {}", s.not_observed.join(" and ")));
    }
    if s.attempts_only_counted > 0 {
        facts.push_str(&format!("; {} attempts to connect had no record of their own", s.attempts_only_counted));
    }
    facts
}

const MEND_POLICY: &str = "correct the file, `bonafide policy check FILE` names every mistake; or, if it is the authority's, publish one \
                           there that this node understands";

fn identityd_faults(s: &AttestationStatus) -> Faults {
    let mut faults = Faults::new();
    if s.policy_sha256.is_empty() {
        let what = format!("no policy is in force: {}", s.policy_error);
        faults.push((State::Down, what, MEND_POLICY));
    } else if !s.policy_error.is_empty() {
        let what = format!("the newest policy is not in force, the one before is: {}", s.policy_error);
        faults.push((State::Impaired, what, MEND_POLICY));
    }
    if !s.ca_connected {
        faults.push((State::Impaired, "it cannot reach the ca".to_owned(), "see the line of the ca"));
    }
    faults
}

fn enforcer_facts(s: &EnforcementStatus) -> String {
    let EnforcementStatus { mode, backend, live_flows, flows, refused, records, observing, .. } = s;
    let seen = match (observing, mode.as_str()) {
        (true, "observe") => "connections and datagrams are seen",
        (true, _) => "datagrams are seen",
        (false, _) => "what is not captured is not seen",
    };
    format!(
        "{mode} by {backend}; {live_flows} flows live, {flows} in all, {refused} refused; {seen}; records in {records}"
    )
}

fn enforcer_faults(s: &EnforcementStatus, policy: &[u8]) -> Faults {
    let mut faults = Faults::new();
    if s.policy_sha256.is_empty() {
        faults.push(match s.mode.as_str() {
            "" | "none" => (State::Down, "it has no policy yet".to_owned(), "see the line of identityd"),
            mode => {
                let what = format!("its capture rules are still those of {mode} mode, not the policy's");
                (State::Impaired, what, "ask again; if it stays so, see its log")
            }
        });
    } else if !policy.is_empty() && s.policy_sha256 != policy {
        let what = format!("its policy is {}, not identityd's", short(&s.policy_sha256));
        faults.push((State::Impaired, what, "ask again; if it stays so, see its log"));
    }
    faults
}

fn short(digest: &[u8]) -> String {
    if digest.is_empty() { "(none)".to_owned() } else { format!("sha256:{:.12}…", hex::encode(digest)) }
}

/// Unix seconds as RFC 3339 UTC.
pub(crate) fn when(unix: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_else(|| "?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca(not_after: i64, reachable: bool) -> IssuanceStatus {
        IssuanceStatus {
            node: "a".into(),
            intermediate_not_after: not_after,
            authority_reachable: reachable,
            authority_error: "connection refused".into(),
            ..IssuanceStatus::default()
        }
    }

    fn state_of<T>(answer: T, faults: Faults) -> State {
        judged("x", Ok(answer), |_| faults.clone(), |_| String::new()).state
    }

    #[test]
    fn an_absent_authority_impairs_and_an_expired_intermediate_stops() {
        assert_eq!(state_of((), ca_faults(&ca(100, true), 50)), State::Ok);
        assert_eq!(state_of((), ca_faults(&ca(100, false), 50)), State::Impaired);
        assert_eq!(state_of((), ca_faults(&ca(100, true), 100)), State::Down);
        assert_eq!(state_of((), ca_faults(&ca(0, false), 100)), State::Down);
    }

    #[test]
    fn a_broken_newer_policy_impairs_and_no_policy_at_all_stops() {
        let with = |sha: &[u8], error: &str| AttestationStatus {
            policy_sha256: sha.to_vec(),
            policy_error: error.into(),
            ca_connected: true,
            ..AttestationStatus::default()
        };
        assert_eq!(state_of((), identityd_faults(&with(&[1; 32], ""))), State::Ok);
        assert_eq!(state_of((), identityd_faults(&with(&[1; 32], "p.toml:1:1: no"))), State::Impaired);
        assert_eq!(state_of((), identityd_faults(&with(&[], "p.toml:1:1: no"))), State::Down);
    }

    #[test]
    fn an_enforcer_with_another_policy_is_told() {
        let with = |sha: &[u8]| EnforcementStatus { policy_sha256: sha.to_vec(), ..EnforcementStatus::default() };
        assert_eq!(state_of((), enforcer_faults(&with(&[1; 32]), &[1; 32])), State::Ok);
        assert_eq!(state_of((), enforcer_faults(&with(&[2; 32]), &[1; 32])), State::Impaired);
        assert_eq!(state_of((), enforcer_faults(&with(&[]), &[1; 32])), State::Down);
        let between = EnforcementStatus { mode: "shadow".into(), ..EnforcementStatus::default() };
        assert_eq!(state_of((), enforcer_faults(&between, &[1; 32])), State::Impaired);
    }

    #[test]
    fn attempts_that_are_not_recorded_are_said() {
        let facts = |not_observed: &[&str], attempts_only_counted| {
            let not_observed = not_observed.iter().map(ToString::to_string).collect();
            identityd_facts(&AttestationStatus { not_observed, attempts_only_counted, ..AttestationStatus::default() })
        };
        assert!(!facts(&[], 0).contains("show") && !facts(&[], 0).contains("attempts"));
        assert!(facts(&["x", "y"], 0).ends_with("; this kernel does not show x and y"));
        assert!(facts(&[], 7).ends_with("; 7 attempts to connect had no record of their own"));
    }

    #[test]
    fn what_is_seen_uncaptured_is_said() {
        let facts = |mode: &str, observing| {
            enforcer_facts(&EnforcementStatus { mode: mode.into(), observing, ..EnforcementStatus::default() })
        };
        assert!(facts("observe", true).contains("; connections and datagrams are seen; "));
        assert!(facts("enforce", true).contains("; datagrams are seen; "));
        assert!(facts("observe", false).contains("; what is not captured is not seen; "));
    }

    #[test]
    fn a_node_that_is_not_there_is_down_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let out = crate::screen::tests::Kept::default();
        let exit = status(&Layout::new(dir.path()), &mut Screen::on(out.clone())).unwrap();
        assert_eq!(exit, Exit::Failed);
        let text = out.text();
        for daemon in ["ca  ", "identityd  ", "enforcer  "] {
            assert!(text.lines().any(|l| l.starts_with(daemon) && l.ends_with("down")), "{text}");
        }
        assert_eq!(text.matches("remedy: start the node").count(), 3, "{text}");
    }
}
