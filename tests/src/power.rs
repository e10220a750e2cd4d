//! Power loss: each server's data lives on an ext4 file system of its own, on a loop device of its own, and all of them
//! lose at one moment what was not synced.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{quote, shell};
use crate::janitor::Janitor;

/// Bytes of one server's disk; sparse, so it costs only what is written.
const IMAGE_BYTES: u64 = 2 << 30;
const LIMIT: Duration = Duration::from_secs(60);

/// File systems that lose power together.
#[derive(Debug)]
pub struct PowerDomain {
    disks: Vec<Disk>,
    images: PathBuf,
    bytes: u64,
    janitor: Janitor,
}

#[derive(Debug)]
struct Disk {
    device: String,
    mounted_at: PathBuf,
}

/// All is prepared; the next word cuts the power.
#[derive(Debug)]
pub struct Armed {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl PowerDomain {
    /// Keeps images in `images`, an existing folder.
    pub fn new(images: &Path, janitor: &Janitor) -> Self {
        Self::with_disks_of(images, IMAGE_BYTES, janitor)
    }

    /// The same with disks of another size.
    pub fn with_disks_of(images: &Path, bytes: u64, janitor: &Janitor) -> Self {
        Self { disks: Vec::new(), images: images.to_path_buf(), bytes, janitor: janitor.clone() }
    }

    /// Puts a new file system on the folder `at`, which keeps what it holds now.
    ///
    /// # Errors
    /// When this is not root, or there are no loop devices.
    pub fn add(&mut self, at: &Path) -> Result<()> {
        let image = self.images.join(format!("disk-{}.ext4", self.disks.len()));
        std::fs::File::create_new(&image)?.set_len(self.bytes)?;
        let (at_word, image_word) = (quote(at), quote(&image));
        self.janitor.promise(&format!(
            "umount -l {at_word}; losetup -j {image_word} -O NAME -n | xargs -r losetup -d; rm -f {image_word}"
        ))?;
        // The first mount is inside a mount namespace of its own, so that it is gone however this ends.
        let copy = format!(
            "new=$(mktemp -d); trap 'rmdir $new' EXIT; mount -t ext4 $device $new; rmdir $new/lost+found
             cp -a {at_word}/. $new/; umount $new"
        );
        let device = shell(
            &format!(
                "mkfs.ext4 -q -m 0 -E lazy_itable_init=1,lazy_journal_init=1 {image_word}
                 export device=$(losetup -f --show {image_word})
                 unshare --mount --propagation private bash -e -c {}
                 mount -t ext4 $device {at_word}; printf %s $device",
                quote(&copy)
            ),
            LIMIT,
        )?;
        self.disks.push(Disk { device, mounted_at: at.to_path_buf() });
        Ok(())
    }

    /// Prepares a cut, of all or of one, so that the cut itself takes microseconds.
    ///
    /// # Errors
    /// When a file system is not mounted.
    pub fn arm(&self, only: Option<&Path>) -> Result<Armed> {
        let mut child = Command::new("python3")
            .args(["-c", include_str!("power.py")])
            .args(self.chosen(only).map(|disk| &disk.mounted_at))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start python3")?;
        let stdin = child.stdin.take().context("piped")?;
        let stdout = BufReader::new(child.stdout.take().context("piped")?);
        let mut armed = Armed { child, stdin, stdout };
        armed.expect("armed")?;
        Ok(armed)
    }

    fn chosen<'a>(&'a self, only: Option<&'a Path>) -> impl Iterator<Item = &'a Disk> {
        self.disks.iter().filter(move |disk| only.is_none_or(|only| disk.mounted_at == only))
    }

    /// Takes the dead file systems, all or one, off and mounts them again, as a boot would: the journal of ext4 is replayed. Whoever
    /// had files open there must be gone.
    ///
    /// # Errors
    /// When one stays busy or does not mount.
    pub fn restore(&self, only: Option<&Path>) -> Result<()> {
        for disk in self.chosen(only) {
            let at = quote(&disk.mounted_at);
            crate::until("the dead file system to be free", LIMIT, || shell(&format!("umount {at}"), LIMIT))?;
            // A process that has just left its copy of the mounts behind (another test's `unshare`) keeps the dead file system alive, and
            // a mount of its device shows that one again.
            crate::until("a file system that is not the dead one", LIMIT, || {
                shell(
                    &format!(
                        "mount -t ext4 {} {at} && {{ touch {at}/.alive || {{ umount {at}; exit 1; }}; }}; rm {at}/.alive",
                        disk.device
                    ),
                    LIMIT,
                )
            })?;
        }
        Ok(())
    }
}

impl Armed {
    /// Cuts the power of every file system.
    ///
    /// # Errors
    /// When the kernel refuses the call.
    pub fn cut(mut self) -> Result<()> {
        self.stdin.write_all(b"now\n")?;
        self.expect("cut")?;
        self.child.wait()?;
        Ok(())
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.trim() != word {
            bail!("the power switch said {line:?} instead of {word:?}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// The harness is a test only if it takes away what was not synced, and nothing else.
    #[test]
    fn a_power_cut_takes_what_was_not_synced_and_keeps_what_was() {
        if !rustix::process::geteuid().is_root() {
            crate::skip("power::a_power_cut_takes_what_was_not_synced", "only root has loop devices");
            return;
        }
        let janitor = Janitor::start().expect("bash starts");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at: Vec<PathBuf> = (0..2).map(|n| folder.path().join(format!("server-{n}"))).collect();
        let mut domain = PowerDomain::new(folder.path(), &janitor);
        for at in &at {
            std::fs::create_dir(at).expect("created");
            std::fs::write(at.join("config.toml"), "kept = true").expect("written");
            domain.add(at).expect("a file system of its own");
            assert!(at.join("config.toml").exists(), "what was there is still there");
        }
        let files: Vec<(File, File)> = at.iter().map(|at| write_in(at)).collect();
        let armed = domain.arm(None).expect("armed");
        armed.cut().expect("cut");
        for (synced, _) in &files {
            assert!(
                synced.write_at(b"later", 0).and_then(|_| synced.sync_data()).is_err(),
                "nothing works after a cut"
            );
        }
        drop(files);
        domain.restore(None).expect("comes back");
        for at in &at {
            assert_eq!(std::fs::read(at.join("synced")).expect("it is there"), vec![7; 8192]);
            let unsynced = std::fs::read(at.join("unsynced")).unwrap_or_default();
            assert!(unsynced.iter().all(|byte| *byte == 0), "bytes that were never synced came back");
        }
        drop(domain);
        drop(janitor);
        let left = std::fs::read_to_string("/proc/mounts").expect("readable");
        assert!(!left.contains(&*folder.path().to_string_lossy()), "a mount was left behind:\n{left}");
    }

    fn write_in(at: &Path) -> (File, File) {
        let synced = File::create(at.join("synced")).expect("created");
        synced.write_all_at(&[7; 8192], 0).expect("written");
        synced.sync_data().expect("synced");
        File::open(at).and_then(|folder| folder.sync_all()).expect("its name too");
        let unsynced = File::create(at.join("unsynced")).expect("created");
        unsynced.write_all_at(&[9; 8192], 0).expect("written");
        (synced, unsynced)
    }
}
