//! kloop's native half: an io_uring driver and the event loop, transports and per-core runtime on
//! it.

pub mod driver;

#[cfg(feature = "python")]
mod event_loop;
pub mod percore;
#[cfg(feature = "python")]
mod py;
#[cfg(feature = "python")]
mod state;
#[cfg(feature = "python")]
mod streams;
#[cfg(feature = "python")]
mod transport;

/// What CPython calls to import `kloop._kloop`.
#[cfg(feature = "python")]
#[unsafe(no_mangle)]
pub extern "C" fn PyInit__kloop() -> *mut std::ffi::c_void {
    py::module_init::<state::State>()
}
