//! Rings that a kernel thread submits for (`IORING_SETUP_SQPOLL`), and which of them share one.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use io_uring::{Builder, IoUring};

use crate::driver::{Poller, Process};

/// Open rings with a poller.
static MEMBERS: Mutex<Vec<Member>> = Mutex::new(Vec::new());

struct Member {
    poller: Poller,
    ring: RawFd,
    process: Process,
}

/// Keeps a ring where others find its poller. Must end before the ring is closed.
pub(super) struct Membership(RawFd);

impl Drop for Membership {
    fn drop(&mut self) {
        let mut members = MEMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.ring != self.0);
    }
}

/// Makes a ring with the poller that other rings of this process have already, or a new one.
///
/// The poller does all task work, so the kernel refuses the flags about that.
pub(super) fn build(
    poller: Poller,
    finish: impl FnOnce(Builder) -> io::Result<IoUring>,
) -> io::Result<(IoUring, Membership)> {
    let mut builder = IoUring::builder();
    builder.setup_sqpoll(poller.idle);
    if let Some(cpu) = poller.cpu {
        builder.setup_sqpoll_cpu(cpu);
    }
    // Held until the ring is made, so that none goes away that it attaches to.
    let mut members = MEMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |member: &&Member| member.poller == poller && member.process.is_current();
    if let Some(member) = members.iter().find(same) {
        builder.setup_attach_wq(member.ring);
    }
    let ring = finish(builder)?;
    let fd = ring.as_raw_fd();
    members.push(Member { poller, ring: fd, process: Process::current() });
    Ok((ring, Membership(fd)))
}
