//! Receiving through the ring: bytes arrive with the completion, whether the protocol wants them or
//! not. What it does not want yet is kept.

use std::io;

use super::StreamTransport;
use crate::driver::socket::is_hung_up;
use crate::driver::{Chunk, OpId};
use crate::event_loop::EventLoop;
use crate::py::{Exc, Ref, Result, ToObj};
use crate::transport::base::Transport;
use crate::transport::lifecycle::Lifecycle;
use crate::transport::reading::Reading;

/// What is kept is to be given to the protocol.
const KEPT: u32 = libc::POLLIN as u32;

impl StreamTransport {
    pub(super) fn receive(
        this: &Ref<Self>,
        op: OpId,
        more: bool,
        result: io::Result<Chunk>,
    ) -> Result<()> {
        let given = match result {
            Ok(chunk) => Self::take(this, &chunk),
            // Ended by a pause; a resumption since then starts it again.
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => Ok(()),
            Err(error) => Self::fatal_error(this, Exc::os(this.gil(), &error), Self::READ_ERROR),
        };
        if !more {
            return given.and(Self::start_reading(this));
        }
        if this.paused.get() || this.closing.get() {
            // Leaves what follows to the socket, so that the peer notices. Not at once with the
            // pause, which may be short.
            EventLoop::cancel_later(&this.home, op);
        }
        given
    }

    fn take(this: &Ref<Self>, bytes: &[u8]) -> Result<()> {
        if this.closing.get() || this.read_ended.get() {
            return Ok(());
        }
        // As in asyncio, who is woken by the last data goes on before the end is told.
        if bytes.is_empty() || this.paused.get() || this.missed.get() != 0 {
            this.kept.borrow_mut().push_back(bytes.to_vec());
            return Self::read_kept_later(this);
        }
        Self::give(this, bytes)
    }

    fn read_kept_later(this: &Ref<Self>) -> Result<()> {
        if this.paused.get() {
            this.missed.set(KEPT); // resume_reading() sees to it
            return Ok(());
        }
        Self::read_later(this, KEPT)
    }

    /// Gives the protocol what it has not seen yet.
    pub(super) fn read_kept(this: &Ref<Self>) -> Result<()> {
        let mut given = false;
        while !this.kept.borrow().is_empty() && Self::may_read(this, KEPT) {
            let Some(bytes) = this.kept.borrow_mut().pop_front() else { break };
            // A send in flight on a connection that is gone is about to end, perhaps with the errno
            // of the reset, which this end then lacks.
            let sending = || this.write_op.get().is_some() && is_hung_up(this.fd.get());
            if !bytes.is_empty() {
                given = true;
                Self::give(this, &bytes)?;
            } else if given || sending() {
                this.kept.borrow_mut().push_front(bytes);
                return Self::read_later(this, KEPT);
            } else {
                return Self::on_eof(this);
            }
        }
        Ok(())
    }

    /// Calls the protocol with what was received.
    fn give(this: &Ref<Self>, bytes: &[u8]) -> Result<()> {
        if this.buffered.get() {
            return Self::fill_protocol(this, bytes);
        }
        Self::data_received(this, bytes.to_obj(this.gil())?)
    }

    fn fill_protocol(this: &Ref<Self>, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(protocol) = this.protocol.get() else { return Ok(()) };
            let Some(mut buffer) = Self::room(this, &protocol)? else { return Ok(()) };
            let count = {
                let room = buffer.as_mut_slice();
                let count = room.len().min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                count
            };
            drop(buffer);
            rest = &rest[count..];
            let updated = Self::buffer_updated(this, &protocol, count);
            if updated.is_err() || this.paused.get() || !this.buffered.get() {
                // Its next protocol, or a later turn, gets the rest.
                Self::keep_rest(this, rest)?;
                return updated;
            }
            if this.closing.get() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn keep_rest(this: &Ref<Self>, rest: &[u8]) -> Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        this.kept.borrow_mut().push_front(rest.to_vec());
        Self::read_kept_later(this)
    }
}
