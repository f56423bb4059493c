//! Waiting for a poller to carry out cancellations: it runs beside this thread, which learns of its
//! progress by entries that do nothing but complete.

use std::io;

use io_uring::EnterFlags;

use super::enter::transient_ok;
use super::{PATIENCE, Uring, ops};
use crate::driver::DRAIN_LIMIT;
use crate::driver::socket::monotonic;

/// The poller runs at most this much task work between two looks at the submission queues.
const TASK_WORK_BATCH: usize = 32;

#[derive(Default)]
pub(super) struct Settling {
    /// Operations that are being cancelled and have not ended yet.
    ending: Vec<u64>,
    /// A mark that the poller has not come to yet.
    marked: bool,
}

impl Settling {
    pub fn cancelled(&mut self, user_data: u64) {
        self.ending.push(user_data);
    }

    /// The poller has come to the mark.
    pub fn reached(&mut self) {
        self.marked = false;
    }

    /// An operation has ended.
    #[inline]
    pub fn ended(&mut self, user_data: u64) {
        if let Some(index) = self.ending.iter().position(|ending| *ending == user_data) {
            self.ending.swap_remove(index);
        }
    }
}

impl Uring {
    /// An entry is cancelled when it is submitted, but a poll or accept lets go of its file only in
    /// the task work that follows, with its last completion. That of a send on a kernel thread of
    /// its own may take longer: it is waited for as long as others may be due before it.
    pub(super) fn settle_with_poller(&mut self, work: usize) -> io::Result<()> {
        for completion in &self.early {
            if !completion.more {
                self.settling.ended(completion.user_data);
            }
        }
        for _ in 0..PATIENCE + work / TASK_WORK_BATCH {
            // The mark after the last completion shows that its file has been let go of, too.
            let last = self.settling.ending.is_empty();
            self.await_mark()?;
            if last {
                break;
            }
        }
        self.settling.ending.clear();
        Ok(())
    }

    /// Waits until the poller has submitted what is queued.
    fn await_mark(&mut self) -> io::Result<()> {
        self.settling.marked = true;
        self.push(&ops::mark())?;
        let deadline = monotonic() + DRAIN_LIMIT;
        loop {
            self.take_early();
            if !self.settling.marked {
                return Ok(());
            }
            let left = deadline.saturating_sub(monotonic());
            if left.is_zero() {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            let flags = self.nudge() | EnterFlags::GETEVENTS;
            transient_ok(self.enter.wait(0, Some(left), flags))?;
        }
    }

    /// Makes room in the completion queue, so that a wait is for what comes next.
    fn take_early(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            if let Some(completion) = self.take(&entry) {
                self.early.push_back(completion);
            }
        }
        self.batch = 0;
    }
}
