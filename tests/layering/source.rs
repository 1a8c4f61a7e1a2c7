//! Reading Rust far enough to see which modules a file names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files that are no tests, by their module paths.
pub(super) fn product_files(src: &Path) -> Vec<(Vec<String>, String)> {
    let files = rust_files(src).into_iter().filter_map(|file| {
        let path = module_path(file.strip_prefix(src).unwrap());
        let is_test =
            path.iter().any(|name| name == "tests" || name.ends_with("_tests") || name == "testing");
        let is_root = ["main", "lib"].contains(&path[0].as_str());
        (!is_test && !is_root).then(|| (path, fs::read_to_string(&file).unwrap()))
    });
    files.collect()
}

/// The code without the tests that stand below it.
pub(super) fn product(code: &str) -> String {
    code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

/// What the macros `include_…!` name.
pub(super) fn included(text: &str) -> impl Iterator<Item = &str> {
    text.split("include_").skip(1).filter_map(|rest| {
        let (kind, rest) = rest.split_once("!(\"")?;
        ["str", "bytes", "dir"].contains(&kind).then(|| rest.split('"').next())?
    })
}

/// Every path of ours that the code of the module at `path` names, from the root.
pub(super) fn paths_named(code: &str, path: &[String]) -> Vec<Vec<String>> {
    let mut named = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let longer = code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
            if !longer {
                read_path(&code[at..], path, &mut named);
            }
        }
    }
    named
}

/// Reads a path or a group of paths from its beginning, seen from `from`.
fn read_path(code: &str, from: &[String], named: &mut Vec<Vec<String>>) {
    let code = code.trim_start();
    if let Some(group) = code.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                ',' | '}' if depth == 0 => {
                    read_path(&group[start..at], from, named);
                    start = at + 1;
                    if c == '}' {
                        return;
                    }
                }
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
        }
        return;
    }
    let Some(word) = words(code).next().filter(|word| code.starts_with(word)) else {
        return;
    };
    let mut to = from.to_vec();
    match word {
        "crate" => to.clear(),
        "super" => {
            to.pop();
        }
        "self" => {}
        name => to.push(name.to_owned()),
    }
    match code[word.len()..].strip_prefix("::") {
        Some(rest) => read_path(rest, &to, named),
        None => named.push(to),
    }
}

/// The files that can be reached from themselves, one circle a line.
pub(super) fn circles(uses: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Vec<String> {
    let reached = |from| {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&Vec<String>> = vec![from];
        while let Some(file) = open.pop() {
            open.extend(uses.get(file).into_iter().flatten().filter(|next| seen.insert(*next)));
        }
        seen
    };
    let reach: BTreeMap<_, _> = uses.keys().map(|file| (file, reached(file))).collect();
    let mut circles = BTreeSet::new();
    for (file, far) in reach.iter().filter(|(file, far)| far.contains(*file)) {
        let back = far.iter().filter(|other| reach[**other].contains(*file));
        circles.insert(back.map(|path| path.join("/")).collect::<Vec<_>>().join(" "));
    }
    circles.into_iter().collect()
}

pub(super) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// `edge/http.rs` is `[edge, http]`, `edge/mod.rs` is `[edge]`.
pub(super) fn module_path(file: &Path) -> Vec<String> {
    let names = file.with_extension("");
    let mut path: Vec<_> = names.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    if path.len() > 1 {
        path.pop_if(|name| name == "mod");
    }
    path
}

/// The code without its comments and without what stands in its string literals.
pub(super) fn code_alone(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("'\"'") {
            3
        } else if rest.starts_with("r#\"") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                end
            });
            end.map_or(rest.len(), |end| end + 2)
        } else {
            code.push(c);
            c.len_utf8()
        };
        rest = &rest[skipped..];
    }
    code
}

/// Our top-level modules that the code of the module at `path` names.
pub(super) fn modules_named(code: &str, path: &[String], modules: &[&'static str]) -> BTreeSet<&'static str> {
    let up_to_the_root = "super::".repeat(path.len());
    let mut named = BTreeSet::new();
    for root in ["crate::", "duorelay::", &up_to_the_root] {
        for (at, _) in code.match_indices(root) {
            let longer = code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
            if !longer {
                named.extend(first_names(&code[at + root.len()..]));
            }
        }
    }
    modules.iter().copied().filter(|module| named.contains(module)).collect()
}

/// What a path or a group of paths begins with: `a` of `a::b`, `a` and `c` of `{a::b, c}`.
fn first_names(rest: &str) -> Vec<&str> {
    let Some(group) = rest.strip_prefix('{') else {
        return words(rest).take(1).collect();
    };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.extend(words(&group[start..at]).next());
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

pub(super) fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}
