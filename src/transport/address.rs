//! Socket addresses as the `socket` module shows them.

use std::net::SocketAddr;

use crate::driver::SocketAddress;
use crate::py::{Gil, Obj, Result, ToObj};

/// `(host, port)`, `(host, port, flowinfo, scope_id)`, or a Unix path: a `str`, or `bytes` for an
/// abstract name. None for other families.
pub fn to_python(gil: Gil, address: &SocketAddress) -> Result<Obj> {
    if let Some(inet) = address.inet() {
        return inet_to_python(gil, &inet);
    }
    match address.unix_path() {
        Some(path) if path.first() == Some(&0) => path.to_obj(gil),
        Some(path) => String::from_utf8_lossy(path).into_owned().to_obj(gil),
        None => Ok(Obj::none(gil)),
    }
}

fn inet_to_python(gil: Gil, address: &SocketAddr) -> Result<Obj> {
    let host = address.ip().to_string().to_obj(gil)?;
    let port = i64::from(address.port()).to_obj(gil)?;
    match address {
        SocketAddr::V4(_) => Obj::tuple(gil, &[host, port]),
        SocketAddr::V6(v6) => {
            Obj::tuple(gil, &[host, port, v6.flowinfo().to_obj(gil)?, v6.scope_id().to_obj(gil)?])
        }
    }
}
