//! From connection_made() to connection_lost().

use super::StreamTransport;
use crate::driver::{OpId, socket};
use crate::event_loop::{EventLoop, Handle};
use crate::py::{Exc, Obj, Ref, Result, ToObj};

impl StreamTransport {
    /// Starts in the next turn, as asyncio does: first connection_made(), then reading, then the
    /// waiter.
    pub(super) fn start_later(this: &Ref<Self>, waiter: Option<&Obj>) -> Result<()> {
        let home = &this.home;
        let context = Some(&this.context);
        EventLoop::soon(home, &this.connection_made()?, &[this.obj().clone()], context)?;
        EventLoop::soon(home, &this.obj().get(c"_start_reading")?, &[], context)?;
        if let Some(waiter) = waiter {
            let wake = home.state.set_result_unless_cancelled.clone();
            let none = Obj::none(this.gil());
            EventLoop::soon(home, &wake, &[waiter.clone(), none], None)?;
        }
        Ok(())
    }

    /// Starts at once, for a connection that was accepted.
    pub(super) fn start_now(this: &Ref<Self>) -> Result<()> {
        let args = [this.obj().clone()];
        let made =
            Handle::create(&this.home, &this.connection_made()?, &args, Some(&this.context))?;
        Handle::run_queued(&made).and(Self::start_reading(this))
    }

    fn connection_made(&self) -> Result<Obj> {
        match self.protocol.get() {
            Some(protocol) => protocol.attr(&self.home.state.names.connection_made),
            None => Err(Exc::runtime_error(self.home.gil(), "the transport has no protocol")),
        }
    }

    /// Ends the connection once everything written has been sent.
    pub(super) fn close(this: &Ref<Self>) -> Result<()> {
        if this.closing.replace(true) {
            return Ok(());
        }
        if this.unsent.get() == 0 {
            Self::schedule_connection_lost(this, None)?;
        }
        Ok(())
    }

    /// Ends the connection at once; what was written and not yet sent is lost.
    pub(super) fn abort(this: &Ref<Self>) -> Result<()> {
        Self::force_close(this, None)
    }

    /// asyncio's SSLProtocol ends the transport under it this way.
    pub(super) fn force_close_by(this: &Ref<Self>, error: &Obj) -> Result<()> {
        Self::force_close(this, error.some())
    }

    pub(super) fn force_close(this: &Ref<Self>, error: Option<&Obj>) -> Result<()> {
        if this.lost.get() > 0 || this.fd.get() < 0 {
            return Ok(());
        }
        this.closing.set(true);
        this.drop_unsent()?;
        Self::schedule_connection_lost(this, error)
    }

    /// Ends the connection because of an error, which goes to the exception handler unless it is
    /// one of the network's.
    pub(super) fn fatal_error(this: &Ref<Self>, error: Exc, message: &str) -> Result<()> {
        if error.is_exit() {
            return Err(error);
        }
        if !error.is_os_error() {
            Self::report(this, message, error.object())?;
        } else if this.home.debug() {
            let text = format!("{}: {message}", this.obj().repr()).to_obj(this.gil())?;
            let method = &this.home.state.names._debug_log;
            this.home.obj().call_method(method, [&text, error.object()])?;
        }
        Self::force_close(this, Some(error.object()))
    }

    /// In debug mode, logs what the transport does.
    pub(super) fn debug_log(this: &Ref<Self>, what: &str) -> Result<()> {
        if !this.home.debug() {
            return Ok(());
        }
        let text = format!("{} {what}", this.obj().repr()).to_obj(this.gil())?;
        this.home.obj().call_method(&this.home.state.names._debug_log, [&text]).map(drop)
    }

    /// The loop has moved to another thread. What a send in flight has achieved is unknown, so its
    /// connection cannot go on.
    pub(super) fn on_ring_lost(this: &Ref<Self>, op: OpId) -> Result<()> {
        if this.poll.get() == Some(op) {
            this.poll.set(None);
            return Self::start_reading(this);
        }
        if this.send.get() != Some(op) {
            return Ok(());
        }
        this.send.set(None);
        let error = Exc::connection_error(
            this.gil(),
            "the event loop was moved to another thread while data was being sent",
        );
        Self::force_close(this, Some(error.object()))
    }

    /// Tells the loop's exception handler about an error.
    pub(super) fn report(this: &Ref<Self>, message: &str, error: &Obj) -> Result<()> {
        let gil = this.gil();
        let context = Obj::dict(gil)?;
        context.set_item("message", &message.to_obj(gil)?)?;
        context.set_item("exception", error)?;
        context.set_item("transport", this.obj())?;
        context.set_item("protocol", &this.protocol.get().to_obj(gil)?)?;
        let names = &this.home.state.names;
        this.home.obj().call_method(&names.call_exception_handler, [&context]).map(drop)
    }

    fn schedule_connection_lost(this: &Ref<Self>, error: Option<&Obj>) -> Result<()> {
        this.lost.set(this.lost.get() + 1);
        let error = error.cloned().unwrap_or_else(|| Obj::none(this.gil()));
        let method = this.obj().get(c"_call_connection_lost")?;
        EventLoop::soon(&this.home, &method, &[error], None)
    }

    /// The last callback. Whatever it raises, the socket is closed and the server told.
    pub(super) fn call_connection_lost(this: &Ref<Self>, error: &Obj) -> Result<()> {
        if this.fd.get() < 0 {
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
        called.and(released).and(Self::fail_empty_waiter(this))
    }

    /// Ends the operations, leaves the server and closes the socket. In this order: a peer that sees
    /// the end and connects again finds it counted.
    pub(super) fn release(this: &Ref<Self>) -> Result<()> {
        let fd = this.fd.replace(-1);
        if fd < 0 {
            return Ok(());
        }
        let ops: Vec<_> = [this.poll.take(), this.send.take()].into_iter().flatten().collect();
        let cancelled = EventLoop::cancel_ops(&this.home, &ops);
        this.home.release_fd(fd);
        let detached = match this.server.take() {
            Some(server) => {
                server.call_method(&this.home.state.names._detach, [this.obj()]).map(drop)
            }
            None => Ok(()),
        };
        let closed = match this.sock.take() {
            Some(sock) => sock.call_method(&this.home.state.names.close, []).map(drop),
            None => socket::close(fd).map_err(|error| Exc::os(this.gil(), &error)),
        };
        cancelled.and(detached).and(closed)
    }

    /// A transport that nobody closed: its loop was closed under it, or dropped.
    pub(super) fn finalize(this: &Ref<Self>) {
        if this.fd.get() < 0 {
            return;
        }
        let warned = this.warn_unclosed(this.obj());
        for result in [warned, Self::release(this)] {
            if let Err(error) = result {
                error.unraisable(this.obj());
            }
        }
    }

    fn warn_unclosed(&self, this: &Obj) -> Result<()> {
        let gil = this.gil();
        let state = &self.home.state;
        let text = format!("unclosed transport {}", this.repr()).to_obj(gil)?;
        let names = Obj::tuple(gil, &["source".to_obj(gil)?])?;
        let args = [&text, &state.resource_warning, this];
        state.warn.call_with_names(&args, &names).map(drop)
    }
}
