//! Several hosts on one machine: a network namespace for each, joined by a bridge in a namespace of its own.
//!
//! * Addresses (10.213.0.0/24) exist only inside these namespaces; the machine's own network is not touched.
//! * Only the network is separate: files, processes and mounts are everybody's, so a mount made inside is seen outside.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::shell;
use crate::janitor::Janitor;

static NEXT: AtomicU32 = AtomicU32::new(0);
const LIMIT: Duration = Duration::from_secs(20);

/// A network of hosts.
#[derive(Debug, Clone)]
pub struct Network {
    prefix: String,
    hosts: Vec<String>,
}

impl Network {
    /// Makes one host for each name.
    ///
    /// # Errors
    /// When this is not root, or the kernel has no namespaces, veth pairs or bridges.
    pub fn create(hosts: &[String], janitor: &Janitor) -> Result<Self> {
        assert!(hosts.len() < 250, "the last number of an address names the host");
        let prefix = format!("hf{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let network = Self { prefix, hosts: hosts.to_vec() };
        let switch = network.namespace("switch");
        janitor.promise(&format!("ip netns del {switch}"))?;
        shell(
            &format!("ip netns add {switch}; ip -n {switch} link add br0 type bridge; ip -n {switch} link set br0 up"),
            LIMIT,
        )?;
        for (number, host) in hosts.iter().enumerate() {
            let (inside, port) = (network.namespace(host), format!("port{number}"));
            janitor.promise(&format!("ip netns del {inside}"))?;
            shell(
                &format!(
                    "ip netns add {inside}
                     ip link add eth0 netns {inside} type veth peer name {port} netns {switch}
                     ip -n {inside} addr add {}/24 dev eth0
                     ip -n {inside} link set lo up; ip -n {inside} link set eth0 up
                     ip -n {switch} link set {port} master br0; ip -n {switch} link set {port} up",
                    Self::address_of(number)
                ),
                LIMIT,
            )?;
        }
        Ok(network)
    }

    fn address_of(number: usize) -> String {
        format!("10.213.0.{}", number + 1)
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn number(&self, host: &str) -> Result<usize> {
        self.hosts.iter().position(|known| known == host).with_context(|| format!("no host {host}"))
    }

    /// The address of `host`, inside the namespaces.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn address(&self, host: &str) -> Result<String> {
        Ok(Self::address_of(self.number(host)?))
    }

    /// Words to put before a command so that it runs on `host`. (Not `ip netns exec`: that hides mounts.)
    ///
    /// # Errors
    /// When there is no such host.
    pub fn on(&self, host: &str) -> Result<Vec<String>> {
        self.number(host)?;
        Ok(vec!["nsenter".to_string(), format!("--net=/run/netns/{}", self.namespace(host))])
    }

    /// Unplugs `host`'s cable, or plugs it in again.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn plug(&self, host: &str, in_it_is: bool) -> Result<()> {
        shell(&self.plug_command(host, in_it_is)?, LIMIT)?;
        Ok(())
    }

    /// What comes to `host` (`hook` is `input`) or leaves it (`output`) and fits `which` (an expression of nft(8); all, if it is empty) is
    /// dropped from now on.
    ///
    /// # Errors
    /// When there is no such host, or nft is not installed.
    pub fn drop_on(&self, host: &str, hook: &str, which: &str) -> Result<()> {
        let words = self.on(host)?.join(" ");
        let rules = format!(
            "table inet faults {{ chain {hook} {{ type filter hook {hook} priority 0; policy accept; {which} counter drop; }}; }}"
        );
        shell(&format!("{words} nft -f - <<<'{rules}'"), LIMIT)?;
        Ok(())
    }

    /// `these` hosts and `those` do not hear each other, until [`Network::drop_nothing_on`] each of `these`.
    ///
    /// # Errors
    /// As [`Network::drop_on`].
    pub fn part(&self, these: &[String], those: &[String]) -> Result<()> {
        let those = those.iter().map(|host| self.address(host)).collect::<Result<Vec<_>>>()?.join(", ");
        for host in these {
            self.drop_on(host, "output", &format!("ip daddr {{ {those} }}"))?;
            self.drop_on(host, "input", &format!("ip saddr {{ {those} }}"))?;
        }
        Ok(())
    }

    /// All hosts.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Undoes every [`Network::drop_on`] of a host.
    ///
    /// # Errors
    /// When nothing was dropped there.
    pub fn drop_nothing_on(&self, host: &str) -> Result<()> {
        let words = self.on(host)?.join(" ");
        shell(&format!("{words} nft delete table inet faults"), LIMIT)?;
        Ok(())
    }

    /// The line of shell that [`Network::plug`] runs.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn plug_command(&self, host: &str, in_it_is: bool) -> Result<String> {
        let (switch, number) = (self.namespace("switch"), self.number(host)?);
        let state = if in_it_is { "up" } else { "down" };
        Ok(format!("ip -n {switch} link set port{number} {state}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn hosts_reach_each_other_until_unplugged_and_leave_nothing_behind() {
        if !rustix::process::geteuid().is_root() {
            crate::skip("namespaces::hosts_reach_each_other", "only root makes network namespaces");
            return;
        }
        let janitor = Janitor::start().expect("bash starts");
        let hosts = ["a", "b"].map(str::to_string);
        let network = Network::create(&hosts, &janitor).expect("made");
        // A server on `a` that answers one byte to each who connects.
        let address = network.address("a").expect("known");
        let serve = format!(
            "import socket\ns=socket.create_server(('{address}',4000))\nprint('ready now',flush=True)\n\
             while True:\n c,_=s.accept(); c.send(b'x'); c.close()"
        );
        let mut words = network.on("a").expect("known");
        words.extend(["python3".into(), "-c".into(), serve]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = crate::process::Process::new("server", words, &folder.path().join("log"), &janitor);
        server.start().expect("starts");
        server.wait_ready(LIMIT).expect("listens");

        let ask = format!("import socket; socket.create_connection(('{address}',4000),1).recv(1)");
        let asked = || {
            let mut words = network.on("b").expect("known");
            words.extend(["python3".into(), "-c".into(), ask.clone()]);
            crate::command::must(Command::new(&words[0]).args(&words[1..]), LIMIT)
        };
        asked().expect("b reaches a");
        network.plug("a", false).expect("unplugged");
        asked().expect_err("b cannot reach a");
        network.plug("a", true).expect("plugged in");
        crate::until("b to reach a again", LIMIT, asked).expect("b reaches a again");

        let prefix = network.prefix.clone();
        drop((server, network));
        drop(janitor);
        let left = shell("ip netns list", LIMIT).expect("listed");
        assert!(!left.contains(&prefix), "left behind: {left}");
    }
}
