//! All connections to one target, and a burst of exchanges over them.

use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Poll};

use crate::connection::{Connection, Failure, Step};
use crate::protocol::{Protocol, WrongReply};
use crate::socket::Address;

/// Bytes taken from a socket at a time.
const READ_BYTES: usize = 256 * 1024;

/// What a single wait may last at most when the client sleeps.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// How often to look for exchanges that got lost.
const LOSS_CHECK: Duration = Duration::from_millis(20);

/// How many failures are kept in words; all are counted.
const KEPT_MESSAGES: usize = 5;

/// Latencies are kept in nanoseconds, from 1 us to 10 minutes, to three digits.
const LOWEST_LATENCY: u64 = 1_000;
const HIGHEST_LATENCY: u64 = 600_000_000_000;

/// How the client waits for replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Never sleeps during a burst, so that the server does not pay for waking the client.
    Spin,
    /// Sleeps, and leaves the processor to a server that needs it.
    Sleep,
}

/// How a burst runs.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long new exchanges are begun.
    pub length: Duration,
    /// How long a connect, or a reply after the end of the burst, may take.
    pub patience: Duration,
    pub wait: Wait,
}

/// Why a target's figures are void.
#[derive(Debug)]
pub enum Fault {
    Unreachable(io::Error),
    Wrong(WrongReply),
    Poll(io::Error),
}

/// What one burst did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Burst {
    pub requests: u64,
    pub elapsed: Duration,
}

/// What all bursts together did.
pub struct Tally {
    pub latency: Histogram<u64>,
    /// Exchanges without a reply on sockets that may lose it.
    pub lost: u64,
    pub errors: u64,
    /// The first few errors, in words.
    pub messages: Vec<String>,
}

impl Tally {
    fn new() -> Self {
        Self {
            latency: Histogram::new_with_bounds(LOWEST_LATENCY, HIGHEST_LATENCY, 3)
                .expect("constant bounds are valid"),
            lost: 0,
            errors: 0,
            messages: Vec::new(),
        }
    }

    fn error(&mut self, message: String) {
        self.errors += 1;
        if self.messages.len() < KEPT_MESSAGES {
            self.messages.push(message);
        }
    }
}

/// The connections to one target.
pub struct Fleet<P: Protocol> {
    address: Address,
    protocol: P,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    connections: Vec<Option<Connection<P>>>,
    tally: Tally,
}

impl<P: Protocol> Fleet<P> {
    /// Opens all `connections`; an error if any of them cannot be opened.
    pub fn connect(
        address: Address,
        protocol: P,
        connections: usize,
        patience: Duration,
    ) -> Result<Self, Fault> {
        let poll = Poll::new().map_err(Fault::Poll)?;
        let connections = (0..connections)
            .map(|index| Connection::open(&address, patience, poll.registry(), index).map(Some))
            .collect::<io::Result<Vec<_>>>()
            .map_err(Fault::Unreachable)?;
        Ok(Self {
            address,
            protocol,
            poll,
            events: Events::with_capacity(connections.len().max(16)),
            buffer: vec![0; READ_BYTES],
            connections,
            tally: Tally::new(),
        })
    }

    /// Everything since the fleet connected, or since [`Self::forget_latencies`].
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Forgets the latencies so far, at the end of a warm-up. Errors stay.
    pub fn forget_latencies(&mut self) {
        self.tally.latency.reset();
    }

    /// Opens lost connections anew. Each one that cannot be opened is an error; if none is left,
    /// that is a fault. To be called between bursts, so that a burst has no connects in it.
    pub fn repair(&mut self, patience: Duration) -> Result<(), Fault> {
        let mut reason = None;
        for (index, slot) in self.connections.iter_mut().enumerate() {
            if slot.is_some() {
                continue;
            }
            match Connection::open(&self.address, patience, self.poll.registry(), index) {
                Ok(connection) => *slot = Some(connection),
                Err(error) => {
                    self.tally.error(format!("cannot reconnect: {error}"));
                    reason = Some(error);
                }
            }
        }
        match reason {
            Some(error) if self.connections.iter().all(Option::is_none) => {
                Err(Fault::Unreachable(error))
            }
            _ => Ok(()),
        }
    }

    /// Keeps one request in flight on every connection for the length of the burst, then waits
    /// for the replies that are missing.
    pub fn burst(&mut self, pace: Pace) -> Result<Burst, Fault> {
        let start = Instant::now();
        let deadline = start + pace.length;
        let give_up = deadline + pace.patience;
        let mut requests = 0;
        let mut in_flight = 0;
        for index in 0..self.connections.len() {
            in_flight += usize::from(self.begin(index, Instant::now())?);
        }
        let mut now = Instant::now();
        let mut loss_check = now + LOSS_CHECK;
        while in_flight > 0 {
            if now >= give_up {
                self.abandon(pace.patience);
                break;
            }
            let next = if now < deadline { deadline } else { give_up };
            let timeout = match pace.wait {
                Wait::Spin => Duration::ZERO,
                Wait::Sleep => (next - now).min(LONGEST_SLEEP),
            };
            match self.poll.poll(&mut self.events, Some(timeout)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(Fault::Poll)?,
            }
            now = Instant::now();
            let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
            for index in ready {
                let Some(connection) = &mut self.connections[index] else {
                    continue;
                };
                let since = connection.in_flight_since();
                let thorough = now >= deadline;
                match connection.advance(&self.protocol, &mut self.buffer, thorough) {
                    Ok(Step::Waiting) => {}
                    Ok(Step::Finished) => {
                        now = Instant::now();
                        requests += 1;
                        in_flight -= 1;
                        self.record(now - since.unwrap_or(now));
                        if now < deadline {
                            in_flight += usize::from(self.begin(index, now)?);
                        }
                    }
                    Err(failure) => {
                        in_flight -= usize::from(since.is_some());
                        self.lose(index, failure)?;
                    }
                }
            }
            // After what has arrived, for it may be this process that was late.
            if now >= loss_check {
                loss_check = now + LOSS_CHECK;
                in_flight -= self.give_up_lost(now, now < deadline, pace.patience)?;
            }
        }
        Ok(Burst { requests, elapsed: start.elapsed() })
    }

    /// Begins an exchange if the connection is there; whether one is in flight then.
    fn begin(&mut self, index: usize, now: Instant) -> Result<bool, Fault> {
        let Some(connection) = &mut self.connections[index] else {
            return Ok(false);
        };
        match connection.begin(&self.protocol, now) {
            Ok(()) => Ok(true),
            Err(failure) => self.lose(index, failure).map(|()| false),
        }
    }

    /// Counts the exchanges that got lost, and begins others in their place if `resend`, on new
    /// sockets in any case. How many fewer are in flight then.
    fn give_up_lost(
        &mut self,
        now: Instant,
        resend: bool,
        patience: Duration,
    ) -> Result<usize, Fault> {
        let mut fewer = 0;
        for index in 0..self.connections.len() {
            if !self.connections[index].as_ref().is_some_and(|known| known.is_lost(now)) {
                continue;
            }
            self.tally.lost += 1;
            self.connections[index] = None;
            let registry = self.poll.registry();
            match Connection::open(&self.address, patience, registry, index) {
                Ok(connection) => self.connections[index] = Some(connection),
                Err(error) => self.tally.error(format!("cannot reconnect: {error}")),
            }
            fewer += usize::from(!(resend && self.begin(index, now)?));
        }
        Ok(fewer)
    }

    fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.tally.latency.saturating_record(nanoseconds);
    }

    fn lose(&mut self, index: usize, failure: Failure) -> Result<(), Fault> {
        self.connections[index] = None;
        match failure {
            Failure::Wrong(wrong) => Err(Fault::Wrong(wrong)),
            Failure::Broken(error) => {
                self.tally.error(format!("connection {index}: {error}"));
                Ok(())
            }
        }
    }

    fn abandon(&mut self, patience: Duration) {
        for (index, slot) in self.connections.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(|connection| connection.in_flight_since().is_some()) {
                *slot = None;
                let seconds = patience.as_secs_f64();
                self.tally.error(format!(
                    "connection {index}: no reply within {seconds} s after the burst"
                ));
            }
        }
    }
}
