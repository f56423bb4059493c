//! `WritePipeTransport`: the end of a pipe that is written.

use std::cell::Cell;
use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::ops::Deref;
use std::os::fd::RawFd;

use super::unsent::Unsent;
use super::{Opened, PipeTransport, open, parameters};
use crate::driver::Outcome;
use crate::driver::pipe::{self, FileKind};
use crate::driver::socket::ignore_would_block;
use crate::py::{
    Args, Buffer, Construct, Describe, Exc, GetSet, Method, Native, Obj, Offset, Ref, Result,
    Signature, Type, Visit,
};
use crate::transport::base::{Base, Transport};
use crate::transport::flow::FlowControl;
use crate::transport::lifecycle::Lifecycle;
use crate::transport::reading::Reading;

const CONSTRUCTOR: Signature<5> = parameters("WritePipeTransport");

const WRITE_ERROR: &str = "Fatal write error on pipe transport";

pub struct WritePipeTransport {
    base: Base,
    kind: FileKind,
    unsent_data: Unsent,
    /// Counts writes that came too late to be sent.
    late_writes: Cell<u32>,
}

impl WritePipeTransport {
    /// A transport for a Python file, which it closes at the end. connection_made() is called,
    /// watching for the end of the reader starts and the waiter is woken in the next turn, in this
    /// order. The callbacks run in a copy of the current context.
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let refusal = "Pipe transport is only for pipes, sockets and character devices";
        let Opened { base, kind, waiter } = open(class, args, &CONSTRUCTOR, refusal)?;
        let this = class.alloc(WritePipeTransport {
            base,
            kind,
            unsent_data: Unsent::default(),
            late_writes: Cell::new(0),
        })?;
        let started = Self::start_later(&this, waiter);
        Self::keep_if(this, started)
    }

    /// Devices do not tell of a reader's end.
    fn watch_reader(this: &Ref<Self>) -> Result<()> {
        if this.kind == FileKind::Device { Ok(()) } else { Self::start_reading(this) }
    }

    fn on_reader_gone(this: &Ref<Self>) -> Result<()> {
        Self::debug_log(this, "was closed by peer")?;
        if this.unsent.get() == 0 {
            return Self::force_close(this, None);
        }
        let error = io::Error::from_raw_os_error(libc::EPIPE);
        Self::force_close(this, Some(Exc::os(this.gil(), &error).object()))
    }

    fn write(this: &Ref<Self>, data: &Obj) -> Result<()> {
        if let Some(bytes) = data.bytes() {
            return Self::write_bytes(this, bytes, Some(data));
        }
        if !data.is_bytearray() && !data.is_memoryview() {
            return Err(Exc::assertion_error(this.gil(), data.repr()));
        }
        match Buffer::get(data) {
            Ok(buffer) => Self::write_bytes(this, buffer.as_slice(), None),
            Err(error) => Self::fatal_error(this, error, WRITE_ERROR),
        }
    }

    /// `immutable` is the object that the bytes belong to, if they cannot change.
    fn write_bytes(this: &Ref<Self>, bytes: &[u8], immutable: Option<&Obj>) -> Result<()> {
        if bytes.is_empty() || Self::is_too_late(this)? {
            return Ok(());
        }
        let taken = match this.write_at_once(|fd| pipe::write(fd, bytes)) {
            Ok(taken) => taken,
            Err(error) => return Self::write_failed(this, error),
        };
        if taken == bytes.len() {
            return Ok(());
        }
        this.unsent_data.push(bytes, taken, immutable);
        Self::write_rest_later(this, bytes.len() - taken)
    }

    /// Writes the chunks with one system call where the pipe takes them.
    fn writelines(this: &Ref<Self>, chunks: &Obj) -> Result<()> {
        let chunks = chunks.to_vec()?;
        let buffers = chunks.iter().map(Buffer::get).collect::<Result<Vec<_>>>()?;
        let size: usize = buffers.iter().map(|buffer| buffer.as_slice().len()).sum();
        if size == 0 || Self::is_too_late(this)? {
            return Ok(());
        }
        let parts: Vec<_> = buffers.iter().map(|buffer| IoSlice::new(buffer.as_slice())).collect();
        let mut taken = match this.write_at_once(|fd| pipe::write_vectored(fd, &parts)) {
            Ok(taken) => taken,
            Err(error) => return Self::write_failed(this, error),
        };
        let rest = size - taken;
        for (chunk, buffer) in chunks.iter().zip(&buffers) {
            let bytes = buffer.as_slice();
            let start = taken.min(bytes.len());
            taken -= start;
            this.unsent_data.push(bytes, start, chunk.bytes().and(Some(chunk)));
        }
        drop(buffers);
        if rest == 0 { Ok(()) } else { Self::write_rest_later(this, rest) }
    }

    /// What is written after close(), or once the reader is gone, is dropped; much of it is a bug
    /// worth a warning.
    fn is_too_late(this: &Ref<Self>) -> Result<bool> {
        if this.closing.get() {
            Self::count_lost_write(this, &this.late_writes)?;
        }
        Ok(this.closing.get())
    }

    fn write_at_once(&self, write: impl FnOnce(RawFd) -> io::Result<usize>) -> io::Result<usize> {
        if self.unsent.get() > 0 { Ok(0) } else { ignore_would_block(write(self.fd.get())) }
    }

    fn write_failed(this: &Ref<Self>, error: io::Error) -> Result<()> {
        this.late_writes.set(1);
        Self::fatal_error(this, Exc::os(this.gil(), &error), WRITE_ERROR)
    }

    fn write_rest_later(this: &Ref<Self>, size: usize) -> Result<()> {
        this.unsent.set(this.unsent.get() + size);
        Self::await_room(this, WRITE_ERROR)?;
        Self::maybe_pause_protocol(this)
    }

    fn on_room(this: &Ref<Self>, polled: io::Result<u32>) -> Result<()> {
        if let Err(error) = polled.and_then(|_| this.write_unsent()) {
            return Self::write_failed(this, error);
        }
        if this.unsent.get() > 0 {
            Self::await_room(this, WRITE_ERROR)?;
        }
        // May write more.
        Self::maybe_resume_protocol(this)?;
        if this.closing.get() && this.unsent.get() == 0 { Self::finish_close(this) } else { Ok(()) }
    }

    fn write_unsent(&self) -> io::Result<()> {
        let written = ignore_would_block(self.unsent_data.write_to(self.fd.get()))?;
        self.unsent.set(self.unsent.get().saturating_sub(written));
        Ok(())
    }

    fn can_write_eof(_: &Ref<Self>) -> Result<bool> {
        Ok(true)
    }

    fn describe(this: &Ref<Self>) -> Result<String> {
        let head = Self::head(this);
        let state = match this.write_op.get() {
            _ if this.is_released() => return Ok(format!("<{head} closed>")),
            _ if this.home.is_closed() => return Ok(format!("<{head} open>")),
            Some(_) => "polling",
            None => "idle",
        };
        Ok(format!("<{head} {state} bufsize={}>", this.unsent.get()))
    }
}

impl Deref for WritePipeTransport {
    type Target = Base;

    #[inline]
    fn deref(&self) -> &Base {
        &self.base
    }
}

impl Transport for WritePipeTransport {
    /// On a socket; a pipe tells without being asked, and one that is open for reading as well has
    /// readers as long as it is open.
    const READ_EVENTS: u32 = libc::POLLIN as u32;
    const READ_ERROR: &'static str = "Fatal error on pipe transport";
    const LOST_WARNING: &'static str =
        "pipe closed by peer or os.write(pipe, data) raised exception.";

    fn is_multishot(&self) -> bool {
        false
    }

    fn read(this: &Ref<Self>, _: u32) -> Result<()> {
        if this.closing.get() && this.unsent.get() == 0 {
            return Ok(());
        }
        Self::on_reader_gone(this)
    }

    fn read_events(&self) -> u32 {
        if self.kind == FileKind::Socket { Self::READ_EVENTS } else { 0 }
    }

    fn on_written(this: &Ref<Self>, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Poll(polled) => Self::on_room(this, polled),
            _ => Ok(()),
        }
    }

    fn on_write_lost(this: &Ref<Self>) -> Result<()> {
        if this.unsent.get() == 0 { Ok(()) } else { Self::await_room(this, WRITE_ERROR) }
    }

    fn drop_unsent(&self) {
        self.unsent_data.clear();
    }
}

static OFFSET: Offset = Offset::new();

impl Native for WritePipeTransport {
    const NAME: &'static CStr = c"kloop._kloop.WritePipeTransport";
    const DOC: &'static CStr = c"The end of a pipe that is written. As asyncio.WriteTransport.";
    const WEAK_REFERENCES: bool = true;
    const DICT: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(WritePipeTransport::construct);
    const REPR: Option<Describe<Self>> = Some(WritePipeTransport::describe);
    const FINALIZE: Option<fn(&Ref<Self>)> = Some(WritePipeTransport::finalize);
    const METHODS: &'static [Method<Self>] = &[
        Method::any(c"get_extra_info", WritePipeTransport::get_extra_info),
        Method::named(
            c"set_protocol",
            || Signature::one("set_protocol", "protocol"),
            WritePipeTransport::set_protocol,
        ),
        Method::noargs(c"get_protocol", WritePipeTransport::get_protocol),
        Method::noargs(c"is_closing", WritePipeTransport::is_closing),
        Method::noargs(c"close", WritePipeTransport::close),
        Method::noargs(c"abort", WritePipeTransport::abort),
        Method::named(c"write", || Signature::one("write", "data"), WritePipeTransport::write),
        Method::named(
            c"writelines",
            || Signature::one("writelines", "list_of_data"),
            WritePipeTransport::writelines,
        ),
        // The end of the data is the end of the pipe.
        Method::noargs(c"write_eof", WritePipeTransport::close),
        Method::noargs(c"can_write_eof", WritePipeTransport::can_write_eof),
        Method::noargs(c"get_write_buffer_size", WritePipeTransport::get_write_buffer_size),
        Method::noargs(c"get_write_buffer_limits", WritePipeTransport::get_write_buffer_limits),
        Method::any(c"set_write_buffer_limits", WritePipeTransport::set_write_buffer_limits),
        Method::noargs(c"_start_reading", WritePipeTransport::watch_reader),
        Method::noargs(c"_read_ready", WritePipeTransport::read_missed),
        Method::one(c"_call_connection_lost", WritePipeTransport::call_connection_lost),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"_loop", WritePipeTransport::get_loop),
        GetSet::get(c"_pipe", WritePipeTransport::get_pipe),
        GetSet::get(c"_fileno", WritePipeTransport::get_fd),
        GetSet::get(c"_protocol", WritePipeTransport::get_protocol),
        GetSet::get(c"_closing", WritePipeTransport::is_closing),
        GetSet::get(c"_protocol_paused", WritePipeTransport::get_protocol_paused),
        // These hide slots of the base class, which would have to be visited and cleared.
        GetSet::get(c"_extra", WritePipeTransport::get_extra),
        GetSet::get(c"_high_water", WritePipeTransport::get_high_water),
        GetSet::get(c"_low_water", WritePipeTransport::get_low_water),
        GetSet::DICT,
        GetSet::END,
    ];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        self.base.traverse(visit);
        self.unsent_data.traverse(visit);
    }

    fn clear(&self) {
        self.base.clear();
        self.unsent_data.clear();
    }
}
