//! `call_soon` and its siblings. The semantics are those of asyncio.BaseEventLoop.

use super::{EventLoop, Handle};
use crate::driver::socket::monotonic;
use crate::py::{Args, Exc, Obj, Ref, Result};

impl EventLoop {
    pub(super) fn call_soon(this: &Ref<EventLoop>, args: &Args) -> Result<Ref<Handle>> {
        let (callback, rest, context) = this.callback_args("call_soon", args)?;
        Self::check_closed(this)?;
        if this.debug() {
            this.obj().call_method(&this.state.names._check_thread, [])?;
            Self::check_callback(this, callback, "call_soon")?;
        }
        let handle = Handle::create(this, callback, rest, context)?;
        this.push_ready(handle.clone());
        Ok(handle)
    }

    pub(super) fn call_soon_threadsafe(this: &Ref<EventLoop>, args: &Args) -> Result<Ref<Handle>> {
        let (callback, rest, context) = this.callback_args("call_soon_threadsafe", args)?;
        Self::check_closed(this)?;
        if this.debug() {
            Self::check_callback(this, callback, "call_soon_threadsafe")?;
        }
        let handle = Handle::create_thread_safe(this, callback, rest, context)?;
        // The caller holds the GIL, so the loop's thread is not inside a borrow of the queue.
        this.push_ready(handle.clone());
        Self::wake(this)?;
        Ok(handle)
    }

    pub(super) fn call_later(this: &Ref<EventLoop>, args: &Args) -> Result<Ref<Handle>> {
        let Some((delay, rest)) = args.positional.split_first() else {
            return Err(missing(args, "call_later", "delay"));
        };
        if delay.is_none() {
            return Err(Exc::type_error(args.gil, "delay must not be None"));
        }
        let when = now() + delay.to_f64()?;
        Self::schedule(this, when, rest, args)
    }

    pub(super) fn call_at(this: &Ref<EventLoop>, args: &Args) -> Result<Ref<Handle>> {
        let Some((when, rest)) = args.positional.split_first() else {
            return Err(missing(args, "call_at", "when"));
        };
        if when.is_none() {
            return Err(Exc::type_error(args.gil, "when cannot be None"));
        }
        let when = when.to_f64()?;
        Self::schedule(this, when, rest, args)
    }

    fn schedule(
        this: &Ref<EventLoop>,
        when: f64,
        positional: &[Obj],
        args: &Args,
    ) -> Result<Ref<Handle>> {
        let callback_args = Args { positional, ..*args };
        let (callback, rest, context) = this.callback_args("call_at", &callback_args)?;
        Self::check_closed(this)?;
        if this.debug() {
            this.obj().call_method(&this.state.names._check_thread, [])?;
            Self::check_callback(this, callback, "call_at")?;
        }
        let timer = Handle::create_timer(this, when, callback, rest, context)?;
        this.timers.borrow_mut().push(timer.clone());
        Ok(timer)
    }

    pub(super) fn time(this: &Ref<EventLoop>) -> Result<f64> {
        let _ = this;
        Ok(now())
    }

    /// Wakes the loop if it sleeps. May be called from any thread that holds the GIL.
    pub(super) fn wake(this: &Ref<EventLoop>) -> Result<()> {
        if let Some(waker) = this.waker.borrow().as_ref()
            && !this.is_inherited()
        {
            waker.wake();
        }
        Ok(())
    }

    #[inline]
    pub fn push_ready(&self, handle: Ref<Handle>) {
        self.ready.borrow_mut().push_back(handle);
    }

    /// How many callbacks wait for their turn.
    #[inline]
    pub fn ready_count(&self) -> usize {
        self.ready.borrow().len()
    }

    /// Schedules a native call of a Python callable, as `call_soon` does without its debug checks.
    pub fn soon(
        this: &Ref<EventLoop>,
        callback: &Obj,
        args: &[Obj],
        context: Option<&Obj>,
    ) -> Result<()> {
        Self::check_closed(this)?;
        let handle = Handle::create(this, callback, args, context)?;
        this.push_ready(handle);
        Ok(())
    }

    /// Takes a cancelled timer out of the heap.
    pub(super) fn timer_cancelled(&self, handle: &Ref<Handle>) {
        if handle.heap_index.get().is_some() {
            let removed = self.timers.borrow_mut().remove(handle);
            drop(removed);
            handle.track(); // whoever cancels it refers to it
        }
    }

    fn callback_args<'a>(
        &self,
        method: &'static str,
        args: &Args<'a>,
    ) -> Result<(&'a Obj, &'a [Obj], Option<&'a Obj>)> {
        let context = args.only_keyword(method, &self.state.names.context, c"context")?;
        match args.positional.split_first() {
            Some((callback, rest)) => Ok((callback, rest, context.and_then(Obj::some))),
            None => Err(missing(args, method, "callback")),
        }
    }

    fn check_callback(this: &Ref<EventLoop>, callback: &Obj, method: &str) -> Result<()> {
        use crate::py::ToObj;
        let method = method.to_obj(this.gil())?;
        this.obj().call_method(&this.state.names._check_callback, [callback, &method])?;
        Ok(())
    }
}

fn missing(args: &Args, method: &str, name: &str) -> Exc {
    Exc::type_error(args.gil, format!("{method}() missing required argument: '{name}'"))
}

/// Seconds of CLOCK_MONOTONIC, the clock of `time.monotonic()`.
pub(super) fn now() -> f64 {
    monotonic().as_secs_f64()
}
