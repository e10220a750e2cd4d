//! SQLite and PostgreSQL: locks, syncs, mapped memory, truncation, and their own integrity checks.

use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_tests::command::{find, must, quote, shell};
use holdfast_tests::note;
use holdfast_tests::report::long;

use crate::{LIMIT, folder, local_folder};

/// Writes with two processes at once, then checks.
fn sqlite(name: &str, mode: &str) {
    let Some(at) = folder(name, &["sqlite3"]) else { return };
    let file = quote(at.join("test.db"));
    let sql = |text: &str| shell(&format!("sqlite3 -batch -cmd '.timeout 60000' {file} {}", quote(text)), LIMIT);
    let said = sql(&format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL; CREATE TABLE t(writer, n, body);"))
        .expect("created");
    assert!(said.trim().eq_ignore_ascii_case(mode), "journal mode is {said}");
    let insert = |writer: u32| -> String {
        (0..150).map(|n| format!("INSERT INTO t VALUES({writer}, {n}, hex(randomblob(400)));\n")).collect()
    };
    // Two processes insert row by row, so that each takes the locks some hundred times from the other.
    let local = local_folder();
    for writer in 0..2 {
        std::fs::write(local.path().join(format!("{writer}.sql")), insert(writer)).expect("written");
    }
    let from = quote(local.path());
    let one = |writer: u32| {
        format!(
            "sqlite3 -batch -cmd '.timeout 60000' -cmd 'PRAGMA synchronous=FULL' -bail {file} < {from}/{writer}.sql"
        )
    };
    shell(&format!("({}) & first=$!; {}; wait $first", one(0), one(1)), LIMIT).expect("both writers finish");
    sql("DELETE FROM t WHERE n % 3 = 0; UPDATE t SET body = body || 'x' WHERE n % 5 = 1; VACUUM;").expect("changed");
    let said = sql("PRAGMA integrity_check; SELECT writer, count(*), sum(n) FROM t GROUP BY writer ORDER BY writer;")
        .expect("checked");
    assert_eq!(said, "ok\n0|100|7500\n1|100|7500\n");
}

#[test]
fn sqlite_with_a_rollback_journal_keeps_its_integrity() {
    sqlite("sqlite_with_a_rollback_journal_keeps_its_integrity", "delete");
}

#[test]
fn sqlite_with_a_write_ahead_log_keeps_its_integrity() {
    sqlite("sqlite_with_a_write_ahead_log_keeps_its_integrity", "wal");
}

/// A PostgreSQL server run by user `postgres`; stopped when dropped.
struct Postgres {
    data: PathBuf,
    socket: PathBuf,
}

impl Postgres {
    fn program(name: &str) -> String {
        find(name).unwrap_or_else(|| panic!("{name} is installed")).to_string_lossy().into_owned()
    }

    /// A client program, as user `postgres`.
    fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(Self::program(words[0])).args(&words[1..]);
        command.env("PGHOST", &self.socket).env("PGDATABASE", "postgres").current_dir("/");
        must(&mut command, LIMIT)
    }

    fn start(&self) {
        let options = format!("-c listen_addresses= -c unix_socket_directories={}", self.socket.display());
        let log = self.socket.join("log");
        self.run(&[
            "pg_ctl",
            "-D",
            &self.data.to_string_lossy(),
            "-l",
            &log.to_string_lossy(),
            "-w",
            "-t",
            "120",
            "-o",
            &options,
            "start",
        ])
        .unwrap_or_else(|error| panic!("{error:#}\n{}", std::fs::read_to_string(&log).unwrap_or_default()));
    }

    fn stop(&self, mode: &str) -> anyhow::Result<String> {
        self.run(&["pg_ctl", "-D", &self.data.to_string_lossy(), "-w", "-t", "120", "-m", mode, "stop"])
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            let _ = self.stop("immediate");
        }
    }
}

fn give_to_postgres(folder: &Path) {
    shell(&format!("chown postgres: {}", quote(folder)), LIMIT).expect("user postgres owns it");
}

#[test]
fn postgresql_runs_its_benchmark_and_finds_its_files_sound() {
    let Some(at) = folder(
        "postgresql_runs_its_benchmark_and_finds_its_files_sound",
        &["initdb", "pgbench", "pg_amcheck", "runuser"],
    ) else {
        return;
    };
    let local = local_folder();
    give_to_postgres(&at);
    give_to_postgres(local.path());
    let server = Postgres { data: at.join("data"), socket: local.path().to_path_buf() };
    server.run(&["initdb", "-D", &server.data.to_string_lossy(), "-A", "trust", "--data-checksums"]).expect("initdb");
    server.start();
    server.run(&["pgbench", "-i", "-q", "-s", "3"]).expect("pgbench -i");
    let seconds = if long() { "60" } else { "15" };
    let said = server.run(&["pgbench", "-c", "4", "-j", "2", "-T", seconds]).expect("pgbench");
    assert!(said.contains("number of failed transactions: 0"), "{said}");
    let tps = said.lines().find(|line| line.starts_with("tps")).unwrap_or_default();
    note(&format!("pgbench for {seconds} s: {tps}"));
    let totals = "SELECT sum(abalance) = (SELECT sum(bbalance) FROM pgbench_branches) AND sum(abalance) = (SELECT sum(delta) FROM pgbench_history) FROM pgbench_accounts";
    let check = || {
        assert_eq!(
            server.run(&["psql", "-At", "-c", totals]).expect("sums").trim(),
            "t",
            "accounts, branches and history disagree"
        );
        server
            .run(&["pg_amcheck", "--all", "--install-missing", "--heapallindexed"])
            .expect("pg_amcheck finds nothing");
        let dump = server.run(&["pg_dump", "--no-comments"]).expect("dumped");
        // Recent versions put a random word around each dump.
        dump.lines().filter(|line| !line.starts_with('\\')).collect::<Vec<_>>().join("\n")
    };
    let before = check();
    // A crash of the server itself: its recovery reads the log from the mount.
    server.stop("immediate").expect("stopped at once");
    server.start();
    let after = check();
    assert!(before == after, "the dump after a restart differs");
    server.stop("fast").expect("stopped");
    server
        .run(&["pg_checksums", "--check", "-D", &server.data.to_string_lossy()])
        .expect("every page has its checksum");
}
