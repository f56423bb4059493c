//! `DatagramTransport`: one datagram socket, connected or not.

mod peer;
mod read;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::ops::Deref;

use super::address::is_known_family;
use super::base::{Base, Transport};
use super::flow::FlowControl;
use super::lifecycle::Lifecycle;
use super::names::{SocketNames, SocketTransport};
use super::reading::Reading;
use crate::driver::{Outcome, SocketAddress};
use crate::py::{
    Args, Construct, Describe, Exc, GetSet, Method, Native, Obj, ObjCell, Offset, Ref, Result,
    Signature, Type, Visit, copy_current_context, state_of_type,
};
use crate::state::State;
use peer::PeerCache;
use write::{Datagram, WRITE_ERROR};

pub struct DatagramTransport {
    base: Base,
    names: SocketNames,
    /// The address family: `AF_INET`, ...
    family: i32,
    /// Where all datagrams go: the endpoint's remote address, if it was made with one.
    remote: ObjCell,
    /// Whether the socket is connected.
    connected: Cell<bool>,
    /// Whether it is connected to a socket with a name. Then an address given to sendto() means
    /// nothing, as in asyncio.
    fixed: Cell<bool>,
    /// Where the last datagram came from.
    heard: PeerCache,
    /// Where the last datagram went.
    told: PeerCache,
    /// What the socket has no room for.
    queue: RefCell<VecDeque<Datagram>>,
}

const CONSTRUCTOR: Signature<6> = Signature {
    function: "DatagramTransport",
    names: ["loop", "sock", "protocol", "address", "waiter", "extra"],
    required: 3,
    positional: 6,
};

impl DatagramTransport {
    /// A transport for a Python socket. connection_made() is called, reading starts and the waiter
    /// is woken in the next turn, in this order. The callbacks run in a copy of the current
    /// context.
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let state = state_of_type::<State, _>(class)?;
        let [home, sock, protocol, address, waiter, extra] = args.bind(&CONSTRUCTOR)?;
        let (Some(home), Some(sock), Some(protocol)) = (home, sock, protocol) else {
            return Err(Exc::type_error(args.gil, "missing argument"));
        };
        let home = state.event_loop.cast(home)?;
        let remote = match address {
            Some(address) if address.truth()? => Some(address.clone()),
            _ => None,
        };
        let fd = sock.call_method(&state.names.fileno, [])?.to_i32()?;
        let this = class.alloc(DatagramTransport {
            base: Base::new(home, fd, Some(sock), copy_current_context(args.gil)?),
            names: SocketNames::empty(),
            family: SocketAddress::local(fd).map_or(libc::AF_UNSPEC, |address| address.family()),
            remote: ObjCell::from(remote),
            connected: Cell::new(false),
            fixed: Cell::new(false),
            heard: PeerCache::default(),
            told: PeerCache::default(),
            queue: RefCell::default(),
        })?;
        home.claim_fd(fd);
        this.protocol.set(Some(protocol.clone()));
        this.extra.set(extra.and_then(Obj::some).cloned());
        let started = Self::note_names(&this)
            .and_then(|()| Self::start_later(&this, waiter.and_then(Obj::some)));
        Self::keep_if(this, started)
    }

    fn note_names(this: &Ref<Self>) -> Result<()> {
        if is_known_family(this.family) {
            Self::note_addresses(this)?;
        } else {
            Self::note_addresses_by_socket(this)?;
        }
        let peer = this.names.peer(this.gil())?;
        this.connected.set(peer.is_some());
        this.fixed.set(peer.map_or(Ok(false), |peer| peer.truth())?);
        Ok(())
    }

    /// Errors of the network are the protocol's business; others end the transport.
    fn io_failed(this: &Ref<Self>, error: Exc, message: &str) -> Result<()> {
        if !error.is_os_error() {
            return Self::fatal_error(this, error, message);
        }
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let method = &this.home.state.names.error_received;
        protocol.call_method(method, [error.object()]).map(drop)
    }
}

impl Deref for DatagramTransport {
    type Target = Base;

    #[inline]
    fn deref(&self) -> &Base {
        &self.base
    }
}

impl SocketTransport for DatagramTransport {
    fn names(&self) -> &SocketNames {
        &self.names
    }
}

impl Transport for DatagramTransport {
    const READ_EVENTS: u32 = libc::POLLIN as u32;
    const READ_ERROR: &'static str = "Fatal read error on datagram transport";
    const LOST_WARNING: &'static str = "socket.send() raised exception.";

    fn read(this: &Ref<Self>, events: u32) -> Result<()> {
        Self::read_some(this, events)
    }

    /// There is room to send again.
    fn on_written(this: &Ref<Self>, _: Outcome) -> Result<()> {
        Self::send_queued(this)
    }

    fn on_write_lost(this: &Ref<Self>) -> Result<()> {
        Self::await_room(this, WRITE_ERROR)
    }

    fn drop_unsent(&self) {
        drop(self.queue.take());
    }

    fn on_release(this: &Ref<Self>) -> Result<()> {
        this.drop_unsent();
        Ok(())
    }
}

static OFFSET: Offset = Offset::new();

impl Native for DatagramTransport {
    const NAME: &'static CStr = c"kloop._kloop.DatagramTransport";
    const DOC: &'static CStr = c"A datagram socket. As asyncio.DatagramTransport.";
    const WEAK_REFERENCES: bool = true;
    const DICT: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(DatagramTransport::construct);
    const REPR: Option<Describe<Self>> = Some(DatagramTransport::describe);
    const FINALIZE: Option<fn(&Ref<Self>)> = Some(DatagramTransport::finalize);
    const METHODS: &'static [Method<Self>] = &[
        Method::any(c"get_extra_info", DatagramTransport::get_extra_info),
        Method::named(
            c"set_protocol",
            || Signature::one("set_protocol", "protocol"),
            DatagramTransport::set_protocol,
        ),
        Method::noargs(c"get_protocol", DatagramTransport::get_protocol),
        Method::noargs(c"is_closing", DatagramTransport::is_closing),
        Method::noargs(c"close", DatagramTransport::close),
        Method::noargs(c"abort", DatagramTransport::abort),
        Method::noargs(c"is_reading", DatagramTransport::is_reading),
        Method::noargs(c"pause_reading", DatagramTransport::pause_reading),
        Method::noargs(c"resume_reading", DatagramTransport::resume_reading),
        Method::any(c"sendto", DatagramTransport::sendto),
        Method::noargs(c"get_write_buffer_size", DatagramTransport::get_write_buffer_size),
        Method::noargs(c"get_write_buffer_limits", DatagramTransport::get_write_buffer_limits),
        Method::any(c"set_write_buffer_limits", DatagramTransport::set_write_buffer_limits),
        Method::noargs(c"_start_reading", DatagramTransport::start_reading),
        Method::noargs(c"_read_ready", DatagramTransport::read_missed),
        Method::noargs(c"_sendto_ready", DatagramTransport::retry_queued),
        Method::one(c"_call_connection_lost", DatagramTransport::call_connection_lost),
        Method::one(c"_force_close", DatagramTransport::force_close_by),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"_loop", DatagramTransport::get_loop),
        GetSet::get(c"_sock", DatagramTransport::get_socket),
        GetSet::get(c"_sock_fd", DatagramTransport::get_fd),
        GetSet::get(c"_protocol", DatagramTransport::get_protocol),
        GetSet::get(c"_extra", DatagramTransport::all_extra_info),
        // These hide slots of the base class, which would have to be visited and cleared.
        GetSet::get(c"_protocol_paused", DatagramTransport::get_protocol_paused),
        GetSet::get(c"_high_water", DatagramTransport::get_high_water),
        GetSet::get(c"_low_water", DatagramTransport::get_low_water),
        GetSet::DICT,
        GetSet::END,
    ];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        self.base.traverse(visit);
        self.names.traverse(visit);
        visit.cell(&self.remote);
        self.heard.traverse(visit);
        self.told.traverse(visit);
        if let Ok(queue) = self.queue.try_borrow() {
            queue.iter().for_each(|datagram| datagram.traverse(visit));
        }
    }

    fn clear(&self) {
        self.base.clear();
        self.remote.set(None);
        self.told.clear();
        self.drop_unsent();
    }
}
