//! What a transport tells about its connection.

use std::os::fd::RawFd;

use super::StreamTransport;
use super::address::to_python;
use crate::driver::SocketAddress;
use crate::event_loop::EventLoop;
use crate::py::{Args, Obj, Ref, Result, Signature, ToObj};

const GET_EXTRA_INFO: Signature<2> = Signature {
    function: "get_extra_info",
    names: ["name", "default"],
    required: 1,
    positional: 2,
};

impl StreamTransport {
    /// Both addresses are noted at the start: the peer's cannot be asked for once it is gone.
    pub(super) fn note_addresses(&self) -> Result<()> {
        let gil = self.home.gil();
        let name = |address: std::io::Result<SocketAddress>| match address {
            Ok(address) => to_python(gil, &address).map(Some),
            Err(_) => Ok(None),
        };
        self.sockname.set(name(SocketAddress::local(self.fd.get()))?);
        self.peername.set(name(SocketAddress::peer(self.fd.get()))?);
        Ok(())
    }

    /// 'socket', 'sockname', 'peername', or what the maker of the transport added.
    pub(super) fn get_extra_info(this: &Ref<Self>, args: &Args) -> Result<Obj> {
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
            "socket" => Some(this.socket_info()?),
            "sockname" => this.sockname.get(),
            "peername" => this.peername.get(),
            _ => return Ok(default()),
        };
        Ok(value.unwrap_or(none))
    }

    pub(super) fn all_extra_info(this: &Ref<Self>) -> Result<Obj> {
        let gil = this.gil();
        let all = Obj::dict(gil)?;
        all.set_item("socket", &this.socket_info()?)?;
        all.set_item("sockname", &this.sockname.get().to_obj(gil)?)?;
        all.set_item("peername", &this.peername.get().to_obj(gil)?)?;
        if let Some(extra) = this.extra.get() {
            all.update_dict(&extra)?;
        }
        Ok(all)
    }

    /// An asyncio.trsock.TransportSocket. Of a connection that nobody asked about while it was open
    /// it is that of another, closed socket.
    fn socket_info(&self) -> Result<Obj> {
        if let Some(known) = self.socket_info.get() {
            return Ok(known);
        }
        let state = &self.home.state;
        let sock = match self.ensure_socket()? {
            Some(sock) => sock,
            None => {
                let sock = state.socket.call([])?;
                sock.call_method(&state.names.close, [])?;
                sock
            }
        };
        let info = state.transport_socket.call([&sock])?;
        self.socket_info.set(Some(info.clone()));
        Ok(info)
    }

    pub(super) fn get_socket(this: &Ref<Self>) -> Result<Option<Obj>> {
        this.ensure_socket()
    }

    /// The Python socket of an open connection. One that is made here takes the file descriptor
    /// over, and closing it is then how the descriptor is closed.
    fn ensure_socket(&self) -> Result<Option<Obj>> {
        if self.fd.get() >= 0 && !self.sock.is_some() {
            self.sock.set(Some(python_socket(&self.home, self.fd.get())?));
        }
        Ok(self.sock.get())
    }

    /// sendfile() may hand the socket to the kernel: see the loop's `_sendfile_native`.
    pub(super) fn sendfile_mode(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.home.state.sendfile_native.clone())
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
