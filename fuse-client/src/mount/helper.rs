//! `fusermount3`, which mounts for ordinary users: it is given one end of a socket pair and sends the mounted descriptor through it.

use super::MountError;
use crate::device::Channel;
use crate::options::Options;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAM: &str = "fusermount3";

pub(super) fn mount(point: &Path, volume: &str, options: &Options) -> Result<Channel, MountError> {
    let (ours, theirs) = UnixStream::pair().map_err(MountError::NoHelper)?;
    let child = Command::new(PROGRAM)
        .arg("-o")
        .arg(option_text(volume, options))
        .arg("--")
        .arg(point)
        // Its end of the pair is its standard input, so no other descriptor has to survive the exec.
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(MountError::NoHelper)?;
    let received = receive_descriptor(&ours);
    drop(ours);
    let output = child.wait_with_output().map_err(MountError::NoHelper)?;
    match received {
        Some(descriptor) if output.status.success() => Ok(Channel::new(descriptor)),
        _ => Err(MountError::Helper(String::from_utf8_lossy(&output.stderr).trim().into())),
    }
}

pub(super) fn unmount(point: &Path, lazy: bool) -> Result<(), MountError> {
    let output = Command::new(PROGRAM)
        .args(if lazy { &["-u", "-z", "--"][..] } else { &["-u", "--"] })
        .arg(point)
        .stdin(Stdio::null())
        .output()
        .map_err(MountError::NoHelper)?;
    if output.status.success() {
        return Ok(());
    }
    Err(MountError::Helper(String::from_utf8_lossy(&output.stderr).trim().into()))
}

fn option_text(volume: &str, options: &Options) -> String {
    let mut text = String::from("fsname=");
    for character in holdfast_mounts::source_of(volume).chars() {
        if matches!(character, ',' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push_str(",subtype=holdfast,default_permissions");
    for (word, given) in [
        ("ro", options.read_only),
        ("nosuid", !options.set_id),
        ("nodev", !options.devices),
        ("noexec", !options.execute),
        ("allow_other", options.allow_other == Some(true)),
    ] {
        if given {
            let _ = write!(text, ",{word}");
        }
    }
    text
}

/// The descriptor that arrives with one byte of data; `None` if the other end was closed without.
fn receive_descriptor(socket: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_volume_name_does_not_become_an_option() {
        let options = Options { read_only: true, ..Options::default() };
        let text = option_text("a,suid", &options);
        assert_eq!(text, "fsname=holdfast:a\\,suid,subtype=holdfast,default_permissions,ro,nosuid,nodev");
    }
}
