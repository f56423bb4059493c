//! Reading: `recv` takes the bytes, into a `bytes` of the exact size or the protocol's own buffer.

use std::io;

use super::StreamTransport;
use crate::driver::socket;
use crate::event_loop::READ_SIZE;
use crate::py::{Exc, Obj, Ref, Result, ToObj, WritableBuffer};
use crate::transport::base::Transport;
use crate::transport::lifecycle::Lifecycle;
use crate::transport::reading::Reading;

/// Events after which a short read does not mean that the socket is drained: an end of file or an
/// error is still to be read, and the poll will not tell again.
const HANG_UP: u32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as u32;

/// Events of a connection that is gone in both directions.
const RESET: u32 = (libc::POLLHUP | libc::POLLERR) as u32;

/// Reads in a row for one connection before others get their turn.
const READS_PER_TURN: usize = 4;

/// Bytes of a read after which the next one goes straight into a `bytes` of the largest size, which
/// is then cut. For less, copying an exact size out of the loop's buffer is cheaper.
const MUCH: usize = READ_SIZE / 4;

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
    pub(super) fn read_some(this: &Ref<Self>, events: u32) -> Result<()> {
        for round in 0..READS_PER_TURN {
            if !Self::may_read(this, events) {
                return Ok(());
            }
            let received = if this.buffered.get() {
                Self::read_into_protocol(this)?
            } else {
                Self::read_bytes(this)?
            };
            match received {
                Received::Full => {}
                // As in asyncio, who is woken by the last data goes on before the end is told.
                Received::Drained if events & HANG_UP != 0 => break,
                Received::Eof if round > 0 => break,
                Received::Drained | Received::Nothing => return Ok(()),
                Received::Eof if events & RESET != 0 && this.write_op.get().is_some() => {
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
        let read = if this.reads_much.get() {
            Obj::bytes_filled(gil, READ_SIZE, |room| socket::recv_uninit(fd, room))?
        } else {
            let copy = |scratch: &mut [u8]| {
                socket::recv(fd, scratch).map(|count| scratch[..count].to_obj(gil))
            };
            match this.home.with_scratch(copy) {
                Ok(data) => Ok(data?),
                Err(error) => Err(error),
            }
        };
        let data = match read {
            Ok(data) => data,
            Err(error) => return Self::read_failed(this, error),
        };
        let count = data.bytes().map_or(0, <[u8]>::len);
        if count == 0 {
            return Ok(Received::Eof);
        }
        let full = count == READ_SIZE;
        this.reads_much.set(count > MUCH);
        Self::data_received(this, data)?;
        Ok(if full { Received::Full } else { Received::Drained })
    }

    pub(super) fn data_received(this: &Ref<Self>, data: Obj) -> Result<()> {
        match Self::deliver(this, data) {
            Ok(()) => Ok(()),
            Err(error) => {
                let message = "Fatal error: protocol.data_received() call failed.";
                Self::fatal_error(this, error, message)
            }
        }
    }

    fn deliver(this: &Ref<Self>, data: Obj) -> Result<()> {
        let sink = this.sink.borrow().clone();
        if let Some(sink) = sink {
            return sink.call(data);
        }
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        protocol.call_method(&this.home.state.names.data_received, [&data]).map(drop)
    }

    fn read_into_protocol(this: &Ref<Self>) -> Result<Received> {
        let Some(protocol) = this.protocol.get() else { return Ok(Received::Nothing) };
        let Some(mut buffer) = Self::room(this, &protocol)? else { return Ok(Received::Nothing) };
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
        Self::buffer_updated(this, &protocol, count)?;
        Ok(if full { Received::Full } else { Received::Drained })
    }

    pub(super) fn buffer_updated(this: &Ref<Self>, protocol: &Obj, count: usize) -> Result<()> {
        let count = count.to_obj(this.gil())?;
        let names = &this.home.state.names;
        match protocol.call_method(&names.buffer_updated, [&count]) {
            Ok(_) => Ok(()),
            Err(error) => {
                let message = "Fatal error: protocol.buffer_updated() call failed.";
                Self::fatal_error(this, error, message)
            }
        }
    }

    /// Where the protocol wants what comes next. None if it does not say: the connection ends.
    pub(super) fn room(this: &Ref<Self>, protocol: &Obj) -> Result<Option<WritableBuffer>> {
        match Self::protocol_buffer(this, protocol) {
            Ok(buffer) => Ok(Some(buffer)),
            Err(error) => {
                let message = "Fatal error: protocol.get_buffer() call failed.";
                Self::fatal_error(this, error, message)?;
                Ok(None)
            }
        }
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
            Self::fatal_error(this, Exc::os(this.gil(), &error), Self::READ_ERROR)?;
        }
        Ok(Received::Nothing)
    }

    pub(super) fn on_eof(this: &Ref<Self>) -> Result<()> {
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
        Self::stop_reading(this)
    }
}
