//! From connection_made() to connection_lost().

use std::cell::Cell;

use super::base::Transport;
use super::reading::Reading;
use crate::driver::socket;
use crate::event_loop::{EventLoop, Handle};
use crate::py::{Exc, Obj, Ref, Result, ToObj};

/// After this many writes to a lost connection each one logs a warning, as in asyncio.
const WRITES_BEFORE_WARNING: u32 = 5;

pub(super) trait Lifecycle: Transport {
    /// Starts in the next turn, as asyncio does: first connection_made(), then reading, then the
    /// waiter.
    fn start_later(this: &Ref<Self>, waiter: Option<&Obj>) -> Result<()> {
        let home = &this.home;
        let context = Some(&this.context);
        EventLoop::soon(home, &Self::connection_made(this)?, &[this.obj().clone()], context)?;
        EventLoop::soon(home, &this.obj().get(c"_start_reading")?, &[], context)?;
        if let Some(waiter) = waiter {
            let wake = home.state.set_result_unless_cancelled.clone();
            let none = Obj::none(this.gil());
            EventLoop::soon(home, &wake, &[waiter.clone(), none], None)?;
        }
        Ok(())
    }

    /// Starts at once, for a connection that was accepted.
    fn start_now(this: &Ref<Self>) -> Result<()> {
        let args = [this.obj().clone()];
        let method = Self::connection_made(this)?;
        let made = Handle::create(&this.home, &method, &args, Some(&this.context))?;
        let called = Handle::run_queued(&made);
        Handle::leave_queue(&made);
        called.and(Self::start_reading(this))
    }

    fn connection_made(this: &Ref<Self>) -> Result<Obj> {
        match this.protocol.get() {
            Some(protocol) => protocol.attr(&this.home.state.names.connection_made),
            None => Err(Exc::runtime_error(this.gil(), "the transport has no protocol")),
        }
    }

    /// A transport that could not be started closes its file.
    fn keep_if(this: Ref<Self>, started: Result<()>) -> Result<Ref<Self>> {
        match started {
            Ok(()) => Ok(this),
            // Leaves the loop, which may run again.
            Err(error) if error.is_exit() => Err(error),
            Err(error) => {
                Self::release(&this)?;
                Err(error)
            }
        }
    }

    fn is_closing(this: &Ref<Self>) -> Result<bool> {
        Ok(this.closing.get())
    }

    /// Ends the connection once everything written has been sent.
    fn close(this: &Ref<Self>) -> Result<()> {
        Self::send_held(this)?;
        if this.closing.replace(true) {
            return Ok(());
        }
        if this.unsent.get() == 0 {
            Self::schedule_connection_lost(this, None)?;
        }
        Ok(())
    }

    /// Ends the connection at once; what was written and not yet sent is lost.
    fn abort(this: &Ref<Self>) -> Result<()> {
        Self::force_close(this, None)
    }

    /// asyncio's SSLProtocol ends the transport under it this way.
    fn force_close_by(this: &Ref<Self>, error: &Obj) -> Result<()> {
        Self::force_close(this, error.some())
    }

    fn force_close(this: &Ref<Self>, error: Option<&Obj>) -> Result<()> {
        if this.lost.get() > 0 || this.is_released() {
            return Ok(());
        }
        Self::send_held(this)?;
        if this.lost.get() > 0 {
            return Ok(()); // that has failed
        }
        this.closing.set(true);
        Self::abandon_unsent(this)?;
        Self::schedule_connection_lost(this, error)
    }

    fn abandon_unsent(this: &Ref<Self>) -> Result<()> {
        this.drop_unsent();
        this.unsent.set(0);
        match this.write_op.take() {
            Some(op) => EventLoop::cancel_ops(&this.home, &[op]),
            None => Ok(()),
        }
    }

    /// Ends the connection because of an error, which goes to the exception handler unless it is
    /// an expected one.
    fn fatal_error(this: &Ref<Self>, error: Exc, message: &str) -> Result<()> {
        // In a forked child the connection is the parent's, and the error the caller's.
        if error.is_exit() || this.home.is_inherited() {
            return Err(error);
        }
        if !Self::is_expected(&error) {
            Self::report(this, message, error.object())?;
        } else if this.home.debug() {
            let text = format!("{}: {message}", this.obj().repr()).to_obj(this.gil())?;
            let method = &this.home.state.names._debug_log;
            this.home.obj().call_method(method, [&text, error.object()])?;
        }
        Self::force_close(this, Some(error.object()))
    }

    /// In debug mode, logs what the transport does.
    fn debug_log(this: &Ref<Self>, what: &str) -> Result<()> {
        if !this.home.debug() {
            return Ok(());
        }
        let text = format!("{} {what}", this.obj().repr()).to_obj(this.gil())?;
        this.home.obj().call_method(&this.home.state.names._debug_log, [&text]).map(drop)
    }

    /// Tells the loop's exception handler about an error.
    fn report(this: &Ref<Self>, message: &str, error: &Obj) -> Result<()> {
        let gil = this.gil();
        let context = Obj::dict(gil)?;
        context.set_item("message", &message.to_obj(gil)?)?;
        context.set_item("exception", error)?;
        context.set_item("transport", this.obj())?;
        context.set_item("protocol", &this.protocol.get().to_obj(gil)?)?;
        let names = &this.home.state.names;
        this.home.obj().call_method(&names.call_exception_handler, [&context]).map(drop)
    }

    /// Writes to a lost connection are dropped; many of them are a bug worth a warning.
    fn connection_is_lost(this: &Ref<Self>) -> Result<bool> {
        if this.lost.get() == 0 && !this.is_released() {
            return Ok(false);
        }
        Self::count_lost_write(this, &this.lost)?;
        Ok(true)
    }

    fn count_lost_write(this: &Ref<Self>, count: &Cell<u32>) -> Result<()> {
        if count.get() >= WRITES_BEFORE_WARNING {
            let text = Self::LOST_WARNING.to_obj(this.gil())?;
            this.home.obj().call_method(&this.home.state.names._warn, [&text])?;
        }
        count.set(count.get().saturating_add(1));
        Ok(())
    }

    fn schedule_connection_lost(this: &Ref<Self>, error: Option<&Obj>) -> Result<()> {
        this.lost.set(this.lost.get() + 1);
        let error = error.cloned().unwrap_or_else(|| Obj::none(this.gil()));
        let method = this.obj().get(c"_call_connection_lost")?;
        EventLoop::soon(&this.home, &method, &[error], None)
    }

    /// The end of a transport that was closed before everything was sent.
    fn finish_close(this: &Ref<Self>) -> Result<()> {
        if this.lost.get() > 0 {
            return Ok(());
        }
        this.lost.set(1);
        Self::call_connection_lost(this, &Obj::none(this.gil()))
    }

    /// The last callback. Whatever it raises, the file is closed.
    fn call_connection_lost(this: &Ref<Self>, error: &Obj) -> Result<()> {
        if this.is_released() {
            return Ok(());
        }
        let called = match this.protocol.get() {
            Some(protocol) => {
                protocol.call_method(&this.home.state.names.connection_lost, [error]).map(drop)
            }
            None => Ok(()),
        };
        let released = Self::release(this);
        this.protocol.set(None);
        called.and(released).and(Self::on_lost(this))
    }

    /// Ends the operations and closes the file.
    fn release(this: &Ref<Self>) -> Result<()> {
        let fd = this.fd.replace(-1);
        if fd < 0 {
            return Ok(());
        }
        let ops = [this.read_op.take(), this.write_op.take()];
        let ops: Vec<_> = ops.into_iter().flatten().collect();
        let cancelled = EventLoop::cancel_ops(&this.home, &ops);
        this.home.release_fd(fd);
        let told = Self::on_release(this);
        let closed = match this.file.take() {
            Some(file) => file.call_method(&this.home.state.names.close, []).map(drop),
            None => socket::close(fd).map_err(|error| Exc::os(this.gil(), &error)),
        };
        cancelled.and(told).and(closed)
    }

    /// A transport that nobody closed: its loop was closed under it, or dropped.
    fn finalize(this: &Ref<Self>) {
        if this.is_released() {
            return;
        }
        let inherited = this.home.is_inherited();
        let warned = if inherited { Ok(()) } else { Self::warn_unclosed(this) };
        for result in [warned, Self::release(this)] {
            if let Err(error) = result {
                error.unraisable(this.obj());
            }
        }
    }

    fn warn_unclosed(this: &Ref<Self>) -> Result<()> {
        let gil = this.gil();
        let state = &this.home.state;
        let text = format!("unclosed transport {}", this.obj().repr()).to_obj(gil)?;
        let names = Obj::tuple(gil, &["source".to_obj(gil)?])?;
        let args = [&text, &state.resource_warning, this.obj()];
        state.warn.call_with_names(&args, &names).map(drop)
    }

    /// How a repr() begins.
    fn head(this: &Ref<Self>) -> String {
        let state = match (this.is_released(), this.closing.get()) {
            (true, _) => "closed ",
            (_, true) => "closing ",
            _ => "",
        };
        format!("{} {state}fd={}", this.obj().type_name(), this.fd.get())
    }

    fn describe(this: &Ref<Self>) -> Result<String> {
        let reading =
            if this.read_op.get().is_some() && !this.paused.get() { "polling" } else { "idle" };
        let writing = if this.write_op.get().is_some() { "polling" } else { "idle" };
        Ok(format!(
            "<{} read={reading} write=<{writing}, bufsize={}>>",
            Self::head(this),
            this.unsent.get()
        ))
    }

    // Attributes of asyncio's transports.

    fn get_loop(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.home.obj().clone())
    }

    fn set_protocol(this: &Ref<Self>, protocol: &Obj) -> Result<()> {
        this.protocol.set(Some(protocol.clone()));
        Ok(())
    }

    fn get_protocol(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.protocol.get())
    }

    fn get_lost(this: &Ref<Self>) -> Result<u32> {
        Ok(this.lost.get())
    }

    fn get_fd(this: &Ref<Self>) -> Result<i32> {
        Ok(this.fd.get())
    }
}

impl<T: Transport> Lifecycle for T {}
