//! A shop of three tiers, from the first look to enforcement, all through the command line; the README's tutorial tells it.

use std::path::{Path, PathBuf};

use bonafide_proto::record::{FlowRecord, Outcome, Reason};
use bonafide_tests::netns::Netns;
use bonafide_tests::node::Backend;
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{Finished, Program, must_run, run};
use bonafide_tests::programs::{
    curl, curl_exe, nginx_before, postgres, psql_by, psql_exe, redis, script, script_server, ssh_keyscan, sshd,
};
use bonafide_tests::topology::{Family, Site, outside_ip};
use bonafide_tests::world::{BareWorld, World};

/// What one round of the shop's day is recorded as, on host a and on host b.
const ROUND: [usize; 2] = [8, 14];

/// The shop, its customers and the people who keep it.
struct Shop {
    world: World,
    customers: Netns,
    worker: PathBuf,
    report: PathBuf,
    stranger: PathBuf,
    policy: PathBuf,
    _servers: Vec<Program>,
}

impl Shop {
    fn open(begun: &Policy) -> Self {
        let bare = BareWorld::create();
        let [worker, report, stranger] = ["worker", "report", "stranger"].map(|name| bare.copy_of(&psql_exe(), name));
        let policy = bare.file("shop.toml", begun.text());
        let customers = bare.topology().join_outside();
        let mut world = World::start(bare, begun, Backend::Nft);
        for site in [Site::A, Site::B] {
            world.on(site, |node, _| node.wait_observing());
        }
        let (bare, a, b) = (world.bare(), world.netns(Site::A), world.netns(Site::B));
        let api = script(bare, "shop_api.py");
        let servers = vec![
            postgres(bare, b, 5432),
            redis(bare, b, 6379),
            script_server(bare, b, &api, &["8000", "6379", "5432"], 8000),
            nginx_before(bare, a, 80, Site::B.at(Family::V4, 8000)),
            sshd(bare, a, 22),
        ];
        Self { customers, worker, report, stranger, policy, _servers: servers, world }
    }

    /// A customer looks, the worker works, an admin comes by, over both families.
    fn day(&self) -> [Vec<FlowRecord>; 2] {
        let (a, b) = (self.world.netns(Site::A), self.world.netns(Site::B));
        for family in Family::BOTH {
            let page = must_run(&mut curl(&self.customers, &curl_exe(), Site::A.at(family, 80)));
            assert!(page.starts_with("visits ") && page.ends_with("database N\n"), "{page}");
            let database = Site::B.at(family, 5432);
            assert_eq!(must_run(&mut psql_by(a, &self.worker, database, "select 6 * 7 from pg_sleep(0.3)")), "42\n");
            must_run(&mut ssh_keyscan(b, Site::A.at(family, 22)));
        }
        [self.world.a().records().take_many(ROUND[0]), self.world.b().records().take_many(ROUND[1])]
    }

    fn query(&self, program: &Path) -> Finished {
        run(&mut psql_by(
            self.world.netns(Site::A),
            program,
            Site::B.at(Family::V4, 5432),
            "select 1 from pg_sleep(0.3)",
        ))
    }

    /// `bonafide policy …`, on what both nodes remember.
    fn policy(&self, words: &[&str]) -> Finished {
        let seen = [self.world.a(), self.world.b()].map(|host| {
            let lines = bonafide(host.dir(), &["history", "--since", "7d", "--format", "jsonl"]).success();
            let file = host.dir().join("history.jsonl");
            std::fs::write(&file, lines).unwrap();
            file.display().to_string()
        });
        let seen = seen.iter().flat_map(|file| ["--seen", file.as_str()]);
        let all: Vec<&str> = ["policy"].into_iter().chain(words.iter().copied()).chain(seen).collect();
        bonafide(self.world.a().dir(), &all)
    }

    fn file(&self) -> String {
        self.policy.display().to_string()
    }

    /// `bonafide policy learn FILE >> FILE`: what it says beside.
    fn learn(&self) -> String {
        let learned = self.policy(&["learn", &self.file()]);
        let beside = learned.stderr.clone();
        let text = std::fs::read_to_string(&self.policy).unwrap() + &learned.success();
        std::fs::write(&self.policy, text).unwrap();
        beside
    }

    /// Puts the file in force on both hosts, in this mode.
    fn put_in_force(&self, mode: &str) -> Policy {
        let text = std::fs::read_to_string(&self.policy).unwrap();
        let (_, rules) = text.split_once('\n').unwrap();
        let text = format!("mode = \"{mode}\"\n{rules}");
        std::fs::write(&self.policy, &text).unwrap();
        let policy = Policy::of(&text);
        self.world.set_policy(&policy);
        policy
    }
}

#[test]
fn a_shop_is_observed_learned_shadowed_and_enforced() {
    let begun = Policy::observe().outside("customers", [outside_ip(Family::V4, 2), outside_ip(Family::V6, 2)]);
    let shop = Shop::open(&begun);

    // Observed, learned: what is proposed is all that there was, and enough.
    shop.day();
    let said = shop.learn();
    assert!(
        said.starts_with("proposed: 7 workloads, 5 rules\n"),
        "{said}\n{}",
        std::fs::read_to_string(&shop.policy).unwrap()
    );
    let again = shop.policy(&["learn", &shop.file()]).success();
    assert_eq!(again, "", "nothing is lacking any more");
    let begun = shop.world.bare().file("begun.toml", begun.text());
    let diff = shop.policy(&["diff", &shop.file(), "--old", &begun.display().to_string()]).success();
    assert!(diff.contains("newly denied: 0 flows of 0 kinds\n"), "{diff}");

    // Shadowed: nothing would be refused, until the monthly job comes.
    shop.put_in_force("shadow");
    let recorded = shop.day().concat();
    let refused: Vec<_> = recorded.iter().filter(|record| record.verdict == Outcome::WouldRefuse).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(shop.query(&shop.report).success(), "1\n");
    let [source] = &shop.world.a().records().take_many(1)[..] else { panic!("one flow") };
    assert_eq!((source.verdict, source.reason), (Outcome::WouldRefuse, Some(Reason::NoWorkload)), "{source:#?}");
    shop.world.b().records().take_many(1);

    // The report is learned before anything is refused.
    let without = shop.world.bare().file("without.toml", &std::fs::read_to_string(&shop.policy).unwrap());
    let said = shop.learn();
    assert!(said.starts_with("proposed: 1 workloads, 1 rules\n"), "{said}");
    let old = shop.file();
    let diff = shop.policy(&["diff", &without.display().to_string(), "--old", &old]);
    assert_eq!(diff.code(), Some(3), "{diff:#?}");
    assert!(diff.stdout.contains("newly denied: 1 flows of 1 kinds\n  report to postgres on 5432"), "{}", diff.stdout);

    let ready = shop.policy(&["readiness", &shop.file(), "--app", "postgres", "--app", "report"]).success();
    assert_eq!(ready.matches(" % (").count(), 2, "{ready}");
    assert_eq!(ready.matches(": 100 % (").count(), 2, "{ready}");

    // Enforced: everything works, and a stranger with the same client does not.
    shop.put_in_force("enforce");
    let recorded = shop.day().concat();
    assert!(recorded.iter().all(|record| record.verdict == Outcome::Allowed), "{recorded:#?}");
    assert_eq!(shop.query(&shop.report).success(), "1\n");
    shop.world.next_flow().assert_allowed("report to postgres on 5432", "report", "postgres");
    assert_ne!(shop.query(&shop.stranger).code(), Some(0));
    let refused = shop.world.a().records().take_many(1);
    let remedy = refused[0].remedy.clone().unwrap();
    assert!(remedy.contains("bonafide workload add --from-pid"), "{remedy}");
    let why = bonafide(shop.world.a().dir(), &["why", &refused[0].id]);
    assert_eq!(why.code(), Some(3), "{why:#?}");
    assert!(why.stdout.contains("stranger\" earns no workload"), "{}", why.stdout);
    shop.world.finish();
}
