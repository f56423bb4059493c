//! Operations as submission queue entries.

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fd;
use std::os::fd::RawFd;

use crate::driver::backend::Operation;
use crate::driver::chunk::GROUP;

/// `user_data` of the poll on the waker's eventfd. Beyond the slab's indices.
pub(super) const WAKE: u64 = u64::MAX;
/// `user_data` of entries whose completion, if any, means nothing.
pub(super) const IGNORE: u64 = u64::MAX - 1;
/// `user_data` of an entry that only shows how far the poller has come.
pub(super) const MARK: u64 = u64::MAX - 2;

#[inline]
pub(super) fn entry(user_data: u64, operation: Operation) -> Entry {
    let entry = match operation {
        Operation::Poll { fd, events, multishot } => {
            opcode::PollAdd::new(Fd(fd), events).multi(multishot).build()
        }
        Operation::Accept { fd } => {
            opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build()
        }
        // WAITALL: the kernel goes on after a short write instead of reporting it.
        Operation::Send { fd, data, len } => opcode::Send::new(Fd(fd), data, len)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build(),
    };
    entry.user_data(user_data)
}

pub(super) fn receive(user_data: u64, fd: RawFd) -> Entry {
    opcode::RecvMulti::new(Fd(fd), GROUP).build().user_data(user_data)
}

/// Success needs no completion: the cancelled operation has its own.
pub(super) fn cancel(user_data: u64) -> Entry {
    opcode::AsyncCancel::new(user_data).build().flags(Flags::SKIP_SUCCESS).user_data(IGNORE)
}

pub(super) fn watch(eventfd: RawFd) -> Entry {
    opcode::PollAdd::new(Fd(eventfd), libc::POLLIN as u32).multi(true).build().user_data(WAKE)
}

pub(super) fn mark() -> Entry {
    opcode::Nop::new().build().user_data(MARK)
}
