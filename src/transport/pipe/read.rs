//! `ReadPipeTransport`: the end of a pipe that is read.

use std::cell::Cell;
use std::ffi::CStr;
use std::io;
use std::ops::Deref;

use super::{Opened, PipeTransport, open, parameters};
use crate::driver::pipe::{self, FileKind};
use crate::driver::socket::check_pollable;
use crate::event_loop::{EventLoop, READ_SIZE};
use crate::py::{
    Args, Construct, Describe, Exc, GetSet, Method, Native, Obj, Offset, Ref, Result, Signature,
    ToObj, Type, Visit,
};
use crate::transport::base::{Base, Transport};
use crate::transport::lifecycle::Lifecycle;
use crate::transport::reading::Reading;

const CONSTRUCTOR: Signature<5> = parameters("ReadPipeTransport");

pub struct ReadPipeTransport {
    base: Base,
    kind: FileKind,
    /// What a pipe can hold, in bytes, up to the size of a read; beyond any read for other files.
    capacity: usize,
    /// The last read took much of the capacity, so that the next one may spare the copy.
    reads_much: Cell<bool>,
}

impl ReadPipeTransport {
    /// A transport for a Python file, which it closes at the end. connection_made() is called,
    /// reading starts and the waiter is woken in the next turn, in this order. The callbacks run in
    /// a copy of the current context.
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let refusal = "Pipe transport is for pipes/sockets only.";
        let Opened { base, kind, waiter } = open(class, args, &CONSTRUCTOR, refusal)?;
        let this = class.alloc(ReadPipeTransport {
            capacity: pipe::capacity(base.fd.get()).map_or(usize::MAX, |size| size.min(READ_SIZE)),
            reads_much: Cell::new(false),
            base,
            kind,
        })?;
        let started = Self::start_later(&this, waiter);
        Self::keep_if(this, started)
    }

    /// Refuses devices that cannot be waited for, as add_reader() does.
    fn start(this: &Ref<Self>) -> Result<()> {
        if this.kind == FileKind::Device && !this.closing.get() {
            check_pollable(this.fd.get()).map_err(|error| Exc::os(this.gil(), &error))?;
        }
        Self::start_reading(this)
    }

    /// An exception of data_received() ends nothing, as in asyncio.
    fn read_once(this: &Ref<Self>) -> Result<()> {
        let (gil, fd) = (this.gil(), this.fd.get());
        let read = if this.reads_much.get() {
            Obj::bytes_filled(gil, this.capacity, |room| pipe::read_uninit(fd, room))?
        } else {
            let copy = |scratch: &mut [u8]| {
                pipe::read(fd, scratch).map(|count| scratch[..count].to_obj(gil))
            };
            match this.home.with_scratch(copy) {
                Ok(data) => Ok(data?),
                Err(error) => Err(error),
            }
        };
        let data = match read {
            Ok(data) => data,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Self::fatal_error(this, Exc::os(gil, &error), Self::READ_ERROR),
        };
        let count = data.bytes().map_or(0, <[u8]>::len);
        if count == 0 {
            return Self::on_eof(this);
        }
        this.reads_much.set(count > this.capacity / 2);
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        protocol.call_method(&this.home.state.names.data_received, [&data]).map(drop)
    }

    fn on_eof(this: &Ref<Self>) -> Result<()> {
        Self::debug_log(this, "was closed by peer")?;
        this.closing.set(true);
        let told = Self::call_eof_received_soon(this);
        told.and(Self::schedule_connection_lost(this, None))
    }

    fn call_eof_received_soon(this: &Ref<Self>) -> Result<()> {
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let method = protocol.attr(&this.home.state.names.eof_received)?;
        EventLoop::soon(&this.home, &method, &[], Some(&this.context))
    }

    fn describe(this: &Ref<Self>) -> Result<String> {
        let state = match this.read_op.get() {
            _ if this.is_released() => "closed",
            _ if this.home.is_closed() => "open",
            Some(_) if !this.paused.get() => "polling",
            _ => "idle",
        };
        Ok(format!("<{} {state}>", Self::head(this)))
    }
}

impl Deref for ReadPipeTransport {
    type Target = Base;

    #[inline]
    fn deref(&self) -> &Base {
        &self.base
    }
}

impl Transport for ReadPipeTransport {
    const READ_EVENTS: u32 = libc::POLLIN as u32;
    const READ_ERROR: &'static str = "Fatal read error on pipe transport";

    /// What a read takes differs: all there is, a packet, a datagram, a line of a terminal. Nor is
    /// it sure that a second read would not wait, since other processes may share the file.
    fn is_multishot(&self) -> bool {
        false
    }

    fn read(this: &Ref<Self>, events: u32) -> Result<()> {
        if Self::may_read(this, events) { Self::read_once(this) } else { Ok(()) }
    }

    /// How a terminal ends.
    fn is_expected(error: &Exc) -> bool {
        error.errno() == Some(libc::EIO)
    }
}

static OFFSET: Offset = Offset::new();

impl Native for ReadPipeTransport {
    const NAME: &'static CStr = c"kloop._kloop.ReadPipeTransport";
    const DOC: &'static CStr = c"The end of a pipe that is read. As asyncio.ReadTransport.";
    const WEAK_REFERENCES: bool = true;
    const DICT: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(ReadPipeTransport::construct);
    const REPR: Option<Describe<Self>> = Some(ReadPipeTransport::describe);
    const FINALIZE: Option<fn(&Ref<Self>)> = Some(ReadPipeTransport::finalize);
    const METHODS: &'static [Method<Self>] = &[
        Method::any(c"get_extra_info", ReadPipeTransport::get_extra_info),
        Method::named(
            c"set_protocol",
            || Signature::one("set_protocol", "protocol"),
            ReadPipeTransport::set_protocol,
        ),
        Method::noargs(c"get_protocol", ReadPipeTransport::get_protocol),
        Method::noargs(c"is_closing", ReadPipeTransport::is_closing),
        Method::noargs(c"close", ReadPipeTransport::close),
        Method::noargs(c"is_reading", ReadPipeTransport::is_reading),
        Method::noargs(c"pause_reading", ReadPipeTransport::pause_reading),
        Method::noargs(c"resume_reading", ReadPipeTransport::resume_reading),
        Method::noargs(c"_start_reading", ReadPipeTransport::start),
        Method::noargs(c"_read_ready", ReadPipeTransport::read_missed),
        Method::one(c"_call_connection_lost", ReadPipeTransport::call_connection_lost),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"_loop", ReadPipeTransport::get_loop),
        GetSet::get(c"_pipe", ReadPipeTransport::get_pipe),
        GetSet::get(c"_fileno", ReadPipeTransport::get_fd),
        GetSet::get(c"_protocol", ReadPipeTransport::get_protocol),
        GetSet::get(c"_closing", ReadPipeTransport::is_closing),
        GetSet::get(c"_paused", ReadPipeTransport::get_paused),
        // Hides a slot of the base class, which would have to be visited and cleared.
        GetSet::get(c"_extra", ReadPipeTransport::get_extra),
        GetSet::DICT,
        GetSet::END,
    ];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        self.base.traverse(visit);
    }

    fn clear(&self) {
        self.base.clear();
    }
}
