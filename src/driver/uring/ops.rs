//! Operations as submission queue entries.

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fd;
use std::os::fd::RawFd;

use crate::driver::backend::Operation;

/// `user_data` of the poll on the waker's eventfd. Beyond the slab's indices.
pub(super) const WAKE: u64 = u64::MAX;
/// `user_data` of entries whose completion, if any, means nothing.
pub(super) const IGNORE: u64 = u64::MAX - 1;

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

/// Success needs no completion: the cancelled operation has its own.
pub(super) fn cancel(user_data: u64) -> Entry {
    opcode::AsyncCancel::new(user_data).build().flags(Flags::SKIP_SUCCESS).user_data(IGNORE)
}

pub(super) fn watch(eventfd: RawFd) -> Entry {
    opcode::PollAdd::new(Fd(eventfd), libc::POLLIN as u32).multi(true).build().user_data(WAKE)
}
