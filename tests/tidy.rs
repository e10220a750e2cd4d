//! The habits that a machine can see: who depends on whom, what is pure, how long things are, what pages promise.
//!
//! Each test prints every offence at once, as `path:line: what to do`. Rules and reasons are in CONTRIBUTING.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_tests::command::repository;

/// The arrows of ARCHITECTURE.md: a crate may depend on what its row names, and on what those may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("telemetry", &[]),
    ("config", &[]),
    ("wire", &["types"]),
    ("journal", &["types"]),
    ("store", &["types"]),
    ("sim", &["types"]),
    ("faults", &["journal", "config"]),
    ("rpc", &["wire"]),
    ("client-core", &["wire"]),
    ("client", &["client-core", "rpc", "config", "telemetry"]),
    ("mounts", &[]),
    ("volume", &["client", "mounts"]),
    ("metadata-core", &["wire", "store"]),
    ("metadata-server", &["metadata-core", "journal", "rpc", "telemetry", "config"]),
    ("storage-core", &["wire", "store"]),
    ("storage-server", &["storage-core", "journal", "rpc", "telemetry", "config"]),
    ("fuse-client", &["client", "mounts", "telemetry"]),
    ("csi-driver", &["volume", "telemetry"]),
    ("docker-plugin", &["volume", "telemetry"]),
];

/// The binary: the one crate that may depend on several products.
const BINARY: &str = "holdfast";
/// These may depend on anything, and nothing on them.
const AROUND: &[&str] = &["tests", "benches", "xtask"];

/// Crates whose decisions must be a function of their arguments, with their folders.
const PURE: &[(&str, &str)] = &[
    ("types", "crates/types"),
    ("wire", "crates/wire"),
    ("sim", "crates/sim"),
    ("client-core", "crates/client-core"),
    ("metadata-core", "metadata/core"),
    ("storage-core", "storage-node/core"),
];

/// Runtimes, sockets, files, clocks and randomness, as crates.
const IMPURE: &[&str] = &[
    "tokio",
    "mio",
    "socket2",
    "async-std",
    "smol",
    "quinn",
    "rustls",
    "hyper",
    "rand",
    "rand_core",
    "getrandom",
    "fastrand",
    "fjall",
    "redb",
    "tempfile",
    "rustix",
    "nix",
    "memmap2",
    "io-uring",
    "fuser",
    "crossbeam-channel",
    "rayon",
    "chrono",
];

/// The one exception: the raft crate draws election timeouts; our replicas leave it nothing to draw (STYLE, habit 12).
const EXCEPTIONS: &[(&str, &str)] = &[("raft", "rand"), ("raft", "getrandom")];

/// Modules that may contain unsafe code, each with its argument written down.
const UNSAFE_MODULES: &[&str] = &["crates/journal/src/uring", "fuse-client/src/memfd", "fuse-client/src/device"];

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 80;
/// Above a longer file's first line, or a longer function: why it is long.
const REASON: &str = "tidy: long because";

/// Fails with every offence, one a line.
fn report(offences: &[String]) {
    assert!(offences.is_empty(), "{} to put right:\n  {}", offences.len(), offences.join("\n  "));
}

/// Every file of the repository that is or would be committed, with its text; files that are not text are left out.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let root = repository();
    let listed = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output()
        .expect("git is installed");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let names: BTreeSet<String> = String::from_utf8_lossy(&listed.stdout).lines().map(str::to_string).collect();
    assert!(names.len() > 20, "the repository has files");
    let wanted = |name: &&String| endings.iter().any(|ending| name.ends_with(ending));
    let read = |name: String| std::fs::read_to_string(root.join(&name)).ok().map(|text| (name, text));
    names.iter().filter(wanted).cloned().filter_map(read).collect()
}

fn rust_files() -> Vec<(String, String)> {
    files(&[".rs"])
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(repository())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The workspace's packages, by short name: `holdfast-metadata-core` is `metadata-core`.
fn packages() -> Vec<(String, serde_json::Value)> {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).expect("JSON");
    let list = metadata["packages"].as_array().expect("packages").clone();
    list.into_iter().map(|package| (short(package["name"].as_str().expect("name")), package)).collect()
}

fn short(name: &str) -> String {
    name.strip_prefix("holdfast-").unwrap_or(name).to_string()
}

/// Everything reachable over the arrows from `from`.
fn below(from: &str) -> BTreeSet<&'static str> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = vec![from];
    while let Some(name) = open.pop() {
        for next in ARROWS.iter().filter(|(row, _)| *row == name).flat_map(|(_, next)| next.iter()) {
            if reached.insert(*next) {
                open.push(next);
            }
        }
    }
    reached
}

#[test]
fn dependencies_follow_the_arrows() {
    let packages = packages();
    let ours: BTreeSet<String> = packages.iter().map(|(name, _)| name.clone()).collect();
    let mut offences = Vec::new();
    for (name, package) in &packages {
        if AROUND.contains(&name.as_str()) {
            continue;
        }
        if name != BINARY && !ARROWS.iter().any(|(row, _)| row == name) {
            offences.push(format!("{name}: give it a row in tests/tidy.rs and in ARCHITECTURE.md"));
        }
        let allowed = below(name);
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = short(dependency["name"].as_str().expect("name"));
            if !ours.contains(&on) || on == *name {
                continue;
            }
            // Tests of a crate may use the simulator's parts as well.
            let for_tests = dependency["kind"].as_str() == Some("dev") && on == "sim";
            let binary = name == BINARY && !AROUND.contains(&on.as_str());
            // Within builds for tests alone, behind the feature of that name.
            let faults = on == "faults" && dependency["optional"] == true;
            if !allowed.contains(on.as_str()) && !for_tests && !binary && !faults {
                offences.push(format!("{name} depends on {on}: no arrow leads there"));
            }
        }
    }
    report(&offences);
}

#[test]
fn pure_crates_have_nothing_impure_beneath_them() {
    let mut offences = Vec::new();
    for (name, _) in PURE {
        let tree = cargo(&[
            "tree",
            "--package",
            &format!("holdfast-{name}"),
            "--edges",
            "normal",
            "--prefix",
            "depth",
            "--no-dedupe",
            "--format",
            " {p}",
        ]);
        offences.extend(impure_in(&tree).into_iter().map(|path| format!("{name} is pure but depends on {path}")));
    }
    report(&offences);
}

/// Paths to impure crates in a tree printed with depths, as "a > b > c".
fn impure_in(tree: &str) -> BTreeSet<String> {
    let mut path: Vec<String> = Vec::new();
    let mut pruned_below: Option<usize> = None;
    let mut found = BTreeSet::new();
    for line in tree.lines() {
        let Some((depth, rest)) = line.split_once(' ') else { continue };
        let depth: usize = depth.parse().expect("a depth");
        let name = rest.split(' ').next().unwrap_or(rest).to_string();
        path.truncate(depth);
        let parent = path.last().cloned().unwrap_or_default();
        path.push(name.clone());
        if pruned_below.is_some_and(|at| depth > at) {
            continue;
        }
        pruned_below = None;
        if EXCEPTIONS.contains(&(parent.as_str(), name.as_str())) {
            pruned_below = Some(depth);
        } else if IMPURE.contains(&name.as_str()) {
            found.insert(path.join(" > "));
        }
    }
    found
}

#[test]
fn an_impure_crate_is_found_and_the_exception_covers_only_its_own_path() {
    let tree = "0 a v1\n1 raft v1\n2 rand v1\n3 getrandom v1\n2 slog v1\n1 b v1\n2 rand v1\n1 raft v1\n";
    assert_eq!(impure_in(tree).into_iter().collect::<Vec<_>>(), ["a > b > rand"]);
}

#[test]
fn pure_crates_ban_clocks_sockets_files_and_threads() {
    let mut offences = Vec::new();
    let read =
        |folder: &str| std::fs::read_to_string(repository().join(folder).join("clippy.toml")).unwrap_or_default();
    let first = read(PURE[0].1);
    for (_, folder) in PURE {
        let text = read(folder);
        for banned in [
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "std::thread::spawn",
            "std::fs::File",
            "std::net::TcpStream",
            "std::collections::HashMap",
        ] {
            if !text.contains(&format!("\"{banned}\"")) {
                offences.push(format!("{folder}/clippy.toml: ban {banned}"));
            }
        }
        if text != first {
            offences.push(format!("{folder}/clippy.toml: make it the same as {}/clippy.toml", PURE[0].1));
        }
    }
    for (name, text) in rust_files() {
        let pure = PURE.iter().any(|(_, folder)| name.starts_with(&format!("{folder}/src/")));
        if pure && text.contains("allow(clippy::disallowed") {
            offences.push(format!("{name}: a pure crate makes no exception to the banned calls"));
        }
    }
    report(&offences);
}

#[test]
fn long_files_and_functions_say_why() {
    let mut offences = Vec::new();
    for (name, text) in rust_files() {
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > FILE_LINES_MAX && !lines.iter().take(30).any(|line| line.contains(REASON)) {
            offences.push(format!("{name}: {} lines; split it, or say at its top `// {REASON} ...`", lines.len()));
        }
        offences.extend(long_functions(&lines).into_iter().map(|(line, length)| {
            format!("{name}:{line}: a function of {length} lines; split it, or say above it `// {REASON} ...`")
        }));
    }
    report(&offences);
}

/// Functions above the limit without a reason: line number and length. Relies on rustfmt's indentation.
fn long_functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let words: Vec<&str> = code
            .split(' ')
            .take_while(|word| !word.contains('('))
            .chain(code.split(' ').find(|word| word.contains('(')))
            .collect();
        let begins = words.contains(&"fn") && !code.starts_with("//") && !code.starts_with('*');
        if !begins {
            continue;
        }
        let Some(opens) = lines[at..].iter().position(|line| line.trim_end().ends_with(['{', ';', '}'])) else {
            continue;
        };
        if !lines[at + opens].trim_end().ends_with('{') {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - code.len()]);
        let length = lines[at..].iter().position(|line| line.trim_end() == close).map_or(0, |end| end + 1);
        let above = lines[..at].iter().rev().take_while(|line| line.trim_start().starts_with(['/', '#']));
        if length > FUNCTION_LINES_MAX && !above.into_iter().any(|line| line.contains(REASON)) {
            found.push((at + 1, length));
        }
    }
    found
}

#[test]
fn a_long_function_is_found_and_a_reason_excuses_it() {
    let body = "        x();\n".repeat(FUNCTION_LINES_MAX);
    let text =
        format!("impl A {{\n    pub fn long(\n        a: u8,\n    ) {{\n{body}    }}\n    fn short() {{\n    }}\n}}\n");
    assert_eq!(long_functions(&text.lines().collect::<Vec<_>>()), [(2, FUNCTION_LINES_MAX + 4)]);
    let excused = text.replace("    pub fn", &format!("    // {REASON} it is a table.\n    pub fn"));
    assert_eq!(long_functions(&excused.lines().collect::<Vec<_>>()), []);
}

#[test]
fn each_file_says_what_it_is_for() {
    // Tests beside the code are introduced by the file they are beside.
    let says = |name: &str, text: &str| text.starts_with("//!") || name.ends_with("/tests.rs");
    let silent = rust_files().into_iter().filter(|(name, text)| !says(name, text));
    report(&silent.map(|(name, _)| format!("{name}:1: begin with `//! ...`")).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_to_do_in_the_code() {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
    ];
    let mut offences = Vec::new();
    for (name, text) in files(&[".rs", ".py", ".sh", ".toml", "run"]) {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                offences.push(format!("{name}:{}: do it, or file an issue", number + 1));
            }
        }
    }
    report(&offences);
}

#[test]
fn unsafe_code_is_in_its_three_modules_only() {
    let word = concat!("uns", "afe");
    let mut offences = Vec::new();
    for (name, text) in rust_files() {
        if UNSAFE_MODULES.iter().any(|module| name.starts_with(module)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let mut parts = code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '"');
            if parts.any(|part| part == word) {
                offences.push(format!("{name}:{}: {word} code belongs to {}", number + 1, UNSAFE_MODULES.join(", ")));
            }
        }
    }
    report(&offences);
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut offences = Vec::new();
    for (name, text) in files(&[".md"]) {
        let folder = repository().join(&name).parent().map(Path::to_path_buf).unwrap_or_default();
        for target in links(&text) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !folder.join(file).exists() {
                offences.push(format!("{name}: the link to {target} leads nowhere"));
            }
        }
    }
    report(&offences);
}

/// Targets of Markdown links that stay in the repository. Code between fences or backticks has none.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
        for part in prose.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push(target.to_string());
            }
        }
    }
    found
}

#[test]
fn nothing_depends_on_one_machine_or_on_what_is_beside_the_repository() {
    let words = [concat!("/wo", "rk/"), concat!("../sha", "red"), concat!("/ro", "ot/")];
    let mut offences = Vec::new();
    for (name, text) in files(&[".rs", ".py", ".sh", ".toml", ".md", "run", ".lock", ".yml", ".yaml"]) {
        for (number, line) in text.lines().enumerate() {
            for word in words {
                if line.contains(word) {
                    offences.push(format!("{name}:{}: {word} is not there elsewhere", number + 1));
                }
            }
        }
    }
    report(&offences);
}

#[test]
fn every_skip_has_a_reason() {
    let text = std::fs::read_to_string(repository().join("tests/skips.toml")).expect("readable");
    let file: toml::Table = text.parse().expect("TOML");
    let mut offences = Vec::new();
    for row in file.get("skip").and_then(toml::Value::as_array).into_iter().flatten() {
        let word = |key: &str| row.get(key).and_then(toml::Value::as_str).unwrap_or_default().trim().to_string();
        if word("name").is_empty() || word("reason").len() < 10 {
            offences.push(format!("tests/skips.toml: name and reason are missing in {row}"));
        }
    }
    report(&offences);
}

/// Rows of the table of promises: number, what holds today, tests named.
fn promises(page: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let mut rows = BTreeMap::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        if let [promise, holds, tests] = cells.as_slice()
            && let Some(number) = promise.split([' ', '.', ':']).next().map(|word| word.trim_matches('*'))
            && number.strip_prefix('P').is_some_and(|n| n.parse::<u32>().is_ok())
        {
            let named = tests.split('`').skip(1).step_by(2).map(str::to_string).collect();
            rows.insert(number.to_string(), (holds.to_string(), named));
        }
    }
    rows
}

#[test]
fn each_promise_names_tests_that_exist() {
    let page = std::fs::read_to_string(repository().join("docs/semantics.md")).expect("docs/semantics.md is there");
    let rows = promises(&page);
    let mut offences = Vec::new();
    for number in (1..=10).map(|n| format!("P{n}")) {
        let Some((holds, tests)) = rows.get(&number) else {
            offences.push(format!("docs/semantics.md: {number} has no row"));
            continue;
        };
        if tests.is_empty() && !holds.starts_with("Not yet") {
            offences.push(format!("docs/semantics.md: {number} names no test; say `Not yet` or name one"));
        }
        for test in tests {
            if !test_exists(test) {
                offences.push(format!("docs/semantics.md: {number} names {test}, which is not there"));
            }
        }
    }
    report(&offences);
}

/// Rows of a table of three columns whose last names tests: the first cell, the tests.
fn rows_with_tests(page: &str) -> Vec<(String, Vec<String>)> {
    let rows = page.lines().filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'));
    let cells = rows.map(|row| row.split(" |").map(str::trim).collect::<Vec<_>>());
    let named = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_string).collect();
    cells
        .filter_map(|cells| match cells.as_slice() {
            [first, _, tests] if !first.starts_with("---") && *tests != "test" => Some(((*first).into(), named(tests))),
            _ => None,
        })
        .collect()
}

#[test]
fn each_difference_from_a_local_file_system_names_tests_that_exist() {
    let page = std::fs::read_to_string(repository().join("docs/posix.md")).expect("docs/posix.md is there");
    let rows = rows_with_tests(&page);
    assert!(rows.len() > 20, "the table is read: {rows:?}");
    let lines = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).count();
    assert_eq!(rows.len() + 1, lines, "each row has three cells");
    let mut offences = Vec::new();
    for (difference, tests) in rows {
        if tests.is_empty() {
            offences.push(format!("docs/posix.md: name the test that shows this: {difference}"));
        }
        let gone = tests.iter().filter(|test| !test_exists(test));
        offences.extend(gone.map(|test| format!("docs/posix.md: {test} is not there")));
    }
    report(&offences);
}

#[test]
fn a_row_without_a_test_is_found() {
    let page =
        "| difference | why | test |\n| --- | --- | --- |\n| a `x|y` | b | `f.rs::t`, `g.py::u` |\n| c | d | |\n";
    let rows = rows_with_tests(page);
    assert_eq!(rows, [("a `x|y`".into(), vec!["f.rs::t".into(), "g.py::u".into()]), ("c".to_string(), Vec::new())]);
    assert!(test_exists("tests/posix/oracle.py::op_chown") && !test_exists("tests/posix/oracle.py::op_nothing"));
}

/// Whether `path/to/file.rs::name` is a function marked as a test in that file, or `path/to/file.py::name` a function of it.
fn test_exists(test: &str) -> bool {
    let Some((file, name)) = test.split_once("::") else { return false };
    let path: PathBuf = repository().join(file);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    if file.ends_with(".py") {
        return text.lines().any(|line| line.trim_start().starts_with(&format!("def {name}(")));
    }
    let lines: Vec<&str> = text.lines().collect();
    let wanted = format!("fn {name}(");
    lines.iter().enumerate().any(|(at, line)| {
        let marked = lines[..at]
            .iter()
            .rev()
            .take_while(|line| line.trim_start().starts_with(['#', '/']))
            .any(|line| line.contains("test]") || line.contains("test("));
        line.contains(&wanted) && marked
    })
}

#[test]
fn a_promise_is_held_against_its_test() {
    assert!(test_exists("tests/tidy.rs::a_promise_is_held_against_its_test"));
    assert!(!test_exists("tests/tidy.rs::test_exists"), "not marked as a test");
    assert!(!test_exists("tests/nowhere.rs::x") && !test_exists("tests/tidy.rs"));
    let rows = promises(
        "| promise | what holds | test |\n| --- | --- | --- |\n| P3: one file system | all of it | `a.rs::b`, `c.rs::d` |\n| P9 | Not yet: x | |\n",
    );
    assert_eq!(rows["P3"].1, ["a.rs::b", "c.rs::d"]);
    assert!(rows["P9"].1.is_empty());
}

#[test]
fn every_test_program_is_run_by_a_suite() {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).expect("read");
    let (manifest, suites) = (read("tests/Cargo.toml"), read("xtask/src/suites.rs"));
    let names = manifest.split("[[test]]").skip(1).filter_map(|part| part.split('"').nth(1));
    let run = |name: &str| {
        suites.contains(&format!("suite_of(\"{name}\"")) || suites.contains(&format!("\"--test\", \"{name}\""))
    };
    let idle: Vec<&str> = names.filter(|name| !run(name)).collect();
    assert!(idle.is_empty(), "tests/Cargo.toml: {idle:?}: a test that nobody runs; name it in xtask/src/suites.rs");
}
