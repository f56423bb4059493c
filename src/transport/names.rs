//! What a socket's transport tells about its connection.

use std::cell::Cell;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::RawFd;

use super::address::to_python;
use super::base::Transport;
use crate::driver::SocketAddress;
use crate::event_loop::EventLoop;
use crate::py::{Args, Gil, Obj, ObjCell, Ref, Result, Signature, ToObj, Visit};

pub(super) const GET_EXTRA_INFO: Signature<2> = Signature {
    function: "get_extra_info",
    names: ["name", "default"],
    required: 1,
    positional: 2,
};

/// The addresses at both ends, and the socket as users see it.
pub(super) struct SocketNames {
    info: ObjCell,
    local: Name,
    peer: Name,
}

impl SocketNames {
    pub fn empty() -> Self {
        SocketNames { info: ObjCell::empty(), local: Name::empty(), peer: Name::empty() }
    }

    pub fn peer(&self, gil: Gil) -> Result<Option<Obj>> {
        self.peer.get(gil)
    }

    pub fn traverse(&self, visit: &mut Visit) {
        for cell in [&self.info, &self.local.shown, &self.peer.shown] {
            visit.cell(cell);
        }
    }
}

/// An address. One over IPv4 becomes a Python object when somebody asks for it: few do, and the
/// objects would take more memory than all else of an idle connection's transport.
struct Name {
    inet: Cell<Option<SocketAddrV4>>,
    shown: ObjCell,
}

impl Name {
    fn empty() -> Self {
        Name { inet: Cell::new(None), shown: ObjCell::empty() }
    }

    fn note(&self, gil: Gil, address: std::io::Result<SocketAddress>) -> Result<()> {
        let Ok(address) = address else { return Ok(()) };
        match address.inet() {
            Some(SocketAddr::V4(inet)) => self.inet.set(Some(inet)),
            _ => self.shown.set(Some(to_python(gil, &address)?)),
        }
        Ok(())
    }

    fn get(&self, gil: Gil) -> Result<Option<Obj>> {
        if !self.shown.is_some()
            && let Some(inet) = self.inet.get()
        {
            self.shown.set(Some(to_python(gil, &SocketAddress::from_inet(inet.into()))?));
        }
        Ok(self.shown.get())
    }
}

/// A transport whose file is a socket.
pub(super) trait SocketTransport: Transport {
    fn names(&self) -> &SocketNames;

    /// Both addresses are noted at the start: the peer's cannot be asked for once it is gone.
    /// Returns the address family.
    fn note_addresses(this: &Ref<Self>) -> Result<i32> {
        let gil = this.gil();
        let local = SocketAddress::local(this.fd.get());
        let family = local.as_ref().map_or(libc::AF_UNSPEC, SocketAddress::family);
        this.names().local.note(gil, local)?;
        this.names().peer.note(gil, SocketAddress::peer(this.fd.get()))?;
        Ok(family)
    }

    /// As `note_addresses`, for families whose addresses only the Python socket can show.
    fn note_addresses_by_socket(this: &Ref<Self>) -> Result<()> {
        let Some(sock) = this.file.get() else { return Ok(()) };
        let ask = |method: &Obj| match sock.call_method(method, []) {
            Ok(address) => Ok(Some(address)),
            Err(error) if error.is_os_error() => Ok(None),
            Err(error) => Err(error),
        };
        this.names().local.shown.set(ask(&this.home.state.names.getsockname)?);
        this.names().peer.shown.set(ask(&this.home.state.names.getpeername)?);
        Ok(())
    }

    /// 'socket', 'sockname', 'peername', or what the maker of the transport added.
    fn get_extra_info(this: &Ref<Self>, args: &Args) -> Result<Obj> {
        let [name, default] = args.bind(&GET_EXTRA_INFO)?;
        let none = Obj::none(args.gil);
        let default = || default.cloned().unwrap_or_else(|| none.clone());
        let Some(name) = name.filter(|name| name.is_str()) else { return Ok(default()) };
        if let Some(extra) = this.extra.get()
            && let Some(value) = extra.dict_item(name)?
        {
            return Ok(value);
        }
        let value = match name.to_str()? {
            "socket" => Some(Self::socket_info(this)?),
            "sockname" => this.names().local.get(args.gil)?,
            "peername" => this.names().peer.get(args.gil)?,
            _ => return Ok(default()),
        };
        Ok(value.unwrap_or(none))
    }

    fn all_extra_info(this: &Ref<Self>) -> Result<Obj> {
        let gil = this.gil();
        let all = Obj::dict(gil)?;
        all.set_item("socket", &Self::socket_info(this)?)?;
        all.set_item("sockname", &this.names().local.get(gil)?.to_obj(gil)?)?;
        all.set_item("peername", &this.names().peer.get(gil)?.to_obj(gil)?)?;
        if let Some(extra) = this.extra.get() {
            all.update_dict(&extra)?;
        }
        Ok(all)
    }

    /// An asyncio.trsock.TransportSocket. Of a connection that nobody asked about while it was open
    /// it is that of another, closed socket.
    fn socket_info(this: &Ref<Self>) -> Result<Obj> {
        // Whoever asks may write to it.
        Self::send_held(this)?;
        if let Some(known) = this.names().info.get() {
            return Ok(known);
        }
        let state = &this.home.state;
        let sock = match Self::get_socket(this)? {
            Some(sock) => sock,
            None => {
                let sock = state.socket.call([])?;
                sock.call_method(&state.names.close, [])?;
                sock
            }
        };
        let info = state.transport_socket.call([&sock])?;
        this.names().info.set(Some(info.clone()));
        Ok(info)
    }

    /// The Python socket of an open connection. One that is made here takes the file descriptor
    /// over, and closing it is then how the descriptor is closed.
    fn get_socket(this: &Ref<Self>) -> Result<Option<Obj>> {
        Self::send_held(this)?;
        if !this.is_released() && !this.file.is_some() {
            this.file.set(Some(python_socket(&this.home, this.fd.get())?));
        }
        Ok(this.file.get())
    }
}

/// A non-blocking Python socket that owns the file descriptor.
pub(super) fn python_socket(home: &Ref<EventLoop>, fd: RawFd) -> Result<Obj> {
    let state = &home.state;
    let gil = home.gil();
    let names = Obj::tuple(gil, std::slice::from_ref(&state.names.fileno))?;
    let sock = state.socket.call_with_names(&[&fd.to_obj(gil)?], &names)?;
    sock.call_method(&state.names.setblocking, [&false.to_obj(gil)?])?;
    Ok(sock)
}
