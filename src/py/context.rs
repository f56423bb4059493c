//! `contextvars` contexts.

use pyo3_ffi as ffi;

use super::error::Result;
use super::object::{Gil, Obj};

/// `contextvars.copy_context()`.
#[inline]
pub fn copy_current_context(_: Gil) -> Result<Obj> {
    // SAFETY: attached (token).
    unsafe { Obj::owned(ffi::PyContext_CopyCurrent()) }
}

/// `context.copy()`.
pub fn copy_context(context: &Obj) -> Result<Obj> {
    // SAFETY: a live object; PyContext_Copy raises where it is no context.
    unsafe { Obj::owned(ffi::PyContext_Copy(context.as_ptr())) }
}

/// Makes `context` the current one until the guard is dropped.
///
/// Raises `TypeError` where it is no context and `RuntimeError` where it is entered already.
#[inline]
pub fn enter_context(context: &Obj) -> Result<Entered<'_>> {
    // SAFETY: live objects; PyContext_Enter assumes the type, so it is checked first.
    unsafe {
        if ffi::PyContext_CheckExact(context.as_ptr()) == 0 {
            return Err(super::Exc::type_error(
                context.gil(),
                format!("a contextvars.Context was expected, got {}", context.repr()),
            ));
        }
        context.check(ffi::PyContext_Enter(context.as_ptr()))?;
    }
    Ok(Entered(context))
}

pub struct Entered<'a>(&'a Obj);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // SAFETY: the context was entered by this thread and guards are dropped in reverse order.
        // Exit fails only where that order is broken, and the error has nowhere to go.
        unsafe {
            if ffi::PyContext_Exit(self.0.as_ptr()) < 0 {
                super::Exc::fetch(self.0.gil()).unraisable(self.0);
            }
        }
    }
}
