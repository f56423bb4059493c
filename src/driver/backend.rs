//! The seam between the driver and the kernel interface that runs its operations.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::chunk::Chunk;
use super::op::OpId;

/// What to do, as plain data. The pointers are to memory that the slab owns.
pub(super) enum Operation {
    Poll { fd: RawFd, events: u32, multishot: bool },
    Accept { fd: RawFd },
    Send { fd: RawFd, data: *const u8, len: u32 },
}

/// What became of an operation: `result` is a value of the operation's kind, or -errno.
pub(super) struct Completion {
    pub user_data: u64,
    pub result: i32,
    /// More completions of the same operation will follow.
    pub more: bool,
    /// What a receive operation has brought.
    pub chunk: Option<Chunk>,
}

impl Completion {
    #[inline]
    pub fn new(user_data: u64, result: i32, more: bool) -> Self {
        Completion { user_data, result, more, chunk: None }
    }
}

/// Runs operations. Wakes up for the eventfd it was made with, which never shows as a completion.
pub(super) trait Backend {
    fn name(&self) -> &'static str;

    /// Whether the calling thread may use it: not in a forked child, nor on a foreign thread.
    fn is_usable(&self) -> bool;

    /// Queues `operation`.
    ///
    /// # Safety
    /// What it points to stays valid and untouched until the completion without `more` was taken
    /// from `next`, even if the backend is dropped before.
    unsafe fn start(&mut self, id: OpId, operation: Operation) -> io::Result<()>;

    /// Whether [`receive`](Self::receive) works.
    fn receives(&self) -> bool {
        false
    }

    /// Queues a multishot receive operation into memory of the backend's own.
    fn receive(&mut self, _id: OpId, _fd: RawFd) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    /// Queues a receive operation again that found no memory, once there is some.
    fn receive_later(&mut self, _id: OpId, _fd: RawFd) {}

    /// Operations will be left when it is dropped: keep the memory that they may write to.
    fn abandon(&mut self) {}

    /// Queues the cancellation of a started operation.
    fn cancel(&mut self, id: OpId) -> io::Result<()>;

    /// Makes queued cancellations happen now. `work` bounds what may be due before them: the number
    /// of operations and cancellations.
    fn settle(&mut self, work: usize) -> io::Result<()>;

    /// Whether there is nothing to start and nothing to take, as far as can be told without a
    /// system call.
    fn is_quiet(&mut self) -> bool {
        false
    }

    /// Starts what is queued, without waiting.
    fn submit(&mut self) -> io::Result<()>;

    /// Starts what is queued and waits for a completion. A zero `timeout` makes it `submit`.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// Takes a completion that is already there.
    fn next(&mut self) -> Option<Completion>;
}

/// What a driver is left with after close().
pub(super) struct Closed;

impl Closed {
    fn error<T>() -> io::Result<T> {
        Err(io::Error::from_raw_os_error(libc::EBADF))
    }
}

impl Backend for Closed {
    fn name(&self) -> &'static str {
        "closed"
    }

    fn is_usable(&self) -> bool {
        false
    }

    unsafe fn start(&mut self, _: OpId, _: Operation) -> io::Result<()> {
        Self::error()
    }

    fn cancel(&mut self, _: OpId) -> io::Result<()> {
        Self::error()
    }

    fn settle(&mut self, _: usize) -> io::Result<()> {
        Self::error()
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, _: Option<Duration>) -> io::Result<()> {
        Self::error()
    }

    fn next(&mut self) -> Option<Completion> {
        None
    }
}
