//! One loop per core: threads, pinning, interpreters, the acceptor and the messages between them.
//!
//! The main thread accepts and hands each connection to the core that holds the fewest; it sleeps
//! in a driver of its own meanwhile and owns the signals. What crosses cores is plain Rust data,
//! and the parts that need no Python ([`team`], [`acceptor`]) are tested without an interpreter.

#![deny(unsafe_code)]

pub mod acceptor;
mod imports;
pub mod team;

#[cfg(feature = "python")]
mod cores;
#[cfg(feature = "python")]
mod worker;

#[cfg(feature = "python")]
pub use cores::Cores;
#[cfg(feature = "python")]
pub use worker::Worker;
