//! Reading: datagrams land in the loop's scratch buffer and go on as `bytes` of the exact size.

use std::io;

use super::DatagramTransport;
use crate::driver::{SocketAddress, socket};
use crate::event_loop::READ_SIZE;
use crate::py::{Exc, Obj, Ref, Result, ToObj};
use crate::transport::address::{is_known_family, to_python};
use crate::transport::base::Transport;
use crate::transport::reading::Reading;

/// Datagrams in a row for one socket before others get their turn.
const READS_PER_TURN: usize = 16;

impl DatagramTransport {
    /// Datagrams are given to the protocol one after the other for as long as it wakes nobody. Who
    /// is woken runs before the next one comes, as in asyncio, which reads one in each turn.
    ///
    /// What the protocol raises is reported and has no other effect.
    pub(super) fn read_some(this: &Ref<Self>, events: u32) -> Result<()> {
        for _ in 0..READS_PER_TURN {
            if !Self::may_read(this, events) {
                return Ok(());
            }
            match Self::receive(this) {
                Ok(None) => return Ok(()),
                Ok(Some((data, from))) => {
                    let ready = this.home.ready_count();
                    Self::received(this, &data, &from)?;
                    if this.home.ready_count() > ready {
                        break;
                    }
                }
                Err(error) => {
                    Self::read_later(this, events)?;
                    return Self::io_failed(this, error, Self::READ_ERROR);
                }
            }
        }
        Self::read_later(this, events)
    }

    fn received(this: &Ref<Self>, data: &Obj, from: &Obj) -> Result<()> {
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let method = &this.home.state.names.datagram_received;
        protocol.call_method(method, [data, from]).map(drop)
    }

    /// A datagram and where it comes from. None if there is none.
    fn receive(this: &Ref<Self>) -> Result<Option<(Obj, Obj)>> {
        if !is_known_family(this.family) {
            return Self::receive_by_socket(this);
        }
        let gil = this.gil();
        let fd = this.fd.get();
        let mut from = SocketAddress::empty();
        let read: io::Result<Result<Obj>> = this.home.with_scratch(|scratch| {
            let count = socket::recv_from(fd, scratch, &mut from)?;
            Ok(scratch[..count].to_obj(gil))
        });
        let data = match read {
            Ok(data) => data?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(Exc::os(gil, &error)),
        };
        let from = match this.heard.shown(&from) {
            Some(shown) => shown,
            None => {
                let shown = to_python(gil, &from)?;
                this.heard.set(from, &shown);
                shown
            }
        };
        Ok(Some((data, from)))
    }

    /// Addresses of other families are for the Python socket to show.
    fn receive_by_socket(this: &Ref<Self>) -> Result<Option<(Obj, Obj)>> {
        let Some(sock) = this.file.get() else { return Ok(None) };
        let size = READ_SIZE.to_obj(this.gil())?;
        match sock.call_method(&this.home.state.names.recvfrom, [&size]) {
            Ok(received) => Ok(received.tuple_item(0).zip(received.tuple_item(1))),
            Err(error) if error.is_would_block() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
