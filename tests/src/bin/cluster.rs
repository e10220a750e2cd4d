//! `cargo xtask cluster`: a cluster of separate processes to break by hand. Ctrl-C removes everything.

use anyhow::{Context, Result, bail};
use holdfast_tests::{Cluster, Options};

fn main() -> Result<()> {
    let options = options()?;
    println!(
        "starting {} metadata servers and {} storage nodes as separate processes ...",
        options.metadata, options.storage
    );
    let mut cluster = Cluster::start(&options)?;
    let mount = cluster.mount()?;
    introduce(&mut cluster, mount, &options)?;
    serve(&mut cluster)?;
    println!("\nremoving the cluster ...");
    if let Err(error) = cluster.mounted(mount).unmount() {
        println!("the mount did not go by itself ({error:#}); taking it away");
    }
    // Dropping it kills what still runs and removes mounts, disks, namespaces and the folder.
    drop(cluster);
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u32> {
            words
                .next()
                .with_context(|| format!("{word} needs a number"))?
                .parse()
                .with_context(|| format!("{word} needs a number"))
        };
        match word.as_str() {
            "--metadata" => options.metadata = number()?,
            "--storage" => options.storage = number()?,
            "--replicas" => options.replicas = number()?,
            "--namespaces" => options.namespaces = true,
            "--power-loss" => options.power_loss = true,
            other => bail!(
                "cluster does not know {other:?}; there are --metadata, --storage, --replicas, --namespaces, --power-loss"
            ),
        }
    }
    Ok(options)
}

fn introduce(cluster: &mut Cluster, mount: usize, options: &Options) -> Result<()> {
    let file = cluster.file();
    let leader = cluster.leader().unwrap_or_default();
    println!("\n{:<14} {:>8}  log", "process", "pid");
    let folder = cluster.folder().to_path_buf();
    for server in cluster.servers() {
        let note = if server.name() == leader { "   (leads)" } else { "" };
        let log = folder.join(format!("{}.log", server.name()));
        println!("{:<14} {:>8}  {}{note}", server.name(), server.pid().unwrap_or_default(), log.display());
    }
    let mount = cluster.mounted(mount);
    let at = mount.path().to_path_buf();
    println!("{:<14} {:>8}  mounted at {}", "mount-1", mount.process().pid().unwrap_or_default(), at.display());
    println!("\nNow kill any of these, work in {} meanwhile, and start it again. For instance:", at.display());
    println!("    python3 benches/failover.py {} --fault 'kill -9 PID'", at.display());
    let before = cluster
        .network()
        .map_or(Ok(String::new()), |network| network.on("client").map(|words| words.join(" ") + " "))?;
    println!("    {before}holdfast admin --cluster {} status", file.display());
    if options.namespaces {
        println!(
            "Each server is a host of its own. Unplug one:   ip netns list; ip -n hf...-switch link set port0 down"
        );
    }
    if options.power_loss {
        println!(
            "Each server has a disk of its own. A line `cut` here cuts the power of all of them, and brings it back."
        );
    }
    println!("Ctrl-C stops everything and removes it.");
    Ok(())
}

fn obey(cluster: &mut Cluster, line: &str) -> Result<()> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("", _) => {}
        ("cut", _) => {
            cluster.cut_power()?;
            println!("the power is off; bringing it back ...");
            cluster.restore_power()?;
            println!("everything runs again");
        }
        ("start", "mount-1") => {
            let mount = cluster.mounted(0);
            mount.kill()?;
            mount.restart()?;
            println!("mount-1 runs, pid {}", mount.process().pid().unwrap_or_default());
        }
        ("start", name) => {
            cluster.restart(name)?;
            println!("{name} runs, pid {}", cluster.server(name)?.pid().unwrap_or_default());
        }
        (other, _) => bail!("no {other:?} here: start NAME, or cut"),
    }
    Ok(())
}

/// Obeys lines of standard input until Ctrl-C or SIGTERM.
fn serve(cluster: &mut Cluster) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (lines, mut said) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
        // An empty standard input is no reason to stop: keep the channel open for ever.
        std::thread::park();
    });
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        loop {
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
                _ = terminate.recv() => return Ok(()),
                Some(line) = said.recv() => if let Err(error) = obey(cluster, line.trim()) {
                    println!("{error:#}");
                },
            }
        }
    })
}
