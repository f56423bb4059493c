//! Native transports: stream sockets with the listeners that accept them, datagram sockets, and
//! pipes.
//!
//! A transport reads when its multishot poll says so, with a direct `recv`, and writes with a
//! direct `send`; only what the socket does not take at once waits for the ring. The contract
//! is that of asyncio's selector transports, message texts included.

#![deny(unsafe_code)]

mod address;
mod base;
mod datagram;
mod flow;
mod lifecycle;
mod names;
mod pipe;
mod reading;
mod stream;

pub use datagram::DatagramTransport;
pub use pipe::{ReadPipeTransport, WritePipeTransport};
pub use stream::{Listener, Sink, StreamTransport, accept_stream};
