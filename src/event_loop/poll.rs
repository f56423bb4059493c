//! `Poll`: waiting once for a file descriptor, by a coroutine.

use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::RawFd;

use super::{EventLoop, Owner, Signal};
use crate::driver::{OpId, Outcome};
use crate::py::{Args, Exc, GetSet, Method, Native, Obj, Ref, Result, Visit};

/// A one-shot poll and the future that tells of it.
pub struct Poll {
    home: Ref<EventLoop>,
    fd: RawFd,
    events: u32,
    future: Obj,
    op: Cell<Option<OpId>>,
}

impl EventLoop {
    /// Starts to wait for events of poll(2) on a file descriptor.
    pub(super) fn poll(this: &Ref<EventLoop>, args: &Args) -> Result<Ref<Poll>> {
        let [fd, events] = args.positional else {
            return Err(Exc::type_error(args.gil, "_poll() takes a file descriptor and events"));
        };
        Self::check_closed(this)?;
        let poll = this.state.poll.alloc(Poll {
            home: this.clone(),
            fd: fd.to_i32()?,
            events: events.to_i32()? as u32,
            future: Self::create_future(this)?,
            op: Cell::new(None),
        })?;
        Poll::arm(&poll)?;
        Ok(poll)
    }
}

impl Poll {
    fn arm(this: &Ref<Poll>) -> Result<()> {
        let owner = Owner::new(this.clone(), Poll::on_signal);
        let (fd, events) = (this.fd, this.events);
        let op = EventLoop::with_ring(&this.home, |driver| driver.poll(fd, events, false, owner))?;
        this.op.set(Some(op));
        Ok(())
    }

    fn on_signal(this: &Ref<Poll>, signal: Signal) -> Result<()> {
        let (op, outcome) = match signal {
            Signal::Completed(completion) => (completion.op, Some(completion.outcome)),
            Signal::RingLost(op) => (op, None),
            Signal::Send => return Ok(()),
        };
        if this.op.get() != Some(op) {
            return Ok(());
        }
        this.op.set(None);
        match outcome {
            None => Self::arm(this),
            Some(Outcome::Poll(Err(error))) => {
                let names = &this.home.state.names;
                Self::end(this, &names.set_exception, Exc::os(this.gil(), &error).object())
            }
            Some(_) => {
                let names = &this.home.state.names;
                Self::end(this, &names.set_result, &Obj::none(this.gil()))
            }
        }
    }

    fn end(this: &Ref<Poll>, method: &Obj, value: &Obj) -> Result<()> {
        let names = &this.home.state.names;
        if this.future.call_method(&names.done, [])?.truth()? {
            return Ok(());
        }
        this.future.call_method(method, [value]).map(drop)
    }

    fn get_future(this: &Ref<Poll>) -> Result<Obj> {
        Ok(this.future.clone())
    }

    /// Ends the wait. When it returns, the kernel does not refer to the descriptor any more.
    fn cancel(this: &Ref<Poll>) -> Result<()> {
        match this.op.take() {
            Some(op) => EventLoop::cancel_ops(&this.home, &[op]),
            None => Ok(()),
        }
    }
}

impl Native for Poll {
    const NAME: &'static CStr = c"kloop._kloop.Poll";
    const DOC: &'static CStr = c"A wait for a file descriptor.";
    const METHODS: &'static [Method<Self>] =
        &[Method::noargs(c"cancel", Poll::cancel), Method::END];
    const GETSETS: &'static [GetSet<Self>] =
        &[GetSet::get(c"future", Poll::get_future), GetSet::END];

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        visit.obj(&self.future);
    }

    fn clear(&self) {}
}
