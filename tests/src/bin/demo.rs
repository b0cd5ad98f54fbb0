//! `bonafide-demo`: two hosts, real programs, one policy; a story told step by step, with the expected and the
//! actual verdict of each. Exits 0 only if all are the same; leaves nothing behind, also on Ctrl-C.

#![allow(clippy::print_stdout, reason = "a story is printed")]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bonafide_proto::record::{End, FlowRecord, Outcome};
use bonafide_tests::ends::digest_of;
use bonafide_tests::hybrid_tls::tunnels_in;
use bonafide_tests::node::{AUTHORITY_PORT, Backend, binaries};
use bonafide_tests::pcap::Traffic;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{Program, run};
use bonafide_tests::programs::{
    append_one_byte, curl, curl_exe, echo_server, hold, nginx, nginx_exe, say, script, script_as, script_server,
};
use bonafide_tests::topology::{Family, Site, forward, virtual_ip};
use bonafide_tests::world::{BareWorld, World, replace_file};

const PAGE: &str = "a page that must never be seen on the wire";
const SECRET: &str = "a secret for the echo server alone";
/// An ended connection has to be noticed this soon.
const SOON: Duration = Duration::from_secs(1);

/// Set by Ctrl-C; the story then ends before its next step.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

const HELP: &str = "\
Two hosts in network namespaces, real programs, one policy: tells step by step what Bonafide lets through and what
it refuses, each with the expected and the actual verdict. Needs root; takes a few seconds; Ctrl-C ends it.
Nothing of it stays.

Usage: bonafide-demo [--help]

Exit codes: 0 if every verdict was as expected, 1 if not or if it was interrupted, 2 for wrong usage.";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [] => story(),
        [only] if only == "--help" || only == "-h" => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        [first, ..] => wrong_usage(&format!("unexpected argument {}", first.display())),
    }
}

#[allow(clippy::print_stderr, reason = "where complaints go")]
fn wrong_usage(why: &str) -> ExitCode {
    eprintln!("{why}; see bonafide-demo --help");
    ExitCode::from(2)
}

fn story() -> ExitCode {
    let story = std::thread::spawn(tell);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(runtime) = runtime {
        runtime.block_on(async {
            while !story.is_finished() {
                let look_again = tokio::time::sleep(Duration::from_millis(50));
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => INTERRUPTED.store(true, Ordering::Relaxed),
                    () = look_again => {}
                }
            }
        });
    }
    match story.join() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// The whole story. True if everything went as expected.
fn tell() -> bool {
    let begun = Instant::now();
    println!("Two hosts, a and b, joined by a wire; an authority; on each host a Bonafide node in enforce mode.");
    let stage = Stage::build();
    println!("Started in {:.1} s.\n", begun.elapsed().as_secs_f32());
    println!("The policy of both nodes:\n");
    stage.policy.text().lines().for_each(|line| println!("    {line}"));
    println!();

    let mut story = Story { stage, number: 0, surprises: 0 };
    let capture = story.stage.world.bare().capture();
    let chapters = [
        Story::programs_decide,
        Story::scripts_are_programs,
        Story::an_impostor_serves,
        Story::the_server_moves,
        Story::a_rule_goes,
    ];
    for chapter in chapters {
        if !INTERRUPTED.load(Ordering::Relaxed) {
            chapter(&mut story);
        }
    }
    if INTERRUPTED.load(Ordering::Relaxed) {
        println!("Interrupted after {} steps.", story.number);
        return false;
    }
    story.the_wire_shows(&capture.finish());
    story.show_records();
    let told = begun.elapsed().as_secs_f32();
    let all_well = story.surprises == 0;
    println!("{} steps, {} surprises, {told:.0} s.", story.number, story.surprises);
    all_well
}

/// The hosts and who is on them.
struct Stage {
    world: World,
    policy: Policy,
    without_echo: Policy,
    client: PathBuf,
    reporter: PathBuf,
    stranger: PathBuf,
}

impl Stage {
    fn build() -> Self {
        let bare = BareWorld::create();
        let client = bare.copy_of(&curl_exe(), "curl");
        let (reporter, stranger) = (script_as(&bare, "say.py", "report.py"), script_as(&bare, "say.py", "stranger.py"));
        let without_echo = Policy::enforce()
            .pinned("shop/client", &client, digest_of(&client))
            .program("shop/web", &nginx_exe())
            .script("shop/report", &reporter)
            .script("shop/watch", &script(&bare, "hold.py"))
            .script("shop/echo", &script(&bare, "echo_server.py"))
            .allow("client to web", "shop/client", "shop/web")
            .allow("report to echo", "shop/report", "shop/echo");
        let policy = without_echo.clone().allow("watch echo", "shop/watch", "shop/echo");
        let world = World::start(bare, &policy, Backend::Nft);
        Self { world, policy, without_echo, client, reporter, stranger }
    }

    fn curl(&self, to: SocketAddr) -> Command {
        curl(self.world.netns(Site::A), &self.client, to)
    }

    fn say(&self, script: &Path, family: Family) -> Command {
        say(self.world.netns(Site::A), script, Site::B.at(family, 7), SECRET)
    }
}

struct Story {
    stage: Stage,
    number: u32,
    surprises: u32,
}

impl Story {
    fn programs_decide(&mut self) {
        let _web = nginx(self.stage.world.bare(), self.stage.world.netns(Site::B), 80, PAGE);
        for family in Family::BOTH {
            let command = self.stage.curl(Site::B.at(family, 80));
            self.step(&format!("curl fetches a page from nginx, {family}"), Outcome::Allowed, command);
        }
        let original = std::fs::read(&self.stage.client);
        append_one_byte(&self.stage.client);
        for family in Family::BOTH {
            let command = self.stage.curl(Site::B.at(family, 80));
            self.step(&format!("the same curl, same path, one byte appended, {family}"), Outcome::Refused, command);
        }
        if let Ok(original) = original {
            replace_file(&self.stage.client, &original);
        }
        let command = self.stage.curl(Site::B.at(Family::V4, 80));
        self.step("the original curl again", Outcome::Allowed, command);
    }

    fn scripts_are_programs(&mut self) {
        let _echo = echo_server(self.stage.world.bare(), self.stage.world.netns(Site::B), 7);
        for family in Family::BOTH {
            let command = self.stage.say(&self.stage.reporter, family);
            self.step(&format!("report.py talks to the echo server, {family}"), Outcome::Allowed, command);
            let command = self.stage.say(&self.stage.stranger, family);
            let title = format!("stranger.py: same text, same interpreter, same user, {family}");
            self.step(&title, Outcome::Refused, command);
        }
    }

    fn an_impostor_serves(&mut self) {
        let world = &self.stage.world;
        let _impostor = echo_server(world.bare(), world.netns(Site::B), 80);
        let command = self.stage.curl(Site::B.at(Family::V4, 80));
        self.step("another program listens on nginx's port: curl's end refuses it", Outcome::Refused, command);
        let world = &self.stage.world;
        let unknown = script_as(world.bare(), "echo_server.py", "unknown_server.py");
        let _unknown = script_server(world.bare(), world.netns(Site::B), &unknown, &["8080"], 8080);
        let command = self.stage.curl(Site::B.at(Family::V6, 8080));
        self.step("a program that nobody knows listens", Outcome::Refused, command);
    }

    fn the_server_moves(&mut self) {
        let world = &self.stage.world;
        let router = &world.bare().topology().router;
        let _web = nginx(world.bare(), world.netns(Site::B), 9090, PAGE);
        let known = Family::BOTH.map(|family| {
            let known = SocketAddr::new(virtual_ip(family), 80);
            forward(router, known, Site::B.at(family, 9090));
            known
        });
        for known in known {
            let command = self.stage.curl(known);
            self.step(
                &format!("nginx moved to port 9090, behind port forwarding at {known}"),
                Outcome::Allowed,
                command,
            );
        }
    }

    fn a_rule_goes(&mut self) {
        let world = &self.stage.world;
        let _echo = echo_server(world.bare(), world.netns(Site::B), 7);
        let mut watch = hold(world.bare(), world.netns(Site::A), Site::B.at(Family::V4, 7));
        world.a().write_policy(self.stage.without_echo.text());
        let took = time_until_over(&mut watch);
        let at_a = world.a().records().next(End::Source);
        let at_b = world.b().records().take("the other end's record", |other| other.id == at_a.id);
        self.number += 1;
        println!("{:2}. the rule \"watch echo\" is removed while its connection is open and idle", self.number);
        self.judge("ended", if took < SOON { "ended" } else { "still open" });
        println!("      after {} ms", took.as_millis());
        [at_a, at_b].iter().for_each(|record| println!("      {}", account(record)));
    }

    fn the_wire_shows(&mut self, traffic: &Traffic) {
        self.number += 1;
        println!("{:2}. everything that crossed the wire in the meantime", self.number);
        let tunnels = tunnels_in(traffic, |s| [s.from.port(), s.to.port()].contains(&AUTHORITY_PORT));
        let hidden = !traffic.shows(PAGE.as_bytes()) && !traffic.shows(SECRET.as_bytes());
        let actual = match &tunnels {
            Ok(n) if *n > 0 && hidden => "TLS 1.3 with X25519MLKEM768 only".to_owned(),
            Ok(_) => "payload in the clear".to_owned(),
            Err(problem) => problem.clone(),
        };
        self.judge("TLS 1.3 with X25519MLKEM768 only", &actual);
        println!("      {} packets, {} connections\n", traffic.frames().len(), tunnels.unwrap_or_default());
    }

    /// One connection from host a, and what its record says.
    fn step(&mut self, title: &str, expected: Outcome, mut command: Command) {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return;
        }
        self.number += 1;
        println!("{:2}. {title}", self.number);
        let got_through = run(&mut command).code() == Some(0);
        let record = self.stage.world.a().records().next(End::Source);
        let actual = match (record.verdict, got_through) {
            (Outcome::Allowed, false) => "allowed, but the program failed",
            (Outcome::Refused, true) => "refused, but the program succeeded",
            (verdict, _) => name(verdict),
        };
        self.judge(name(expected), actual);
        println!("      {}", account(&record));
        if record.verdict == Outcome::Allowed {
            // So that the other end's record is there when the table is shown.
            let id = record.id.clone();
            let _ = self.stage.world.b().records().take("the other end's record", |other| other.id == id);
        }
    }

    fn judge(&mut self, expected: &str, actual: &str) {
        let well = expected == actual;
        self.surprises += u32::from(!well);
        println!("    expected: {expected}   actual: {actual}   {}", if well { "ok" } else { "SURPRISE" });
    }

    fn show_records(&mut self) {
        for (site, host) in [("a", self.stage.world.a()), ("b", self.stage.world.b())] {
            println!("The flow records of host {site}:\n");
            let mut flows = Command::new(binaries().join("bonafide"));
            let shown = run(flows.arg("--dir").arg(host.dir()).arg("flows"));
            println!("{}{}", shown.stdout, shown.stderr);
        }
    }
}

fn time_until_over(watch: &mut Program) -> Duration {
    let start = Instant::now();
    while watch.is_running() && start.elapsed() < 5 * SOON {
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

fn name(verdict: Outcome) -> &'static str {
    match verdict {
        Outcome::Allowed => "allowed",
        Outcome::Refused => "refused",
        Outcome::WouldRefuse => "would refuse",
        Outcome::Undecided => "undecided",
    }
}

/// What one end wrote, in a line.
fn account(record: &FlowRecord) -> String {
    let end = if record.end == End::Source { "host a" } else { "host b" };
    let said = match (&record.reason, &record.rule) {
        (Some(reason), _) => format!("{reason}: {}", record.detail.as_deref().unwrap_or_default()),
        (None, Some(rule)) => format!("rule {rule:?}"),
        (None, None) => String::new(),
    };
    let near = record.nearest.as_ref();
    let near = near.map(|n| format!("; {} of {:?}: expected {}, seen {}", n.field, n.of, n.expected, n.seen));
    format!("{end} records: {}, {said}{}", name(record.verdict), near.unwrap_or_default())
}
