//! `kloop-load`: a load client that compares servers in one run.
//!
//! One thread holds connections to every target and visits the targets in turn, in short bursts.
//! Within a burst each connection has one request in flight, or requests begin at a given rate. A
//! burst ends only when every reply is in, so what a server spent on it can be read off cleanly, and
//! two targets can be compared burst by burst while whatever else the machine does falls on both
//! alike.

pub mod arguments;
pub mod clock;
pub mod connection;
pub mod fleet;
pub mod hold;
pub mod limits;
pub mod protocol;
pub mod report;
pub mod schedule;
pub mod session;
pub mod socket;
pub mod tls;
