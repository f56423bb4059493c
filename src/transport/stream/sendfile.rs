//! Lending the socket to `loop.sendfile()`, which then writes past the transport.

use super::StreamTransport;
use crate::event_loop::EventLoop;
use crate::py::{Exc, Obj, Ref, Result};

impl StreamTransport {
    /// A future for the moment when everything written has been sent. Until the waiter is reset,
    /// writes are refused and the loop may watch the socket.
    pub(super) fn make_empty_waiter(this: &Ref<Self>) -> Result<Obj> {
        if this.empty_waiter.is_some() {
            return Err(Exc::runtime_error(this.gil(), "Empty waiter is already set"));
        }
        Self::send_held(this)?;
        let waiter = EventLoop::create_future(&this.home)?;
        this.empty_waiter.set(Some(waiter.clone()));
        this.home.release_fd(this.fd.get());
        if this.unsent.get() == 0 {
            Self::wake_empty_waiter(this)?;
        }
        Ok(waiter)
    }

    pub(super) fn reset_empty_waiter(this: &Ref<Self>) -> Result<()> {
        this.empty_waiter.set(None);
        if !this.is_released() {
            this.home.claim_fd(this.fd.get());
        }
        Ok(())
    }

    pub(super) fn wake_empty_waiter(this: &Ref<Self>) -> Result<()> {
        let Some(waiter) = this.undone_empty_waiter()? else { return Ok(()) };
        let none = Obj::none(this.gil());
        waiter.call_method(&this.home.state.names.set_result, [&none]).map(drop)
    }

    pub(super) fn fail_empty_waiter(this: &Ref<Self>) -> Result<()> {
        let Some(waiter) = this.undone_empty_waiter()? else { return Ok(()) };
        let error = Exc::connection_error(this.gil(), "Connection is closed by peer");
        waiter.call_method(&this.home.state.names.set_exception, [error.object()]).map(drop)
    }

    /// sendfile() may hand the socket to the kernel: see the loop's `_sendfile_native`.
    pub(super) fn sendfile_mode(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.home.state.sendfile_native.clone())
    }

    fn undone_empty_waiter(&self) -> Result<Option<Obj>> {
        let Some(waiter) = self.empty_waiter.get() else { return Ok(None) };
        let done = waiter.call_method(&self.home.state.names.done, [])?.truth()?;
        Ok(if done { None } else { Some(waiter) })
    }
}
