//! Writing: `sendto` at once, and a queue for what the socket has no room for.

use std::io;

use super::DatagramTransport;
use crate::driver::{SocketAddress, socket};
use crate::py::{Args, Buffer, Exc, Obj, Ref, Result, Signature, ToObj, Visit};
use crate::transport::address::from_python;
use crate::transport::flow::FlowControl;
use crate::transport::lifecycle::Lifecycle;

/// What a datagram in the queue counts in addition to its bytes: empty ones must count too.
const HEADER: usize = 8;

/// Seconds until another try where the kernel cannot tell when there is room.
const RETRY_DELAY: f64 = 0.001;

pub(super) const WRITE_ERROR: &str = "Fatal write error on datagram transport";

const SENDTO: Signature<2> =
    Signature { function: "sendto", names: ["data", "addr"], required: 1, positional: 2 };

/// What waits for room in the socket.
pub(super) struct Datagram {
    data: Vec<u8>,
    to: Destination,
}

enum Destination {
    /// The socket that ours is connected to.
    Peer,
    Address(SocketAddress),
    /// What only the Python socket understands, or refuses.
    Other(Obj),
}

impl Datagram {
    fn size(&self) -> usize {
        self.data.len() + HEADER
    }

    pub fn traverse(&self, visit: &mut Visit) {
        if let Destination::Other(address) = &self.to {
            visit.obj(address);
        }
    }
}

impl DatagramTransport {
    pub(super) fn sendto(this: &Ref<Self>, args: &Args) -> Result<()> {
        let [data, address] = args.bind(&SENDTO)?;
        let Some(data) = data else { return Ok(()) };
        if data.bytes().is_none() && !data.is_bytearray() && !data.is_memoryview() {
            return Err(Exc::type_error(
                args.gil,
                format!("data argument must be a bytes-like object, not '{}'", data.type_name()),
            ));
        }
        let remote = this.remote.get();
        let address = address.and_then(Obj::some);
        let address = match &remote {
            Some(remote) => Some(check_remote(address, remote)?),
            None => address,
        };
        if (remote.is_some() || this.is_released()) && Self::connection_is_lost(this)? {
            return Ok(());
        }
        let to = Self::destination(this, address);
        match data.bytes() {
            Some(bytes) => Self::send_or_queue(this, bytes, to),
            None => match Buffer::get(data) {
                Ok(buffer) => Self::send_or_queue(this, buffer.as_slice(), to),
                Err(error) => Self::fatal_error(this, error, WRITE_ERROR),
            },
        }
    }

    fn destination(this: &Ref<Self>, address: Option<&Obj>) -> Destination {
        let address = match address {
            Some(address) if !this.fixed.get() => address,
            None if !this.connected.get() => return Destination::Other(Obj::none(this.gil())),
            _ => return Destination::Peer,
        };
        if let Some(known) = this.heard.address(address).or_else(|| this.told.address(address)) {
            return Destination::Address(known);
        }
        match from_python(this.family, address) {
            Some(parsed) => {
                this.told.set(parsed, address);
                Destination::Address(parsed)
            }
            None => Destination::Other(address.clone()),
        }
    }

    fn send_or_queue(this: &Ref<Self>, data: &[u8], to: Destination) -> Result<()> {
        if this.queue.borrow().is_empty() {
            match Self::send(this, data, &to) {
                Ok(true) => return Ok(()),
                Ok(false) => Self::await_room(this, WRITE_ERROR)?,
                Err(error) => return Self::io_failed(this, error, WRITE_ERROR),
            }
        }
        let datagram = Datagram { data: data.to_vec(), to };
        this.unsent.set(this.unsent.get() + datagram.size());
        this.queue.borrow_mut().push_back(datagram);
        Self::maybe_pause_protocol(this)
    }

    /// Whether there was room.
    fn send(this: &Ref<Self>, data: &[u8], to: &Destination) -> Result<bool> {
        let fd = this.fd.get();
        let sent = match to {
            Destination::Peer => socket::send(fd, data),
            Destination::Address(address) => socket::send_to(fd, data, address),
            Destination::Other(address) => return Self::send_by_socket(this, data, address),
        };
        match sent {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(Exc::os(this.gil(), &error)),
        }
    }

    fn send_by_socket(this: &Ref<Self>, data: &[u8], address: &Obj) -> Result<bool> {
        let Some(sock) = this.file.get() else { return Ok(true) };
        let data = data.to_obj(this.gil())?;
        match sock.call_method(&this.home.state.names.sendto, [&data, address]) {
            Ok(_) => Ok(true),
            Err(error) if error.is_would_block() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Goes on after a while: of a Unix socket that is not connected, the kernel cannot say when
    /// the receiver has room, and always claims that there is some.
    fn retry_later(this: &Ref<Self>) -> Result<()> {
        let delay = RETRY_DELAY.to_obj(this.gil())?;
        let again = this.obj().get(c"_sendto_ready")?;
        let names = &this.home.state.names;
        this.home.obj().call_method(&names.call_later, [&delay, &again]).map(drop)
    }

    pub(super) fn retry_queued(this: &Ref<Self>) -> Result<()> {
        if this.queue.borrow().is_empty() { Ok(()) } else { Self::send_queued(this) }
    }

    pub(super) fn send_queued(this: &Ref<Self>) -> Result<()> {
        let mut progress = false;
        loop {
            let next = this.queue.borrow_mut().pop_front();
            let Some(datagram) = next else { break };
            match Self::send(this, &datagram.data, &datagram.to) {
                Ok(true) => {
                    this.sent(&datagram);
                    progress = true;
                }
                Ok(false) => {
                    this.queue.borrow_mut().push_front(datagram);
                    if progress {
                        Self::await_room(this, WRITE_ERROR)?
                    } else {
                        Self::retry_later(this)?
                    }
                    break;
                }
                Err(error) => {
                    this.sent(&datagram);
                    // The rest is sent whatever the protocol makes of the error.
                    Self::await_room(this, WRITE_ERROR)?;
                    return Self::io_failed(this, error, WRITE_ERROR);
                }
            }
        }
        // May send more.
        Self::maybe_resume_protocol(this)?;
        if this.closing.get() && this.unsent.get() == 0 { Self::finish_close(this) } else { Ok(()) }
    }

    fn sent(&self, datagram: &Datagram) {
        self.unsent.set(self.unsent.get().saturating_sub(datagram.size()));
    }
}

/// Where everything goes, unless `address` is another place.
fn check_remote<'a>(address: Option<&Obj>, remote: &'a Obj) -> Result<&'a Obj> {
    match address {
        Some(address) if !address.equals(remote)? => Err(Exc::value_error(
            remote.gil(),
            format!("Invalid address: must be None or {}", remote.display()),
        )),
        _ => Ok(remote),
    }
}
