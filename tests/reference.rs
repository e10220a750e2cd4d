//! `docs/configuration.md` is made from the configuration types and their comments; this test compares it.
//!
//! `HOLDFAST_WRITE_DOCS=1 cargo test --release -p holdfast-tests --test reference` writes it anew.

use holdfast_metadata_server::config as metadata;
use holdfast_storage_server::config as storage;
use holdfast_tests::command::repository;
use std::fmt::Write as _;

const PAGE: &str = "docs/configuration.md";

/// A key as its type declares it.
struct Key {
    name: String,
    kind: String,
    doc: String,
    /// It may be left out.
    optional: bool,
}

/// The public fields of a type, from its source.
fn keys(source: &str, name: &str) -> Vec<Key> {
    let text = std::fs::read_to_string(repository().join(source)).expect("the type's source");
    let start = format!("pub struct {name} {{");
    let body = text.split_once(&start).unwrap_or_else(|| panic!("{source} has no {start}")).1;
    let body = body.split_once("\n}").expect("the type ends").0;
    // Where the type has a default, each of its keys has.
    let attributes = text.split_once(&start).expect("found").0.rsplit("\n}").next().unwrap_or_default();
    let all_optional = attributes.lines().any(|line| line.starts_with("#[serde(") && line.contains(", default"));
    let (mut keys, mut doc, mut optional) = (Vec::new(), String::new(), all_optional);
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text);
        } else if line.starts_with("#[serde(") {
            optional |= line.contains("default");
        } else if let Some((field, kind)) = line.strip_prefix("pub ").and_then(|line| line.split_once(": ")) {
            let kind = kind.trim_end_matches(',').to_owned();
            let name = field.replace('_', "-");
            keys.push(Key { name, kind, doc: doc.trim().to_owned(), optional });
            (doc, optional) = (String::new(), all_optional);
        }
    }
    assert!(!keys.is_empty(), "{source}: {name} has no keys");
    keys
}

/// A Rust type in a user's words.
fn words(kind: &str) -> &str {
    match kind {
        "String" => "text",
        "ClusterId" => "32 hexadecimal digits",
        "PathBuf" => "path",
        "u64" | "u32" => "whole number",
        "bool" => "true or false",
        "Size" => "size, \"64 MiB\"",
        "Span" => "duration, \"250 ms\"",
        "Vec<(String, String)>" => "list of pairs of texts",
        "IoChoice" => "\"auto\", \"io_uring\" or \"threads\"",
        "TlsFiles" | "DiskFaults" | "ClockFaults" | "ConnectionFaults" => "table",
        "f64" => "number",
        "Option<Span>" => "duration, \"250 ms\"",
        "Vec<u32>" => "list of whole numbers",
        list if list.starts_with("Vec<") => "tables",
        other => panic!("no words for the type {other}"),
    }
}

fn table(page: &mut String, source: &str, name: &str) {
    page.push_str("| key | value | must be there | meaning |\n| --- | --- | --- | --- |\n");
    for Key { name, kind, doc, optional } in keys(source, name) {
        let must = if optional { "no" } else { "yes" };
        let doc = doc.replace('|', "\\|");
        writeln!(page, "| `{name}` | {} | {must} | {doc} |", words(&kind)).expect("a string takes everything");
    }
    page.push('\n');
}

const METADATA: &str = "metadata/server/src/config.rs";
const STORAGE: &str = "storage-node/server/src/config.rs";
const FAULTS: &str = "crates/faults/src/plan.rs";
const CLUSTER: &str = "crates/client/src/cluster_file.rs";

fn page() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         Made from the types in the code by `tests/reference.rs`, which compares it: change the comments there, not this page.\n\n\
         Files are TOML. `holdfast init` writes all of them. An unknown key is an error that names the line and the nearest known key. Sizes\n\
         (`B`, `KiB`, `MiB`, `GiB`, `TiB`) and durations (`ms`, `s`, `min`, `h`) carry their unit. Relative paths are relative to the\n\
         directory of the file. Options of a mount are in `holdfast mount --help` and [operations.md](operations.md).\n\n",
    );
    page.push_str("## A metadata server: `config.toml`\n\n");
    table(&mut page, METADATA, "Config");
    page.push_str("### `[[servers]]`\n\n");
    table(&mut page, METADATA, "Server");
    page.push_str("## A storage node: `config.toml`\n\n");
    table(&mut page, STORAGE, "Config");
    page.push_str("### `[[disks]]`\n\n");
    table(&mut page, STORAGE, "DiskConfig");
    page.push_str("### `[[metadata]]`\n\n");
    table(&mut page, STORAGE, "MetadataServer");
    page.push_str("## Mounts and administrators: `cluster.toml`\n\n");
    table(&mut page, CLUSTER, "ClusterFile");
    page.push_str("### `[tls]`\n\n");
    table(&mut page, CLUSTER, "TlsFiles");
    page.push_str("### `[[metadata]]`\n\n");
    table(&mut page, CLUSTER, "MetadataAddress");
    page.push_str(
        "## A fault plan\n\nFor tests alone: `--fault-plan FILE` of builds with the feature `faults` ([operations.md](operations.md#faults-on-demand)).\n\n",
    );
    table(&mut page, FAULTS, "Plan");
    for (key, name) in [("disk", "DiskFaults"), ("clock", "ClockFaults"), ("connection", "ConnectionFaults")] {
        writeln!(page, "### `[{key}]`\n").expect("a string takes everything");
        table(&mut page, FAULTS, name);
    }
    while page.ends_with("\n\n") {
        page.pop();
    }
    page
}

#[test]
fn the_reference_says_what_the_types_say() {
    let path = repository().join(PAGE);
    let page = page();
    if std::env::var_os("HOLDFAST_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == page, "{PAGE} is not what the types say; see the top of tests/reference.rs");
}

#[test]
fn defaults_are_what_the_reference_says() {
    let here = std::path::Path::new("config.toml");
    let metadata = "cluster = \"00000000000000000000000000000007\"\nid = 1\naddress = \"127.0.0.1:4000\"\ndata = \"data\"\n\
                    authority = \"a\"\ncertificate = \"c\"\nkey = \"k\"\nreplicas = 1\ngroups = 8\nstorage-expected = 1\n\
                    [[servers]]\nid = 1\naddress = \"127.0.0.1:4000\"\n";
    let storage = "cluster = \"00000000000000000000000000000007\"\nid = 1\naddress = \"127.0.0.1:4001\"\n\
                   authority = \"a\"\ncertificate = \"c\"\nkey = \"k\"\n[[disks]]\nid = 1\npath = \"d\"\n\
                   [[metadata]]\nid = 1\naddress = \"127.0.0.1:4000\"\n";
    let metadata: metadata::Config = holdfast_config::parse(metadata, here).expect("the least that must be there");
    let storage: storage::Config = holdfast_config::parse(storage, here).expect("the least that must be there");
    let as_written =
        |text: Result<String, toml::ser::Error>| -> toml::Table { text.expect("encodes").parse().expect("TOML") };
    let files = [(METADATA, as_written(toml::to_string(&metadata))), (STORAGE, as_written(toml::to_string(&storage)))];
    let mut compared = 0;
    for (source, written) in files {
        for key in keys(source, "Config") {
            let Some((_, default)) = key.doc.split_once("Default ") else { continue };
            let said = default
                .split(['"'])
                .nth(1)
                .map_or_else(|| default.split([',', '.', ':']).next().unwrap_or("").to_owned(), str::to_owned);
            let is = match &written[key.name.as_str()] {
                toml::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(said, is, "{source}: default of {}", key.name);
            compared += 1;
        }
    }
    assert!(compared >= 7, "defaults are said in the comments: {compared}");
}
