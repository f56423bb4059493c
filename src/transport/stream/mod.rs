//! `StreamTransport`: one connected stream socket.

mod accept;
mod read;
mod receive;
mod sendfile;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

pub use accept::{Listener, accept_stream};

use super::base::{Base, Transport};
use super::flow::FlowControl;
use super::lifecycle::Lifecycle;
use super::names::{SocketNames, SocketTransport};
use super::reading::Reading;
use crate::driver::socket::set_nodelay;
use crate::driver::{OpId, Outcome};
use crate::event_loop::EventLoop;
use crate::py::{
    Args, Bound, Construct, Describe, Exc, GetSet, Method, Native, Obj, ObjCell, Offset, Ref,
    Result, Signature, Type, Visit, copy_current_context, state_of_type,
};
use crate::state::State;

/// Takes the `bytes` that a transport has received.
pub type Sink = Bound<Obj, Result<()>>;

pub struct StreamTransport {
    base: Base,
    names: SocketNames,
    server: ObjCell,
    /// A Unix socket, which may cut a read short before a message that carries descriptors.
    is_unix: Cell<bool>,
    /// What was received and not yet given to the protocol; an empty piece is the end.
    kept: RefCell<VecDeque<Vec<u8>>>,
    /// Waits for the end of the running callback to send.
    send_due: Cell<bool>,
    /// Whether the protocol is a BufferedProtocol.
    buffered: Cell<bool>,
    /// The last read took much of what one may take, so that the next one may spare the copy.
    reads_much: Cell<bool>,
    /// Native code that takes what arrives, in place of the protocol's data_received().
    sink: RefCell<Option<Sink>>,
    /// How much of the piece in flight earlier sends have taken.
    send_start: Cell<usize>,
    /// What waits behind the send in flight, in pieces that each make one send.
    backlog: RefCell<VecDeque<Vec<u8>>>,
    write_ended: Cell<bool>,
    /// Writes that wait for the end of the callback that made them: `bytes` objects.
    held: RefCell<Vec<Obj>>,
    held_bytes: Cell<usize>,
    /// Whether writes are held back.
    gathers: Cell<bool>,
    /// The last callback that has written, by its number, and how often.
    last_callback: Cell<u64>,
    writes: Cell<u32>,
    /// Set while sendfile() has the socket.
    empty_waiter: ObjCell,
}

const CONSTRUCTOR: Signature<7> = Signature {
    function: "StreamTransport",
    names: ["loop", "sock", "protocol", "waiter", "extra", "server", "context"],
    required: 3,
    positional: 7,
};

impl StreamTransport {
    /// A transport for a connected Python socket. connection_made() is called, reading starts and
    /// the waiter is woken in the next turn, in this order. The callbacks run in `context`, by
    /// default a copy of the current one.
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let state = state_of_type::<State, _>(class)?;
        let [home, sock, protocol, waiter, extra, server, context] = args.bind(&CONSTRUCTOR)?;
        let (Some(home), Some(sock), Some(protocol)) = (home, sock, protocol) else {
            return Err(Exc::type_error(args.gil, "missing argument"));
        };
        let home = state.event_loop.cast(home)?;
        let fd = sock.call_method(&state.names.fileno, [])?.to_i32()?;
        let context = match context.and_then(Obj::some) {
            Some(context) => context.clone(),
            None => copy_current_context(args.gil)?,
        };
        let this = Self::create(home, fd, Some(sock), server, context)?;
        this.extra.set(extra.and_then(Obj::some).cloned());
        let started = Self::set_up(&this, protocol)
            .and_then(|()| Self::start_later(&this, waiter.and_then(Obj::some)));
        Self::keep_if(this, started)
    }

    /// A transport for an accepted connection, whose file descriptor it takes over. It is started
    /// at once.
    fn accept(
        home: &Ref<EventLoop>,
        fd: OwnedFd,
        protocol: &Obj,
        server: Option<&Obj>,
        context: Obj,
    ) -> Result<Ref<Self>> {
        let this = Self::create(home, fd.as_raw_fd(), None, server, context)?;
        // The transport closes it from now on.
        let _ = fd.into_raw_fd();
        let started = Self::set_up(&this, protocol).and_then(|()| Self::start_now(&this));
        Self::keep_if(this, started)
    }

    fn create(
        home: &Ref<EventLoop>,
        fd: RawFd,
        sock: Option<&Obj>,
        server: Option<&Obj>,
        context: Obj,
    ) -> Result<Ref<Self>> {
        let this = home.state.stream_transport.alloc(StreamTransport {
            base: Base::new(home, fd, sock, context),
            names: SocketNames::empty(),
            server: ObjCell::from(server.and_then(Obj::some).cloned()),
            is_unix: Cell::new(false),
            kept: RefCell::default(),
            send_due: Cell::new(false),
            buffered: Cell::new(false),
            reads_much: Cell::new(false),
            sink: RefCell::default(),
            send_start: Cell::new(0),
            backlog: RefCell::default(),
            write_ended: Cell::new(false),
            held: RefCell::default(),
            held_bytes: Cell::new(0),
            gathers: Cell::new(false),
            last_callback: Cell::new(0),
            writes: Cell::new(0),
            empty_waiter: ObjCell::empty(),
        })?;
        home.claim_fd(fd);
        // Fails for sockets that are not TCP, which have no delay to switch off.
        let _ = set_nodelay(fd);
        Ok(this)
    }

    fn set_up(this: &Ref<Self>, protocol: &Obj) -> Result<()> {
        if let Some(server) = this.server.get() {
            server.call_method(&this.home.state.names._attach, [this.obj()])?;
        }
        this.is_unix.set(Self::note_addresses(this)? == libc::AF_UNIX);
        Self::set_protocol(this, protocol)
    }

    fn set_protocol(this: &Ref<Self>, protocol: &Obj) -> Result<()> {
        this.buffered.set(protocol.is_instance(&this.home.state.buffered_protocol)?);
        this.set_sink(None);
        this.protocol.set(Some(protocol.clone()));
        Ok(())
    }

    /// Hands what arrives to `sink`, which belongs to the protocol, until there is another one.
    pub fn set_sink(&self, sink: Option<Sink>) {
        let old = self.sink.replace(sink);
        drop(old);
    }

    /// Whether all that is written goes there. Elsewhere only what the socket refuses does.
    fn sends_through_ring(&self) -> bool {
        self.home.sends() && !self.is_unix.get()
    }

    fn get_server(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.server.get())
    }

    fn start_tls_compatible(_: &Ref<Self>) -> Result<bool> {
        Ok(true)
    }
}

impl Deref for StreamTransport {
    type Target = Base;

    #[inline]
    fn deref(&self) -> &Base {
        &self.base
    }
}

impl SocketTransport for StreamTransport {
    fn names(&self) -> &SocketNames {
        &self.names
    }
}

impl Transport for StreamTransport {
    const READ_EVENTS: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
    const READ_ERROR: &'static str = "Fatal read error on socket transport";
    const LOST_WARNING: &'static str = "socket.send() raised exception.";

    fn is_multishot(&self) -> bool {
        !self.is_unix.get()
    }

    fn read(this: &Ref<Self>, events: u32) -> Result<()> {
        // Never both: what the ring receives comes before what is in the socket.
        if this.receives() { Self::read_kept(this) } else { Self::read_some(this, events) }
    }

    /// A Unix socket may deliver descriptors, which recv(2) drops.
    fn receives(&self) -> bool {
        self.home.receives() && !self.is_unix.get()
    }

    fn on_received(this: &Ref<Self>, op: OpId, more: bool, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Receive(result) => Self::receive(this, op, more, result),
            _ => Ok(()),
        }
    }

    fn on_written(this: &Ref<Self>, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Send(result, piece) => Self::on_sent(this, result, piece),
            _ => Ok(()),
        }
    }

    /// What a send in flight has achieved is unknown, so its connection cannot go on.
    fn on_write_lost(this: &Ref<Self>) -> Result<()> {
        let error = Exc::connection_error(
            this.gil(),
            "the event loop was moved to another thread while data was being sent",
        );
        Self::force_close(this, Some(error.object()))
    }

    fn send_held(this: &Ref<Self>) -> Result<()> {
        Self::send_held(this)
    }

    /// A sink runs no user's code: it makes tasks ready, which have contexts of their own.
    fn needs_context(&self) -> bool {
        self.sink.borrow().is_none()
    }

    fn drop_unsent(&self) {
        self.backlog.borrow_mut().clear();
    }

    /// Leaves the server before the socket is closed: a peer that sees the end and connects again
    /// finds it counted.
    fn on_release(this: &Ref<Self>) -> Result<()> {
        match this.server.take() {
            Some(server) => {
                server.call_method(&this.home.state.names._detach, [this.obj()]).map(drop)
            }
            None => Ok(()),
        }
    }

    fn on_lost(this: &Ref<Self>) -> Result<()> {
        this.set_sink(None);
        Self::fail_empty_waiter(this)
    }
}

static OFFSET: Offset = Offset::new();

impl Native for StreamTransport {
    const NAME: &'static CStr = c"kloop._kloop.StreamTransport";
    const DOC: &'static CStr = c"A connected stream socket. As asyncio.Transport.";
    const WEAK_REFERENCES: bool = true;
    const DICT: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(StreamTransport::construct);
    const REPR: Option<Describe<Self>> = Some(StreamTransport::describe);
    const FINALIZE: Option<fn(&Ref<Self>)> = Some(StreamTransport::finalize);
    const METHODS: &'static [Method<Self>] = &[
        Method::any(c"get_extra_info", StreamTransport::get_extra_info),
        Method::named(
            c"set_protocol",
            || Signature::one("set_protocol", "protocol"),
            StreamTransport::set_protocol,
        ),
        Method::noargs(c"get_protocol", StreamTransport::get_protocol),
        Method::noargs(c"is_closing", StreamTransport::is_closing),
        Method::noargs(c"close", StreamTransport::close),
        Method::noargs(c"abort", StreamTransport::abort),
        Method::noargs(c"is_reading", StreamTransport::is_reading),
        Method::noargs(c"pause_reading", StreamTransport::pause_reading),
        Method::noargs(c"resume_reading", StreamTransport::resume_reading),
        Method::named(c"write", || Signature::one("write", "data"), StreamTransport::write),
        Method::named(
            c"writelines",
            || Signature::one("writelines", "list_of_data"),
            StreamTransport::writelines,
        ),
        Method::noargs(c"write_eof", StreamTransport::write_eof),
        Method::noargs(c"can_write_eof", StreamTransport::can_write_eof),
        Method::noargs(c"get_write_buffer_size", StreamTransport::get_write_buffer_size),
        Method::noargs(c"get_write_buffer_limits", StreamTransport::get_write_buffer_limits),
        Method::any(c"set_write_buffer_limits", StreamTransport::set_write_buffer_limits),
        Method::noargs(c"_make_empty_waiter", StreamTransport::make_empty_waiter),
        Method::noargs(c"_reset_empty_waiter", StreamTransport::reset_empty_waiter),
        Method::noargs(c"_start_reading", StreamTransport::start_reading),
        Method::noargs(c"_read_ready", StreamTransport::read_missed),
        Method::one(c"_call_connection_lost", StreamTransport::call_connection_lost),
        Method::one(c"_force_close", StreamTransport::force_close_by),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"_loop", StreamTransport::get_loop),
        GetSet::get(c"_sock", StreamTransport::get_socket),
        GetSet::get(c"_sock_fd", StreamTransport::get_fd),
        GetSet::get(c"_protocol", StreamTransport::get_protocol),
        GetSet::get(c"_closing", StreamTransport::is_closing),
        GetSet::get(c"_paused", StreamTransport::get_paused),
        GetSet::get(c"_conn_lost", StreamTransport::get_lost),
        GetSet::get(c"_server", StreamTransport::get_server),
        GetSet::get(c"_extra", StreamTransport::all_extra_info),
        // Read by asyncio's start_tls() and sendfile().
        GetSet::get(c"_start_tls_compatible", StreamTransport::start_tls_compatible),
        GetSet::get(c"_sendfile_compatible", StreamTransport::sendfile_mode),
        GetSet::get(c"_protocol_paused", StreamTransport::get_protocol_paused),
        // These hide slots of the base class, which would have to be visited and cleared.
        GetSet::get(c"_high_water", StreamTransport::get_high_water),
        GetSet::get(c"_low_water", StreamTransport::get_low_water),
        GetSet::DICT,
        GetSet::END,
    ];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        self.base.traverse(visit);
        self.names.traverse(visit);
        visit.cell(&self.server);
        visit.cell(&self.empty_waiter);
        if let Ok(held) = self.held.try_borrow() {
            held.iter().for_each(|bytes| visit.obj(bytes));
        }
        if let Ok(sink) = self.sink.try_borrow()
            && let Some(sink) = sink.as_ref()
        {
            visit.obj(sink.receiver());
        }
    }

    fn clear(&self) {
        self.base.clear();
        self.set_sink(None);
        self.server.set(None);
    }
}
