//! `bonafide workload`: the `[[workload]]` for a process that runs, ready to be pasted or added; and new releases of programs
//! that have one, which wait for an approval.

mod approve;
mod draft;
mod pending;
mod pin;

use std::path::PathBuf;

use bonafide_policy::Policy;
use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::taint::{Taint, Taints};
use bonafide_proto::wire::node::AttestProcessRequest;

use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::policy::check;
use crate::printable::printable;
use crate::replace::replace;
use crate::screen::{Screen, tell};
use crate::status::when;
use crate::whois::{attest, policy_in_force};

pub use approve::{ApproveArgs, Selector};
use draft::Draft;
pub use pin::Pin;

/// Works with the workloads of a policy.
#[derive(Debug, clap::Subcommand)]
pub enum WorkloadCommand {
    /// Writes the [[workload]] that a running process earns
    #[command(
        after_help = "Printed on stdout, or added to the end of a policy file, which is replaced in one step. Neither happens unless the
whole policy parses with it, and this very process then earns this workload and no other.

Unless --pin says otherwise, it is pinned by paths, digests, image, unit and user, as far as it has them.

Exits 3 if the process earns a workload already, is tainted, or if there is a doubt about it.

Examples:
  bonafide workload add --from-pid $(pidof -s nginx)
  bonafide workload add --from-pid 4711 --name shop/web --pin path,unit --policy /etc/bonafide/policy.toml"
    )]
    Add(AddArgs),
    /// Lists the digests that this node saw and the policy does not list yet
    #[command(
        after_help = "Of workloads whose `releases` says what becomes of new digests. A digest is pending (refused), in-grace (accepted until
the time shown), or packaged (accepted: dpkg recorded it for the file's package)."
    )]
    Pending,
    /// Writes a new digest into the policy, and lets those before it retire
    #[command(
        after_help = "The file is replaced in one step, and only if the whole policy parses then. A node that reads this file has it in force at
once; for a published policy, go on with `bonafide policy apply`.

Examples:
  bonafide workload approve shop/api --policy /etc/bonafide/policy.toml
  bonafide workload approve shop/api sha256:0f343b0931126a20f133d67c2b018a3b... --of sha256 --policy policy.toml"
    )]
    Approve(ApproveArgs),
}

/// What to add.
#[derive(Debug, clap::Args)]
pub struct AddArgs {
    /// A process ID, as this machine's initial PID namespace counts
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub from_pid: u32,
    /// Its name [default: after its script, container, unit or executable]
    #[arg(long)]
    pub name: Option<WorkloadName>,
    /// What it is known by (repeatable, or separated by commas)
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub pin: Vec<Pin>,
    /// Accept this evidence against it (repeatable, or separated by commas)
    #[arg(long, value_name = "TAINT", value_delimiter = ',')]
    pub allow_taints: Vec<Taint>,
    /// Add it to this file instead of printing it
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// Obeys.
pub(crate) fn workload(command: &WorkloadCommand, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    match command {
        WorkloadCommand::Add(args) => add(args, layout, screen),
        WorkloadCommand::Pending => pending::pending(layout, screen),
        WorkloadCommand::Approve(args) => approve::approve(args, layout, screen),
    }
}

/// Asks who the process is, and writes the workload for it.
fn add(args: &AddArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let request = AttestProcessRequest { pid: args.from_pid, ..Default::default() };
    let attestation = attest(layout, request)?.map_err(|e| refused(args, &e.to_string()))?;
    match &args.policy {
        None => {
            let (update, policy) = policy_in_force(layout)?;
            let draft = drafted(args, &policy, &attestation)?;
            whole(&draft, &update.file, &update.text, &attestation.fingerprint)?;
            screen.line(draft.text().trim_end())?;
        }
        Some(file) => {
            let before = check::raw(file).map_err(|e| Failure::BadInput(printable(&e).into_owned()))?;
            let name = file.display().to_string();
            let policy = Policy::parse(&name, &before).map_err(|e| bad_input(&e.to_string()))?;
            let draft = drafted(args, &policy, &attestation)?;
            replace(file, &before, &whole(&draft, &name, &before, &attestation.fingerprint)?)?;
            tell(&format!("{}: {} added", printable(&name), draft.name));
        }
    }
    Ok(Exit::Done)
}

fn whole(draft: &Draft, file: &str, before: &str, of: &Fingerprint) -> Result<String, Failure> {
    draft.added_to(file, before, of).map_err(|e| bad_input(&e))
}

fn bad_input(why: &str) -> Failure {
    Failure::BadInput(why.lines().map(printable).collect::<Vec<_>>().join("\n"))
}

fn refused(args: &AddArgs, why: &str) -> Failure {
    Failure::Refused(printable(&format!("process {}: {why}", args.from_pid)).into_owned())
}

/// The workload, unless the process is somebody already, or evidence against it was not accepted.
fn drafted(args: &AddArgs, policy: &Policy, attestation: &Attestation) -> Result<Draft, Failure> {
    let of = &attestation.fingerprint;
    if let bonafide_policy::Identified::Workload(earned) = policy.identify(of) {
        return Err(refused(args, &format!("it is {earned} already")));
    }
    let selectors = pin::selectors(&args.pin, of).map_err(|e| refused(args, &e))?;
    let allow_taints = accepted(args, of, &pin::taints(of, &selectors))?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => draft::name_of(of).ok_or_else(|| Failure::BadInput("give it a name by --name".to_owned()))?,
    };
    let node = of.host.node.as_ref().map_or_else(|| "this host".to_owned(), ToString::to_string);
    let origin = format!("From process {} on {node}, {}.", args.from_pid, when(SystemClock.unix()));
    Ok(Draft { name, selectors, allow_taints, origin })
}

/// Exactly the taints that must be accepted, if each was spelled out, and no other.
fn accepted(args: &AddArgs, of: &Fingerprint, needed: &Taints) -> Result<Taints, Failure> {
    let spelled: Taints = args.allow_taints.iter().copied().collect();
    let named = |taints: Vec<&Taint>| taints.iter().map(|taint| taint.as_str()).collect::<Vec<_>>().join(",");
    let open = named(needed.difference(&spelled).collect());
    if !open.is_empty() {
        let why = format!("it is tainted ({open}); if that is how it is meant to run, add --allow-taints {open}");
        return Err(refused(args, &why));
    }
    let idle = named(spelled.difference(&of.taints).collect());
    if !idle.is_empty() {
        return Err(Failure::BadInput(format!("--allow-taints {idle}: the process is not tainted so; leave it out")));
    }
    Ok(spelled)
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::{Evidence, Execution, Script};
    use clap::Parser as _;

    use super::pin::tests::python;
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Typed {
        #[command(flatten)]
        args: AddArgs,
    }

    fn typed(args: &[&str]) -> AddArgs {
        Typed::try_parse_from([&["add", "--from-pid", "7"], args].concat()).unwrap().args
    }

    fn attested(fingerprint: Fingerprint) -> Attestation {
        Attestation {
            executions: vec![Execution { pid: 7, start_ticks: 8, image: 9 }],
            account: fingerprint.uid,
            fingerprint,
            workload: None,
            near_misses: Vec::new(),
            source: "proc".into(),
        }
    }

    fn policy(text: &str) -> Policy {
        Policy::parse("p", &format!("mode = \"enforce\"\n{text}")).unwrap()
    }

    fn refusal(args: &[&str], of: &str, fingerprint: Fingerprint) -> (Exit, String) {
        let failure = drafted(&typed(args), &policy(of), &attested(fingerprint)).unwrap_err();
        (failure.exit(), failure.to_string())
    }

    #[test]
    fn a_draft_has_the_name_and_the_pins_that_were_asked_for() {
        let draft =
            drafted(&typed(&["--name", "a/b", "--pin", "unit,user"]), &policy(""), &attested(python())).unwrap();
        assert_eq!(draft.name.as_str(), "a/b");
        assert_eq!(draft.selectors.iter().map(|s| s.field).collect::<Vec<_>>(), ["unit", "uid"]);
        assert!(draft.origin.starts_with("From process 7 on a, 2"), "{}", draft.origin);
    }

    #[test]
    fn who_is_somebody_already_is_refused() {
        let (exit, why) = refusal(&[], "[[workload]]\nname = \"w\"\nunit = \"shop-web.service\"\n", python());
        assert_eq!((exit, why.as_str()), (Exit::Refused, "process 7: it is w already"));
    }

    #[test]
    fn taints_must_be_spelled_out_one_by_one() {
        let mut tainted = python();
        tainted.taints = [Taint::Preload, Taint::Traced].into();
        let (exit, why) = refusal(&["--allow-taints", "traced"], "", tainted.clone());
        assert_eq!(exit, Exit::Refused);
        assert!(why.contains("it is tainted (preload)") && why.ends_with("--allow-taints preload"), "{why}");
        let (exit, why) = refusal(&["--allow-taints", "traced,preload,memfd"], "", tainted.clone());
        assert_eq!(exit, Exit::BadInput);
        assert!(why.contains("--allow-taints memfd: the process is not tainted so"), "{why}");
        let args = typed(&["--allow-taints", "traced", "--allow-taints", "preload"]);
        let draft = drafted(&args, &policy(""), &attested(tainted)).unwrap();
        assert!(draft.text().contains("allow_taints = [\"preload\", \"traced\"]"), "{}", draft.text());

        let mut stdin = python();
        stdin.script = Evidence::Known(Script::Stdin);
        stdin.taints = [Taint::NoScript].into();
        assert_eq!(refusal(&[], "", stdin).0, Exit::Refused);
    }
}
