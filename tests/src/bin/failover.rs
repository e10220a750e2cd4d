//! `cargo xtask failover`: what an application sees when a server of a cluster of processes with default settings is killed, frozen or
//! stopped, and comes back. Each case several times, each time in a new cluster; the median of the longest stalls is what is kept.

use anyhow::{Context, Result, bail};
use holdfast_tests::load::{Fault, fail_over};
use holdfast_tests::{Cluster, Options};
use serde_json::{Value, json};
use std::time::Instant;

/// Seconds from the start of the writers to the moment when the server comes back, and to the end.
const TIMES: (u32, u32) = (14, 24);
const WRITERS: [&str; 2] = ["append", "create"];

/// A case: its name, who it meets, what happens.
struct Case {
    name: &'static str,
    victim: fn(&Cluster) -> Result<String>,
    fault: Fault,
}

fn storage(_: &Cluster) -> Result<String> {
    // Every node is primary of a third of the groups, and each writer writes to all groups or, appending, to one.
    Ok("storage-2".to_string())
}

fn names_leader(cluster: &Cluster) -> Result<String> {
    cluster.leader_of(1)
}

fn cluster_leader(cluster: &Cluster) -> Result<String> {
    cluster.leader()
}

const CASES: [Case; 8] = [
    Case { name: "storage-kill", victim: storage, fault: Fault::Kill },
    Case { name: "storage-freeze", victim: storage, fault: Fault::Freeze },
    Case { name: "storage-stop", victim: storage, fault: Fault::Stop },
    Case { name: "metadata-kill", victim: names_leader, fault: Fault::Kill },
    Case { name: "metadata-freeze", victim: names_leader, fault: Fault::Freeze },
    Case { name: "metadata-stop", victim: names_leader, fault: Fault::Stop },
    Case { name: "cluster-leader-kill", victim: cluster_leader, fault: Fault::Kill },
    Case { name: "cluster-leader-freeze", victim: cluster_leader, fault: Fault::Freeze },
];

fn main() -> Result<()> {
    let (mut runs, mut only, mut json) = (5, Vec::new(), None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => {
                runs = words.next().context("--runs needs a number")?.parse().context("--runs needs a number")?
            }
            "--only" => only.push(words.next().context("--only needs a word")?),
            "--json" => json = Some(words.next().context("--json needs a file")?),
            other => bail!("failover [--runs N] [--only WORD] [--json FILE]; not {other:?}"),
        }
    }
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| only.is_empty() || only.iter().any(|word| case.name.contains(word.as_str())))
        .collect();
    if runs == 0 || chosen.is_empty() {
        bail!("nothing to run; the cases are {}", CASES.map(|case| case.name).join(", "));
    }
    let total = chosen.len() * runs;
    let begun = Instant::now();
    let mut kept = serde_json::Map::new();
    let mut done = 0;
    for case in chosen {
        let mut results = Vec::new();
        for _ in 0..runs {
            results.push(one(case).with_context(|| case.name)?);
            done += 1;
            let left = begun.elapsed().as_secs() as usize / done * (total - done);
            eprintln!("{done} of {total} runs, about {} min left", left.div_ceil(60));
        }
        let row = summary(&results);
        println!("{:<22} {row}", case.name);
        kept.insert(case.name.to_string(), row);
    }
    if let Some(file) = json {
        std::fs::write(&file, serde_json::to_string_pretty(&kept)? + "\n")?;
    }
    Ok(())
}

/// One run in a new cluster. Whatever a writer saw that it should not is an error.
fn one(case: &Case) -> Result<Value> {
    let mut cluster = Cluster::start(&Options::default())?;
    let victim = (case.victim)(&cluster)?;
    fail_over(case.name, &mut cluster, (&victim, case.fault), TIMES, |_| Ok(()))
}

/// For each writer the longest stall of each run and their median, and the longest while nothing had failed yet.
fn summary(results: &[Value]) -> Value {
    let of = |writer: &str, key: &str| -> Vec<f64> {
        results.iter().filter_map(|result| result["writers"][writer][key].as_f64()).collect()
    };
    let writers = WRITERS.map(|writer| {
        let stalls = of(writer, "longest_stall_ms");
        let row = json!({
            "median_ms": median(&stalls),
            "stalls_ms": stalls,
            "worst_before_fault_ms": median(&of(writer, "worst_before_fault_ms")),
            "rate_before_per_s": median(&of(writer, "rate_before_per_s")),
        });
        (writer.to_string(), row)
    });
    Value::Object(writers.into_iter().collect())
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
