//! `Listener`: a listening socket with one multishot accept.

use std::cell::Cell;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use super::StreamTransport;
use crate::driver::{OpId, Outcome};
use crate::event_loop::{EventLoop, Owner, Signal};
use crate::py::{
    Args, Construct, Exc, GetSet, Method, Native, Obj, ObjCell, Ref, Result, Signature, ToObj,
    Type, Visit, copy_context, copy_current_context, enter_context, state_of_type,
};
use crate::state::State;
use crate::transport::names::python_socket;

/// Errors of accept(2) that concern one connection, which is gone already.
const TRANSIENT: [i32; 4] = [libc::ECONNABORTED, libc::EINTR, libc::EAGAIN, libc::EPROTO];

/// Errors that will not go away. All others (out of descriptors or memory, a firewall, a network
/// that is down) are tried again after a while.
const FINAL: [i32; 4] = [libc::EBADF, libc::EINVAL, libc::ENOTSOCK, libc::EOPNOTSUPP];

/// Seconds after which the kernel has taken a ring down that another thread has closed.
const RING_TEARDOWN: f64 = 0.1;

pub struct Listener {
    home: Ref<EventLoop>,
    fd: RawFd,
    sock: ObjCell,
    factory: ObjCell,
    /// What to pass on for TLS, or None: a callable that takes an accepted Python socket.
    accept_socket: ObjCell,
    server: ObjCell,
    context: Obj,
    op: Cell<Option<OpId>>,
    closed: Cell<bool>,
}

const CONSTRUCTOR: Signature<6> = Signature {
    function: "Listener",
    names: ["loop", "sock", "protocol_factory", "server", "accept_socket", "context"],
    required: 3,
    positional: 6,
};

impl Listener {
    /// Starts to accept on a listening socket. Connections become native transports, unless
    /// `accept_socket` is to be called with a new Python socket for each. Protocols and their
    /// callbacks run in copies of `context`, by default of the current one.
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let state = state_of_type::<State, _>(class)?;
        let [home, sock, factory, server, accept_socket, context] = args.bind(&CONSTRUCTOR)?;
        let (Some(home), Some(sock)) = (home, sock) else {
            return Err(Exc::type_error(args.gil, "missing argument"));
        };
        let home = state.event_loop.cast(home)?;
        EventLoop::check_closed(home)?;
        let optional = |value: Option<&Obj>| ObjCell::from(value.and_then(Obj::some).cloned());
        let this = class.alloc(Listener {
            home: home.clone(),
            fd: EventLoop::file_descriptor(home, sock)?,
            sock: ObjCell::new(sock.clone()),
            factory: optional(factory),
            accept_socket: optional(accept_socket),
            server: optional(server),
            context: match context.and_then(Obj::some) {
                Some(context) => context.clone(),
                None => copy_current_context(args.gil)?,
            },
            op: Cell::new(None),
            closed: Cell::new(false),
        })?;
        Self::accept(&this)?;
        Ok(this)
    }

    fn accept(this: &Ref<Self>) -> Result<()> {
        if this.closed.get() || this.op.get().is_some() {
            return Ok(());
        }
        let owner = Owner::new(this.clone(), Listener::on_signal);
        let fd = this.fd;
        let op = EventLoop::with_ring(&this.home, |driver| driver.accept(fd, owner))?;
        this.op.set(Some(op));
        Ok(())
    }

    /// Stops accepting. On return the kernel does not use the socket any more.
    fn close(this: &Ref<Self>) -> Result<()> {
        this.closed.set(true);
        if let Some(op) = this.op.take() {
            EventLoop::cancel_ops(&this.home, &[op])?;
        }
        Ok(())
    }

    fn on_signal(this: &Ref<Self>, signal: Signal) -> Result<()> {
        let completion = match signal {
            Signal::Completed(completion) => completion,
            Signal::RingLost(op) => return Self::on_ring_lost(this, op),
            Signal::Send => return Ok(()),
        };
        if this.op.get() != Some(completion.op) {
            // Closed meanwhile: a connection that was accepted after all is dropped, as one in
            // the backlog is.
            return Ok(());
        }
        if !completion.more {
            this.op.set(None);
        }
        let Outcome::Accept(result) = completion.outcome else { return Ok(()) };
        match result {
            Ok(fd) => Self::on_connection(this, fd)?,
            Err(error) => return Self::on_error(this, error),
        }
        if completion.more { Ok(()) } else { Self::accept(this) }
    }

    /// The kernel takes the old ring down in the background. Its accept waits exclusively, so until
    /// then it can swallow the news of a connection: look again after a while.
    fn on_ring_lost(this: &Ref<Self>, op: OpId) -> Result<()> {
        if this.op.get() != Some(op) {
            return Ok(());
        }
        this.op.set(None);
        Self::accept(this)?;
        let names = &this.home.state.names;
        let delay = RING_TEARDOWN.to_obj(this.gil())?;
        let again = this.obj().get(c"_accept_again")?;
        this.home.obj().call_method(&names.call_later, [&delay, &again]).map(drop)
    }

    fn accept_again(this: &Ref<Self>) -> Result<()> {
        if let Some(op) = this.op.take() {
            EventLoop::cancel_ops(&this.home, &[op])?;
        }
        Self::accept(this)
    }

    fn on_connection(this: &Ref<Self>, fd: OwnedFd) -> Result<()> {
        let server = this.server.get();
        if let Some(accept_socket) = this.accept_socket.get() {
            let sock = python_socket(&this.home, fd.as_raw_fd())?;
            // The Python socket owns the descriptor now.
            let _ = fd.into_raw_fd();
            let _entered = enter_context(&this.context)?;
            accept_socket.call([&sock])?;
            return Ok(());
        }
        let Some(factory) = this.factory.get() else { return Ok(()) };
        accept_stream(&this.home, fd, &factory, server.as_ref(), &this.context, || ())
    }

    fn on_error(this: &Ref<Self>, error: io::Error) -> Result<()> {
        let errno = error.raw_os_error().unwrap_or(0);
        if TRANSIENT.contains(&errno) {
            return Self::accept(this);
        }
        let retry = (!FINAL.contains(&errno)).to_obj(this.gil())?;
        let error = Exc::os(this.gil(), &error);
        // Reports the error, and calls `_accept` after a while if it is to be tried again.
        let names = &this.home.state.names;
        let args = [this.obj(), error.object(), &retry];
        this.home.obj().call_method(&names._accept_failed, args).map(drop)
    }

    fn get_sock(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.sock.get())
    }
}

/// Makes a protocol and a transport for an accepted connection and starts them. An exception of
/// the factory closes the connection and nothing else; `on_refused` is called before that.
pub fn accept_stream(
    home: &Ref<EventLoop>,
    fd: OwnedFd,
    factory: &Obj,
    server: Option<&Obj>,
    context: &Obj,
    on_refused: impl FnOnce(),
) -> Result<()> {
    let context = copy_context(context)?;
    let made = {
        let _entered = enter_context(&context)?;
        factory.call([])
    };
    let started = match made {
        Ok(protocol) => StreamTransport::accept(home, fd, &protocol, server, context).map(drop),
        Err(error) => {
            on_refused();
            drop(fd);
            Err(error)
        }
    };
    match started {
        Err(error) if !error.is_exit() => {
            // asyncio tells of it in debug mode only.
            let method = &home.state.names._connection_failed;
            home.obj().call_method(method, [error.object()]).map(drop)
        }
        started => started,
    }
}

impl Native for Listener {
    const NAME: &'static CStr = c"kloop._kloop.Listener";
    const DOC: &'static CStr = c"A listening socket that accepts connections on a loop.";
    const CONSTRUCT: Option<Construct<Self>> = Some(Listener::construct);
    const METHODS: &'static [Method<Self>] = &[
        Method::noargs(c"close", Listener::close),
        Method::noargs(c"_accept", Listener::accept),
        Method::noargs(c"_accept_again", Listener::accept_again),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] =
        &[GetSet::get(c"sock", Listener::get_sock), GetSet::END];

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        visit.obj(&self.context);
        for cell in [&self.sock, &self.factory, &self.accept_socket, &self.server] {
            visit.cell(cell);
        }
    }

    fn clear(&self) {
        self.sock.set(None);
        self.factory.set(None);
        self.accept_socket.set(None);
        self.server.set(None);
    }
}
