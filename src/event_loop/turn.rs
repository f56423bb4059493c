//! One turn of the loop: wait, then run what was ready before, take completions, run due timers.

use std::time::Duration;

use super::schedule::now;
use super::{AtEnd, Completion, EventLoop, Handle, Owner, Signal};
use crate::driver::Driver;
use crate::py::{Exc, Obj, Ref, Result, ToObj, check_signals, detach};

/// The longest single wait, as in asyncio: it keeps the timeout within what system calls accept.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Timers due within the clock's resolution run together, as in asyncio.
const CLOCK_RESOLUTION: f64 = 1e-9;

impl EventLoop {
    /// Runs turns until `stop()`. asyncio's `run_forever` calls this in a loop of its own.
    pub(super) fn run_once(this: &Ref<EventLoop>) -> Result<()> {
        Self::adopt_ring(this)?;
        this.in_run_once.set(true);
        let result = loop {
            if let Err(error) = Self::turn(this) {
                break Err(error);
            }
            if this.stopping.get() {
                break Ok(());
            }
        };
        this.in_run_once.set(false);
        this.track_queued();
        result
    }

    /// Makes the garbage collector know what is queued: the loop itself may be garbage soon.
    pub(super) fn track_queued(&self) {
        self.ready.borrow().iter().for_each(Ref::track);
        self.timers.borrow().handles().for_each(Ref::track);
    }

    fn turn(this: &Ref<EventLoop>) -> Result<()> {
        // Of a callback that has called run_forever(), where a program makes that possible.
        if this.has_at_end.get() {
            Self::end_callback(this)?;
        }
        Self::rearm_watches(this)?;
        let idle = this.ready.borrow().is_empty();
        let quiet = !idle && this.is_quiet();
        if !quiet {
            Self::wait(this)?;
        }
        // The order is asyncio's: what was ready before the wait, I/O, timers. Code that awaits a
        // connection goes on before its first bytes are delivered. What any of it schedules waits
        // for the next turn.
        let ready = this.ready.borrow().len();
        let due = this.expire_timers();
        Self::run_ready(this, ready)?;
        if !quiet {
            Self::take_completions(this)?;
        }
        Self::read_mail(this)?;
        Self::run_ready(this, due)?;
        if idle && !this.stopping.get() {
            // The next turn would begin with it, after a look at the ring that a loop which has
            // just waited can spare.
            let ready = this.ready.borrow().len();
            Self::run_ready(this, ready)?;
        }
        Ok(())
    }

    /// Whether a turn with work at hand can do without a look at the ring.
    #[inline]
    fn is_quiet(&self) -> bool {
        self.last_news.borrow().is_empty()
            && self
                .driver
                .try_borrow_mut()
                .is_ok_and(|mut driver| driver.as_mut().is_some_and(Driver::is_quiet))
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
        let at_hand = !self.ready.borrow().is_empty() || !self.last_news.borrow().is_empty();
        if self.stopping.get() || at_hand {
            return Some(Duration::ZERO);
        }
        let due = self.timers.borrow().earliest()?;
        let seconds = (due - now()).max(0.0);
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT))
    }

    fn take_completions(this: &Ref<EventLoop>) -> Result<()> {
        while let Some((owner, signal)) = this.take_last_news() {
            Self::tell(this, &owner, signal)?;
        }
        while let Some(event) = Self::with_driver(this, |driver| driver.next())? {
            let completion = Completion { op: event.op, more: event.more, outcome: event.outcome };
            let owner = &event.owner;
            // A watch runs a handle, which is timed as such.
            let timed = this.debug() && !this.state.watch.is_type_of(owner.receiver());
            let start = timed.then(now);
            Self::tell(this, owner, Signal::Completed(completion))?;
            if let Some(start) = start {
                Self::check_duration(this, owner.receiver(), now() - start)?;
            }
        }
        Ok(())
    }

    fn take_last_news(&self) -> Option<(Owner, Signal)> {
        self.last_news.borrow_mut().pop_front()
    }

    /// Tells an operation's owner. As for callbacks, an exception is reported and the loop goes on.
    pub(super) fn tell(this: &Ref<EventLoop>, owner: &Owner, signal: Signal) -> Result<()> {
        this.begin_callback();
        let told = owner.call(signal);
        let ended = Self::end_callback(this);
        match both(told, ended) {
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

    /// Queues the timers that are due. Returns how many.
    fn expire_timers(&self) -> usize {
        let mut timers = self.timers.borrow_mut();
        if timers.len() == 0 {
            return 0;
        }
        let end = now() + CLOCK_RESOLUTION;
        let mut ready = self.ready.borrow_mut();
        let before = ready.len();
        while let Some(timer) = timers.pop_before(end) {
            ready.push_back(timer);
        }
        ready.len() - before
    }

    /// Runs the first `count` of the callbacks that are ready.
    fn run_ready(this: &Ref<EventLoop>, count: usize) -> Result<()> {
        for _ in 0..count {
            let Some(handle) = this.ready.borrow_mut().pop_front() else { break };
            let result = Self::run_handle(this, &handle);
            Handle::leave_queue(&handle);
            result?;
            // Where the callback has forked, the rest is the parent's to run.
            Self::check_process(this)?;
        }
        Ok(())
    }

    /// Only SystemExit and KeyboardInterrupt come back as errors.
    #[inline]
    pub(super) fn run_handle(this: &Ref<EventLoop>, handle: &Ref<Handle>) -> Result<()> {
        if handle.is_cancelled() {
            return Ok(());
        }
        this.begin_callback();
        let result = if this.debug() {
            // Times the callback and warns when it was slow.
            let method = &this.state.names._run_in_debug_mode;
            this.obj().call_method(method, [handle.obj()]).map(drop)
        } else {
            Handle::run_queued(handle)
        };
        both(result, Self::end_callback(this))
    }

    #[inline]
    fn begin_callback(&self) {
        self.callback.set(self.callback.get() | 1);
    }

    /// Does what waits for the end of the callback.
    #[inline]
    pub(super) fn end_callback(this: &Ref<EventLoop>) -> Result<()> {
        this.callback.set((this.callback.get() | 1) + 1);
        if this.has_at_end.replace(false) { Self::run_at_end(this) } else { Ok(()) }
    }

    fn run_at_end(this: &Ref<EventLoop>) -> Result<()> {
        let mut result = Ok(());
        for todo in this.at_end.take() {
            result = both(result, todo.call(()));
        }
        result
    }

    /// The number of the callback that runs, on whichever thread; `None` where the loop runs none.
    #[inline]
    pub fn callback(&self) -> Option<u64> {
        let number = self.callback.get();
        (number % 2 == 1).then_some(number)
    }

    /// Has this done when the callback that runs now has ended.
    pub fn at_end_of_callback(&self, todo: AtEnd) {
        self.at_end.borrow_mut().push(todo);
        self.has_at_end.set(true);
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

/// The first error, unless the second must leave the loop.
#[inline]
fn both(first: Result<()>, second: Result<()>) -> Result<()> {
    match second {
        Err(error) if error.is_exit() => Err(error),
        second => first.and(second),
    }
}
