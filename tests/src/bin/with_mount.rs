//! `with-mount [--data-under DIR] [--cluster] -- COMMAND ...`: runs a command with `$HOLDFAST_MOUNT` set to the mount of a
//! new `holdfast up`, or of a new cluster of processes, which is removed afterwards. Its exit status is the command's.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use holdfast_tests::{Cluster, Options, Up};

fn main() -> Result<ExitCode> {
    let mut words = std::env::args().skip(1);
    let (mut under, mut processes) = (None, false);
    loop {
        match words.next().as_deref() {
            Some("--data-under") => under = Some(words.next().context("--data-under needs a folder")?),
            Some("--cluster") => processes = true,
            Some("--") => break,
            other => bail!("with-mount [--data-under DIR] [--cluster] -- COMMAND ...; not {other:?}"),
        }
    }
    let command: Vec<String> = words.collect();
    let program = command.first().context("a command is needed after --")?;
    let run = |mount: &std::path::Path| -> Result<ExitCode> {
        let status = Command::new(program).args(&command[1..]).env("HOLDFAST_MOUNT", mount).status()?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    };
    let under = under.map_or_else(std::env::temp_dir, Into::into);
    if processes {
        let mut cluster = Cluster::start(&Options { folder: Some(under), ..Options::default() })?;
        let mount = cluster.mount()?;
        run(cluster.mounted(mount).path())
    } else {
        let up = Up::start_under(&under, &[])?;
        run(up.mount())
    }
}
