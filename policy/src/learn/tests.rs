use bonafide_proto::edge::Edge;
use bonafide_proto::record::End;
use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_800_000_000;
const EMPTY: &str = "mode = 'observe'\nmesh = ['10.0.0.0/8']\n";
const SHOP: &str = "mode = 'shadow'
mesh = ['10.0.0.0/8']
[[workload]]\nname = 'a'\nexe = '/a'\nlabels = { tier = 'app' }
[[workload]]\nname = 'b'\nexe = '/b'\nlabels = { tier = 'app' }
[[workload]]\nname = 'c'\nexe = '/c'\nlabels = { tier = 'web' }
[[workload]]\nname = 'db'\nexe = '/db'
[[workload]]\nname = 'test'\nexe = '/test'
[[group]]\nname = 'apps'\nall = { tier = 'app' }
[[outside]]\nname = 'internet'\nprefixes = ['0.0.0.0/0', '::/0']
[[guard]]\nname = 'no tests'\nfrom = 'test'\nto = 'db'
[[rule]]\nname = 'no c'\nfrom = 'c'\nto = 'db'\nports = [22]\naction = 'deny'
";

fn program(path: &str) -> Actor {
    Actor { program: Some(path.into()), digest: Some(Digest([7; 32])), ..Actor::default() }
}

fn at(addr: &str) -> Actor {
    Actor { addr: Some(addr.parse().unwrap()), ..Actor::default() }
}

fn seen(from: Actor, to: Actor, port: u16) -> EdgeCount {
    let (mode, protocol) = ("shadow".to_owned(), Protocol::Tcp);
    let edge = Edge {
        end: End::Source,
        from,
        to,
        port,
        protocol,
        mode,
        verdict: Outcome::WouldRefuse,
        rule: None,
        tried: None,
        reason: None,
    };
    let [from_addrs, to_addrs] = [&edge.from, &edge.to].map(|actor| actor.addr.into_iter().collect());
    EdgeCount {
        edge,
        seen: Seen {
            flows: 3,
            first: NOW - 9,
            last: NOW,
            samples: vec!["abc".into()],
            from_addrs,
            to_addrs,
            ..Seen::default()
        },
    }
}

fn learned(policy: &str, edges: &[EdgeCount]) -> Learned {
    let learned = Policy::learn("p", policy, NOW, edges, Lessons::LetThrough).unwrap_or_else(|e| panic!("{e}"));
    let text = format!("{policy}\n{}", learned.text);
    let again = Policy::learn("p", &text, NOW, edges, Lessons::LetThrough).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(again.text, "", "learning again from its own output:\n{text}");
    learned
}

#[test]
fn from_nothing_but_flows_comes_a_policy_with_workloads_and_rules() {
    let web = Actor {
        unit: Some("web.service".into()),
        script: Some("/srv/x.py".into()),
        script_digest: Some(Digest([1; 32])),
        ..program("/usr/bin/python3")
    };
    let learned = learned(EMPTY, &[seen(web, program("/usr/bin/postgres"), 5432)]);
    assert_eq!((learned.workloads, learned.rules, learned.left_out.len()), (2, 1, 0), "{learned:?}");
    for line in [
        "exe = \"/usr/bin/python3\"\nscript = \"/srv/x.py\"\nunit = \"web.service\"\n",
        "# 3 flows, 2027-01-15 07:59 to 2027-01-15 08:00, the last abc\n",
        "from = \"web\"\nto = \"postgres\"\nports = [5432]\naction = \"allow\"\n",
    ] {
        assert!(learned.text.contains(line), "{}", learned.text);
    }
}

#[test]
fn a_group_stands_for_its_members_only_if_all_of_them_were_seen() {
    let edges = [seen(program("/a"), program("/db"), 5432), seen(program("/b"), program("/db"), 5432)];
    assert!(learned(SHOP, &edges).text.contains("from = \"apps\"\n"));
    assert!(learned(SHOP, &edges[..1]).text.contains("from = \"a\"\n"));
    let wider = [edges.to_vec(), vec![seen(program("/c"), program("/db"), 5432)]].concat();
    assert!(learned(SHOP, &wider).text.contains("from = [\"a\", \"b\", \"c\"]\n"));
}

#[test]
fn one_label_that_tells_them_from_all_others_becomes_a_group() {
    let labelled = SHOP.replace("name = 'db'\nexe = '/db'", "name = 'db'\nexe = '/db'\nlabels = { 'io/zone' = 'x' }");
    let labelled = labelled.replace("tier = 'web' }", "tier = 'web', 'io/zone' = 'x' }");
    let edges = [seen(program("/c"), program("/a"), 80), seen(program("/db"), program("/a"), 80)];
    let text = learned(&labelled, &edges).text;
    assert!(text.contains("[[group]]\nname = \"io-zone-x\"\nall = { \"io/zone\" = \"x\" }\n"), "{text}");
    assert!(text.contains("from = \"io-zone-x\"\n"), "{text}");
    assert!(learned(SHOP, &edges).text.contains("from = [\"c\", \"db\"]\n"));
}

#[test]
fn what_must_not_be_proposed_is_left_out_and_told() {
    let bare = Actor { taints: [Taint::NoScript].into(), ..program("/usr/bin/python3") };
    let preloaded = Actor { taints: [Taint::Preload].into(), ..program("/new") };
    let refused = EdgeCount {
        edge: Edge { verdict: Outcome::Refused, ..seen(program("/a"), program("/b"), 80).edge },
        ..seen(at("10.0.0.1"), at("10.0.0.2"), 1)
    };
    let barred = EdgeCount {
        edge: Edge { reason: Some(Reason::Quarantined), ..seen(program("/a"), program("/b"), 81).edge },
        ..refused.clone()
    };
    for (edge, why) in [
        (seen(program("/test"), program("/db"), 5432), "\"no tests\" denies it"),
        (seen(program("/c"), program("/db"), 22), "\"no c\" denies it"),
        (seen(bare, program("/db"), 5432), "the source is an interpreter without a script"),
        (seen(preloaded, program("/db"), 5432), "\"/new\" earns no workload"),
        (seen(program("/a"), at("10.0.0.9"), 5432), "10.0.0.9 is in the mesh, and no record says which program"),
        (refused, "was refused; ask for refused flows"),
        (barred, "recorded as quarantined"),
    ] {
        let learned = learned(SHOP, std::slice::from_ref(&edge));
        assert_eq!((learned.text.as_str(), learned.left_out.len()), ("", 1), "{learned:?}");
        assert!(learned.left_out[0].why.contains(why), "{learned:?}");
        assert_eq!(learned.left_out[0].seen.flows, 3);
    }
    let nowhere = SHOP.replace("'0.0.0.0/0', ", "");
    let learned = learned(&nowhere, &[seen(program("/a"), at("192.0.2.1"), 443)]);
    assert!(
        learned.left_out[0].why.contains("no [[outside]] covers 192.0.2.1 with port 443; declare one"),
        "{learned:?}"
    );
}

#[test]
fn hostile_paths_stay_texts() {
    let quotes = learned(EMPTY, &[seen(program("/srv/a\"b'c"), program("/db"), 80)]);
    let policy = Policy::parse("p", &format!("{EMPTY}{}", quotes.text)).unwrap();
    assert_eq!((policy.rules.len(), policy.workloads.len()), (1, 2), "{}", quotes.text);
    // A path that no policy may name is not proposed, and says no more than that it was seen.
    let lines = learned(EMPTY, &[seen(program("/srv/a\n[[rule]]\nname = 'x'\u{202e}"), program("/db"), 80)]);
    assert_eq!((lines.workloads, lines.rules), (1, 0), "{}", lines.text);
    assert!(lines.left_out[0].why.contains("\\n[[rule]]") && lines.left_out[0].why.is_ascii(), "{lines:?}");
}

#[test]
fn refused_flows_are_learned_from_if_asked_for() {
    let mut edge = seen(program("/a"), program("/b"), 80);
    edge.edge.verdict = Outcome::Refused;
    let learned = Policy::learn("p", SHOP, NOW, &[edge], Lessons::Refused).unwrap();
    assert_eq!((learned.rules, learned.left_out.len()), (1, 0));
}

proptest! {
    #[test]
    fn exactly_what_was_seen_is_allowed(flows: BTreeSet<(u8, u8, u8)>) {
        let names = ["a", "b", "c", "db"];
        let name = |n: u8| names[usize::from(n % 4)];
        let flows: BTreeSet<(&str, &str, u16)> = flows.into_iter().map(|(f, t, p)| (name(f), name(t), u16::from(p % 6) + 20)).collect();
        let path = |name: &str| program(&format!("/{name}"));
        let edges: Vec<EdgeCount> = flows.iter().map(|(from, to, port)| seen(path(from), path(to), *port)).collect();
        let text = format!("{SHOP}\n{}", learned(SHOP, &edges).text);
        let policy = Policy::parse("p", &text).unwrap();
        for (from, to, port) in names.iter().flat_map(|f| names.iter().flat_map(move |t| (20..26).map(move |p| (*f, *t, p)))) {
            let [of, by] = [from, to].map(|name| name.parse().unwrap());
            let allowed = policy.decide(&crate::Subject::Workload(&of), &crate::Subject::Workload(&by), port).is_allow();
            let denied = (from, to, port) == ("c", "db", 22);
            prop_assert_eq!(allowed, flows.contains(&(from, to, port)) && !denied, "{} {} {}\n{}", from, to, port, text);
        }
    }
}
