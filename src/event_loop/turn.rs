//! One turn of the loop: wait, run what was ready, then what the wait has brought.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use super::schedule::now;
use super::{Completion, EventLoop, Handle, Owner, Signal};
use crate::py::{Exc, Obj, Ref, Result, ToObj, check_signals, detach};

/// The longest single wait, as in asyncio: it keeps the timeout within what system calls accept.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Timers due within the clock's resolution run together, as in asyncio.
const CLOCK_RESOLUTION: f64 = 1e-9;

impl EventLoop {
    /// Runs turns until `stop()`. asyncio's `run_forever` calls this in a loop of its own.
    pub(super) fn run_once(this: &Ref<EventLoop>) -> Result<()> {
        Self::adopt_ring(this)?;
        loop {
            Self::turn(this)?;
            if this.stopping.get() {
                return Ok(());
            }
        }
    }

    /// As in asyncio, what was ready runs before what comes in meanwhile: a coroutine that has got
    /// its connection goes on before the connection's first data does.
    fn turn(this: &Ref<EventLoop>) -> Result<()> {
        Self::rearm_watches(this)?;
        let idle = this.ready.borrow().is_empty();
        Self::wait(this)?;
        let timers = this.expire_timers();
        Self::run_all(this, &this.ready)?;
        Self::take_completions(this)?;
        Self::read_mail(this)?;
        this.put_last(timers);
        Self::run_all(this, &this.due)?;
        // The next turn would begin with it, after a look at the ring that a waiting loop can spare.
        if idle && !this.stopping.get() {
            return Self::run_all(this, &this.ready);
        }
        Ok(())
    }

    /// Submits what is queued, and waits if there is nothing to run. With work at hand this makes
    /// no system call unless the ring has something to submit or to report.
    fn wait(this: &Ref<EventLoop>) -> Result<()> {
        let timeout = match this.time_to_wait() {
            Some(Duration::ZERO) => return Self::with_ring(this, |driver| driver.submit()),
            timeout => timeout,
        };
        let outcome = Self::with_driver(this, |driver| {
            let wait = driver.prepare_wait(timeout);
            // Other threads that touch the driver meanwhile find it borrowed and get an error.
            detach(this.gil(), move || wait.block())
        })?;
        check_signals(this.gil())?;
        outcome.map_err(|error| Exc::os(this.gil(), &error))
    }

    /// Zero when there is work, None to wait for ever.
    fn time_to_wait(&self) -> Option<Duration> {
        if self.stopping.get() || !self.ready.borrow().is_empty() || !self.due.borrow().is_empty() {
            return Some(Duration::ZERO);
        }
        let due = self.timers.borrow().earliest()?;
        let seconds = (due - now()).max(0.0);
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT))
    }

    fn take_completions(this: &Ref<EventLoop>) -> Result<()> {
        while let Some(event) = Self::with_driver(this, |driver| driver.next())? {
            let completion = Completion { op: event.op, more: event.more, outcome: event.outcome };
            let start = this.debug().then(now);
            Self::tell(this, &event.owner, Signal::Completed(completion))?;
            if let Some(start) = start {
                Self::check_duration(this, event.owner.receiver(), now() - start)?;
            }
        }
        Ok(())
    }

    /// Tells an operation's owner. As for callbacks, an exception is reported and the loop goes on.
    pub(super) fn tell(this: &Ref<EventLoop>, owner: &Owner, signal: Signal) -> Result<()> {
        match owner.call(signal) {
            Err(error) if !error.is_exit() => {
                let method = &this.state.names._io_failed;
                this.obj().call_method(method, [owner.receiver(), error.object()]).map(drop)
            }
            result => result,
        }
    }

    /// In debug mode, warns of an I/O callback that was slow.
    fn check_duration(this: &Ref<EventLoop>, owner: &Obj, seconds: f64) -> Result<()> {
        let seconds = seconds.to_obj(this.gil())?;
        let method = &this.state.names._check_duration;
        this.obj().call_method(method, [owner, &seconds]).map(drop)
    }

    /// Returns how many callbacks are due by now.
    fn expire_timers(&self) -> usize {
        let mut timers = self.timers.borrow_mut();
        let mut due = self.due.borrow_mut();
        if timers.len() > 0 {
            let end = now() + CLOCK_RESOLUTION;
            while let Some(timer) = timers.pop_before(end) {
                due.push_back(timer);
            }
        }
        due.len()
    }

    /// Puts what I/O has made due before the timers, which were there first.
    fn put_last(&self, timers: usize) {
        let mut due = self.due.borrow_mut();
        let timers = timers.min(due.len());
        due.rotate_left(timers);
    }

    /// Runs the callbacks that are in the queue now, not those that they add.
    fn run_all(this: &Ref<EventLoop>, queue: &RefCell<VecDeque<Ref<Handle>>>) -> Result<()> {
        let batch = queue.borrow().len();
        for _ in 0..batch {
            let Some(handle) = queue.borrow_mut().pop_front() else { break };
            if handle.is_cancelled() {
                continue;
            }
            if this.debug() {
                // Times the callback and warns when it was slow.
                let method = &this.state.names._run_in_debug_mode;
                this.obj().call_method(method, [handle.obj()])?;
            } else {
                Handle::run_queued(&handle)?;
            }
            // Where the callback has forked, the rest is the parent's to run.
            Self::check_process(this)?;
        }
        Ok(())
    }

    /// Hands a callback's exception to the exception handler, unless it must leave the loop.
    pub(super) fn callback_failed(
        this: &Ref<EventLoop>,
        handle: &Ref<Handle>,
        error: Exc,
    ) -> Result<()> {
        if error.is_exit() {
            return Err(error);
        }
        let method = &this.state.names._callback_failed;
        this.obj().call_method(method, [handle.obj(), error.object()]).map(drop)
    }
}
