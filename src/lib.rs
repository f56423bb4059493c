//! kloop's native half: an io_uring driver and the event loop, transports and per-core runtime on it.

pub mod driver;
