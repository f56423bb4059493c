//! Writing: `send` at once, and the ring for what the socket does not take; or the ring only, once
//! the callback is over.
//!
//! A protocol that writes a reply in pieces (a head, then a body) would pay a system call and often
//! a packet for each. So a transport that was written to more than once in one callback holds small
//! writes back until the end of later ones, and sends them together. It goes back to sending at
//! once where that was for nothing.

use std::io;
use std::iter;

use super::StreamTransport;
use crate::driver::socket::{self, ignore_would_block};
use crate::event_loop::EventLoop;
use crate::py::{Bound, Buffer, Exc, Obj, Ref, Result, enter_context};
use crate::transport::base::owner;
use crate::transport::flow::FlowControl;
use crate::transport::lifecycle::Lifecycle;

/// The largest piece that one send in the ring carries: flow control sees progress piece by piece.
const PIECE: usize = 256 * 1024;

/// No more than this many bytes are held back: larger writes gain nothing from company.
const HELD_LIMIT: usize = 16 * 1024;

const WRITE_ERROR: &str = "Fatal write error on socket transport";

impl StreamTransport {
    pub fn write(this: &Ref<Self>, data: &Obj) -> Result<()> {
        if let Some(bytes) = data.bytes() {
            return Self::write_bytes(this, bytes, Some(data));
        }
        if !data.is_bytearray() && !data.is_memoryview() {
            return Err(Exc::type_error(
                this.gil(),
                format!(
                    "data argument must be a bytes, bytearray, or memoryview object, not '{}'",
                    data.type_name()
                ),
            ));
        }
        match Buffer::get(data) {
            Ok(buffer) => Self::write_bytes(this, buffer.as_slice(), None),
            Err(error) => Self::fatal_error(this, error, WRITE_ERROR),
        }
    }

    /// `owner` is what keeps the bytes unchanged, where something does.
    fn write_bytes(this: &Ref<Self>, bytes: &[u8], owner: Option<&Obj>) -> Result<()> {
        this.check_writable("write")?;
        if bytes.is_empty() || Self::connection_is_lost(this)? {
            return Ok(());
        }
        if this.unsent.get() > 0 || this.sends_through_ring() {
            return Self::queue_rest(this, iter::once(bytes), 0);
        }
        let hold = this.holds_back(bytes.len());
        if hold && let Some(owner) = owner {
            return Self::hold(this, owner, bytes.len());
        }
        if this.held_bytes.get() > 0 {
            return Self::send_parts(this, &[bytes]);
        }
        match ignore_would_block(socket::send(this.fd.get(), bytes)) {
            Ok(taken) if taken == bytes.len() => Ok(()),
            Ok(taken) => Self::queue_rest(this, iter::once(bytes), taken),
            Err(error) => Self::write_failed(this, error),
        }
    }

    /// Writes the chunks with one system call where the socket takes them.
    pub(super) fn writelines(this: &Ref<Self>, chunks: &Obj) -> Result<()> {
        this.check_writable("writelines")?;
        let chunks = chunks.to_vec()?;
        let buffers = chunks.iter().map(Buffer::get).collect::<Result<Vec<_>>>()?;
        let parts: Vec<&[u8]> =
            buffers.iter().map(Buffer::as_slice).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() || Self::connection_is_lost(this)? {
            return Ok(());
        }
        if this.unsent.get() > 0 || this.sends_through_ring() {
            return Self::queue_rest(this, parts.into_iter(), 0);
        }
        Self::send_parts(this, &parts)
    }

    /// Whether a write of that many bytes waits for the end of the callback that makes it.
    fn holds_back(&self, size: usize) -> bool {
        let Some(callback) = self.home.callback() else { return false };
        if self.last_callback.replace(callback) != callback {
            self.writes.set(0);
        }
        self.writes.set(self.writes.get().saturating_add(1));
        (self.gathers.get() || self.writes.get() > 1) && self.held_bytes.get() + size <= HELD_LIMIT
    }

    fn hold(this: &Ref<Self>, bytes: &Obj, size: usize) -> Result<()> {
        if this.held_bytes.get() == 0 {
            this.home.at_end_of_callback(Bound::new(this.clone(), Self::after_callback));
        }
        this.held_bytes.set(this.held_bytes.get() + size);
        this.held.borrow_mut().push(bytes.clone());
        Ok(())
    }

    /// Sends what waits for the end of the callback.
    pub(super) fn send_held(this: &Ref<Self>) -> Result<()> {
        if this.held_bytes.get() > 0 {
            this.gathers.set(this.writes.get() > 1);
            return Self::send_parts(this, &[]);
        }
        if this.send_due.replace(false) { Self::send_due(this) } else { Ok(()) }
    }

    /// Sends what was held back and the parts, with one system call where the socket takes them.
    fn send_parts(this: &Ref<Self>, parts: &[&[u8]]) -> Result<()> {
        let mut held = this.held.take();
        this.held_bytes.set(0);
        if this.home.is_inherited() {
            held.clear(); // the parent sends it
        }
        if this.is_released() || held.is_empty() && parts.is_empty() {
            return Ok(());
        }
        let all = || held.iter().filter_map(Obj::bytes).chain(parts.iter().copied());
        match ignore_would_block(socket::send_vectored(this.fd.get(), all())) {
            Ok(taken) => Self::queue_rest(this, all(), taken),
            Err(error) => Self::write_failed(this, error),
        }
    }

    /// Sends what was to go to the ring, past it: nothing is on its way there. A protocol that is
    /// paused waits to hear from the ring.
    fn send_due(this: &Ref<Self>) -> Result<()> {
        if this.write_op.get().is_some() || this.protocol_paused.get() || this.home.is_inherited() {
            return Self::send_queued(this);
        }
        let pieces = this.backlog.take();
        this.unsent.set(0);
        let all = || pieces.iter().map(Vec::as_slice);
        match ignore_would_block(socket::send_vectored(this.fd.get(), all())) {
            Ok(taken) => Self::queue_rest(this, all(), taken),
            Err(error) => Self::write_failed(this, error),
        }
    }

    /// Leaves to the ring what of the parts is behind the first `taken` bytes.
    fn queue_rest<'a>(
        this: &Ref<Self>,
        parts: impl Iterator<Item = &'a [u8]>,
        mut taken: usize,
    ) -> Result<()> {
        for part in parts {
            let skip = taken.min(part.len());
            taken -= skip;
            this.queue(&part[skip..]);
        }
        Self::send_soon(this)?;
        Self::maybe_pause_protocol(this)
    }

    pub(super) fn can_write_eof(_: &Ref<Self>) -> Result<bool> {
        Ok(true)
    }

    /// Ends our side of the connection once everything written has been sent.
    pub(super) fn write_eof(this: &Ref<Self>) -> Result<()> {
        Self::send_held(this)?;
        if this.closing.get() || this.write_ended.replace(true) {
            return Ok(());
        }
        if this.unsent.get() == 0 { this.shut_down() } else { Ok(()) }
    }

    fn shut_down(&self) -> Result<()> {
        socket::shutdown_write(self.fd.get()).map_err(|error| Exc::os(self.home.gil(), &error))
    }

    fn check_writable(&self, method: &str) -> Result<()> {
        if self.write_ended.get() {
            return Err(Exc::runtime_error(
                self.home.gil(),
                format!("Cannot call {method}() after write_eof()"),
            ));
        }
        if self.empty_waiter.is_some() {
            return Err(Exc::runtime_error(
                self.home.gil(),
                format!("unable to {method}; sendfile is in progress"),
            ));
        }
        Ok(())
    }

    fn write_failed(this: &Ref<Self>, error: io::Error) -> Result<()> {
        Self::fatal_error(this, Exc::os(this.gil(), &error), WRITE_ERROR)
    }

    /// Copies bytes behind what waits already.
    fn queue(&self, bytes: &[u8]) {
        let mut backlog = self.backlog.borrow_mut();
        let mut rest = bytes;
        if let Some(last) = backlog.back_mut() {
            let (fits, more) = rest.split_at(rest.len().min(PIECE.saturating_sub(last.len())));
            last.extend_from_slice(fits);
            rest = more;
        }
        backlog.extend(rest.chunks(PIECE).map(<[u8]>::to_vec));
        self.unsent.set(self.unsent.get() + bytes.len());
    }

    /// What was refused goes to the ring at once. Where all goes there, one send takes all that one
    /// callback writes.
    fn send_soon(this: &Ref<Self>) -> Result<()> {
        if !this.sends_through_ring() || this.home.callback().is_none() {
            return Self::send_queued(this);
        }
        if this.write_op.get().is_none() && !this.send_due.replace(true) {
            this.home.at_end_of_callback(Bound::new(this.clone(), Self::after_callback));
        }
        Ok(())
    }

    /// Sends what was written in the callback that has just ended.
    fn after_callback(this: &Ref<Self>, (): ()) -> Result<()> {
        // It is the current one still where a callback runs the loop.
        let _entered = enter_context(&this.context).ok();
        if this.send_due.replace(false) { Self::send_queued(this) } else { Self::send_held(this) }
    }

    /// Starts the next send unless one is in flight.
    fn send_queued(this: &Ref<Self>) -> Result<()> {
        if this.write_op.get().is_some() {
            return Ok(());
        }
        let piece = this.backlog.borrow_mut().pop_front();
        match piece {
            Some(piece) => Self::send_from(this, piece, 0),
            None => Ok(()),
        }
    }

    fn send_from(this: &Ref<Self>, piece: Vec<u8>, start: usize) -> Result<()> {
        let (fd, owner) = (this.fd.get(), owner(this));
        match EventLoop::with_ring(&this.home, |driver| driver.send(fd, piece, start, owner)) {
            Ok(op) => {
                this.write_op.set(Some(op));
                this.send_start.set(start);
                Ok(())
            }
            Err(error) => Self::fatal_error(this, error, WRITE_ERROR),
        }
    }

    pub(super) fn on_sent(
        this: &Ref<Self>,
        result: io::Result<usize>,
        piece: Vec<u8>,
    ) -> Result<()> {
        let sent = match ignore_would_block(result) {
            Ok(sent) => sent,
            Err(error) => return Self::write_failed(this, error),
        };
        this.unsent.set(this.unsent.get().saturating_sub(sent));
        let start = this.send_start.get() + sent;
        if start < piece.len() {
            Self::send_from(this, piece, start)?;
        } else {
            Self::send_queued(this)?;
        }
        // May write more.
        let resumed = Self::maybe_resume_protocol(this);
        resumed.and(Self::on_drained(this))
    }

    /// What waits for the moment when everything written is sent.
    fn on_drained(this: &Ref<Self>) -> Result<()> {
        if this.unsent.get() > 0 || this.is_released() {
            return Ok(());
        }
        Self::wake_empty_waiter(this)?;
        if this.closing.get() {
            return Self::finish_close(this);
        }
        if this.write_ended.get() { this.shut_down() } else { Ok(()) }
    }
}
