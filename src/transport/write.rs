//! Writing: `send` at once, and the ring for what the socket does not take.

use std::io::{self, IoSlice};

use super::StreamTransport;
use crate::driver::{OpId, socket};
use crate::event_loop::{EventLoop, Owner};
use crate::py::{Buffer, Exc, Obj, Ref, Result, ToObj};

/// The largest piece that one send in the ring carries: flow control sees progress piece by piece.
const PIECE: usize = 256 * 1024;

/// After this many writes to a lost connection each one logs a warning, as in asyncio.
const WRITES_BEFORE_WARNING: u32 = 5;

const WRITE_ERROR: &str = "Fatal write error on socket transport";

impl StreamTransport {
    pub(super) fn write(this: &Ref<Self>, data: &Obj) -> Result<()> {
        if let Some(bytes) = data.bytes() {
            return Self::write_bytes(this, bytes);
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
            Ok(buffer) => Self::write_bytes(this, buffer.as_slice()),
            Err(error) => Self::fatal_error(this, error, WRITE_ERROR),
        }
    }

    fn write_bytes(this: &Ref<Self>, bytes: &[u8]) -> Result<()> {
        this.check_writable("write")?;
        if bytes.is_empty() || Self::connection_is_lost(this)? {
            return Ok(());
        }
        let mut taken = 0;
        if this.unsent.get() == 0 {
            taken = match ignore_would_block(socket::send(this.fd.get(), bytes)) {
                Ok(taken) => taken,
                Err(error) => return Self::write_failed(this, error),
            };
            if taken == bytes.len() {
                return Ok(());
            }
        }
        this.queue(&bytes[taken..]);
        Self::send_queued(this)?;
        Self::maybe_pause_protocol(this)
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
        let mut taken = 0;
        if this.unsent.get() == 0 {
            let slices: Vec<IoSlice> = parts.iter().map(|part| IoSlice::new(part)).collect();
            taken = match ignore_would_block(socket::send_vectored(this.fd.get(), &slices)) {
                Ok(taken) => taken,
                Err(error) => return Self::write_failed(this, error),
            };
        }
        for part in parts {
            let skip = taken.min(part.len());
            taken -= skip;
            this.queue(&part[skip..]);
        }
        drop(buffers);
        Self::send_queued(this)?;
        Self::maybe_pause_protocol(this)
    }

    pub(super) fn can_write_eof(_: &Ref<Self>) -> Result<bool> {
        Ok(true)
    }

    /// Ends our side of the connection once everything written has been sent.
    pub(super) fn write_eof(this: &Ref<Self>) -> Result<()> {
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

    /// Writes to a lost connection are dropped; many of them are a bug worth a warning.
    fn connection_is_lost(this: &Ref<Self>) -> Result<bool> {
        let lost = this.lost.get();
        if lost == 0 && this.fd.get() >= 0 {
            return Ok(false);
        }
        if lost >= WRITES_BEFORE_WARNING {
            let text = "socket.send() raised exception.".to_obj(this.gil())?;
            this.home.obj().call_method(&this.home.state.names._warn, [&text])?;
        }
        this.lost.set(lost.saturating_add(1));
        Ok(true)
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

    /// Starts the next send unless one is in flight.
    fn send_queued(this: &Ref<Self>) -> Result<()> {
        if this.send.get().is_some() {
            return Ok(());
        }
        let piece = this.backlog.borrow_mut().pop_front();
        match piece {
            Some(piece) => Self::send_from(this, piece, 0),
            None => Ok(()),
        }
    }

    fn send_from(this: &Ref<Self>, piece: Vec<u8>, start: usize) -> Result<()> {
        let owner = Owner::new(this.clone(), StreamTransport::on_signal);
        let fd = this.fd.get();
        match EventLoop::with_ring(&this.home, |driver| driver.send(fd, piece, start, owner)) {
            Ok(op) => {
                this.send.set(Some(op));
                this.send_start.set(start);
                Ok(())
            }
            Err(error) => Self::fatal_error(this, error, WRITE_ERROR),
        }
    }

    pub(super) fn on_sent(
        this: &Ref<Self>,
        op: OpId,
        result: io::Result<usize>,
        piece: Vec<u8>,
    ) -> Result<()> {
        if this.send.get() != Some(op) {
            return Ok(());
        }
        this.send.set(None);
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
        if this.unsent.get() > 0 || this.fd.get() < 0 {
            return Ok(());
        }
        Self::wake_empty_waiter(this)?;
        if this.closing.get() {
            if this.lost.get() == 0 {
                this.lost.set(1);
                Self::call_connection_lost(this, &Obj::none(this.gil()))?;
            }
            return Ok(());
        }
        if this.write_ended.get() { this.shut_down() } else { Ok(()) }
    }

    /// Forgets what was not sent yet.
    pub(super) fn drop_unsent(&self) -> Result<()> {
        self.backlog.borrow_mut().clear();
        self.unsent.set(0);
        match self.send.take() {
            Some(op) => EventLoop::cancel_ops(&self.home, &[op]),
            None => Ok(()),
        }
    }
}

fn ignore_would_block(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}
