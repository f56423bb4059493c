//! One connection and the exchange in flight on it.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::{Registry, Token};

use crate::protocol::{Progress, Protocol, Scrutiny, WrongReply};
use crate::socket::{Address, Socket};

/// How long a reply may take on a socket that can lose it. A late one would go to a port that is
/// closed by then.
const LOSS_TIMEOUT: Duration = Duration::from_millis(200);

/// How long connections live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// For any number of requests.
    Persistent,
    /// For one request, after whose reply the server closes; that ends the exchange.
    SingleRequest,
}

/// Where a connection stands after it did what it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The exchange goes on when the socket is ready again.
    Waiting,
    /// The reply is complete; no exchange is in flight any more.
    Finished,
}

/// Why an exchange could not be finished.
#[derive(Debug)]
pub enum Failure {
    /// The connection broke; others may go on.
    Broken(io::Error),
    /// The server is at fault and no figure about it means anything.
    Wrong(WrongReply),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A connection with at most one exchange in flight.
pub struct Connection<P: Protocol> {
    socket: Socket,
    index: usize,
    lifetime: Lifetime,
    begun: u64,
    flight: Option<Flight<P::Exchange>>,
}

struct Flight<E> {
    exchange: E,
    sent: usize,
    since: Instant,
    first: bool,
    replied: bool,
}

impl<P: Protocol> Connection<P> {
    /// Connects, waiting at most `timeout`, and registers the socket under `index`. For a single
    /// request, connecting is part of the exchange and is not waited for.
    pub fn open(
        address: &Address,
        lifetime: Lifetime,
        timeout: Duration,
        registry: &Registry,
        index: usize,
    ) -> io::Result<Self> {
        let mut socket = match lifetime {
            Lifetime::Persistent => Socket::connect(address, timeout)?,
            Lifetime::SingleRequest => Socket::dial(address, timeout)?,
        };
        socket.register(registry, Token(index))?;
        Ok(Self { socket, index, lifetime, begun: 0, flight: None })
    }

    /// When the exchange in flight began.
    pub fn in_flight_since(&self) -> Option<Instant> {
        self.flight.as_ref().map(|flight| flight.since)
    }

    /// Whether the exchange in flight must be taken for lost.
    pub fn is_lost(&self, now: Instant) -> bool {
        let overdue = |since| now.saturating_duration_since(since) > LOSS_TIMEOUT;
        self.socket.is_lossy() && self.in_flight_since().is_some_and(overdue)
    }

    /// Begins an exchange, due at `since`, and sends what the socket takes of its request.
    pub fn begin(&mut self, protocol: &P, since: Instant) -> Result<(), Failure> {
        debug_assert!(self.flight.is_none(), "one exchange at a time");
        let flight = self.flight.insert(Flight {
            exchange: protocol.begin(self.index, self.begun),
            sent: 0,
            since,
            first: self.begun == 0,
            replied: false,
        });
        self.begun += 1;
        send(&mut self.socket, protocol, flight)?;
        Ok(())
    }

    /// Goes on with the exchange in flight, as far as the socket allows. `thorough` asks for a
    /// comparison of every byte; the first reply of a connection gets one in any case.
    pub fn advance(
        &mut self,
        protocol: &P,
        buffer: &mut [u8],
        thorough: bool,
    ) -> Result<Step, Failure> {
        let Some(flight) = &mut self.flight else {
            return idle(&mut self.socket);
        };
        send(&mut self.socket, protocol, flight)?;
        let scrutiny = if thorough || flight.first { Scrutiny::Full } else { Scrutiny::Quick };
        loop {
            let bytes = match self.socket.read(buffer) {
                Ok(0) if flight.replied => {
                    self.flight = None;
                    return Ok(Step::Finished);
                }
                Ok(0) => return Err(closed().into()),
                Ok(count) if flight.replied => return Err(surplus(count)),
                Ok(count) => &buffer[..count],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Step::Waiting);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let progress = protocol.reply(&mut flight.exchange, bytes, scrutiny);
            match progress.map_err(Failure::Wrong)? {
                Progress::More => {}
                Progress::Complete if self.lifetime == Lifetime::SingleRequest => {
                    flight.replied = true;
                }
                Progress::Complete => {
                    self.flight = None;
                    return Ok(Step::Finished);
                }
            }
        }
    }
}

/// Sends more of the request, as much as the socket takes.
fn send<P: Protocol>(
    socket: &mut Socket,
    protocol: &P,
    flight: &mut Flight<P::Exchange>,
) -> io::Result<()> {
    loop {
        let rest = protocol.request(&flight.exchange, flight.sent);
        if rest.is_empty() {
            return Ok(());
        }
        match socket.write(rest) {
            Ok(count) => flight.sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Looks at a socket that reports something though nothing was asked of it.
fn idle(socket: &mut Socket) -> Result<Step, Failure> {
    let mut byte = [0];
    match socket.read(&mut byte) {
        Ok(0) => Err(closed().into()),
        Ok(_) => {
            Err(Failure::Wrong(WrongReply("bytes came back that nothing was sent for".into())))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Step::Waiting),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Step::Waiting),
        Err(error) => Err(error.into()),
    }
}

fn surplus(count: usize) -> Failure {
    Failure::Wrong(WrongReply(format!("{count} bytes came after the reply")))
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server")
}
