//! Threads and interpreters: detaching, signals, and interpreters with their own GIL.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use pyo3_ffi as ffi;

use super::error::{Exc, Result};
use super::object::Gil;

/// Runs `body` with this thread detached, so that other threads can run Python.
///
/// The closure is `Send`, which keeps references to Python objects and to loop state out of it.
pub fn detach<R: Send>(_: Gil, body: impl FnOnce() -> R + Send) -> R {
    // SAFETY: attached (token); the same thread state is restored before anything else runs.
    unsafe {
        let state = ffi::PyEval_SaveThread();
        let result = catch_unwind(AssertUnwindSafe(body));
        ffi::PyEval_RestoreThread(state);
        result.unwrap_or_else(|payload| resume_unwind(payload))
    }
}

/// Runs the Python handlers of signals that have arrived, in the main thread of the main
/// interpreter; elsewhere this does nothing.
pub fn check_signals(gil: Gil) -> Result<()> {
    // SAFETY: attached (token).
    if unsafe { ffi::PyErr_CheckSignals() } < 0 { Err(Exc::fetch(gil)) } else { Ok(()) }
}

/// The interpreter's number; the main interpreter is 0.
pub fn interpreter_id(_: Gil) -> i64 {
    // SAFETY: attached (token), so there is a current interpreter.
    unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) }
}

/// Whether worker interpreters can be ended. CPython 3.13 can crash when several that have
/// imported `datetime` are ended (python/cpython#136423): there they stay until the process ends.
const INTERPRETERS_CAN_END: bool = cfg!(Py_3_14);

/// Creating interpreters concurrently is not safe in all CPython versions that are supported, and
/// ending them is not in all extension modules that they have imported.
static LIFETIME: Mutex<()> = Mutex::new(());

/// Makes an interpreter with its own GIL on this thread, which must be attached to none, runs
/// `body` in it and ends it. In the new interpreter there are no daemon threads, no fork and no
/// exec, and extension modules without support for own-GIL interpreters are refused.
///
/// The error is CPython's text for why there is no interpreter.
pub fn run_in_own_interpreter<R>(body: impl FnOnce(Gil) -> R) -> std::result::Result<R, String> {
    // SAFETY: the main interpreter is attached while the new one is made, as CPython requires.
    // Afterwards the thread is attached to the new interpreter only; `body` drops what it made
    // there before it returns. At the end the thread is attached to main again, to give back the
    // thread state it took.
    unsafe {
        let creation = LIFETIME.lock().unwrap_or_else(PoisonError::into_inner);
        let gil_state = ffi::PyGILState_Ensure();
        let main = ffi::PyThreadState_Get();
        let config = ffi::PyInterpreterConfig {
            use_main_obmalloc: 0,
            allow_fork: 0,
            allow_exec: 0,
            allow_threads: 1,
            allow_daemon_threads: 0,
            check_multi_interp_extensions: 1,
            gil: ffi::PyInterpreterConfig_OWN_GIL,
        };
        let mut own = std::ptr::null_mut();
        let status = ffi::Py_NewInterpreterFromConfig(&mut own, &config);
        drop(creation);
        if ffi::PyStatus_Exception(status) != 0 || own.is_null() {
            let text = if status.err_msg.is_null() {
                "CPython could not create an interpreter".to_owned()
            } else {
                std::ffi::CStr::from_ptr(status.err_msg).to_string_lossy().into_owned()
            };
            ffi::PyThreadState_Swap(main);
            ffi::PyGILState_Release(gil_state);
            return Err(text);
        }
        let result = catch_unwind(AssertUnwindSafe(|| body(Gil::assume())));
        if INTERPRETERS_CAN_END {
            let _end = LIFETIME.lock().unwrap_or_else(PoisonError::into_inner);
            ffi::Py_EndInterpreter(own);
        } else {
            ffi::PyEval_SaveThread();
        }
        ffi::PyThreadState_Swap(main);
        ffi::PyGILState_Release(gil_state);
        result.map_err(|_| "the worker panicked".to_owned())
    }
}
