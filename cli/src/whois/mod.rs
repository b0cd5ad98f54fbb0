//! `bonafide whois`: the evidence about a program, the workload it earns, and what the others miss.

mod evidence;
mod json;
mod who;

use bonafide_policy::{Explained, Fit, Policy};
use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::convert::Attestation;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::node::{AttestProcessRequest, PolicyUpdate, WatchPolicyRequest};

use crate::ask;
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::{printable, printable_json};
use crate::screen::{Screen, Tone};

pub use who::Who;

/// Names the program as the mesh sees it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exits 3 if the program earns no workload, or if there is a doubt about it.

Of an address, the program that listens there is named, else the one that is connected from it.

Examples:
  bonafide whois $$
  bonafide whois $(pidof -s nginx) --workload shop/web
  bonafide whois 10.0.0.5:5432 --explain
  bonafide whois --container shop-web --json")]
pub struct WhoisArgs {
    /// A process ID as this machine's initial PID namespace counts, a socket's local ADDRESS:PORT, or at least the first
    /// 12 digits of a container's ID
    #[arg(required_unless_present = "container")]
    pub who: Option<Who>,
    /// A container by its name or ID: the program that it was started for
    #[arg(long, value_name = "CONTAINER", conflicts_with = "who", value_parser = Who::container)]
    pub container: Option<Who>,
    /// Say what is missing for this workload only
    #[arg(short, long, value_name = "WORKLOAD")]
    pub workload: Option<WorkloadName>,
    /// Hold the evidence against every workload, nearest first, and show each selector that fails
    #[arg(short, long)]
    pub explain: bool,
    /// One line of JSON, with everything there is
    #[arg(long)]
    pub json: bool,
}

/// Asks identityd and shows its answer.
pub(crate) fn whois(args: &WhoisArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let Some(who) = args.who.as_ref().or(args.container.as_ref()) else {
        return Err(Failure::BadInput("whose? Name a process, a socket or a container".to_owned()));
    };
    let workload = args.workload.as_ref().map(ToString::to_string).unwrap_or_default();
    let attested = attest(layout, AttestProcessRequest { workload, ..who.request() })?;
    let attestation = match attested {
        Ok(attestation) => attestation,
        Err(refusal) if args.json => return line(&json::refused(&refusal), Exit::Refused, screen),
        Err(refusal) => return Err(Failure::Refused(printable(&format!("{who}: {refusal}")).into_owned())),
    };
    let explained = if args.explain { Some(explained(args, &attestation, layout)?) } else { None };
    if args.json {
        return line(&json::attested(&attestation, explained.as_deref()), exit(&attestation), screen);
    }
    show(&attestation, explained.as_deref(), screen)
}

/// What identityd says of somebody.
pub(crate) fn attest(
    layout: &Layout,
    request: AttestProcessRequest,
) -> Result<Result<Attestation, AttestRefusal>, Failure> {
    let socket = layout.identityd_socket();
    let answer = ask::block_on(async { ask::ask(&socket, ask::attestation(&socket).attest_process(request)).await })??;
    answer.try_into().map_err(|e| Failure::Failed(format!("identityd's answer: {e}")))
}

/// The policy that identityd has in force.
pub(crate) fn policy_in_force(layout: &Layout) -> Result<(PolicyUpdate, Policy), Failure> {
    let socket = layout.identityd_socket();
    let first = async {
        let mut client = ask::attestation(&socket);
        let mut updates = client.watch_policy(WatchPolicyRequest {}).await?.into_inner();
        let gone = || tonic::Status::unavailable("it told no policy");
        updates.message().await?.ok_or_else(gone).map(tonic::Response::new)
    };
    let update = ask::block_on(async { ask::ask(&socket, first).await })??;
    let policy = Policy::parse(&update.file, &update.text);
    let policy = policy.map_err(|e| Failure::Failed(format!("identityd's policy: {}", printable(&e.to_string()))))?;
    Ok((update, policy.at(SystemClock.unix())))
}

/// Of one workload, if one is named, else of all.
fn explained(args: &WhoisArgs, attestation: &Attestation, layout: &Layout) -> Result<Vec<Explained>, Failure> {
    let (_, policy) = policy_in_force(layout)?;
    let mut all = policy.explain(&attestation.fingerprint);
    if let Some(named) = &args.workload {
        all.retain(|explained| explained.workload == *named);
    }
    Ok(all)
}

fn exit(attestation: &Attestation) -> Exit {
    if attestation.workload.is_some() { Exit::Done } else { Exit::Refused }
}

fn line(answer: &serde_json::Value, exit: Exit, screen: &mut Screen) -> Result<Exit, Failure> {
    screen.line(&printable_json(&answer.to_string()))?;
    Ok(exit)
}

fn show(attestation: &Attestation, explained: Option<&[Explained]>, screen: &mut Screen) -> Result<Exit, Failure> {
    let workload = match &attestation.workload {
        Some(name) => screen.tint(Tone::Good, name.as_str()),
        None => screen.tint(Tone::Bad, "none"),
    };
    screen.line(&format!("{:<14} {workload}", "workload"))?;
    for (name, value) in evidence::rows(attestation) {
        screen.line(&format!("{name:<14} {}", printable(&value)))?;
    }
    match explained {
        Some(all) => all.iter().try_for_each(|one| explanation(one, screen))?,
        None => attestation.near_misses.iter().try_for_each(|miss| near(miss, screen))?,
    }
    Ok(exit(attestation))
}

fn near(miss: &NearMiss, screen: &mut Screen) -> std::io::Result<()> {
    let heading = format!("not {}: its {} differs", printable(&miss.of), printable(&miss.field));
    let heading = screen.tint(Tone::Doubtful, &heading);
    screen.line("")?;
    screen.line(&heading)?;
    beside(&miss.expected, &miss.seen, screen)
}

/// Every selector that fails, and how many do not.
fn explanation(of: &Explained, screen: &mut Screen) -> std::io::Result<()> {
    let holding = of.selectors.iter().filter(|selector| selector.fit == Fit::Holds).count();
    let heading = format!("{}: {holding} of {} selectors hold", of.workload, of.selectors.len());
    let tone = if of.holds() { Tone::Good } else { Tone::Doubtful };
    let heading = screen.tint(tone, &heading);
    screen.line("")?;
    screen.line(&heading)?;
    for selector in &of.selectors {
        let (what, seen) = match &selector.fit {
            Fit::Holds => continue,
            Fit::Fails(seen) => ("differs", seen.clone()),
            Fit::Unavailable(why) => ("cannot be had", format!("nothing: {why}")),
        };
        screen.line(&format!("  {} {what}", selector.field))?;
        beside(&selector.expected, &seen, screen)?;
    }
    Ok(())
}

fn beside(expected: &str, seen: &str, screen: &mut Screen) -> std::io::Result<()> {
    screen.line(&format!("    expected {}", printable(expected)))?;
    screen.line(&format!("    seen     {}", printable(seen)))
}

#[cfg(test)]
mod tests {
    use bonafide_proto::container::{Container, Pod};
    use bonafide_proto::fingerprint::{
        Digest, Evidence, Execution, Fingerprint, HashedFile, Host, Libraries, Root, Script, Unit,
    };
    use bonafide_proto::refusal::AttestReason;
    use bonafide_proto::taint::Taint;

    use super::*;
    use crate::screen::tests::Kept;

    fn attestation(workload: Option<&str>) -> Attestation {
        let absent = || Evidence::Absent("none".to_owned());
        let exe = HashedFile { path: "/usr/bin/c\u{1b}url".into(), digest: Digest([1; 32]) };
        Attestation {
            executions: vec![Execution { pid: 7, start_ticks: 8, image: 0 }],
            fingerprint: Fingerprint {
                script: Evidence::Absent("not an interpreter".into()),
                cgroup: Evidence::Known("/system.slice".into()),
                ..Fingerprint::of(exe, (33, 34), Host { bios_uuid: absent(), machine_id: absent(), node: None })
            },
            account: 33,
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

    fn contained() -> Attestation {
        let pod = Pod {
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: "u-1".into(),
            service_account: Some("web".into()),
            labels: [("app".to_owned(), "web".to_owned())].into(),
        };
        let container = Container {
            runtime: "docker".into(),
            id: "0123456789ab".into(),
            name: Some("shop\u{202e}web".into()),
            image: Digest([4; 32]),
            image_name: Some("nginx:1.27".into()),
            manifests: vec![Digest([5; 32])],
            labels: Default::default(),
            pod: Some(pod),
        };
        let mut all = attestation(None);
        all.executions.push(Execution { pid: 9, start_ticks: 10, image: 11 });
        all.fingerprint.root = Root::Other("its root directory is another".into());
        all.fingerprint.container = Evidence::Known(container);
        all.fingerprint.libraries = Evidence::Known(Libraries { digest: Digest([3; 32]), count: 12 });
        all.fingerprint.unit = Evidence::Known(Unit { name: "web.service".into(), invocation: Some("ab".repeat(16)) });
        all.fingerprint.taints = [Taint::Deleted, Taint::Preload].into();
        all
    }

    fn printed(attestation: &Attestation, explained: Option<&[Explained]>) -> (Exit, String) {
        let out = Kept::default();
        let exit = show(attestation, explained, &mut Screen::on(out.clone())).unwrap();
        (exit, out.text())
    }

    #[test]
    fn a_program_without_workload_is_told_what_it_lacks() {
        let (exit, text) = printed(&attestation(None), None);
        assert_eq!(exit, Exit::Refused);
        assert!(text.starts_with("workload       none\nexe            /usr/bin/c\\u{1b}url\n"), "{text}");
        assert!(text.contains("script         (not an interpreter)\n"), "{text}");
        assert!(text.contains("taints         none\n") && text.contains("pid@start      7@8\n"), "{text}");
        assert!(text.ends_with("not shop/web: its uid differs\n    expected 0\n    seen     33\n"), "{text}");
    }

    #[test]
    fn an_earned_workload_is_success() {
        let (exit, text) = printed(&attestation(Some("shop/web")), None);
        assert_eq!(exit, Exit::Done);
        assert!(text.starts_with("workload       shop/web\n"));
    }

    #[test]
    fn every_kind_of_evidence_has_its_row() {
        let (_, text) = printed(&contained(), None);
        for row in [
            &format!("libraries      {} (12 files)\n", Digest([3; 32])),
            "paths          (its root directory is another)\n",
            "container      docker:0123456789ab shop\\u{202e}web\n",
            &format!("image          {} nginx:1.27\n", Digest([4; 32])),
            "pod            shop/web-0 u-1 as web\n",
            "unit           web.service (invocation abababab",
            "taints         deleted preload\n",
            "pid@start      7@8 9@10#11\n",
        ] {
            assert!(text.contains(row), "{row} is missing:\n{text}");
        }
        let mut away = attestation(None);
        away.fingerprint.container = Evidence::Unavailable("docker does not answer".into());
        away.fingerprint.script = Evidence::Known(Script::Inline(Digest([6; 32])));
        let (_, text) = printed(&away, None);
        assert!(text.contains("container      (cannot be had: docker does not answer)\n"), "{text}");
        assert!(text.contains(&format!("inline_sha256  {}\n", Digest([6; 32]))), "{text}");
    }

    #[test]
    fn an_explanation_names_every_selector_that_fails() {
        let policy = "mode = \"enforce\"\n\
            [[workload]]\nname = \"far\"\nexe = \"/bin/x\"\nuid = 0\n\
            [[workload]]\nname = \"near\"\nunit = \"x.service\"\nuid = 33\ngid = 34\n";
        let all = Policy::parse("p", policy).unwrap().explain(&attestation(None).fingerprint);
        let (_, text) = printed(&attestation(None), Some(&all));
        let near = "near: 3 of 4 selectors hold\n  unit differs\n    expected x.service\n    seen     nothing: nobody looked\n";
        let far = "far: 1 of 3 selectors hold\n  exe differs\n    expected /bin/x\n    seen     /usr/bin/c\\u{1b}url\n  \
                   uid differs\n    expected 0\n    seen     33\n";
        assert!(text.ends_with(&format!("\n\n{near}\n{far}")), "{text}");
    }

    #[test]
    fn json_has_everything_and_says_why_something_is_absent() {
        let all = Policy::parse("p", "mode = \"enforce\"\n[[workload]]\nname = \"w\"\nexe = \"/bin/x\"\n").unwrap();
        let all = all.explain(&contained().fingerprint);
        let json = json::attested(&contained(), Some(&all));
        assert_eq!(json["workload"], serde_json::Value::Null);
        assert_eq!(json["executions"][1]["image"], 11);
        let fingerprint = &json["fingerprint"];
        assert_eq!(fingerprint["script"]["absent"], "not an interpreter");
        assert_eq!(fingerprint["container"]["known"]["pod"]["labels"]["app"], "web");
        assert_eq!(fingerprint["taints"], serde_json::json!(["deleted", "preload"]));
        assert_eq!(json["explained"][0]["selectors"][0]["fit"], "fails");
        assert_eq!(json["near_misses"][0]["field"], "uid");
        let out = Kept::default();
        line(&json, Exit::Done, &mut Screen::on(out.clone())).unwrap();
        assert_eq!(out.text().lines().count(), 1);
        assert!(!out.text().contains(['\u{1b}', '\u{202e}']));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out.text()).unwrap(), json);

        let refused = json::refused(&AttestRefusal::new(AttestReason::TwoPrograms, "a and b"));
        assert_eq!(refused["refused"]["reason"], "two-programs");
    }
}
