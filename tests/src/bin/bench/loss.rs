//! Events that are lost: identityd is stopped until the kernel has no room for more, programs become others meanwhile,
//! and when it goes on it has to know that, and to ask about every connection again.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use bonafide_identityd::bench::Maps;
use bonafide_proto::record::Reason;
use bonafide_tests::node::{Backend, Daemon};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::Program;
use bonafide_tests::programs::{changeling, echo_server, python, script};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

use crate::report::{Claim, Report};

const ECHO: u16 = 7;
/// How long it may take until the kernel has no room.
const FILLS: Duration = Duration::from_secs(120);
/// How long a connection may go on that nobody justifies any more.
const ENDS: Duration = Duration::from_secs(30);

/// Tries it with so many connections of each family and kind.
pub(crate) fn measure(each: usize, report: &mut Report) -> Result<(), String> {
    report.part("identityd is stopped until events are lost, and goes on");
    let bare = BareWorld::create();
    let heir = script(&bare, "heir.py").display().to_string();
    let policy = Policy::enforce()
        .script("bench/client", &script(&bare, "changeling.py"))
        .script("bench/server", &script(&bare, "echo_server.py"))
        .allow("let in", "bench/client", "bench/server");
    let mut world = World::start(bare, &policy, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), ECHO);
    let python = python().display().to_string();
    let client = |family, how: &[&str]| changeling(world.bare(), world.netns(Site::A), Site::B.at(family, ECHO), how);
    let clients = |how: &[&str]| {
        Family::BOTH
            .into_iter()
            .flat_map(|family| (0..each).map(move |_| family))
            .map(|family| client(family, how))
            .collect()
    };
    let become_others: Vec<Program> = clients(&["exec", &python, &heir, "waits"]);
    let stay: Vec<Program> = clients(&["nothing"]);

    let identityd = world.host(Site::A).node().program(Daemon::Identityd);
    let maps = Maps::of(identityd.pid()).map_err(|e| e.to_string())?;
    identityd.signal(Signal::STOP);
    let lost = lose(&maps, &become_others);
    world.host(Site::A).node().program(Daemon::Identityd).signal(Signal::CONT);
    let (went_on, lost) = (Instant::now(), lost?);

    let open = wait_for_none(&become_others, |client| !is_over(client));
    let took = went_on.elapsed().as_secs_f64() * 1e3;
    stay.iter().for_each(|client| client.signal(Signal::USR1));
    let broken = wait_for_none(&stay, |client| !client.output().contains("echoed"));
    let told = told(&world.host(Site::A).node().log(Daemon::Identityd));
    let records = world.a().records().all();
    let named = records.iter().filter(|record| record.reason.as_ref() == Some(&Reason::IdentityChanged)).count();

    report.add("events lost, as the kernel programs counted them", lost, "", Claim::AtLeast(1.0));
    report.add("of those, not told of by identityd", lost - told, "", Claim::AtMost(0.0));
    report.count("connections whose program became another one unseen", become_others.len(), Claim::Nothing);
    report.count("of those, still open", open, Claim::AtMost(0.0));
    report.count("of those, ended without that reason", become_others.len().saturating_sub(named), Claim::AtMost(0.0));
    report.add("until the last of them had ended", took, "ms", Claim::Nothing);
    report.count("connections whose program is the same", stay.len(), Claim::Nothing);
    report.count("of those, broken", broken, Claim::AtMost(0.0));
    Ok(())
}

/// Has events lost, and then programs become others; how many were lost.
fn lose(maps: &Maps, become_others: &[Program]) -> Result<f64, String> {
    let lost = || maps.lost().map_err(|e| e.to_string());
    let (before, began) = (lost()?, Instant::now());
    while lost()? == before {
        if began.elapsed() > FILLS {
            return Err(format!("the kernel has room for all events of {FILLS:?}"));
        }
        let ran = Command::new("/bin/true").status();
        ran.map_err(|e| format!("/bin/true: {e}"))?;
    }
    let full = lost()?;
    become_others.iter().for_each(|client| client.signal(Signal::USR1));
    match wait_for_none(become_others, |client| !client.output().contains("heir: has it")) {
        0 if usize::try_from(lost()? - full).is_ok_and(|lost| lost < become_others.len()) => {
            Err("some of what they executed found room in the kernel".to_owned())
        }
        0 => Ok(f64::from(u32::try_from(lost()? - before).unwrap_or(u32::MAX))),
        same => Err(format!("{same} programs did not become others")),
    }
}

/// How many of them this still holds of, when it holds of none or [`ENDS`] is over.
fn wait_for_none(programs: &[Program], holds: impl Fn(&Program) -> bool) -> usize {
    let began = Instant::now();
    loop {
        let count = programs.iter().filter(|program| holds(program)).count();
        if count == 0 || began.elapsed() > ENDS {
            return count;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_over(client: &Program) -> bool {
    let ends = BTreeSet::from(["ECONNRESET", "EPIPE", "ENOTCONN", "end of stream"]);
    client.output().lines().any(|line| line.strip_prefix("heir: ").is_some_and(|word| ends.contains(word)))
}

/// How many lost events its log tells of.
fn told(log: &str) -> f64 {
    let words =
        log.lines().filter(|line| line.contains("events were lost: everything")).flat_map(str::split_whitespace);
    words.filter_map(|word| word.strip_prefix("lost=")?.parse::<f64>().ok()).sum()
}
