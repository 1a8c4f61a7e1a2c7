//! Imports point one way: `main -> server -> worker -> edge -> hub -> relay`,
//! `hub -> backplane -> relay`, `edge -> auth`.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

#[path = "layering/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use self::source::{
    circles, code_alone, included, module_path, modules_named, paths_named, product, product_files,
    rust_files, words,
};

/// What a module may know of ours, and which words must not stand in its code.
struct Rule {
    module: &'static str,
    ours: &'static [&'static str],
    never: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        module: "demo",
        ours: &["auth", "config", "edge", "metrics", "relay", "server", "telemetry"],
        never: &["fred", "redis"],
    },
    Rule { module: "health", ours: &["config"], never: &["axum", "fred", "redis", "tungstenite"] },
    Rule { module: "host", ours: &[], never: &["axum", "fred", "redis", "tokio", "tungstenite"] },
    Rule { module: "loadtest", ours: &["auth", "config", "host", "relay", "telemetry"], never: &[] },
    Rule {
        module: "server",
        ours: &[
            "auth",
            "backplane",
            "config",
            "edge",
            "host",
            "hub",
            "metrics",
            "relay",
            "telemetry",
            "worker",
        ],
        never: &[],
    },
    Rule {
        module: "worker",
        ours: &["auth", "backplane", "config", "edge", "hub", "metrics", "relay", "telemetry"],
        never: &[],
    },
    Rule {
        module: "edge",
        ours: &["auth", "hub", "metrics", "relay", "telemetry"],
        never: &["fred", "redis"],
    },
    Rule {
        module: "hub",
        ours: &["backplane", "metrics", "relay", "telemetry"],
        never: &["axum", "fred", "hyper", "hyper_util", "redis", "tungstenite"],
    },
    Rule {
        module: "backplane",
        ours: &["metrics", "relay", "telemetry"],
        never: &["axum", "hyper", "hyper_util", "tungstenite"],
    },
    Rule { module: "config", ours: &["auth", "backplane", "host", "telemetry"], never: &["axum", "tokio"] },
    Rule {
        module: "auth",
        ours: &["metrics", "relay", "telemetry"],
        never: &["axum", "fred", "redis", "tungstenite"],
    },
    Rule { module: "telemetry", ours: &["relay"], never: &["axum", "fred", "redis", "tungstenite"] },
    Rule { module: "metrics", ours: &["relay"], never: &["axum", "fred", "hyper", "redis", "tungstenite"] },
    Rule {
        module: "relay",
        ours: &[],
        never: &["axum", "fastrand", "fred", "hyper", "reqwest", "tokio", "tracing", "tungstenite"],
    },
];

fn modules() -> Vec<&'static str> {
    RULES.iter().map(|rule| rule.module).collect()
}

#[test]
fn imports_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let files = rust_files(&src);
    assert!(!files.is_empty());
    for file in files {
        let path = module_path(file.strip_prefix(&src).unwrap());
        // The tests of a file beside it are of its module.
        let module = path[0].strip_suffix("_tests").unwrap_or(&path[0]);
        if ["main", "lib"].contains(&module) {
            continue;
        }
        let Some(rule) = RULES.iter().find(|rule| rule.module == module) else {
            wrong.push(format!("src has a module `{module}` without a rule in tests/layering.rs"));
            continue;
        };
        let code = code_alone(&fs::read_to_string(&file).unwrap());
        for up in modules_named(&code, &path, &modules()) {
            if up != module && !rule.ours.contains(&up) {
                wrong.push(format!("{} names crate::{up}, which {module} must not know", file.display()));
            }
        }
        for word in words(&code).filter(|word| rule.never.contains(word)).collect::<BTreeSet<_>>() {
            wrong.push(format!("{} names `{word}`, which {module} must not know", file.display()));
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What a file takes from the `mod.rs` above it is its own folder's; beyond that, files form no circle.
#[test]
fn files_form_no_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: Vec<_> = product_files(&src).into_iter().map(|(path, code)| (path, product(&code))).collect();
    let modules: BTreeSet<_> = files.iter().map(|(path, _)| path.clone()).collect();
    let mut uses: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (path, code) in &files {
        let named = paths_named(&code_alone(code), path).into_iter().filter_map(|mut named| {
            while !modules.contains(&named) {
                named.pop()?;
            }
            (!path.starts_with(&named)).then_some(named)
        });
        uses.insert(path.clone(), named.collect());
    }
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 100, "hardly any import was found");
    assert_eq!(circles(&uses), Vec::<String>::new());

    let graph = |edges: &[(&str, &str)]| {
        let mut uses: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
        for (from, to) in edges {
            uses.entry(vec![(*from).to_owned()]).or_default().insert(vec![(*to).to_owned()]);
            uses.entry(vec![(*to).to_owned()]).or_default();
        }
        circles(&uses)
    };
    assert_eq!(graph(&[("a", "b"), ("b", "c"), ("a", "c")]), [""; 0]);
    assert_eq!(graph(&[("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]), ["a b c"]);
}

/// `include_str!` and its like reach no room that an import may not reach. `client` is the clients' own.
#[test]
fn included_files_are_below_too() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        let path = module_path(file.strip_prefix(&src).unwrap());
        let text = product(&fs::read_to_string(&file).unwrap());
        for included in included(&text) {
            let target = match included.strip_prefix("$CARGO_MANIFEST_DIR/src/") {
                Some(rest) => src.join(rest),
                None => file.parent().unwrap().join(included),
            };
            let target = target.canonicalize().unwrap();
            let room = target.strip_prefix(&src).ok().and_then(|path| path.iter().next()?.to_str());
            let rule = RULES.iter().find(|rule| rule.module == path[0]).unwrap();
            let may =
                room.is_some_and(|room| room == path[0] || room == "client" || rule.ours.contains(&room));
            if !may {
                wrong.push(format!("{} includes {}", file.display(), target.display()));
            }
            seen += 1;
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(seen >= 5, "only {seen} included files were found");
    let text = "include_str!(\"a.lua\"), include_dir!(\"b\"); // include_bytes!";
    assert_eq!(included(text).collect::<Vec<_>>(), ["a.lua", "b"]);
}

/// A file of more lines than this says in its head why it is one file.
const LONG: usize = 450;
/// How it says so.
const REASON: &str = "//! Longer than most files: ";

#[test]
fn a_long_file_says_why_it_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["src", "tests", "benches", "fuzz"].iter().flat_map(|folder| rust_files(&root.join(folder)));
    let says_nothing = |text: &str| {
        let mut head = text.lines().take_while(|line| line.starts_with("//!"));
        text.lines().count() > LONG && !head.any(|line| line.len() > REASON.len() && line.starts_with(REASON))
    };
    let wrong: Vec<_> = files.filter(|file| says_nothing(&fs::read_to_string(file).unwrap())).collect();
    assert!(wrong.is_empty(), "more than {LONG} lines, and no reason in the head: {wrong:#?}");

    let long = "\n".repeat(LONG + 1);
    assert!(says_nothing(&format!("//! Much.{long}")) && says_nothing(&format!("{REASON}{long}")));
    assert!(!says_nothing(&format!("//! Much.\n{REASON}one rule.{long}")) && !says_nothing(&long[1..]));
}

/// `--cfg conformance` compiles an echo into the sockets, for the Autobahn test suite.
#[test]
fn the_echo_is_in_no_relay() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let has_switch = |file: &PathBuf| fs::read_to_string(file).unwrap().contains("cfg(conformance)");
    let switches: Vec<_> = rust_files(&src).into_iter().filter(has_switch).collect();
    assert_eq!(
        switches,
        ["edge/socket/messages.rs", "edge/socket/mod.rs", "main.rs"].map(|file| src.join(file))
    );
    let main = fs::read_to_string(src.join("main.rs")).unwrap();
    assert!(
        main.contains("#[cfg(conformance)]\ncompile_error!("),
        "the program could be built with the echo"
    );
}

/// What could be printed by accident: a payload, a token, or JSON of a client, unless `Private` holds it.
const NEVER_PRINTED: [&str; 8] = [
    "Bytes",
    "Message",
    "RawValue",
    "token: String",
    "token: &'a str",
    "token: Arc<str>",
    "payload: &'a str",
    "label: Arc<str>",
];

/// The text of each item whose `Debug` is derived.
fn printed_items(code: &str) -> impl Iterator<Item = &str> {
    code.match_indices("#[derive(").filter_map(|(start, _)| {
        let rest = &code[start..];
        let derived = rest[..rest.find(')')?].contains("Debug");
        let body = &rest[rest.find([';', '{'])?..];
        let mut depth = 0;
        let end = body.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        derived.then(|| &rest[..rest.len() - body.len() + end.unwrap_or(body.len())])
    })
}

#[test]
fn what_is_printed_holds_neither_a_token_nor_a_payload() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    // What the load tester sends is made up.
    let ours = |file: &PathBuf| !file.to_string_lossy().contains("loadtest");
    for file in rust_files(&src).into_iter().filter(ours) {
        let code = code_alone(&fs::read_to_string(&file).unwrap());
        for item in printed_items(&code) {
            let open = item.replace("Private<Bytes>", "").replace("Private<Arc<str>>", "");
            let found = NEVER_PRINTED.iter().find(|word| match words(word).count() {
                1 => words(&open).any(|found| found == **word),
                _ => open.contains(*word),
            });
            let name = item.lines().nth(1).unwrap_or_default().trim();
            wrong.extend(
                found.map(|word| format!("{}: `{name}` derives Debug and holds `{word}`", file.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));

    let items = |code| printed_items(code).collect::<Vec<_>>();
    assert_eq!(items("#[derive(Debug)]\nstruct A(Bytes);\nstruct B;"), ["#[derive(Debug)]\nstruct A(Bytes)"]);
    assert_eq!(items("#[derive(Clone)]\nstruct A { a: Bytes }"), [""; 0]);
    assert_eq!(
        items("#[derive(Clone, Debug)]\nenum A { B { c: Bytes }, D } fn f() {}"),
        ["#[derive(Clone, Debug)]\nenum A { B { c: Bytes }, D "]
    );
}

#[test]
fn every_way_to_name_a_module_is_seen() {
    let of = |code: &str, path: &[&str]| {
        let path: Vec<_> = path.iter().map(ToString::to_string).collect();
        let code = code_alone(code);
        modules_named(&code, &path, &modules()).into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("use crate::hub::Hub;", &["relay", "room"]), "hub");
    assert_eq!(of("let x = crate::edge::f();", &["relay"]), "edge");
    assert_eq!(of("use crate::{\n  auth::{settings, claims},\n  hub,\n};", &["relay"]), "auth hub");
    assert_eq!(of("use super::edge;", &["hub"]), "edge");
    assert_eq!(of("use super::super::{edge::A, hub as h};", &["backplane", "redis"]), "edge hub");
    assert_eq!(of("use super::hub;", &["backplane", "redis"]), "");
    assert_eq!(of("use duorelay::server;", &["main"]), "server");
    assert_eq!(of("// crate::hub\n/// crate::edge", &["relay"]), "");
    assert_eq!(code_alone("a(\"redis://x\\\" //\", '\"', r#\"fred \"axum\"#); // hub\nb"), "a(, , ); \nb");
}
