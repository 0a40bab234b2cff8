//! Imports go one way. The rules are the two tables below; the rest reads the sources and holds them.

use std::fs;
use std::path::{Path, PathBuf};

/// What the files of a part may name of this crate, besides the part itself.
enum May {
    Only(&'static [&'static str]),
    Never(&'static [&'static str]),
}

/// Part of `src` (a path, or how one begins) and what it may name.
const PARTS: &[(&str, May)] = &[
    ("limits.rs", May::Only(&[])),
    ("time.rs", May::Only(&[])),
    ("hash.rs", May::Only(&[])),
    ("id.rs", May::Only(&["hash", "time"])),
    // What a test has put in place, with the feature `testing`.
    ("hooks.rs", May::Only(&["testing::Rig"])),
    ("config.rs", May::Only(&["error", "hooks", "limits", "time"])),
    // Pure: it decides over ids and statuses.
    ("engine/", May::Only(&["id", "limits", "run::RunStatus", "time::Timestamp"])),
    // Pure as well: when something is due is asked for with the moment.
    ("schedule/timetable.rs", May::Only(&["error", "limits", "time"])),
    ("schedule/due.rs", May::Only(&["limits", "schedule", "time"])),
    // Bytes: it knows which table a row is of, so that an error can say so.
    ("codec/", May::Only(&["id", "run::RunStatus", "store::tables::Table", "time"])),
    (
        "store/",
        May::Never(&["actor", "durably", "step", "job::handle", "trigger::call", "trigger::wait", "trigger::batch"]),
    ),
    ("step/", May::Never(&["actor", "durably", "trigger"])),
    ("event/", May::Never(&["actor", "engine", "step", "trigger"])),
    ("run/", May::Never(&["actor", "engine", "step"])),
];

/// Another crate, or part of one, and the only files that may name it.
const CRATES: &[(&str, &[&str])] = &[
    ("redb", &["store/", "testing/suites/"]),
    ("rustix", &["store/"]),
    ("std::fs", &["store/"]),
    ("std::thread", &["hooks.rs", "store/", "step/blocking.rs"]),
    ("ractor", &["actor/", "durably/mod.rs"]),
    ("bincode", &["codec/"]),
    ("fastrand", &["id.rs", "testing/"]),
    ("jsonschema", &["job/schema.rs"]),
    ("schemars", &["job/", "testing/"]),
    ("cronexpr", &["schedule/"]),
    ("jiff", &["schedule/"]),
];

/// What the engine, having no I/O, clock, randomness or async in it, does not name.
const NOT_IN_ENGINE: &[&str] = &[
    "tokio",
    "ractor",
    "redb",
    "fastrand",
    "std::fs",
    "std::io",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::collections::HashMap",
    "std::collections::HashSet",
];

#[test]
fn every_part_names_only_what_it_may() {
    let mut wrong = Vec::new();
    for (part, may) in PARTS {
        let files: Vec<_> = sources().into_iter().filter(|file| file.name.starts_with(part)).collect();
        assert!(!files.is_empty(), "no file is of {part}");
        let own = part.trim_end_matches(".rs").trim_end_matches('/');
        for file in files {
            for path in file.paths().iter().filter(|path| !is_under(path, own)) {
                let allowed = match may {
                    May::Only(only) => only.iter().any(|under| is_under(path, under)),
                    May::Never(never) => !never.iter().any(|under| is_under(path, under)),
                };
                if !allowed {
                    wrong.push(format!("{} names crate::{path}", file.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_crate_is_named_only_where_it_may_be() {
    let mut wrong = Vec::new();
    for (name, parts) in CRATES {
        let files = sources();
        let naming: Vec<_> = files.iter().filter(|file| names(&file.code, name)).collect();
        assert!(!naming.is_empty(), "nobody names {name}");
        let stray = naming.into_iter().filter(|file| !parts.iter().any(|part| file.name.starts_with(part)));
        wrong.extend(stray.map(|file| format!("{} names {name}", file.name)));
    }
    for file in sources().iter().filter(|file| file.name.starts_with("engine/")) {
        let named = NOT_IN_ENGINE.iter().filter(|name| names(&file.code, name));
        wrong.extend(named.map(|name| format!("{} names {name}", file.name)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn paths_are_read_in_all_their_shapes() {
    let file = |name: &str, code: &str| Source { name: name.to_owned(), code: code.to_owned() };
    let code =
        "use crate::{a, b::{c, d::{self, e as f}}, g::*};\nlet x = crate::h::i(crate::j);\nuse super::super::k::l;";
    assert_eq!(file("m/n.rs", code).paths(), ["a", "b::c", "b::d", "b::d::e", "g", "h::i", "j", "k::l"]);
    assert_eq!(file("m/n.rs", "use super::o::{p, q};").paths(), ["m::o::p", "m::o::q"]);
    assert_eq!(file("m/mod.rs", "use super::o::p;").paths(), ["o::p"]);
    assert_eq!(file("m/n/mod.rs", "use super::o;").paths(), ["m::o"]);
    assert!(is_under("run::RunStatus", "run") && is_under("run", "run") && !is_under("runs", "run"));
    assert!(names("use redb::x;", "redb") && names("a(redb::b)", "redb") && names("use std::{fs, io};", "std::fs"));
    assert!(!names("use my_redb::x;", "redb") && !names("crate::redb::x", "redb") && !names("use std::io;", "std::fs"));
}

/// One file of `src`, without comments and tests.
struct Source {
    /// Its path under `src`.
    name: String,
    code: String,
}

impl Source {
    /// What it names of this crate, from the root.
    fn paths(&self) -> Vec<String> {
        let mut module: Vec<&str> = self.name.trim_end_matches(".rs").split('/').collect();
        module.retain(|part| *part != "mod" && *part != "lib");
        let mut paths = Vec::new();
        let mut rest = &self.code[..];
        while let Some(at) = ["crate::", "super::"].iter().filter_map(|word| rest.find(word)).min() {
            let before = rest[..at].chars().next_back();
            let is_crate = rest[at..].starts_with("crate::");
            rest = &rest[at + "crate::".len()..];
            if before.is_some_and(|before| before.is_alphanumeric() || "_:".contains(before)) {
                continue;
            }
            let mut from = if is_crate { Vec::new() } else { module[..module.len().saturating_sub(1)].to_vec() };
            while let Some(further) = rest.strip_prefix("super::") {
                from.pop();
                rest = further;
            }
            rest = tree(rest, &from.join("::"), &mut paths);
        }
        paths
    }
}

/// Reads one path or group of paths off the front of `code`; gives what follows it.
fn tree<'c>(code: &'c str, from: &str, paths: &mut Vec<String>) -> &'c str {
    let code = code.trim_start();
    let joined = |name: &str| if from.is_empty() { name.to_owned() } else { format!("{from}::{name}") };
    if let Some(mut rest) = code.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let after = tree(rest, from, paths);
            // An alias is no path, and what can't be read is passed over.
            let skipped = after.find([',', '}']).map_or("", |end| &after[end..]);
            rest = if after.len() == rest.len() { &rest[rest.len()..] } else { skipped };
            if rest.is_empty() {
                return rest;
            }
        }
    }
    if let Some(rest) = code.strip_prefix('*') {
        paths.push(from.to_owned());
        return rest;
    }
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let (name, rest) = code.split_at(end);
    match rest.strip_prefix("::") {
        Some(further) if further.starts_with(|c: char| c.is_alphabetic() || "_{*".contains(c)) => {
            tree(further, &joined(name), paths)
        }
        _ => {
            paths.push(if name == "self" || name.is_empty() { from.to_owned() } else { joined(name) });
            rest
        }
    }
}

fn is_under(path: &str, part: &str) -> bool {
    path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether code names a crate, or a path of one.
fn names(code: &str, path: &str) -> bool {
    let (root, _) = path.split_once("::").unwrap_or((path, ""));
    let word = format!("{root}::");
    code.match_indices(&word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let mut paths = Vec::new();
        tree(&code[at..], "", &mut paths);
        !before.is_some_and(|before| before.is_alphanumeric() || "_:".contains(before))
            && paths.iter().any(|named| is_under(named, path))
    })
}

/// Every file of `src` but those of tests.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut files) = (vec![root.clone()], Vec::<PathBuf>::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of src") {
            let path = entry.expect("an entry").path();
            let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
            if path.is_dir() && !is_test {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
                files.push(path);
            }
        }
    }
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("under src").to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path).expect("a source");
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
        Source { name, code: lines.collect::<Vec<_>>().join("\n") }
    };
    let mut sources: Vec<Source> = files.into_iter().map(read).collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}
