//! Python exceptions as Rust errors.

use std::ffi::CString;
use std::io;

use pyo3_ffi as ffi;

use super::convert::ToObj;
use super::object::{Gil, Obj};

/// A raised exception, taken off the interpreter's error indicator.
pub struct Exc(Obj);

pub type Result<T> = std::result::Result<T, Exc>;

/// The built-in exceptions that native code raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Assertion,
    Connection,
    ConnectionReset,
    OS,
    Runtime,
    System,
    Type,
    Value,
}

impl Kind {
    fn class(self) -> *mut ffi::PyObject {
        // SAFETY: these are static objects of the running CPython, the same in all interpreters.
        unsafe {
            match self {
                Kind::Assertion => ffi::PyExc_AssertionError,
                Kind::Connection => ffi::PyExc_ConnectionError,
                Kind::ConnectionReset => ffi::PyExc_ConnectionResetError,
                Kind::OS => ffi::PyExc_OSError,
                Kind::Runtime => ffi::PyExc_RuntimeError,
                Kind::System => ffi::PyExc_SystemError,
                Kind::Type => ffi::PyExc_TypeError,
                Kind::Value => ffi::PyExc_ValueError,
            }
        }
    }
}

impl Exc {
    pub fn new(gil: Gil, kind: Kind, message: impl AsRef<str>) -> Self {
        let text = CString::new(message.as_ref().replace('\0', "?")).unwrap_or_default();
        // SAFETY: attached (token); a static exception class and a C string.
        unsafe { ffi::PyErr_SetString(kind.class(), text.as_ptr()) };
        Exc::fetch(gil)
    }

    pub fn assertion_error(gil: Gil, message: impl AsRef<str>) -> Self {
        Exc::new(gil, Kind::Assertion, message)
    }

    pub fn type_error(gil: Gil, message: impl AsRef<str>) -> Self {
        Exc::new(gil, Kind::Type, message)
    }

    pub fn value_error(gil: Gil, message: impl AsRef<str>) -> Self {
        Exc::new(gil, Kind::Value, message)
    }

    pub fn connection_error(gil: Gil, message: impl AsRef<str>) -> Self {
        Exc::new(gil, Kind::Connection, message)
    }

    pub fn connection_reset(gil: Gil, message: impl AsRef<str>) -> Self {
        Exc::new(gil, Kind::ConnectionReset, message)
    }

    /// `raise obj`: an exception, or a class of them. `TypeError` for anything else.
    pub fn raise(obj: Obj) -> Result<Self> {
        // SAFETY: live objects; the macros only look at types.
        unsafe {
            if ffi::PyExceptionInstance_Check(obj.as_ptr()) != 0 {
                return Ok(Exc(obj));
            }
            if ffi::PyExceptionClass_Check(obj.as_ptr()) != 0 {
                return Exc::raise(obj.call([])?);
            }
        }
        Err(Exc::type_error(obj.gil(), "exceptions must derive from BaseException"))
    }

    /// `StopIteration(value)`, with which a coroutine returns.
    pub fn stop_iteration(value: &Obj) -> Self {
        // SAFETY: a static exception class, and a live object on an attached thread.
        let class = unsafe { Obj::borrowed(ffi::PyExc_StopIteration) };
        match class.call([value]) {
            Ok(exception) => Exc(exception),
            Err(error) => error,
        }
    }

    /// A `StopIteration` without a value.
    pub fn empty_stop_iteration(_: Gil) -> Result<Obj> {
        // SAFETY: attached (token); a static exception class.
        unsafe { Obj::borrowed(ffi::PyExc_StopIteration) }.call([])
    }

    /// The end of an asynchronous iteration.
    pub fn stop_async_iteration(_: Gil) -> Self {
        // SAFETY: attached (token); a static exception class.
        let class = unsafe { Obj::borrowed(ffi::PyExc_StopAsyncIteration) };
        match class.call([]) {
            Ok(exception) => Exc(exception),
            Err(error) => error,
        }
    }

    pub fn runtime_error(gil: Gil, message: impl AsRef<str>) -> Self {
        Exc::new(gil, Kind::Runtime, message)
    }

    /// The `OSError` subclass that Python raises for this errno, with Python's text.
    pub fn os(gil: Gil, error: &io::Error) -> Self {
        let Some(errno) = error.raw_os_error() else {
            return Exc::new(gil, Kind::OS, error.to_string());
        };
        // SAFETY: strerror gives a C string, which is copied before anything can change it.
        let text = unsafe { std::ffi::CStr::from_ptr(libc::strerror(errno)) };
        Exc::os_with_text(gil, errno, &text.to_string_lossy())
    }

    /// `OSError(errno, text)`, as the subclass that belongs to the errno.
    pub fn os_with_text(gil: Gil, errno: i32, text: &str) -> Self {
        // SAFETY: attached (token); a static exception class.
        let class = unsafe { Obj::borrowed(ffi::PyExc_OSError) };
        let made = errno.to_obj(gil).and_then(|errno| class.call([&errno, &text.to_obj(gil)?]));
        match made {
            Ok(exception) => Exc(exception),
            Err(error) => error,
        }
    }

    /// Takes the pending exception. Without one (a bug in C code), a `SystemError`.
    pub(super) fn fetch(_: Gil) -> Self {
        // SAFETY: attached (token); GetRaisedException gives a new reference or null, and not null
        // after SetString.
        unsafe {
            let mut raised = ffi::PyErr_GetRaisedException();
            if raised.is_null() {
                let text = c"error return without exception set";
                ffi::PyErr_SetString(ffi::PyExc_SystemError, text.as_ptr());
                raised = ffi::PyErr_GetRaisedException();
            }
            match Obj::owned(raised) {
                Ok(obj) => Exc(obj),
                Err(error) => error,
            }
        }
    }

    /// Makes this the pending exception again, for a return into C.
    pub(super) fn restore(self) {
        // SAFETY: attached (an object exists); the reference is stolen.
        unsafe { ffi::PyErr_SetRaisedException(self.0.into_ptr()) };
    }

    pub fn object(&self) -> &Obj {
        &self.0
    }

    fn is_a(&self, class: *mut ffi::PyObject) -> bool {
        // SAFETY: live objects.
        unsafe { ffi::PyErr_GivenExceptionMatches(self.0.as_ptr(), class) != 0 }
    }

    /// SystemExit or KeyboardInterrupt: these leave the loop instead of being reported.
    pub fn is_exit(&self) -> bool {
        // SAFETY: static exception classes.
        unsafe { self.is_a(ffi::PyExc_SystemExit) || self.is_a(ffi::PyExc_KeyboardInterrupt) }
    }

    /// What `except Exception` catches.
    pub fn is_ordinary(&self) -> bool {
        // SAFETY: a static exception class.
        self.is_a(unsafe { ffi::PyExc_Exception })
    }

    pub fn is_overflow(&self) -> bool {
        // SAFETY: a static exception class.
        self.is_a(unsafe { ffi::PyExc_OverflowError })
    }

    pub fn is_not_implemented(&self) -> bool {
        // SAFETY: a static exception class.
        self.is_a(unsafe { ffi::PyExc_NotImplementedError })
    }

    pub fn is_os_error(&self) -> bool {
        // SAFETY: a static exception class.
        self.is_a(unsafe { ffi::PyExc_OSError })
    }

    /// What a non-blocking call raises where it would have to wait.
    pub fn is_would_block(&self) -> bool {
        // SAFETY: static exception classes.
        unsafe { self.is_a(ffi::PyExc_BlockingIOError) || self.is_a(ffi::PyExc_InterruptedError) }
    }

    /// The number of an `OSError`; `None` for other exceptions and where it has none.
    pub fn errno(&self) -> Option<i32> {
        if !self.is_os_error() {
            return None;
        }
        self.0.get(c"errno").and_then(|errno| errno.to_i32()).ok()
    }

    /// Reports an exception that has nowhere to go, through `sys.unraisablehook`.
    pub fn unraisable(self, place: &Obj) {
        self.restore();
        // SAFETY: attached; an exception is pending and `place` is live.
        unsafe { ffi::PyErr_WriteUnraisable(place.as_ptr()) };
    }
}
