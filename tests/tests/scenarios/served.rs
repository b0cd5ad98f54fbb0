//! What changes of a server ends the connections that it accepted, and the client's end is told which kind of evidence it was.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::record::{End, Reason};
use bonafide_tests::ends::digest_of;
use bonafide_tests::libraries::libraries_of;
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::Program;
use bonafide_tests::programs::{hold, python, script, script_as, script_server_by};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::unit::UnitCgroups;
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World, replace_file};
use rustix::process::Signal;

/// For a busy machine; the promise is 100 ms, and it is measured elsewhere.
const SOON: Duration = Duration::from_secs(10);
/// One that Python does without.
const LIBRARY: &str = "libresolv.so.2";

/// What happens to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    ScriptModified,
    ScriptReplaced,
    ExecutableReplaced,
    LibraryLoaded,
    UserChanged,
    UnitLeft,
}

impl Cause {
    const ALL: [Self; 6] = [
        Self::ScriptModified,
        Self::ScriptReplaced,
        Self::ExecutableReplaced,
        Self::LibraryLoaded,
        Self::UserChanged,
        Self::UnitLeft,
    ];

    /// The server it happens to: `test/` and this is its name, and this and `.py` its script.
    fn server(self) -> &'static str {
        match self {
            Self::ScriptModified => "modified",
            Self::ScriptReplaced => "replaced",
            Self::ExecutableReplaced => "executable",
            Self::LibraryLoaded => "libraries",
            Self::UserChanged => "user",
            Self::UnitLeft => "unit",
        }
    }

    /// What the server does about it itself.
    fn how(self) -> &'static [&'static str] {
        match self {
            Self::LibraryLoaded => &["load", LIBRARY],
            Self::UserChanged => &["user", "65534"],
            _ => &["nothing"],
        }
    }

    /// What the client's end is told that it was about.
    fn kind(self) -> &'static str {
        match self {
            Self::ScriptModified | Self::ScriptReplaced => "script",
            Self::ExecutableReplaced => "taint",
            Self::LibraryLoaded => "libraries",
            Self::UserChanged => "user",
            Self::UnitLeft => "cgroup",
        }
    }
}

/// One world for all of it.
struct Stage {
    // In the order in which they have to go.
    world: World,
    unit: UnitCgroups,
    interpreter: PathBuf,
    libraries: Digest,
}

impl Stage {
    fn set() -> Self {
        let bare = BareWorld::create();
        let unit = UnitCgroups::create(bare.instance());
        // Interpreters are known by their names.
        std::fs::create_dir(bare.dir().join("bin")).unwrap();
        let interpreter = bare.copy_of(&python(), "bin/python3");
        let libraries = libraries_of(serve(&bare, Cause::LibraryLoaded, &python(), 6).pid()).0;
        let mut policy = Policy::enforce().script("test/holder", &script(&bare, "hold.py"));
        for cause in Cause::ALL {
            policy = policy.script(&format!("test/{}", cause.server()), &served(&bare, cause)).lines(&match cause {
                Cause::ScriptModified | Cause::ScriptReplaced => String::new(),
                Cause::ExecutableReplaced => format!("exe = \"{}\"", interpreter.display()),
                Cause::LibraryLoaded => format!("libraries = \"{libraries}\""),
                Cause::UserChanged => "uid = 0".to_owned(),
                Cause::UnitLeft => format!("unit = \"{}\"", unit.name()),
            });
        }
        let servers = Cause::ALL.map(|cause| format!("test/{}", cause.server()));
        let rule = "[[rule]]\nname = \"let in\"\naction = \"allow\"\nfrom = \"test/holder\"";
        let policy = policy.lines(&format!("{rule}\nto = {servers:?}"));
        Self { world: World::start(bare, &policy, Backend::Nft), unit, interpreter, libraries }
    }

    /// Makes it happen.
    fn happens(&self, cause: Cause, server: &Program) {
        match cause {
            Cause::ScriptModified => append(&served(self.world.bare(), cause)),
            Cause::ScriptReplaced => replace_file(&served(self.world.bare(), cause), b"# another\n"),
            Cause::ExecutableReplaced => {
                let new = std::fs::read(&self.interpreter).unwrap();
                replace_file(&self.interpreter, &[&new[..], b"\n"].concat());
            }
            // It does them itself.
            Cause::LibraryLoaded | Cause::UserChanged => server.signal(Signal::USR1),
            Cause::UnitLeft => self.unit.leave(server.pid()),
        }
    }

    /// What the record beside the server says of it.
    fn said(&self, cause: Cause) -> Vec<String> {
        match cause {
            Cause::ScriptModified | Cause::ScriptReplaced => {
                let script = served(self.world.bare(), cause);
                vec![format!("{} is {} now", script.display(), digest_of(&script))]
            }
            Cause::ExecutableReplaced => vec!["allow_taints wants none and not deleted".to_owned()],
            Cause::LibraryLoaded => vec![format!("libraries wants {} and not sha256:", self.libraries)],
            Cause::UserChanged => vec!["uid was 0 and is 65534".to_owned(), "uid wants 0 and not 65534".to_owned()],
            Cause::UnitLeft => vec![format!("unit wants {}", self.unit.name())],
        }
    }
}

fn served(bare: &BareWorld, cause: Cause) -> PathBuf {
    script_as(bare, "changeling.py", &format!("{}.py", cause.server()))
}

fn serve(bare: &BareWorld, cause: Cause, interpreter: &Path, port: u16) -> Program {
    let listening = port.to_string();
    let words = [&["serve", &listening], cause.how()].concat();
    script_server_by(bare, bare.topology().netns(Site::B), interpreter, &served(bare, cause), &words, port)
}

fn append(script: &Path) {
    File::options().append(true).open(script).unwrap().write_all(b"# one line more\n").unwrap();
}

#[test]
fn what_changes_under_a_server_ends_what_it_accepted_and_both_ends_say_what_it_was() {
    let stage = Stage::set();
    let families = Family::BOTH.into_iter().cycle();
    for ((cause, family), port) in Cause::ALL.into_iter().zip(families).zip(7..) {
        it_ends(&stage, cause, family, port);
    }
    stage.world.finish();
}

fn it_ends(stage: &Stage, cause: Cause, family: Family, port: u16) {
    let Stage { world, unit, interpreter, .. } = stage;
    let own = if cause == Cause::ExecutableReplaced { interpreter } else { &python() };
    let mut server = serve(world.bare(), cause, own, port);
    if cause == Cause::UnitLeft {
        unit.enter(server.pid());
    }
    let mut holder = hold(world.bare(), world.netns(Site::A), Site::B.at(family, port));
    server.wait_for_output("open");
    if cause.how() == ["nothing"] {
        server.signal(Signal::USR1);
        server.wait_for_output("done");
    }
    stage.happens(cause, &server);
    for program in [&mut holder, &mut server] {
        wait_until("the idle connection to be ended", SOON, || !program.is_running());
        assert!(program.output().contains("ECONNRESET"), "{cause:?}: {}", program.output());
    }
    let ends = world.next_flow();
    let record = ends.assert_ended_at(End::Destination, Reason::IdentityChanged);
    let detail = record.detail.as_deref().unwrap_or_default();
    for said in stage.said(cause) {
        assert!(detail.contains(&said), "{cause:?}: it does not say {said:?}: {record:#?}");
    }
    let told = format!("the other enforcer ended it: identity-changed ({})", cause.kind());
    assert_eq!(ends.source.detail.as_deref(), Some(&*told), "{cause:?}: {ends:#?}");
}
