//! Types that can be awaited: the slots of coroutines and of asynchronous iterators.

use std::ffi::CString;

use pyo3_ffi as ffi;

use super::class::{Native, Ref, value};
use super::error::{Exc, Result};
use super::members::finish;
use super::object::{Gil, Obj, ObjCell};
use super::panic::guard;

/// What one step of a coroutine has come to.
pub enum Step {
    /// It goes on later; the value is for its task.
    Yield(Obj),
    Return(Obj),
}

/// The body of a coroutine, up to the next time that it waits.
pub type Advance<T> = fn(&Ref<T>) -> Result<Step>;

/// The body of a `__anext__`: makes the coroutine that brings the next item.
pub type Next<T> = fn(&Ref<T>) -> Result<Obj>;

/// A StopIteration for one interpreter, used again and again: CPython's `await` takes a result out
/// of one, and to make it costs more than all the rest of an await.
#[derive(Default)]
pub struct SpareStop(ObjCell);

impl SpareStop {
    /// Forgets the result that it carried last.
    pub fn clear(&self) {
        let Some(stop) = self.0.take() else { return };
        if is_as_new(&stop) {
            drop(exchange_value(&stop, std::ptr::null_mut()));
            self.0.set(Some(stop));
        }
    }

    fn with(&self, result: Obj) -> Result<Exc> {
        let stop = match self.0.take() {
            Some(stop) if is_as_new(&stop) => stop,
            // Made without arguments, which would stay.
            _ => Exc::empty_stop_iteration(result.gil())?,
        };
        drop(exchange_value(&stop, result.into_ptr()));
        self.0.set(Some(stop.clone()));
        Exc::raise(stop)
    }
}

/// Whether nobody else refers to a StopIteration, and nothing was noted in it, as is when it was
/// caught.
fn is_as_new(stop: &Obj) -> bool {
    // SAFETY: `SpareStop` holds StopIteration objects only, whose count only their own thread
    // changes.
    unsafe {
        let fields = stop.as_ptr().cast::<ffi::PyStopIterationObject>();
        ffi::Py_REFCNT(stop.as_ptr()) == 1
            && (*fields).traceback.is_null()
            && (*fields).context.is_null()
            && (*fields).dict.is_null()
    }
}

/// Puts a value into a StopIteration, owned or null, and returns the old one.
fn exchange_value(stop: &Obj, new: *mut ffi::PyObject) -> Option<Obj> {
    // SAFETY: `SpareStop` holds StopIteration objects only. The field owns its reference and may
    // be null.
    unsafe {
        let place = stop.as_ptr().cast::<ffi::PyStopIterationObject>();
        let old = std::mem::replace(&mut (*place).value, new);
        if old.is_null() { None } else { Obj::owned(old).ok() }
    }
}

/// Warns, as of a coroutine, that an object was dropped before anything awaited it. May be called
/// while the object dies.
pub fn warn_never_awaited(_: Gil, name: &str) {
    let text = CString::new(format!("coroutine '{name}' was never awaited")).unwrap_or_default();
    // SAFETY: attached (token). A pending exception is left as it was found; a warning that is
    // made an error has nowhere to go.
    unsafe {
        let pending = ffi::PyErr_GetRaisedException();
        if ffi::PyErr_WarnEx(ffi::PyExc_RuntimeWarning, text.as_ptr(), 1) < 0 {
            ffi::PyErr_WriteUnraisable(std::ptr::null_mut());
        }
        ffi::PyErr_SetRaisedException(pending);
    }
}

fn advance<T: Native>(gil: Gil, this: &Ref<T>) -> Result<Step> {
    match T::ADVANCE {
        Some(body) => guard(gil, || body(this)),
        None => Err(Exc::type_error(gil, "the object cannot be awaited")),
    }
}

pub(super) unsafe extern "C" fn itself(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: CPython passes a live object on an attached thread.
    unsafe { ffi::Py_NewRef(this) }
}

pub(super) unsafe extern "C" fn iternext<T: Native>(
    this: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: CPython passes a live instance on an attached thread.
    unsafe {
        let result = match advance(Gil::assume(), Ref::<T>::view(&this)) {
            Ok(Step::Yield(obj)) => return obj.into_ptr(),
            // To return None is to end without an exception.
            Ok(Step::Return(obj)) if obj.is_none() => return std::ptr::null_mut(),
            Ok(Step::Return(obj)) => match value::<T>(this).spare_stop() {
                Some(spare) => spare.with(obj),
                None => Ok(Exc::stop_iteration(&obj)),
            },
            Err(error) => Err(error),
        };
        match result {
            Ok(stop) => stop.restore(),
            Err(error) => error.restore(),
        }
        std::ptr::null_mut()
    }
}

pub(super) unsafe extern "C" fn am_send<T: Native>(
    this: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: as for `iternext`; CPython passes a place for the result.
    unsafe {
        let (obj, what) = match advance(Gil::assume(), Ref::<T>::view(&this)) {
            Ok(Step::Yield(obj)) => (obj.into_ptr(), ffi::PySendResult::PYGEN_NEXT),
            Ok(Step::Return(obj)) => (obj.into_ptr(), ffi::PySendResult::PYGEN_RETURN),
            Err(error) => {
                error.restore();
                (std::ptr::null_mut(), ffi::PySendResult::PYGEN_ERROR)
            }
        };
        *result = obj;
        what
    }
}

pub(super) unsafe extern "C" fn anext<T: Native>(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: as for `iternext`.
    unsafe {
        let gil = Gil::assume();
        finish(gil, || match T::ASYNC_NEXT {
            Some(body) => body(Ref::view(&this)),
            None => Err(Exc::type_error(gil, "the object is no asynchronous iterator")),
        })
    }
}
