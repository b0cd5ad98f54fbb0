//! `bonafide whois PID`: the evidence about a process, the workload it earns, and what the nearest others miss.

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Evidence, HashedFile};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::node::AttestProcessRequest;

use crate::ask;
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::printable;
use crate::screen::{Screen, Tone};

/// Names the process as the mesh sees it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exits 3 if the process earns no workload, or if there is a doubt about it.

Examples:
  bonafide whois $$
  bonafide whois $(pidof -s nginx) --workload shop/web")]
pub struct WhoisArgs {
    /// Process ID, as this machine's initial PID namespace counts
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub pid: u32,
    /// Say what is missing for this workload only
    #[arg(short, long, value_name = "WORKLOAD")]
    pub workload: Option<WorkloadName>,
}

/// Asks identityd and shows its answer.
pub(crate) fn whois(args: &WhoisArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = layout.identityd_socket();
    let workload = args.workload.as_ref().map(ToString::to_string).unwrap_or_default();
    let request = AttestProcessRequest { pid: args.pid, workload };
    let answer = ask::block_on(async { ask::ask(&socket, ask::attestation(&socket).attest_process(request)).await })??;
    let attested: Result<Attestation, AttestRefusal> =
        answer.try_into().map_err(|e| Failure::Failed(format!("identityd's answer: {e}")))?;
    match attested {
        Ok(attestation) => show(&attestation, screen),
        Err(refusal) => Err(Failure::Refused(printable(&format!("process {}: {refusal}", args.pid)).into_owned())),
    }
}

fn show(attestation: &Attestation, screen: &mut Screen) -> Result<Exit, Failure> {
    let exit = match &attestation.workload {
        Some(name) => {
            let name = screen.tint(Tone::Good, name.as_str());
            screen.line(&format!("{:<14} {name}", "workload"))?;
            Exit::Done
        }
        None => {
            let none = screen.tint(Tone::Bad, "none");
            screen.line(&format!("{:<14} {none}", "workload"))?;
            Exit::Refused
        }
    };
    for (name, value) in evidence(attestation) {
        screen.line(&format!("{name:<14} {}", printable(&value)))?;
    }
    attestation.near_misses.iter().try_for_each(|miss| near(miss, screen))?;
    Ok(exit)
}

fn evidence(attestation: &Attestation) -> Vec<(&'static str, String)> {
    let f = &attestation.fingerprint;
    let of = |text: &Evidence<String>| match text {
        Evidence::Known(value) => value.clone(),
        Evidence::Absent(why) => format!("({why})"),
    };
    let mut all = vec![("exe", f.exe.path.clone()), ("sha256", f.exe.digest.to_string())];
    all.extend(match &f.script {
        Evidence::Known(HashedFile { path, digest }) => {
            vec![("script", path.clone()), ("script_sha256", digest.to_string())]
        }
        Evidence::Absent(why) => vec![("script", format!("({why})"))],
    });
    let executions = attestation.executions.iter().map(|e| format!("{}@{}", e.pid, e.start_ticks));
    all.extend([
        ("uid", f.uid.to_string()),
        ("gid", f.gid.to_string()),
        ("unit", of(&f.unit)),
        ("cgroup", of(&f.cgroup)),
        ("node", f.host.node.as_ref().map_or_else(|| "(not admitted yet)".to_owned(), ToString::to_string)),
        ("machine-id", of(&f.host.machine_id)),
        ("bios-uuid", of(&f.host.bios_uuid)),
        ("pid@start", executions.collect::<Vec<_>>().join(" ")),
        ("source", attestation.source.clone()),
    ]);
    all
}

fn near(miss: &NearMiss, screen: &mut Screen) -> std::io::Result<()> {
    let heading = format!("not {}: its {} differs", printable(&miss.of), printable(&miss.field));
    let heading = screen.tint(Tone::Doubtful, &heading);
    screen.line("")?;
    screen.line(&heading)?;
    screen.line(&format!("    expected {}", printable(&miss.expected)))?;
    screen.line(&format!("    seen     {}", printable(&miss.seen)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::tests::Kept;
    use bonafide_proto::fingerprint::{Digest, Execution, Fingerprint, Host};

    fn attestation(workload: Option<&str>) -> Attestation {
        let absent = || Evidence::Absent("none".to_owned());
        Attestation {
            executions: vec![Execution { pid: 7, start_ticks: 8 }],
            fingerprint: Fingerprint {
                exe: HashedFile { path: "/usr/bin/c\u{1b}url".into(), digest: Digest([1; 32]) },
                script: Evidence::Absent("not an interpreter".into()),
                uid: 33,
                gid: 34,
                cgroup: Evidence::Known("/system.slice".into()),
                unit: absent(),
                host: Host { bios_uuid: absent(), machine_id: absent(), node: None },
            },
            workload: workload.map(|w| w.parse().unwrap()),
            near_misses: vec![NearMiss {
                of: "shop/web".into(),
                field: "uid".into(),
                expected: "0".into(),
                seen: "33".into(),
            }],
            source: "proc".into(),
        }
    }

    #[test]
    fn a_program_without_workload_is_told_what_it_lacks() {
        let out = Kept::default();
        assert_eq!(show(&attestation(None), &mut Screen::on(out.clone())).unwrap(), Exit::Refused);
        let text = out.text();
        assert!(text.starts_with("workload       none\nexe            /usr/bin/c\\u{1b}url\n"), "{text}");
        assert!(text.contains("script         (not an interpreter)\n"), "{text}");
        assert!(text.ends_with("not shop/web: its uid differs\n    expected 0\n    seen     33\n"), "{text}");
    }

    #[test]
    fn an_earned_workload_is_success() {
        let out = Kept::default();
        assert_eq!(show(&attestation(Some("shop/web")), &mut Screen::on(out.clone())).unwrap(), Exit::Done);
        assert!(out.text().starts_with("workload       shop/web\n"));
    }
}
