//! No panic may unwind into C: it becomes a `SystemError`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{Exc, Kind, Result};
use super::object::Gil;

/// Runs `body`; a panic in it comes back as `SystemError` with the panic's message.
#[inline]
pub fn guard<R>(gil: Gil, body: impl FnOnce() -> Result<R>) -> Result<R> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(payload) => Err(to_system_error(gil, payload.as_ref())),
    }
}

/// Runs a body that CPython gives no way to fail (traverse, clear, dealloc): a panic is swallowed
/// after Rust's hook has printed it.
#[inline]
pub fn guard_silent(body: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(body));
}

#[cold]
fn to_system_error(gil: Gil, payload: &(dyn Any + Send)) -> Exc {
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".to_owned());
    Exc::new(gil, Kind::System, format!("kloop internal error: {message}"))
}
