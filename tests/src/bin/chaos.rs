//! `cargo xtask chaos`: see `holdfast_tests::chaos`.

use anyhow::{Context, Result, bail};
use holdfast_tests::chaos::Chaos;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() -> Result<()> {
    let (mut minutes, mut seed) = (10, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64> {
            words.next().and_then(|text| text.parse().ok()).with_context(|| format!("{word} needs a number"))
        };
        match word.as_str() {
            "--minutes" => minutes = number()?,
            "--seed" => seed = Some(number()?),
            other => bail!("chaos [--minutes M] [--seed S]; not {other:?}"),
        }
    }
    let drawn = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let chaos = Chaos { seed: seed.unwrap_or_else(drawn), time: Duration::from_secs(minutes * 60) };
    println!("seed {}, {minutes} minutes", chaos.seed);
    println!("{}", chaos.run()?);
    Ok(())
}
