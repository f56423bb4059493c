//! The io_uring backend: one ring, used by the thread that made it, or with a poller.

mod enter;
mod narrow;
mod ops;
mod poller;
mod settle;
mod setup;

use std::collections::VecDeque;
use std::hint;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{EnterFlags, IoUring, cqueue};

use super::backend::{Backend, Completion, Operation};
use super::chunk::Buffers;
use super::op::OpId;
use super::socket::monotonic;
use super::{Config, Process, SetupError};
use enter::{Enter, transient_ok};
use narrow::{Narrow, Verdict};
use poller::Membership;
use settle::Settling;

/// The kernel runs at least this much task work per call, in the order in which it fell due.
const TASK_WORK_BATCH: usize = 20;
/// How long a wait looks for what a busy poller is about to complete before it sleeps: about what
/// going to sleep and being woken takes.
const SPIN: Duration = Duration::from_micros(50);
const SPINS_PER_LOOK: usize = 64;
/// Calls to make before giving up on a kernel that takes no entries.
const PATIENCE: usize = 16;

pub(super) struct Uring {
    /// Where there is a poller. Dropped first.
    membership: Option<Membership>,
    ring: IoUring,
    /// What receive operations write to. Dropped after the ring.
    buffers: Option<Rc<Buffers>>,
    /// Receive operations that found no buffer: to be started again when there is one.
    starved: Vec<(u64, RawFd)>,
    enter: Enter,
    thread: libc::pid_t,
    process: Process,
    /// Completions that settle() has come across.
    early: VecDeque<Completion>,
    settling: Settling,
    /// Completions to hand out before the next look at the queue, to which a poller adds without
    /// end.
    batch: usize,
    eventfd: RawFd,
    /// The poll on the eventfd is missing: arm it before waiting.
    watch_due: bool,
    narrow: Narrow,
}

impl Uring {
    /// Makes a ring that watches `eventfd`.
    pub fn new(config: &Config, eventfd: RawFd) -> Result<Self, SetupError> {
        let (ring, membership) = setup::build(config)?;
        let buffers = if config.receive { Buffers::register(&ring.submitter()).ok() } else { None };
        let mut uring = Uring {
            membership,
            buffers,
            starved: Vec::new(),
            process: Process::current(),
            early: VecDeque::new(),
            settling: Settling::default(),
            batch: 0,
            enter: Enter::new(ring.as_raw_fd()),
            ring,
            thread: current_thread(),
            eventfd,
            watch_due: true,
            narrow: Narrow::default(),
        };
        // A first call, since a sandbox may deny this one only.
        let pending = uring.pending();
        uring.enter.flush(pending).map_err(|error| SetupError::failed("io_uring_enter", &error))?;
        Ok(uring)
    }

    /// The number of queued entries, the watch among them.
    #[inline]
    fn pending(&mut self) -> u32 {
        if self.watch_due {
            self.arm_watch();
        }
        if !self.starved.is_empty() {
            self.start_starved();
        }
        self.ring.submission().len() as u32
    }

    fn has_poller(&self) -> bool {
        self.membership.is_some()
    }

    /// Nobody else starts what is queued, and what runs next may take its time. Where more is
    /// queued the poller is awake, or has been told. A failure is no reason to take back what is queued:
    /// the next submit() or wait() tries again.
    fn wake_poller(&mut self) {
        let queue = self.ring.submission();
        if queue.len() == 1 && queue.need_wakeup() {
            let _ = self.enter.nudge(EnterFlags::SQ_WAKEUP);
        }
    }

    /// What a poller has to be told. Nothing, as long as it is busy.
    #[inline]
    fn nudge(&mut self) -> EnterFlags {
        let queue = self.ring.submission();
        let mut flags = EnterFlags::empty();
        // The poller says that it sleeps before it looks at the queue for a last time.
        if !queue.is_empty() && queue.need_wakeup() {
            flags |= EnterFlags::SQ_WAKEUP;
        }
        if queue.cq_overflow() {
            flags |= EnterFlags::GETEVENTS;
        }
        flags
    }

    /// Looks for completions for a moment, as long as the poller does not sleep. Returns whether
    /// there are some.
    fn spin(&mut self, timeout: Option<Duration>) -> bool {
        let end = monotonic() + timeout.map_or(SPIN, |timeout| timeout.min(SPIN));
        loop {
            for _ in 0..SPINS_PER_LOOK {
                self.batch = self.ring.completion().len();
                if self.batch > 0 {
                    return true;
                }
                hint::spin_loop();
            }
            // The fence costs less than a look at the clock.
            if self.ring.submission().need_wakeup() || monotonic() >= end {
                return false;
            }
        }
    }

    #[inline]
    fn submit_to_poller(&mut self) -> io::Result<()> {
        let flags = self.nudge();
        let told = if flags.is_empty() { Ok(()) } else { self.enter.nudge(flags) };
        self.batch = self.ring.completion().len();
        transient_ok(told)
    }

    #[cold]
    fn start_starved(&mut self) {
        if self.buffers.as_ref().is_some_and(|buffers| buffers.has_room()) {
            for (user_data, fd) in std::mem::take(&mut self.starved) {
                if self.push(&ops::receive(user_data, fd)).is_err() {
                    self.starved.push((user_data, fd));
                }
            }
        }
    }

    #[cold]
    fn arm_watch(&mut self) {
        // The eventfd is not read first: that could swallow a wake-up. What it still holds costs
        // one empty turn. Should there be no room, the next call tries again.
        self.watch_due = self.push(&ops::watch(self.eventfd)).is_err();
    }

    #[inline]
    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: the caller of start() vouches for the memory an entry points to; the others point
        // to none.
        match unsafe { self.ring.submission().push(entry) } {
            Ok(()) => {}
            Err(_) => self.push_to_full(entry)?,
        }
        if self.has_poller() {
            self.wake_poller();
        }
        Ok(())
    }

    /// What to report of a poll on which there was a verdict.
    #[cold]
    fn follow(&mut self, user_data: u64, result: i32, verdict: &Verdict) -> Option<Completion> {
        match *verdict {
            Verdict::Pass => {}
            Verdict::Ignore => return None,
            Verdict::GoOn(fd, events) => {
                let poll = Operation::Poll { fd, events, multishot: true };
                match self.push(&ops::entry(user_data, poll)) {
                    Ok(()) => return None,
                    // One report too many does less harm than none.
                    Err(_) => self.narrow.forget(user_data),
                }
            }
            Verdict::Stop => {
                // Its own last completion has no owner any more. Should this fail, it reports to
                // nobody until the ring is closed.
                let cancelled = self.push(&ops::cancel(user_data));
                // A poller does it at once, too, but need not be waited for.
                if cancelled.is_ok() && !self.has_poller() {
                    let _ = self.settle(1);
                }
            }
        }
        Some(Completion::new(user_data, result, false))
    }

    /// Notes what a completion means. Returns it unless it is nobody else's business.
    #[inline]
    fn take(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (result, flags) = (entry.result(), entry.flags());
        let more = cqueue::more(flags);
        match entry.user_data() {
            ops::WAKE => self.watch_due |= !more,
            ops::IGNORE => {}
            ops::MARK => self.settling.reached(),
            user_data => {
                if !more {
                    self.settling.ended(user_data);
                }
                return match self.narrow.judge(user_data, result, more) {
                    Verdict::Pass => {
                        let buffers = self.buffers.as_ref();
                        let chunk = buffers.and_then(|buffers| buffers.chunk(result, flags));
                        Some(Completion { user_data, result, more, chunk })
                    }
                    verdict => self.follow(user_data, result, &verdict),
                };
            }
        }
        None
    }

    #[cold]
    fn push_to_full(&mut self, entry: &Entry) -> io::Result<()> {
        for _ in 0..PATIENCE {
            if self.has_poller() {
                let flags = self.nudge() | EnterFlags::SQ_WAIT;
                transient_ok(self.enter.nudge(flags))?;
            } else {
                let count = self.ring.submission().len() as u32;
                transient_ok(self.enter.submit(count))?;
            }
            // SAFETY: as in push().
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }
}

impl Backend for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn is_usable(&self) -> bool {
        if self.has_poller() { self.process.is_current() } else { self.thread == current_thread() }
    }

    #[inline]
    unsafe fn start(&mut self, id: OpId, operation: Operation) -> io::Result<()> {
        if let Operation::Poll { fd, events, multishot: false } = operation {
            self.narrow.note(id.user_data(), fd, events);
        }
        self.push(&ops::entry(id.user_data(), operation))
    }

    fn receives(&self) -> bool {
        self.buffers.is_some()
    }

    fn receive(&mut self, id: OpId, fd: RawFd) -> io::Result<()> {
        if self.buffers.is_none() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.push(&ops::receive(id.user_data(), fd))
    }

    fn receive_later(&mut self, id: OpId, fd: RawFd) {
        self.starved.push((id.user_data(), fd));
    }

    fn abandon(&mut self) {
        if let Some(buffers) = &self.buffers {
            buffers.leak();
        }
    }

    fn cancel(&mut self, id: OpId) -> io::Result<()> {
        let user_data = id.user_data();
        // What is in the queue of it already is its end, whatever was asked for.
        self.narrow.forget(user_data);
        if let Some(index) = self.starved.iter().position(|(starved, _)| *starved == user_data) {
            self.starved.swap_remove(index);
            self.early.push_back(Completion::new(user_data, -libc::ECANCELED, false));
            return Ok(());
        }
        self.push(&ops::cancel(user_data))?;
        if self.has_poller() {
            self.settling.cancelled(user_data);
        }
        Ok(())
    }

    fn settle(&mut self, work: usize) -> io::Result<()> {
        if self.has_poller() {
            return self.settle_with_poller(work);
        }
        // A cancelled poll or accept lets go of its file in task work, of which newer kernels run a
        // batch per call. First in, first out: after `work` of it, ours is done, whatever arrived
        // since.
        let mut patience = PATIENCE + work / TASK_WORK_BATCH;
        loop {
            let pending = self.pending();
            transient_ok(self.enter.flush(pending))?;
            let queue = self.ring.submission();
            if queue.is_empty() && !queue.taskrun() {
                return Ok(());
            }
            patience -= 1;
            if patience == 0 {
                return if queue.is_empty() {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(libc::EAGAIN))
                };
            }
        }
    }

    #[inline]
    fn is_quiet(&mut self) -> bool {
        // A poller may be about to post something.
        let later = self.watch_due
            || self.has_poller()
            || !self.starved.is_empty()
            || !self.early.is_empty();
        let queue = self.ring.submission();
        let busy = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        !(later || busy) && self.ring.completion().is_empty()
    }

    #[inline]
    fn submit(&mut self) -> io::Result<()> {
        let pending = self.pending();
        if self.has_poller() {
            return self.submit_to_poller();
        }
        if pending == 0 {
            let queue = self.ring.submission();
            if !queue.taskrun() && !queue.cq_overflow() {
                return Ok(());
            }
        }
        transient_ok(self.enter.flush(pending))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let there = !self.early.is_empty() || !self.ring.completion().is_empty();
        if timeout == Some(Duration::ZERO) || there {
            return self.submit();
        }
        let pending = self.pending();
        if !self.has_poller() {
            return transient_ok(self.enter.wait(pending, timeout, EnterFlags::empty()));
        }
        let flags = self.nudge();
        if flags.is_empty() && self.spin(timeout) {
            return Ok(());
        }
        let waited = self.enter.wait(0, timeout, flags);
        self.batch = self.ring.completion().len();
        transient_ok(waited)
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        if let Some(completion) = self.early.pop_front() {
            return Some(completion);
        }
        loop {
            if self.has_poller() {
                self.batch = self.batch.checked_sub(1)?;
            }
            let entry = self.ring.completion().next()?;
            if let Some(completion) = self.take(&entry) {
                return Some(completion);
            }
        }
    }
}

fn current_thread() -> libc::pid_t {
    // SAFETY: gettid(2) has no preconditions.
    unsafe { libc::gettid() }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::driver::waker::{Parker, Permit};

    const LIMIT: Duration = Duration::from_secs(20);

    /// Whether a wake-up ends a wait. Empties the completion queue first.
    fn wakes(uring: &mut Uring, parker: &Parker) -> bool {
        uring.submit().unwrap();
        while uring.next().is_some() {}
        let start = std::time::Instant::now();
        assert_eq!(parker.prepare(), Permit::Sleep);
        let waker = parker.waker();
        let thread = std::thread::spawn(move || waker.wake());
        uring.wait(Some(LIMIT)).unwrap();
        thread.join().unwrap();
        parker.finish();
        start.elapsed() < LIMIT
    }

    #[test]
    fn the_watch_on_the_eventfd_is_renewed() {
        let parker = Parker::new().unwrap();
        let mut uring = Uring::new(&Config::default(), parker.fd()).unwrap();
        assert!(wakes(&mut uring, &parker));
        for _ in 0..3 {
            uring.push(&ops::cancel(ops::WAKE)).unwrap();
            uring.settle(1).unwrap();
            assert!(!uring.watch_due);
            assert!(uring.next().is_none());
            assert!(uring.watch_due);
            assert!(wakes(&mut uring, &parker));
            assert!(!uring.watch_due);
        }
    }

    #[test]
    fn a_failed_cancellation_shows_nothing() {
        let parker = Parker::new().unwrap();
        let mut uring = Uring::new(&Config::default(), parker.fd()).unwrap();
        let nobody = OpId { index: 5, generation: 5 };
        uring.cancel(nobody).unwrap();
        uring.settle(1).unwrap();
        assert!(!uring.ring.completion().is_empty(), "the kernel says ENOENT");
        assert!(uring.next().is_none());
        assert!(uring.ring.completion().is_empty());
    }
}
