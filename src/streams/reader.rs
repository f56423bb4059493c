//! `StreamReader`: what comes in, and who waits for it.

use std::cell::{Cell, RefCell, RefMut};
use std::ffi::CStr;

use super::buffer::Buffer;
use super::operation::{Operation, Work};
use super::reading::{Read, Search};
use super::{LIMIT, home};
use crate::event_loop::EventLoop;
use crate::py::{
    Args, Buffer as View, Construct, Exc, GetSet, Method, Native, Next, Obj, ObjCell, Offset, Ref,
    Result, Signature, ToObj, Type, Visit, state_of_type,
};
use crate::state::State;

pub struct StreamReader {
    pub home: Ref<EventLoop>,
    /// In bytes: of a line, and half that of the buffer.
    limit: Cell<usize>,
    buffer: RefCell<Buffer>,
    pub eof: Cell<bool>,
    /// The operation that waits for more.
    waiter: RefCell<Option<Ref<Operation>>>,
    exception: ObjCell,
    transport: ObjCell,
    /// Whether reading is paused because the buffer is full.
    paused: Cell<bool>,
    /// In debug mode, where the reader was made.
    source_traceback: ObjCell,
}

const CONSTRUCTOR: Signature<2> =
    Signature { function: "StreamReader", names: ["limit", "loop"], required: 0, positional: 2 };

const READ: Signature<1> = Signature { function: "read", names: ["n"], required: 0, positional: 1 };

const READ_UNTIL: Signature<1> =
    Signature { function: "readuntil", names: ["separator"], required: 0, positional: 1 };

impl StreamReader {
    /// `StreamReader(limit=65536, loop=None)`; the limit is in bytes.
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let state = state_of_type::<State, _>(class)?;
        let [limit, given] = args.bind(&CONSTRUCTOR)?;
        let limit = limit.map_or(Ok(LIMIT), to_limit)?;
        let home = home(args.gil, &state, given)?;
        let this = class.alloc(StreamReader {
            limit: Cell::new(limit),
            buffer: RefCell::default(),
            eof: Cell::new(false),
            waiter: RefCell::default(),
            exception: ObjCell::empty(),
            transport: ObjCell::empty(),
            paused: Cell::new(false),
            source_traceback: ObjCell::empty(),
            home,
        })?;
        if this.home.debug() {
            this.source_traceback.set(Some(this.home.state.extract_stack.call([])?));
        }
        Ok(this)
    }

    /// What has come and is not read yet. No Python may run while it is borrowed.
    #[inline]
    pub fn buffer(&self) -> RefMut<'_, Buffer> {
        let mut buffer = self.buffer.borrow_mut();
        buffer.recall();
        buffer
    }

    pub fn len(&self) -> usize {
        self.buffer().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes up to `count` bytes out of the buffer.
    pub fn take(this: &Ref<Self>, count: usize) -> Result<Obj> {
        let taken = this.buffer().take(this.gil(), count)?;
        Self::maybe_resume(this)?;
        Ok(taken)
    }

    // What the protocol brings.

    pub fn feed_data(this: &Ref<Self>, data: &Obj) -> Result<()> {
        let data = match data.is_exact_bytes() {
            true => data.clone(),
            false => View::get(data)?.as_slice().to_obj(this.gil())?,
        };
        Self::feed(this, data)
    }

    /// Adds an exact `bytes`. Who waits goes on if it is enough.
    pub fn feed(this: &Ref<Self>, data: Obj) -> Result<()> {
        if this.eof.get() {
            return Err(Exc::assertion_error(this.gil(), "feed_data after feed_eof"));
        }
        if data.bytes().is_some_and(<[u8]>::is_empty) {
            return Ok(());
        }
        this.buffer().push(data);
        let waits = this.waiter.borrow().is_some();
        if waits && !Self::waiter_is_ready(this) {
            return Ok(());
        }
        // Who waits must hear of it even where the transport cannot be paused.
        let woken = if waits { Self::wake_waiter(this, None) } else { Ok(()) };
        woken.and(Self::maybe_pause(this))
    }

    fn waiter_is_ready(this: &Ref<Self>) -> bool {
        let waiter = this.waiter.borrow();
        waiter.as_ref().and_then(|waiter| waiter.read()).is_some_and(|read| read.is_ready(this))
    }

    pub fn feed_eof(this: &Ref<Self>) -> Result<()> {
        this.eof.set(true);
        Self::wake_waiter(this, None)
    }

    pub fn set_exception(this: &Ref<Self>, exception: &Obj) -> Result<()> {
        this.exception.set(exception.some().cloned());
        Self::wake_waiter(this, Some(exception))
    }

    fn wake_waiter(this: &Ref<Self>, failure: Option<&Obj>) -> Result<()> {
        let waiter = this.waiter.take();
        waiter.map_or(Ok(()), |waiter| Operation::wake(&waiter, failure))
    }

    fn maybe_pause(this: &Ref<Self>) -> Result<()> {
        if this.paused.get() || this.len() <= this.limit().saturating_mul(2) {
            return Ok(());
        }
        let Some(transport) = this.transport.get() else { return Ok(()) };
        match transport.call_method(&this.home.state.names.pause_reading, []) {
            Ok(_) => this.paused.set(true),
            // It cannot be paused, and need not be asked again.
            Err(error) if error.is_not_implemented() => this.transport.set(None),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    #[inline]
    pub fn maybe_resume(this: &Ref<Self>) -> Result<()> {
        if this.paused.get() && this.len() <= this.limit() { Self::resume(this) } else { Ok(()) }
    }

    fn resume(this: &Ref<Self>) -> Result<()> {
        this.paused.set(false);
        let Some(transport) = this.transport.get() else { return Ok(()) };
        transport.call_method(&this.home.state.names.resume_reading, []).map(drop)
    }

    // What reads.

    /// Has an operation wait for more than there is.
    pub fn await_data(this: &Ref<Self>, operation: &Ref<Operation>, name: &str) -> Result<()> {
        // One that nobody refers to any more was dropped while it waited.
        if this.waiter.borrow().as_ref().is_some_and(|waiter| !waiter.is_sole()) {
            return Err(Exc::runtime_error(
                this.gil(),
                format!(
                    "{name}() called while another coroutine is already waiting for incoming data"
                ),
            ));
        }
        if this.paused.get() {
            // Nothing would ever come.
            Self::resume(this)?;
        }
        let old = this.waiter.replace(Some(operation.clone()));
        drop(old);
        Ok(())
    }

    /// The operation waits no more.
    pub fn forget_waiter(&self, operation: &Operation) {
        let waits = |waiter: &Ref<Operation>| std::ptr::eq(&**waiter, operation);
        if self.waiter.borrow().as_ref().is_some_and(waits) {
            let waiter = self.waiter.take();
            drop(waiter);
        }
    }

    pub fn raise_exception(&self) -> Result<()> {
        self.exception.get().map_or(Ok(()), |exception| Err(Exc::raise(exception)?))
    }

    #[inline]
    fn operation(this: &Ref<Self>, read: Read) -> Result<Ref<Operation>> {
        Operation::create(&this.home.state.streams, Work::Read(this.clone(), read))
    }

    fn read(this: &Ref<Self>, args: &Args) -> Result<Ref<Operation>> {
        let limit = match (args.positional, args.names) {
            ([limit], None) => Some(limit),
            _ => args.bind(&READ)?[0],
        };
        Self::operation(this, Read::Some(limit.map_or(Ok(-1), count)?))
    }

    fn read_exactly(this: &Ref<Self>, limit: &Obj) -> Result<Ref<Operation>> {
        Self::operation(this, Read::Exactly(count(limit)?))
    }

    fn read_line(this: &Ref<Self>) -> Result<Ref<Operation>> {
        Self::operation(this, Read::Line(Search::default()))
    }

    fn read_until(this: &Ref<Self>, args: &Args) -> Result<Ref<Operation>> {
        let [separator] = args.bind(&READ_UNTIL)?;
        let separator =
            separator.map_or_else(|| b"\n".to_obj(args.gil), |given| Ok(given.clone()))?;
        Self::operation(this, Read::Until { separator, search: Search::default() })
    }

    fn wait_for_data(this: &Ref<Self>, _: &Obj) -> Result<Ref<Operation>> {
        Self::operation(this, Read::More(Cell::new(false)))
    }

    fn next(this: &Ref<Self>) -> Result<Obj> {
        Self::operation(this, Read::Next(Search::default())).map(Ref::into_obj)
    }

    fn at_eof(this: &Ref<Self>) -> Result<bool> {
        Ok(this.eof.get() && this.is_empty())
    }

    pub fn exception(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.exception.get())
    }

    // Attributes of asyncio's class, which its methods and some libraries read.

    fn get_loop(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.home.obj().clone())
    }

    #[inline]
    pub fn limit(&self) -> usize {
        self.limit.get()
    }

    fn get_limit(this: &Ref<Self>) -> Result<usize> {
        Ok(this.limit())
    }

    /// Programs set it, to read longer lines.
    fn set_limit(this: &Ref<Self>, limit: &Obj) -> Result<()> {
        this.limit.set(to_limit(limit)?);
        Ok(())
    }

    /// asyncio's start_tls() takes what has come too early out of it.
    fn get_buffer(this: &Ref<Self>) -> Result<Obj> {
        this.buffer().lend(this.gil())
    }

    fn get_eof(this: &Ref<Self>) -> Result<bool> {
        Ok(this.eof.get())
    }

    fn get_waiter(this: &Ref<Self>) -> Result<Option<Ref<Operation>>> {
        Ok(this.waiter.borrow().clone())
    }

    fn get_paused(this: &Ref<Self>) -> Result<bool> {
        Ok(this.paused.get())
    }

    fn get_transport(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.transport.get())
    }

    pub fn set_transport(this: &Ref<Self>, transport: &Obj) -> Result<()> {
        this.transport.set(transport.some().cloned());
        Ok(())
    }

    pub fn has_transport(&self) -> bool {
        self.transport.is_some()
    }

    pub fn get_source_traceback(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.source_traceback.get())
    }
}

/// A limit in bytes: a number of any kind. `ValueError` unless it is positive.
fn to_limit(value: &Obj) -> Result<usize> {
    let limit = match count(value) {
        Err(_) => value.to_f64()?.min(i64::MAX as f64) as i64,
        limit => limit?,
    };
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 => Ok(limit),
        _ => Err(Exc::value_error(value.gil(), "Limit cannot be <= 0")),
    }
}

/// A number of bytes; what is too large to be one is as good as the largest, or the smallest.
fn count(value: &Obj) -> Result<i64> {
    match value.to_i64() {
        Err(error) if error.is_overflow() => {
            Ok(if value.to_f64().is_ok_and(|count| count < 0.0) { i64::MIN } else { i64::MAX })
        }
        count => count,
    }
}

static OFFSET: Offset = Offset::new();

impl Native for StreamReader {
    const NAME: &'static CStr = c"kloop._kloop.StreamReader";
    const DOC: &'static CStr = c"What comes in over a connection. As asyncio.StreamReader.";
    const WEAK_REFERENCES: bool = true;
    const DICT: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(StreamReader::construct);
    const ASYNC_NEXT: Option<Next<Self>> = Some(StreamReader::next);
    const METHODS: &'static [Method<Self>] = &[
        Method::any(c"read", StreamReader::read),
        Method::named(
            c"readexactly",
            || Signature::one("readexactly", "n"),
            StreamReader::read_exactly,
        ),
        Method::noargs(c"readline", StreamReader::read_line),
        Method::any(c"readuntil", StreamReader::read_until),
        Method::one(c"_wait_for_data", StreamReader::wait_for_data),
        Method::noargs(c"at_eof", StreamReader::at_eof),
        Method::noargs(c"exception", StreamReader::exception),
        Method::named(
            c"set_exception",
            || Signature::one("set_exception", "exc"),
            StreamReader::set_exception,
        ),
        Method::named(
            c"feed_data",
            || Signature::one("feed_data", "data"),
            StreamReader::feed_data,
        ),
        Method::noargs(c"feed_eof", StreamReader::feed_eof),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"_loop", StreamReader::get_loop),
        GetSet::writable(c"_limit", StreamReader::get_limit, StreamReader::set_limit),
        GetSet::get(c"_buffer", StreamReader::get_buffer),
        GetSet::get(c"_eof", StreamReader::get_eof),
        GetSet::get(c"_waiter", StreamReader::get_waiter),
        GetSet::get(c"_exception", StreamReader::exception),
        GetSet::get(c"_paused", StreamReader::get_paused),
        GetSet::writable(c"_transport", StreamReader::get_transport, StreamReader::set_transport),
        GetSet::get(c"_source_traceback", StreamReader::get_source_traceback),
        GetSet::DICT,
        GetSet::END,
    ];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        if let Ok(waiter) = self.waiter.try_borrow()
            && let Some(waiter) = waiter.as_ref()
        {
            visit.native(waiter);
        }
        if let Ok(buffer) = self.buffer.try_borrow() {
            buffer.traverse(visit);
        }
        for cell in [&self.exception, &self.transport, &self.source_traceback] {
            visit.cell(cell);
        }
    }

    fn clear(&self) {
        let waiter = self.waiter.take();
        drop(waiter);
        self.exception.set(None);
        self.transport.set(None);
    }
}
