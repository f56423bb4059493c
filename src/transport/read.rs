//! Reading: a multishot poll tells when, `recv` takes the bytes.

use std::io;

use super::StreamTransport;
use crate::driver::{OpId, socket};
use crate::event_loop::{EventLoop, Owner};
use crate::py::{Exc, Obj, Ref, Result, ToObj, WritableBuffer};

const POLL_EVENTS: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;

/// Events after which a short read does not mean that the socket is drained: an end of file or an
/// error is still to be read, and the poll will not tell again.
const HANG_UP: u32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as u32;

/// Events of a connection that is gone in both directions.
const RESET: u32 = (libc::POLLHUP | libc::POLLERR) as u32;

/// Reads in a row for one connection before others get their turn.
const READS_PER_TURN: usize = 4;

const READ_ERROR: &str = "Fatal read error on socket transport";

/// What one read has brought.
enum Received {
    /// There may be more.
    Full,
    /// The socket had less than there was room for.
    Drained,
    Nothing,
    Eof,
}

impl StreamTransport {
    pub(super) fn start_reading(this: &Ref<Self>) -> Result<()> {
        if this.closing.get() || this.read_ended.get() || this.poll.get().is_some() {
            return Ok(());
        }
        let owner = Owner::new(this.clone(), StreamTransport::on_signal);
        let fd = this.fd.get();
        match EventLoop::with_ring(&this.home, |driver| driver.poll(fd, POLL_EVENTS, true, owner)) {
            Ok(op) => {
                this.poll.set(Some(op));
                Ok(())
            }
            Err(error) => Self::fatal_error(this, error, READ_ERROR),
        }
    }

    pub(super) fn on_poll(
        this: &Ref<Self>,
        op: OpId,
        more: bool,
        result: io::Result<u32>,
    ) -> Result<()> {
        if this.poll.get() != Some(op) {
            return Ok(());
        }
        if !more {
            this.poll.set(None);
        }
        let read = match result {
            Ok(events) => Self::read(this, events),
            Err(error) => Self::fatal_error(this, Exc::os(this.gil(), &error), READ_ERROR),
        };
        // The kernel may end a multishot poll, as when the completion queue was full.
        if more { read } else { read.and(Self::start_reading(this)) }
    }

    /// Reads what a pause has kept back, or what was left when the turn was over.
    pub(super) fn read_missed(this: &Ref<Self>) -> Result<()> {
        let events = this.missed.replace(0);
        if events == 0 { Ok(()) } else { Self::read(this, events) }
    }

    /// Reads what the socket has. An error leaves the loop, but what it has left unread must not be
    /// forgotten: the poll does not tell twice.
    fn read(this: &Ref<Self>, events: u32) -> Result<()> {
        let read = Self::read_some(this, events);
        if read.is_err() {
            Self::read_later(this, events)?;
        }
        read
    }

    fn read_later(this: &Ref<Self>, events: u32) -> Result<()> {
        this.missed.set(this.missed.get() | events);
        let again = this.obj().get(c"_read_ready")?;
        EventLoop::soon(&this.home, &again, &[], Some(&this.context))
    }

    fn read_some(this: &Ref<Self>, events: u32) -> Result<()> {
        for _ in 0..READS_PER_TURN {
            if this.closing.get() || this.read_ended.get() {
                return Ok(());
            }
            if this.paused.get() {
                this.missed.set(this.missed.get() | events);
                return Ok(());
            }
            let received = if this.buffered.get() {
                Self::read_into_protocol(this)?
            } else {
                Self::read_bytes(this)?
            };
            match received {
                Received::Full => {}
                Received::Drained if events & HANG_UP != 0 => {}
                Received::Drained | Received::Nothing => return Ok(()),
                Received::Eof if events & RESET != 0 && this.send.get().is_some() => {
                    // The send in flight has taken the reset's errno and will report it.
                    this.read_ended.set(true);
                    return Ok(());
                }
                Received::Eof => return Self::on_eof(this),
            }
        }
        Self::read_later(this, events)
    }

    fn read_bytes(this: &Ref<Self>) -> Result<Received> {
        let gil = this.gil();
        let fd = this.fd.get();
        let read = this.home.with_scratch(|scratch| {
            let count = socket::recv(fd, scratch)?;
            Ok((scratch[..count].to_obj(gil), count == scratch.len()))
        });
        let (data, full) = match read {
            Ok((data, full)) => (data?, full),
            Err(error) => return Self::read_failed(this, error),
        };
        if data.bytes().is_some_and(<[u8]>::is_empty) {
            return Ok(Received::Eof);
        }
        let Some(protocol) = this.protocol.get() else { return Ok(Received::Nothing) };
        let names = &this.home.state.names;
        if let Err(error) = protocol.call_method(&names.data_received, [&data]) {
            let message = "Fatal error: protocol.data_received() call failed.";
            Self::fatal_error(this, error, message)?;
        }
        Ok(if full { Received::Full } else { Received::Drained })
    }

    fn read_into_protocol(this: &Ref<Self>) -> Result<Received> {
        let Some(protocol) = this.protocol.get() else { return Ok(Received::Nothing) };
        let mut buffer = match Self::protocol_buffer(this, &protocol) {
            Ok(buffer) => buffer,
            Err(error) => {
                let message = "Fatal error: protocol.get_buffer() call failed.";
                Self::fatal_error(this, error, message)?;
                return Ok(Received::Nothing);
            }
        };
        let fd = this.fd.get();
        let read = {
            let room = buffer.as_mut_slice();
            socket::recv(fd, room).map(|count| (count, count == room.len()))
        };
        drop(buffer);
        let (count, full) = match read {
            Ok((0, _)) => return Ok(Received::Eof),
            Ok(read) => read,
            Err(error) => return Self::read_failed(this, error),
        };
        let count = count.to_obj(this.gil())?;
        let names = &this.home.state.names;
        if let Err(error) = protocol.call_method(&names.buffer_updated, [&count]) {
            let message = "Fatal error: protocol.buffer_updated() call failed.";
            Self::fatal_error(this, error, message)?;
        }
        Ok(if full { Received::Full } else { Received::Drained })
    }

    fn protocol_buffer(this: &Ref<Self>, protocol: &Obj) -> Result<WritableBuffer> {
        let any_size = (-1i64).to_obj(this.gil())?;
        let given = protocol.call_method(&this.home.state.names.get_buffer, [&any_size])?;
        let mut buffer = WritableBuffer::get(&given)?;
        if buffer.as_mut_slice().is_empty() {
            return Err(Exc::runtime_error(this.gil(), "get_buffer() returned an empty buffer"));
        }
        Ok(buffer)
    }

    fn read_failed(this: &Ref<Self>, error: io::Error) -> Result<Received> {
        if error.kind() != io::ErrorKind::WouldBlock {
            Self::fatal_error(this, Exc::os(this.gil(), &error), READ_ERROR)?;
        }
        Ok(Received::Nothing)
    }

    fn on_eof(this: &Ref<Self>) -> Result<()> {
        Self::debug_log(this, "received EOF")?;
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let answer = protocol
            .call_method(&this.home.state.names.eof_received, [])
            .and_then(|answer| answer.truth());
        match answer {
            // The protocol may go on writing, but there is nothing more to read.
            Ok(true) => this.read_ended.set(true),
            Ok(false) => Self::close(this)?,
            Err(error) => {
                let message = "Fatal error: protocol.eof_received() call failed.";
                return Self::fatal_error(this, error, message);
            }
        }
        if let Some(op) = this.poll.take() {
            EventLoop::cancel_ops(&this.home, &[op])?;
        }
        Ok(())
    }

    pub(super) fn is_reading(this: &Ref<Self>) -> Result<bool> {
        Ok(!this.closing.get() && !this.paused.get())
    }

    pub(super) fn pause_reading(this: &Ref<Self>) -> Result<()> {
        if !Self::is_reading(this)? {
            return Ok(());
        }
        this.paused.set(true);
        Self::debug_log(this, "pauses reading")
    }

    /// What came during the pause is read in the next turn.
    pub(super) fn resume_reading(this: &Ref<Self>) -> Result<()> {
        if this.closing.get() || !this.paused.replace(false) {
            return Ok(());
        }
        if this.missed.get() != 0 {
            let read = this.obj().get(c"_read_ready")?;
            EventLoop::soon(&this.home, &read, &[], Some(&this.context))?;
        }
        Self::debug_log(this, "resumes reading")
    }
}
