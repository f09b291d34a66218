// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The one message to the frontend that the vhost crate cannot send: the configuration space has
//! changed.
//!
//! The crate owns the channel and lends it to no one. So its descriptor is looked for among those
//! of the process: the channel is one end of a socket pair, and unlike the main connection it has
//! no name. That is done only for an adversary that wants to send this message.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
const CONFIG_CHANGE: u32 = 2;
/// Version 1 of the protocol; no reply wanted.
const FLAGS: u32 = 1;

/// The nameless Unix stream sockets of this process.
fn nameless() -> io::Result<BTreeSet<RawFd>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|n| n.parse::<RawFd>().ok()) else {
            continue;
        };
        let mut address = MaybeUninit::<libc::sockaddr_un>::zeroed();
        let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        // SAFETY: The buffer is as long as `length` says. A descriptor that is no socket, or closed
        // by now, gives an error.
        let result = unsafe { libc::getsockname(fd, address.as_mut_ptr().cast(), &mut length) };
        // SAFETY: All zeroes are a valid `sockaddr_un`.
        let family = unsafe { address.assume_init() }.sun_family;
        let only_family = size_of::<libc::sa_family_t>() as libc::socklen_t;
        if result == 0 && i32::from(family) == libc::AF_UNIX && length == only_family {
            found.insert(fd);
        }
    }
    Ok(found)
}

/// Sends messages to the frontend beside the vhost crate.
#[derive(Debug)]
pub(crate) struct Channel {
    before: BTreeSet<RawFd>,
    socket: Option<UnixStream>,
}

impl Channel {
    /// To be called before the frontend connects.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            before: nameless()?,
            socket: None,
        })
    }

    /// To be called once the frontend has handed over the channel.
    pub(crate) fn find(&mut self) -> io::Result<()> {
        let now = nameless()?;
        let mut new = now.difference(&self.before);
        let (Some(fd), None) = (new.next(), new.next()) else {
            return Err(io::Error::other("cannot tell the frontend's channel"));
        };
        // SAFETY: It makes a new descriptor or fails.
        let copy = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The descriptor is new, a Unix stream socket, and no one else's.
        self.socket = Some(unsafe { UnixStream::from_raw_fd(copy) });
        Ok(())
    }

    /// Says that the configuration space has changed. The message goes out whole or not at all: it
    /// is shorter than any socket buffer.
    pub(crate) fn config_changed(&mut self) -> io::Result<()> {
        let socket = self.socket.as_mut();
        let socket = socket.ok_or_else(|| io::Error::other("there is no channel"))?;
        let message: Vec<u8> = [CONFIG_CHANGE, FLAGS, 0]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        socket.write_all(&message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn finds_the_new_socket() {
        let mut channel = Channel::new().unwrap();
        assert!(channel.config_changed().is_err());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // Both ends are in this process.
        assert!(channel.find().is_err());
        let other = nameless().unwrap();
        let ours_only = |fd: &RawFd| *fd != std::os::fd::AsRawFd::as_raw_fd(&ours);
        channel.before = other.into_iter().filter(ours_only).collect();
        channel.find().unwrap();
        channel.config_changed().unwrap();
        let mut message = [0; 12];
        theirs.read_exact(&mut message).unwrap();
        assert_eq!(message[..4], 2u32.to_ne_bytes());
    }
}
