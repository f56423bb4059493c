//! `StreamTransport`: one connected stream socket.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::driver::socket::set_nodelay;
use crate::driver::{OpId, Outcome};
use crate::event_loop::{EventLoop, Signal};
use crate::py::{
    Args, Construct, Describe, Exc, GetSet, Method, Native, Obj, ObjCell, Offset, Ref, Result,
    Signature, Type, Visit, copy_current_context, enter_context, state_of_type,
};
use crate::state::State;

/// asyncio's default high-water mark, in bytes; the low-water mark is a quarter of the high one.
pub(super) const HIGH_WATER: usize = 64 * 1024;

pub struct StreamTransport {
    pub(super) home: Ref<EventLoop>,
    /// -1 once released.
    pub(super) fd: Cell<RawFd>,
    /// The Python socket that owns the file descriptor. Accepted connections get one when somebody
    /// asks for it; until then the transport owns the descriptor.
    pub(super) sock: ObjCell,
    pub(super) socket_info: ObjCell,
    pub(super) sockname: ObjCell,
    pub(super) peername: ObjCell,
    pub(super) extra: ObjCell,
    pub(super) server: ObjCell,
    pub(super) protocol: ObjCell,
    /// Whether the protocol is a BufferedProtocol.
    pub(super) buffered: Cell<bool>,
    /// The protocol's callbacks run in this context.
    pub(super) context: Obj,

    /// close() or abort() was called, or the connection failed.
    pub(super) closing: Cell<bool>,
    /// Above zero once connection_lost() is scheduled; counts writes after that.
    pub(super) lost: Cell<u32>,

    pub(super) poll: Cell<Option<OpId>>,
    /// Reading is paused by the protocol.
    pub(super) paused: Cell<bool>,
    /// The peer has ended its side, and the protocol keeps ours open.
    pub(super) read_ended: Cell<bool>,
    /// Poll events that came while reading was paused.
    pub(super) missed: Cell<u32>,

    pub(super) send: Cell<Option<OpId>>,
    /// How much of the piece in flight earlier sends have taken.
    pub(super) send_start: Cell<usize>,
    /// What waits behind the send in flight, in pieces that each make one send.
    pub(super) backlog: RefCell<VecDeque<Vec<u8>>>,
    /// Bytes not yet taken by the kernel, in flight or behind.
    pub(super) unsent: Cell<usize>,
    pub(super) write_ended: Cell<bool>,
    /// Set while sendfile() has the socket.
    pub(super) empty_waiter: ObjCell,
    pub(super) protocol_paused: Cell<bool>,
    pub(super) high_water: Cell<usize>,
    pub(super) low_water: Cell<usize>,
}

/// What a transport is made of.
enum Connection<'a> {
    Socket(&'a Obj),
    Descriptor(OwnedFd),
}

const CONSTRUCTOR: Signature<7> = Signature {
    function: "StreamTransport",
    names: ["loop", "sock", "protocol", "waiter", "extra", "server", "context"],
    required: 3,
    positional: 7,
};

impl StreamTransport {
    /// A transport for a connected Python socket. connection_made() is called, reading starts and
    /// the waiter is woken in the next turn, in this order. The callbacks run in `context`, by default
    /// a copy of the current one.
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
        let this = Self::create(home, fd, Connection::Socket(sock), server, context)?;
        this.extra.set(extra.and_then(Obj::some).cloned());
        let started = Self::set_up(&this, protocol)
            .and_then(|()| Self::start_later(&this, waiter.and_then(Obj::some)));
        Self::keep_if(this, started)
    }

    /// A transport for an accepted connection, whose file descriptor it takes over. It is started at
    /// once.
    pub(super) fn accept(
        home: &Ref<EventLoop>,
        fd: OwnedFd,
        protocol: &Obj,
        server: Option<&Obj>,
        context: Obj,
    ) -> Result<Ref<Self>> {
        let raw = fd.as_raw_fd();
        let this = Self::create(home, raw, Connection::Descriptor(fd), server, context)?;
        let started = Self::set_up(&this, protocol).and_then(|()| Self::start_now(&this));
        Self::keep_if(this, started)
    }

    /// A transport that could not be started closes its socket and leaves its server.
    fn keep_if(this: Ref<Self>, started: Result<()>) -> Result<Ref<Self>> {
        match started {
            Ok(()) => Ok(this),
            // Leaves the loop, which may run again.
            Err(error) if error.is_exit() => Err(error),
            Err(error) => {
                Self::release(&this)?;
                Err(error)
            }
        }
    }

    fn create(
        home: &Ref<EventLoop>,
        fd: RawFd,
        connection: Connection,
        server: Option<&Obj>,
        context: Obj,
    ) -> Result<Ref<Self>> {
        let this = home.state.transport.alloc(StreamTransport {
            home: home.clone(),
            fd: Cell::new(fd),
            sock: ObjCell::from(match &connection {
                Connection::Socket(sock) => Some((*sock).clone()),
                Connection::Descriptor(_) => None,
            }),
            socket_info: ObjCell::empty(),
            sockname: ObjCell::empty(),
            peername: ObjCell::empty(),
            extra: ObjCell::empty(),
            server: ObjCell::from(server.and_then(Obj::some).cloned()),
            protocol: ObjCell::empty(),
            buffered: Cell::new(false),
            context,
            closing: Cell::new(false),
            lost: Cell::new(0),
            poll: Cell::new(None),
            paused: Cell::new(false),
            read_ended: Cell::new(false),
            missed: Cell::new(0),
            send: Cell::new(None),
            send_start: Cell::new(0),
            backlog: RefCell::default(),
            unsent: Cell::new(0),
            write_ended: Cell::new(false),
            empty_waiter: ObjCell::empty(),
            protocol_paused: Cell::new(false),
            high_water: Cell::new(HIGH_WATER),
            low_water: Cell::new(HIGH_WATER / 4),
        })?;
        if let Connection::Descriptor(fd) = connection {
            // The transport closes it from now on.
            let _ = fd.into_raw_fd();
        }
        home.claim_fd(fd);
        // Fails for sockets that are not TCP, which have no delay to switch off.
        let _ = set_nodelay(fd);
        Ok(this)
    }

    fn set_up(this: &Ref<Self>, protocol: &Obj) -> Result<()> {
        if let Some(server) = this.server.get() {
            server.call_method(&this.home.state.names._attach, [this.obj()])?;
        }
        this.note_addresses()?;
        Self::set_protocol(this, protocol)
    }

    /// The owner of the transport's operations: reads and sends report here.
    pub(super) fn on_signal(this: &Ref<Self>, signal: Signal) -> Result<()> {
        let _entered = enter_context(&this.context)?;
        let completion = match signal {
            Signal::Completed(completion) => completion,
            Signal::RingLost(op) => return Self::on_ring_lost(this, op),
        };
        match completion.outcome {
            Outcome::Poll(result) => Self::on_poll(this, completion.op, completion.more, result),
            Outcome::Send(result, buffer) => Self::on_sent(this, completion.op, result, buffer),
            _ => Ok(()),
        }
    }

    pub(super) fn set_protocol(this: &Ref<Self>, protocol: &Obj) -> Result<()> {
        this.buffered.set(protocol.is_instance(&this.home.state.buffered_protocol)?);
        this.protocol.set(Some(protocol.clone()));
        Ok(())
    }

    fn get_protocol(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.protocol.get())
    }

    pub(super) fn is_closing(this: &Ref<Self>) -> Result<bool> {
        Ok(this.closing.get())
    }

    fn is_closed(&self) -> bool {
        self.fd.get() < 0
    }

    fn describe(this: &Ref<Self>) -> Result<String> {
        let state = match (this.is_closed(), this.closing.get()) {
            (true, _) => "closed ",
            (_, true) => "closing ",
            _ => "",
        };
        let reading =
            if this.poll.get().is_some() && !this.paused.get() { "polling" } else { "idle" };
        let writing = if this.send.get().is_some() { "polling" } else { "idle" };
        Ok(format!(
            "<StreamTransport {state}fd={} read={reading} write=<{writing}, bufsize={}>>",
            this.fd.get(),
            this.unsent.get()
        ))
    }

    fn get_loop(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.home.obj().clone())
    }

    fn get_sock_fd(this: &Ref<Self>) -> Result<i32> {
        Ok(this.fd.get())
    }

    fn get_paused(this: &Ref<Self>) -> Result<bool> {
        Ok(this.paused.get())
    }

    fn get_protocol_paused(this: &Ref<Self>) -> Result<bool> {
        Ok(this.protocol_paused.get())
    }

    fn get_high_water(this: &Ref<Self>) -> Result<usize> {
        Ok(this.high_water.get())
    }

    fn get_low_water(this: &Ref<Self>) -> Result<usize> {
        Ok(this.low_water.get())
    }

    fn get_lost(this: &Ref<Self>) -> Result<u32> {
        Ok(this.lost.get())
    }

    fn get_server(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.server.get())
    }

    fn start_tls_compatible(_: &Ref<Self>) -> Result<bool> {
        Ok(true)
    }
}

static OFFSET: Offset = Offset::new();

impl Native for StreamTransport {
    const NAME: &'static CStr = c"kloop._kloop.StreamTransport";
    const DOC: &'static CStr = c"A connected stream socket. As asyncio.Transport.";
    const WEAK_REFERENCES: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(StreamTransport::construct);
    const REPR: Option<Describe<Self>> = Some(StreamTransport::describe);
    const FINALIZE: Option<fn(&Ref<Self>)> = Some(StreamTransport::finalize);
    const METHODS: &'static [Method<Self>] = &[
        Method::any(c"get_extra_info", StreamTransport::get_extra_info),
        Method::one(c"set_protocol", StreamTransport::set_protocol),
        Method::noargs(c"get_protocol", StreamTransport::get_protocol),
        Method::noargs(c"is_closing", StreamTransport::is_closing),
        Method::noargs(c"close", StreamTransport::close),
        Method::noargs(c"abort", StreamTransport::abort),
        Method::noargs(c"is_reading", StreamTransport::is_reading),
        Method::noargs(c"pause_reading", StreamTransport::pause_reading),
        Method::noargs(c"resume_reading", StreamTransport::resume_reading),
        Method::one(c"write", StreamTransport::write),
        Method::one(c"writelines", StreamTransport::writelines),
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
        GetSet::get(c"_sock_fd", StreamTransport::get_sock_fd),
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
        GetSet::END,
    ];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        visit.obj(&self.context);
        for cell in [
            &self.sock,
            &self.socket_info,
            &self.sockname,
            &self.peername,
            &self.extra,
            &self.server,
            &self.protocol,
            &self.empty_waiter,
        ] {
            visit.cell(cell);
        }
    }

    fn clear(&self) {
        self.protocol.set(None);
        self.server.set(None);
        self.extra.set(None);
    }
}
