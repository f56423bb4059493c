//! The kinds of operations, the memory each one owns, and what they report.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::chunk::Chunk;

/// Names an operation of one driver. Stale ids are harmless: a slot of the slab counts its uses.
pub use super::slab::Key as OpId;

/// A completion of an operation.
#[derive(Debug)]
pub struct Event<T> {
    /// The operation, as returned when it was started.
    pub op: OpId,
    /// The owner it was started with.
    pub owner: T,
    /// Whether more events will follow. If not, `op` is stale from now on.
    pub more: bool,
    /// What happened.
    pub outcome: Outcome,
}

/// What an operation has to report. Errors are those of the man page named at the `Driver` method,
/// and `ECANCELED`.
#[derive(Debug)]
pub enum Outcome {
    /// The mask of poll(2) events that are ready.
    Poll(io::Result<u32>),
    /// A connection. Dropping it closes it.
    Accept(io::Result<OwnedFd>),
    /// The number of bytes sent, counted from `start`, and the buffer. A send that failed or was
    /// cancelled half-way reports what it sent.
    Send(io::Result<usize>, Vec<u8>),
    /// Bytes, in the order of the stream; none at its end, which ends the operation.
    Receive(io::Result<Chunk>),
}

/// An operation in flight.
pub(super) struct Op<T> {
    pub owner: T,
    pub kind: Kind,
}

/// What an operation is, with the memory that the kernel uses meanwhile.
pub(super) enum Kind {
    Poll,
    Accept,
    Send(Vec<u8>),
    Receive { fd: RawFd, cancelled: bool },
}

impl Kind {
    /// A result that is not the last, and the bytes it comes with. A send has no such.
    #[inline]
    pub fn report(&self, result: i32, chunk: Option<Chunk>) -> Option<Outcome> {
        match self {
            Kind::Poll => Some(Outcome::Poll(check(result))),
            Kind::Accept => Some(Outcome::Accept(accepted(result))),
            Kind::Send(_) => None,
            Kind::Receive { .. } => Some(Outcome::Receive(received(result, chunk))),
        }
    }

    /// The last result.
    #[inline]
    pub fn finish(self, result: i32, chunk: Option<Chunk>) -> Outcome {
        match self {
            Kind::Poll => Outcome::Poll(check(result)),
            Kind::Accept => Outcome::Accept(accepted(result)),
            Kind::Send(buf) => Outcome::Send(check(result).map(|n| n as usize), buf),
            Kind::Receive { .. } => Outcome::Receive(received(result, chunk)),
        }
    }
}

#[inline]
fn check(result: i32) -> io::Result<u32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as u32) }
}

fn accepted(result: i32) -> io::Result<OwnedFd> {
    // SAFETY: the result of a successful accept is a new descriptor that nobody else owns, and each
    // completion is taken once.
    check(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn received(result: i32, chunk: Option<Chunk>) -> io::Result<Chunk> {
    // One that lacks memory goes on when there is some, unless it was cancelled meanwhile.
    let result = if result == -libc::ENOBUFS { -libc::ECANCELED } else { result };
    match (check(result)?, chunk) {
        (0, _) => Ok(Chunk::empty()),
        (_, Some(chunk)) => Ok(chunk),
        // Bytes that are nowhere: the kernel does not do that.
        (_, None) => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}
