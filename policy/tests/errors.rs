//! Every mistake is reported at its exact place, with what would be right.
//!
//! In the texts below `¶` marks each place where an error is expected; it is removed before parsing.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use bonafide_policy::{POLICY_MAX, Policy};
use proptest::prelude::*;

/// A policy without mistakes, onto which the cases build.
const BASE: &str = r#"mode = "enforce"
mesh = ["10.77.0.0/16", "fd77::/16"]
[[workload]]
name = "shop/web"
exe = "/usr/sbin/nginx"
[[workload]]
name = "shop/db"
exe = "/usr/bin/postgres"
[[outside]]
name = "dns"
prefixes = ["192.0.2.0/24"]
ports = [53]
[[outside]]
name = "clients"
prefixes = ["198.51.100.0/24"]
[[rule]]
name = "web to db"
from = "shop/web"
to = ["shop/db"]
ports = [5432]
action = "allow"
"#;

/// Splits a marked text into the text and the expected `line:column` places.
fn unmark(marked: &str) -> (String, Vec<String>) {
    let (mut text, mut places, mut line, mut column) = (String::new(), Vec::new(), 1, 1);
    for c in marked.chars() {
        match c {
            '¶' => {
                places.push(format!("{line}:{column}"));
                continue;
            }
            '\n' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
        text.push(c);
    }
    (text, places)
}

/// The marked text has exactly these errors, one at each mark.
fn refused(marked: &str, messages: &[&str]) {
    let (text, places) = unmark(marked);
    let expected: Vec<String> = places.iter().zip(messages).map(|(at, message)| format!("p:{at}: {message}")).collect();
    assert_eq!(places.len(), messages.len(), "the test marks as many places as it expects errors");
    let seen = Policy::parse("p", &text).map(|_| "accepted".to_owned()).unwrap_or_else(|e| e.to_string());
    assert_eq!(seen, expected.join("\n"), "in\n{marked}");
}

/// As [`refused`], for a text appended to [`BASE`].
fn refused_after_base(marked: &str, messages: &[&str]) {
    refused(&format!("{BASE}{marked}"), messages);
}

/// As [`refused`], with a marked line in the place of one of [`BASE`].
fn refused_with(line: &str, marked: &str, messages: &[&str]) {
    assert!(BASE.contains(line), "{line} is in the base");
    refused(&BASE.replacen(line, marked, 1), messages);
}

#[test]
fn the_base_is_right() {
    Policy::parse("p", BASE).unwrap();
}

#[test]
fn too_long() {
    let text = "#".repeat(POLICY_MAX + 1);
    let expected = "p:1:1: the policy is 268435457 bytes long; the limit is 268435456";
    assert_eq!(Policy::parse("p", &text).unwrap_err().to_string(), expected);
}

#[test]
fn syntax() {
    refused(
        "mode = ¶enforce\n[[workload]]\nname = \"a¶\nb¶\"¶\n",
        &[
            "not TOML: string values must be quoted, expected literal string",
            "not TOML: invalid basic string, expected `\"`",
            "not TOML: invalid unquoted key, expected letters, numbers, `-`, `_`",
            "not TOML: key with no value, expected `=`",
        ],
    );
    refused("mode = \"observe\"\n¶mode = \"observe\"\n", &["not TOML: duplicate key"]);
}

#[test]
fn syntax_and_meaning_come_together_without_consequences() {
    // The broken header hides a workload: neither its fields nor the rule that names it are complained about.
    refused(
        "mode = ¶\"obsrve\"\n[[workload]¶\nname = \"a\"\nexe = \"/bin/a\"\n\
         [[rule]]\nname = \"r\"\nfrom = \"a\"\nto = \"a\"\naction = ¶\"alow\"\n",
        &[
            "the mode \"obsrve\" is not known; write \"observe\", \"shadow\" or \"enforce\"",
            "not TOML: unclosed array table, expected `]`",
            "the action \"alow\" is not known; write \"allow\" or \"deny\"",
        ],
    );
}

#[test]
fn long_texts_stop_at_the_first_syntax_error() {
    let text = format!("mode = \"observe\"\n{}", "=\n".repeat(200_000));
    let errors = Policy::parse("p", &text).unwrap_err();
    assert_eq!(errors.errors().len(), 1);
    assert_eq!((errors.errors()[0].line, errors.errors()[0].column), (2, 1));
}

#[test]
fn unknown_fields() {
    refused(
        "¶moed = \"enforce\"\n¶colour = 1\nmode = \"enforce\"\n",
        &[
            "unknown field \"moed\" in the policy; did you mean \"mode\"?",
            "unknown field \"colour\" in the policy; it knows mode, mesh, same_host, include, team, workload, group, outside, guard, rule, test",
        ],
    );
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = \"/usr/sbin/nginx\"\n¶sha265 = \"\"",
        &["unknown field \"sha265\" in [[workload]]; did you mean \"sha256\"?"],
    );
    refused_with("ports = [53]", "¶port = [53]", &["unknown field \"port\" in [[outside]]; did you mean \"ports\"?"]);
    refused_with(
        "action = \"allow\"",
        "action = \"allow\"\n¶priority = 3\n¶\"\\u0430ction\" = 1\n¶\"\\u001b[31m\" = 1",
        &[
            "unknown field \"priority\" in [[rule]]; it knows name, from, to, ports, action, mode, expires, schedule, owner, ticket",
            "unknown field \"\\u{430}ction\" in [[rule]]; did you mean \"action\"?",
            "unknown field \"\\u{1b}[31m\" in [[rule]]; it knows name, from, to, ports, action, mode, expires, schedule, owner, ticket",
        ],
    );
}

#[test]
fn missing_fields() {
    refused("¶", &["the policy has no mode; add mode = \"enforce\""]);
    refused_after_base(
        "¶[[workload]]\nexe = \"/bin/a\"\n¶[[workload]]\nname = \"a\"\nuid = 3\n",
        &[
            "[[workload]] has no name; add name = \"shop/web\"",
            "this [[workload]] does not say which program it is; \
             add exe or sha256 or script or script_sha256 or inline_sha256 or libraries or image or unit, for example exe = \"/usr/sbin/nginx\"",
        ],
    );
    refused_after_base(
        "¶¶[[outside]]\n",
        &[
            "[[outside]] has no name; add name = \"dns\"",
            "[[outside]] has no prefixes; add prefixes = [\"192.0.2.0/24\"]",
        ],
    );
    refused_after_base(
        "¶¶¶¶[[rule]]\n",
        &[
            "[[rule]] has no name; add name = \"web to db\"",
            "[[rule]] has no from; add from = [\"shop/web\"]",
            "[[rule]] has no to; add to = [\"shop/db\"]",
            "[[rule]] has no action; add action = \"allow\"",
        ],
    );
}

#[test]
fn wrong_types() {
    refused(
        "mode = ¶3\nsame_host = ¶true\nmesh = [¶1.5, ¶[]]\nworkload = ¶3\nrule = [¶\"x\"]\n¶[outside]\nname = \"x\"\n",
        &[
            "mode must be a string, not an integer; for example mode = \"enforce\"",
            "same_host must be a string, not a boolean; for example same_host = \"verified\"",
            "mesh must be a string or a list of strings, not a float; \
             for example mesh = [\"10.77.0.0/16\", \"fd77::/16\"]",
            "mesh must be a string or a list of strings, not an array; \
             for example mesh = [\"10.77.0.0/16\", \"fd77::/16\"]",
            "workload must be [[workload]] tables; write [[workload]] above each of them",
            "rule must be [[rule]] tables; write [[rule]] above each of them",
            "outside must be [[outside]] tables; write [[outside]] above each of them",
        ],
    );
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = ¶[\"/a\"]\nsha256 = ¶1\nscript = ¶2\nscript_sha256 = [¶3]\nunit = ¶4\nuid = ¶\"root\"",
        &[
            "exe must be a string, not an array; for example exe = \"/usr/sbin/nginx\"",
            "sha256 must be a string or a list of strings, not an integer; \
             for example sha256 = \"sha256:<64 hex digits>\"",
            "script must be a string, not an integer; for example script = \"/srv/app.py\"",
            "script_sha256 must be a string or a list of strings, not an integer; \
             for example script_sha256 = \"sha256:<64 hex digits>\"",
            "unit must be a string, not an integer; for example unit = \"nginx.service\"",
            "uid must be a number, not a string; for example uid = 33",
        ],
    );
    refused_with(
        "ports = [5432]",
        "ports = [¶true, ¶1979-05-27]",
        &[
            "ports must be a list of ports and \"first-last\" ranges, not a boolean; \
             for example ports = [53, \"8000-8100\"]",
            "ports must be a list of ports and \"first-last\" ranges, not a datetime; \
             for example ports = [53, \"8000-8100\"]",
        ],
    );
}

#[test]
fn words_that_are_not_known() {
    refused(
        "mode = ¶\"Enforce\"\nsame_host = ¶\"tls\"\n",
        &[
            "the mode \"Enforce\" is not known; write \"observe\", \"shadow\" or \"enforce\"",
            "same_host = \"tls\" is not known; write \"verified\" or \"mtls\"",
        ],
    );
    refused_with(
        "action = \"allow\"",
        "action = ¶\"permit\"",
        &["the action \"permit\" is not known; write \"allow\" or \"deny\""],
    );
}

#[test]
fn names_that_rules_do_not_know() {
    refused_with(
        "from = \"shop/web\"",
        "from = [¶\"shop/wbe\", \"shop/db\", ¶\"mail/relay\", ¶\"Shop/Web\"]",
        &[
            "no [[workload]], [[group]] or [[outside]] is named \"shop/wbe\"; did you mean \"shop/web\"?",
            "no [[workload]], [[group]] or [[outside]] is named \"mail/relay\"; declare it, or use a name that is declared",
            "no [[workload]], [[group]] or [[outside]] is named \"Shop/Web\"; did you mean \"shop/web\"?",
        ],
    );
    refused_with(
        "to = [\"shop/db\"]",
        "to = ¶\"dsn\"",
        &["no [[workload]], [[group]] or [[outside]] is named \"dsn\"; did you mean \"dns\"?"],
    );
}

#[test]
fn groups() {
    let with_labels = |marked: &str, messages: &[&str]| {
        let line = "exe = \"/usr/sbin/nginx\"";
        let labelled = format!("labels = {{ app = \"shop\", tier = \"web\" }}\n{line}");
        refused(&format!("{}{marked}", BASE.replacen(line, &labelled, 1)), messages);
    };
    with_labels(
        "[[group]]\nname = \"a\"\nmembers = [\"shop/web\", \"b\"]\n[[group]]\nname = \"b\"\nmembers = [\"c\"]\n\
         [[group]]\nname = \"c\"\nmembers = ¶\"a\"\n",
        &["\"a\" is a member of itself; remove it here"],
    );
    with_labels(
        "[[group]]\nname = ¶\"shop/web\"\nmembers = [¶\"dns\", ¶\"nobody\", \"shop/db\", ¶\"shop/db\"]\n",
        &[
            "\"shop/web\" is already the name of the [[workload]] on line 4; choose another name",
            "\"dns\" is an [[outside]]; groups are of workloads",
            "no [[workload]], [[group]] or [[outside]] is named \"nobody\"; declare it, or use a name that is declared",
            "members lists the same thing twice; remove one of them",
        ],
    );
    with_labels(
        "¶[[group]]\nname = \"a\"\n¶[[group]]\nname = \"b\"\nnone = { app = \"x\" }\n\
         [[group]]\nname = \"c\"\nmembers = ¶[\"shop/web\"]\nall = { app = \"shop\" }\n",
        &[
            "this [[group]] does not say who is in it; add members, or labels, for example all = { app = \"shop\" }",
            "this [[group]] only says who is not in it; say by all or any who is in it",
            "this [[group]] has members and all; make it two groups, and list both in a third",
        ],
    );
    with_labels(
        "[[group]]\nname = \"a\"\nall = { ¶ap = \"shop\" }\nany = [{ ¶app = \"mail\" }, { tier = \"web\" }]\n\
         ¶[[group]]\nname = \"b\"\nall = { app = \"shop\" }\nnone = { tier = \"web\" }\n",
        &[
            "no workload has the label ap = \"shop\"; did you mean \"app\"?",
            "no workload has the label app = \"mail\"; give it to one, or remove it here",
            "no workload is in this [[group]]; change its labels or remove it",
        ],
    );
    with_labels(
        "[[group]]\nname = \"a\"\nall = ¶{}\nany = [¶3]\nnone = { ¶\"t\\u0456er\" = \"x\", tier = ¶\"\" }\n",
        &[
            "all has 0 labels; give 1 to 32",
            "any must be a table of strings, or a list of them, not an integer; for example any = [{ tier = \"api\" }, { tier = \"db\" }]",
            "\"t\\u{456}er\" contains '\\u{456}'; labels are letters, digits, '.', '-', '_' and '/'",
            "\"\" is empty; a label has a key and a value",
        ],
    );
}

#[test]
fn names_that_are_taken() {
    refused_after_base(
        "[[workload]]\nname = ¶\"shop/web\"\nexe = \"/bin/a\"\n\
         [[workload]]\nname = ¶\"clients\"\nexe = \"/bin/b\"\n\
         [[outside]]\nname = ¶\"dns\"\nprefixes = [\"203.0.113.0/24\"]\n\
         [[outside]]\nname = ¶\"shop/db\"\nprefixes = [\"203.0.113.0/24\"]\n\
         [[rule]]\nname = ¶\"web to db\"\nfrom = \"shop/web\"\nto = \"shop/db\"\naction = \"deny\"\n",
        &[
            "\"shop/web\" is already the name of the [[workload]] on line 4; choose another name",
            "\"clients\" is already the name of the [[outside]] on line 14; choose another name",
            "\"dns\" is already the name of the [[outside]] on line 10; choose another name",
            "\"shop/db\" is already the name of the [[workload]] on line 7; choose another name",
            "the rule name \"web to db\" is already the name of the guard or rule on line 17; choose another name",
        ],
    );
}

#[test]
fn names_that_are_no_names() {
    let rule = "a name is parts of letters, digits, '.', '-' and '_' joined by '/', like \"shop/web\"";
    for (written, shown, problem) in [
        ("", "", "is empty"),
        ("shop web", "shop web", "contains ' '"),
        ("sh\u{43e}p", "sh\\u{43e}p", "contains '\\u{43e}'"),
        ("shop\\u001b[2J", "shop\\u{1b}[2J", "contains '\\u{1b}'"),
        ("/shop", "/shop", "has a path segment \"\""),
        ("shop/", "shop/", "has a path segment \"\""),
        ("shop/../db", "shop/../db", "has a path segment \"..\""),
        ("spiffe://a/b", "spiffe://a/b", "contains ':'"),
    ] {
        let message = format!("the name \"{shown}\" {problem}; {rule}");
        refused_after_base(&format!("[[workload]]\nname = ¶\"{written}\"\nexe = \"/bin/a\"\n"), &[&message]);
        refused_after_base(&format!("[[outside]]\nname = ¶\"{written}\"\nprefixes = [\"1.0.0.0/8\"]\n"), &[&message]);
    }
    let long = format!("[[workload]]\nname = ¶\"{}\"\nexe = \"/bin/a\"\n", "a".repeat(256));
    let message = format!("the name \"{}...\" is longer than 255 bytes; {rule}", "a".repeat(80));
    refused_after_base(&long, &[&message]);
    refused_after_base(
        "[[workload]]\nname = ¶\"bonafide/ca\"\nexe = \"/bin/a\"\n",
        &["the name \"bonafide/ca\" begins with \"bonafide/\", which belongs to the mesh itself; \
           begin with another part"],
    );
}

#[test]
fn rule_names() {
    for (written, shown, problem) in [
        ("", "", "is empty; say in a few words what it permits"),
        (" web", " web", "begins or ends with a space; remove it"),
        ("caf\u{e9}", "caf\\u{e9}", "contains '\\u{e9}'; a rule's name is printable ASCII"),
        ("a\\nb", "a\\u{a}b", "contains '\\n'; a rule's name is printable ASCII"),
    ] {
        let shown = shown.replace("\\u{a}", "\\n");
        let message = format!("the rule name \"{shown}\" {problem}");
        refused_with("name = \"web to db\"", &format!("name = ¶\"{written}\""), &[&message]);
    }
    let long = "r".repeat(129);
    let message = format!("the rule name \"{}...\" is longer than 128 bytes", "r".repeat(80));
    refused_with("name = \"web to db\"", &format!("name = ¶\"{long}\""), &[&message]);
}

#[test]
fn selectors() {
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = ¶\"nginx\"\nscript = ¶\"/srv/../app\"\nunit = ¶\"nginx\"\nuid = ¶-1",
        &[
            "the exe \"nginx\" does not start with \"/\"; write the path as the kernel knows it",
            "the script \"/srv/../app\" has an empty part, \".\" or \"..\"; write the path as the kernel knows it",
            "the unit \"nginx\" does not end in \".service\" or \".scope\"; write it like \"nginx.service\"",
            "the uid is out of range; user IDs are 0 to 4294967294",
        ],
    );
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = ¶\"/bin/a\\u0007\"\nscript = ¶\"/srv//app\"\nunit = ¶\"a b.service\"\nuid = ¶4294967295",
        &[
            "the exe \"/bin/a\\u{7}\" contains a control character; remove it",
            "the script \"/srv//app\" has an empty part, \".\" or \"..\"; write the path as the kernel knows it",
            "the unit \"a b.service\" is no unit name; names have letters, digits and any of : - _ . \\ @",
            "the uid is out of range; user IDs are 0 to 4294967294",
        ],
    );
    let long = format!("exe = ¶\"/{}\"\nunit = ¶\"{}.service\"", "a".repeat(4096), "u".repeat(248));
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        &long,
        &[
            &format!("the exe \"/{}...\" is longer than 4096 bytes", "a".repeat(79)),
            &format!("the unit \"{}...\" is longer than 255 bytes", "u".repeat(80)),
        ],
    );
}

#[test]
fn digests() {
    let (lower, upper) = ("ab".repeat(32), "AB".repeat(32));
    let not = "is not \"sha256:\" and 64 lower-case hex digits, as sha256sum prints";
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        &format!("sha256 = [\"{lower}\", ¶\"sha256:{lower}\", ¶\"{upper}\"]\nscript_sha256 = ¶\"sha1:ab\""),
        &[
            "sha256 lists the same thing twice; remove one of them",
            &format!("the digest \"{upper}\" {not}"),
            &format!("the digest \"sha1:ab\" {not}"),
        ],
    );
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "sha256 = ¶[]",
        &["sha256 is an empty list; write sha256 = \"sha256:<64 hex digits>\""],
    );
}

#[test]
fn selectors_of_containers_and_hosts() {
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = \"/usr/sbin/nginx\"\nimage = ¶\"nginx:1.27\"\nimage_name = ¶\"\"\ncontainer = ¶\"shop web\"\n\
         runtime = ¶\"rkt\"\npod_namespace = ¶\"Shop\"\npod = ¶\"web-*\"\nservice_account = ¶\"web.\"\n\
         gid = ¶4294967295\nnodes = [\"a\", ¶\"a\", ¶\"b/c\"]",
        &[
            "the digest \"nginx:1.27\" is not \"sha256:\" and 64 lower-case hex digits, as sha256sum prints",
            "the image_name \"\" is no name of an image; \
             write it as the runtime shows it, like \"docker.io/library/nginx:1.27\"",
            "the container \"shop web\" is no name of a container; \
             those are up to 128 letters, digits and any of _ . -",
            "the runtime \"rkt\" is not known; write \"containerd\" or \"docker\" or \"podman\"",
            "the pod_namespace \"Shop\" is no name in Kubernetes; those are up to 63 of a-z, 0-9 and -",
            "the pod \"web-*\" is no name in Kubernetes; those are up to 253 of a-z, 0-9, - and .",
            "the service_account \"web.\" is no name in Kubernetes; those are up to 253 of a-z, 0-9, - and .",
            "the gid is out of range; group IDs are 0 to 4294967294",
            "nodes lists the same thing twice; remove one of them",
            "the node \"b/c\" is no name; a node's name is letters, digits, '.', '-' and '_', like \"host-a\"",
        ],
    );
}

#[test]
fn labels() {
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = \"/usr/sbin/nginx\"\ncontainer_labels = ¶{}\npod_labels = { app = ¶3, ¶\"a\\u0007\" = \"b\" }",
        &[
            "container_labels has 0 labels; give 1 to 64",
            "pod_labels must be a table of strings, not an integer; for example pod_labels = { app = \"web\" }",
            "the label \"a\\u{7}\" is longer than 4096 bytes or contains a control character",
        ],
    );
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = \"/usr/sbin/nginx\"\ncontainer_labels = ¶\"app=web\"",
        &[
            "container_labels must be a table of strings, not a string; for example container_labels = { app = \"web\" }",
        ],
    );
    let table = BASE.replacen(
        "exe = \"/usr/sbin/nginx\"",
        "image_name = \"x\"\nexe = \"/a\"\n[workload.container_labels]\na = \"b\"",
        1,
    );
    Policy::parse("p", &table).unwrap();
}

#[test]
fn taints_that_are_none() {
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = \"/usr/sbin/nginx\"\nallow_taints = [¶\"no_script\", ¶\"rootkit\", \"memfd\", ¶\"memfd\"]",
        &[
            "no taint is named \"no_script\"; did you mean \"no-script\"?",
            "no taint is named \"rootkit\"; \
             those are deleted, memfd, preload, audit, traced, writable-code, no-script, unwitnessed",
            "allow_taints lists the same thing twice; remove one of them",
        ],
    );
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = \"/usr/sbin/nginx\"\nallow_taints = ¶[]",
        &["allow_taints is an empty list; write allow_taints = [\"no-script\"]"],
    );
}

#[test]
fn workload_api_that_is_no_bool() {
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        "exe = \"/usr/sbin/nginx\"\nworkload_api = ¶\"true\"",
        &["workload_api must be true or false, not a string; for example workload_api = true"],
    );
}

#[test]
fn two_kinds_of_code() {
    let digest = "ab".repeat(32);
    refused_with(
        "exe = \"/usr/sbin/nginx\"",
        &format!("inline_sha256 = ¶\"{digest}\"\nscript = \"/srv/app.py\""),
        &["no program has both inline_sha256 and script: it interprets a file or its command line; \
           remove one of them"],
    );
}

#[test]
fn workloads_that_differ_only_in_what_is_allowed_or_listed() {
    let lines = |remedy: &str| {
        format!(
            "every program that fits this [[workload]] also fits the one on line 22, \
             so it could never be earned; {remedy}, or remove one of the two"
        )
    };
    let pair = |wide: &str, narrow: &str| {
        format!(
            "[[workload]]\nname = \"w\"\nexe = \"/a\"\n{wide}\n¶[[workload]]\nname = \"n\"\nexe = \"/a\"\n{narrow}\n"
        )
    };
    for (wide, narrow, remedy) in [
        ("allow_taints = \"memfd\"", "", "tell them apart by another field"),
        ("nodes = [\"a\", \"b\"]", "nodes = \"b\"", "remove this one's nodes from the one on line 22"),
        (
            "container_labels = { a = \"b\" }",
            "container_labels = { a = \"b\", c = \"d\" }",
            "add a label to the one on line 22 that sets it apart",
        ),
    ] {
        refused_after_base(&pair(wide, narrow), &[&lines(remedy)]);
    }
    // Narrower evidence with more taints allowed, and the other way round, can both be earned.
    let both = "[[workload]]\nname = \"w\"\nexe = \"/a\"\n[[workload]]\nname = \"n\"\nexe = \"/a\"\nuid = 1\nallow_taints = \"memfd\"\n";
    Policy::parse("p", &format!("{BASE}{both}")).unwrap();
}

#[test]
fn workloads_that_combine_their_fields_in_too_many_ways() {
    let fields = [
        "uid = 1",
        "gid = 1",
        "unit = \"a.service\"",
        "runtime = \"docker\"",
        "container = \"c\"",
        "pod = \"p\"",
        "pod_namespace = \"n\"",
        "service_account = \"s\"",
        "image_name = \"i\"",
        "script = \"/s\"",
        "nodes = \"n\"",
    ];
    let workload = |i: usize| {
        let given: Vec<&str> =
            fields.iter().enumerate().filter(|(bit, _)| i >> bit & 1 == 1).map(|(_, f)| *f).collect();
        format!("[[workload]]\nname = \"w{i}\"\nexe = \"/w{i}\"\n{}\n", given.join("\n"))
    };
    let text = |ways: usize| (0..ways).map(workload).collect::<String>();
    Policy::parse("p", &format!("{BASE}{}", text(1024))).unwrap();
    let marked = format!("{}¶{}", text(1024), workload(1024));
    refused_after_base(
        &marked,
        &["the workloads up to here combine their fields in more than 1024 ways; give like workloads the same fields"],
    );
}

#[test]
fn two_workloads_for_the_same_programs() {
    let (a, b) = ("ab".repeat(32), "cd".repeat(32));
    refused_after_base(
        &format!(
            "[[workload]]\nname = \"one\"\nexe = \"/bin/a\"\nsha256 = [\"{a}\", \"{b}\"]\n\
             ¶[[workload]]\nname = \"two\"\nsha256 = [\"sha256:{b}\", \"{a}\"]\nexe = \"/bin/a\"\n\
             [[workload]]\nname = \"three\"\nexe = \"/bin/b\"\nsha256 = \"{a}\"\n"
        ),
        &["this [[workload]] selects exactly the programs of the one on line 22, so neither could be earned; \
           tell them apart or remove one"],
    );
}

#[test]
fn workloads_that_can_never_be_earned() {
    let why = |line: u32, remedy: &str| {
        format!(
            "every program that fits this [[workload]] also fits the one on line {line}, \
             so it could never be earned; {remedy}"
        )
    };
    let [script, uid] = ["script", "uid"]
        .map(|field| why(26, &format!("add another {field} to the one on line 26, or remove one of the two")));
    let python = "exe = \"/bin/python\"";
    refused_after_base(
        &format!(
            "¶[[workload]]\nname = \"app\"\n{python}\nscript = \"/a.py\"\n\
             [[workload]]\nname = \"python\"\n{python}\n\
             ¶[[workload]]\nname = \"mine\"\n{python}\nuid = 0\n\
             [[workload]]\nname = \"any\"\nscript = \"/b.py\"\n"
        ),
        &[&script, &uid],
    );
    // Lists of digests: within one is never earned, only overlapping is.
    let (a, b, c) = ("ab".repeat(32), "cd".repeat(32), "ef".repeat(32));
    refused_after_base(
        &format!(
            "[[workload]]\nname = \"both\"\nsha256 = [\"{a}\", \"{b}\"]\n\
             ¶[[workload]]\nname = \"one\"\nsha256 = \"{b}\"\n\
             [[workload]]\nname = \"other\"\nsha256 = [\"{b}\", \"{c}\"]\n"
        ),
        &[&why(22, "remove this one's digests from the one on line 22, or remove one of the two")],
    );
}

#[test]
fn prefixes() {
    refused_with(
        "mesh = [\"10.77.0.0/16\", \"fd77::/16\"]",
        "mesh = [¶\"10.77.1.0/16\", ¶\"fd77::1\", ¶\"10.0.0.0/33\", ¶\"::ffff:10.0.0.0/104\", ¶\"mesh.example\"]",
        &[
            "the prefix \"10.77.1.0/16\" has host bits set; write \"10.77.0.0/16\"",
            "the prefix \"fd77::1\" has no length; write \"fd77::1/128\"",
            "the prefix \"10.0.0.0/33\" is no address and length; write it like \"10.77.0.0/16\" or \"fd77::/16\"",
            "the prefix \"::ffff:10.0.0.0/104\" is an IPv4-mapped one, which is treated as IPv4; \
             write \"10.0.0.0/8\"",
            "the prefix \"mesh.example\" is no address and length; write it like \"10.77.0.0/16\" or \"fd77::/16\"",
        ],
    );
    refused_with(
        "prefixes = [\"192.0.2.0/24\"]",
        "prefixes = ¶\"192.0.2.1/24\"",
        &["the prefix \"192.0.2.1/24\" has host bits set; write \"192.0.2.0/24\""],
    );
}

#[test]
fn outside_inside_the_mesh() {
    let leave = |all| format!("leave that part out (\"{all}\" means every address outside the mesh)");
    refused_with(
        "prefixes = [\"192.0.2.0/24\"]",
        "prefixes = [¶\"10.77.3.0/24\", ¶\"10.0.0.0/8\", ¶\"fd77::/16\", ¶\"127.0.0.53/32\", ¶\"::1/128\", \"::/0\"]",
        &[
            &format!(
                "the prefix \"10.77.3.0/24\" overlaps \"10.77.0.0/16\", which is in the mesh; {}",
                leave("0.0.0.0/0")
            ),
            &format!(
                "the prefix \"10.0.0.0/8\" overlaps \"10.77.0.0/16\", which is in the mesh; {}",
                leave("0.0.0.0/0")
            ),
            &format!("the prefix \"fd77::/16\" overlaps \"fd77::/16\", which is in the mesh; {}", leave("::/0")),
            "the prefix \"127.0.0.53/32\" is loopback, which always belongs to the mesh; remove it",
            "the prefix \"::1/128\" is loopback, which always belongs to the mesh; remove it",
        ],
    );
    refused(
        "mode = \"enforce\"\nmesh = \"0.0.0.0/0\"\n[[outside]]\nname = \"a\"\nprefixes = ¶\"0.0.0.0/0\"\n",
        &["the prefix \"0.0.0.0/0\" overlaps \"0.0.0.0/0\", which is in the mesh; \
           leave that part out (\"0.0.0.0/0\" means every address outside the mesh)"],
    );
}

#[test]
fn too_many_prefixes() {
    let mesh = "\"10.0.0.0/8\",".repeat(1025);
    refused(
        &format!("mode = \"enforce\"\nmesh = ¶[{mesh}]\n"),
        &["mesh has more than 1024 prefixes; merge neighbours"],
    );
    let many = "\"11.0.0.0/8\",".repeat(65_537);
    refused_after_base(
        &format!("¶[[outside]]\nname = \"many\"\nprefixes = [{many}]\n"),
        &["the outsides have more than 65536 prefixes; merge neighbours"],
    );
}

#[test]
fn ports() {
    refused_with(
        "ports = [5432]",
        "ports = [¶0, ¶65536, ¶\"80\", ¶\"90-80\", ¶\"http\", ¶\"1-70000\", ¶-1, ¶0x1_0000, 80]",
        &[
            "0 is no port; ports are 1 to 65535",
            "65536 is no port; ports are 1 to 65535",
            "a single port is a number; write 80 without quotes",
            "the range \"90-80\" is backwards; write \"80-90\"",
            "\"http\" is no range of ports; write it like \"8000-8100\", from 1 to 65535",
            "\"1-70000\" is no range of ports; write it like \"8000-8100\", from 1 to 65535",
            "-1 is no port; ports are 1 to 65535",
            "65536 is no port; ports are 1 to 65535",
        ],
    );
    refused_with(
        "ports = [5432]",
        "ports = [\"80-90\", ¶85, 91, ¶91]",
        &["85 overlaps 80-90 in the same list; merge them", "91 overlaps 91 in the same list; merge them"],
    );
    refused_with("ports = [5432]", "ports = ¶[]", &["ports is an empty list; write ports = [53, \"8000-8100\"]"]);
}

#[test]
fn rules_that_cannot_be_meant() {
    refused_after_base(
        "[[rule]]\nname = \"a\"\nfrom = [\"shop/web\", ¶\"clients\"]\nto = [\"dns\", \"shop/db\"]\naction = \"allow\"\n",
        &["this rule goes from an [[outside]] to an [[outside]]; one end must be a [[workload]]: split the rule"],
    );
    refused_after_base(
        "[[rule]]\nname = \"a\"\nfrom = ¶\"dns\"\nto = \"shop/db\"\naction = \"allow\"\n",
        &["\"dns\" is limited to ports dialled there, so it cannot dial in; \
           name an [[outside]] without ports, and give the rule ports"],
    );
    refused_after_base(
        "¶[[rule]]\nname = \"a\"\nfrom = \"shop/db\"\nto = \"dns\"\nports = [54, \"50-52\"]\naction = \"allow\"\n",
        &["this rule and an [[outside]] it goes to have no port in common; change one of the two"],
    );
    refused_after_base(
        "[[rule]]\nname = \"a\"\nfrom = [\"shop/db\", ¶\"shop/db\"]\nto = ¶[]\naction = \"allow\"\n",
        &["from lists the same thing twice; remove one of them", "to is an empty list; write to = [\"shop/db\"]"],
    );
}

#[test]
fn rules_that_stand_for_too_much() {
    let workloads: String =
        (0..2001).map(|i| format!("[[workload]]\nname = \"w{i}\"\nexe = \"/bin/w{i}\"\n")).collect();
    let names: Vec<String> = (0..2001).map(|i| format!("\"w{i}\"")).collect();
    let all = names.join(",");
    refused_after_base(
        &format!("{workloads}¶[[rule]]\nname = \"all\"\nfrom = [{all}]\nto = [{all}]\naction = \"allow\"\n"),
        &["the rules up to here stand for more than 4000000 (from, to, ports) triples; shorten the lists"],
    );
}

#[test]
fn a_guard_says_no_action_and_shares_its_names_with_rules() {
    refused_after_base(
        "[[rule]]\nname = ¶\"r\"\nfrom = \"shop/web\"\nto = \"shop/db\"\naction = \"allow\"\n\
         [[guard]]\nname = \"r\"\nfrom = \"shop/web\"\nto = \"shop/db\"\n¶action = \"allow\"\n",
        &[
            "the rule name \"r\" is already the name of the guard or rule on line 28; choose another name",
            "unknown field \"action\" in [[guard]]; it knows name, from, to, ports, mode, owner, ticket",
        ],
    );
}

#[test]
fn a_broken_workload_is_reported_once() {
    refused_after_base(
        "[[workload]]\nname = \"a\"\nexe = ¶\"a\"\n\
         [[rule]]\nname = \"r\"\nfrom = \"a\"\nto = \"shop/db\"\naction = \"allow\"\n",
        &["the exe \"a\" does not start with \"/\"; write the path as the kernel knows it"],
    );
}

/// Pieces that texts are disturbed with.
const NOISE: [&str; 14] =
    ["\"", "[", "]", "[[", "]]", "=", "\n", ",", "\u{1b}", "\u{43e}", "{", "-1", "[[rule]]\n", "ports = [\"9-1\"]\n"];

proptest! {
    #[test]
    fn disturbed_texts_are_refused_or_understood(edits in proptest::collection::vec((any::<u16>(), 0_u8..6, 0..NOISE.len()), 1..5)) {
        let mut text: Vec<char> = BASE.chars().collect();
        for (at, dropped, noise) in edits {
            let from = usize::from(at) % text.len();
            let until = (from + usize::from(dropped)).min(text.len());
            text.splice(from..until, NOISE.iter().copied().nth(noise).unwrap().chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(errors) = Policy::parse("p", &text) {
            prop_assert!(!errors.errors().is_empty());
            let lines: Vec<&str> = text.split('\n').collect();
            for error in errors.errors() {
                let line = lines.get(error.line - 1).unwrap();
                prop_assert!((1..=line.chars().count() + 1).contains(&error.column), "{:?} in {}", error, text);
                prop_assert!(error.message.bytes().all(|b| matches!(b, b' '..=b'~')), "{:?}", error);
            }
        }
    }
}

#[test]
fn protocols_inside_connections_are_refused_and_not_ignored() {
    for verb in ["http", "grpc", "postgres", "mysql", "redis", "kafka", "dns"] {
        refused_with(
            "action = \"allow\"",
            &format!("action = \"allow\"\n¶{verb} = {{ method = \"GET\" }}"),
            &[&format!(
                "{verb} in [[rule]]: what is said inside a connection is not judged yet: a rule is about whole connections \
                 to a port; remove it"
            )],
        );
    }
}
