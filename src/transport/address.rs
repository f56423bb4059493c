//! Socket addresses as the `socket` module shows and takes them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::driver::SocketAddress;
use crate::driver::socket::host_text;
use crate::py::{Gil, Obj, Result, ToObj};

/// `(host, port)`, `(host, port, flowinfo, scope_id)`, or a Unix path: a `str`, or `bytes` for an
/// abstract name. None for no address and for other families.
pub fn to_python(gil: Gil, address: &SocketAddress) -> Result<Obj> {
    if let Some(inet) = address.inet() {
        return inet_to_python(gil, &inet);
    }
    match address.unix_path() {
        Some(path) if path.first() == Some(&0) => path.to_obj(gil),
        Some(path) => Obj::path(gil, path),
        None => Ok(Obj::none(gil)),
    }
}

/// Whether `to_python` knows the addresses of a family.
pub fn is_known_family(family: i32) -> bool {
    matches!(family, libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX)
}

fn inet_to_python(gil: Gil, address: &SocketAddr) -> Result<Obj> {
    let host = host_text(address.ip()).to_obj(gil)?;
    let port = i64::from(address.port()).to_obj(gil)?;
    match address {
        SocketAddr::V4(_) => Obj::tuple(gil, &[host, port]),
        SocketAddr::V6(v6) => {
            Obj::tuple(gil, &[host, port, v6.flowinfo().to_obj(gil)?, v6.scope_id().to_obj(gil)?])
        }
    }
}

/// The address that the `socket` module makes of `address` for a socket of `family`, where that
/// takes no look-up. None for host names, other families, and all that the module refuses: that
/// is its business.
pub fn from_python(family: i32, address: &Obj) -> Option<SocketAddress> {
    match family {
        libc::AF_INET => {
            let (host, port) = host_and_port(address)?;
            let ip: Ipv4Addr = host.to_str().ok()?.parse().ok()?;
            let none_left = address.tuple_item(2).is_none();
            none_left.then(|| SocketAddress::from_inet(SocketAddrV4::new(ip, port).into()))
        }
        libc::AF_INET6 => {
            let (host, port) = host_and_port(address)?;
            let ip: Ipv6Addr = host.to_str().ok()?.parse().ok()?;
            let flow = number(address.tuple_item(2), 0xf_ffff)?;
            let scope = number(address.tuple_item(3), u32::MAX)?;
            let none_left = address.tuple_item(4).is_none();
            let v6 = SocketAddrV6::new(ip, port, flow, scope);
            none_left.then(|| SocketAddress::from_inet(v6.into()))
        }
        libc::AF_UNIX => {
            let path = match address.bytes() {
                Some(path) => path,
                // Other characters depend on the file system's encoding.
                None if address.is_str() => {
                    address.to_str().ok().filter(|path| path.is_ascii())?.as_bytes()
                }
                None => return None,
            };
            SocketAddress::from_unix_path(path).ok()
        }
        _ => None,
    }
}

fn host_and_port(address: &Obj) -> Option<(Obj, u16)> {
    let host = address.tuple_item(0).filter(Obj::is_str)?;
    let port = address.tuple_item(1).filter(Obj::is_int)?;
    let port = u16::try_from(port.to_i64().ok()?).ok()?;
    Some((host, port))
}

/// A number up to `limit`, 0 where there is none.
fn number(value: Option<Obj>, limit: u32) -> Option<u32> {
    match value {
        None => Some(0),
        Some(value) if value.is_int() => {
            u32::try_from(value.to_i64().ok()?).ok().filter(|number| *number <= limit)
        }
        Some(_) => None,
    }
}
