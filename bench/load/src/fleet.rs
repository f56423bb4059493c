//! All connections to one target, and a burst of exchanges over them.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Poll};

use crate::connection::{Connection, Failure, Lifetime, Step};
use crate::protocol::{Protocol, WrongReply};
use crate::schedule::Schedule;
use crate::socket::{Address, Socket};

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
    /// Requests per second that are begun whether the replies to earlier ones are there or not. A
    /// request that is due while no connection is idle waits for one, and its latency counts from
    /// when it was due. Without a rate, each connection's next request follows on its last reply.
    pub rate: Option<f64>,
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
    lifetime: Lifetime,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    connections: Vec<Option<Connection<P>>>,
    tally: Tally,
}

/// A burst that is under way.
struct Rush {
    schedule: Schedule,
    /// Connections without an exchange, the one that has waited longest first.
    idle: VecDeque<usize>,
    in_flight: usize,
    requests: u64,
}

impl<P: Protocol> Fleet<P> {
    /// Opens all `connections`, or tries one if they are to be opened for each request; an error if
    /// any of them cannot be opened.
    pub fn connect(
        address: Address,
        protocol: P,
        connections: usize,
        lifetime: Lifetime,
        patience: Duration,
    ) -> Result<Self, Fault> {
        let poll = Poll::new().map_err(Fault::Poll)?;
        let open = |index| match lifetime {
            Lifetime::Persistent => {
                Connection::open(&address, lifetime, patience, poll.registry(), index).map(Some)
            }
            Lifetime::SingleRequest if index > 0 => Ok(None),
            Lifetime::SingleRequest => Socket::connect(&address, patience).map(|_| None),
        };
        let connections = (0..connections)
            .map(open)
            .collect::<io::Result<Vec<_>>>()
            .map_err(Fault::Unreachable)?;
        Ok(Self {
            address,
            protocol,
            lifetime,
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
    /// that is a fault. To be called between bursts, so that a burst has no connects in it, unless
    /// each request has its own.
    pub fn repair(&mut self, patience: Duration) -> Result<(), Fault> {
        if self.lifetime == Lifetime::SingleRequest {
            return Ok(());
        }
        let mut reason = None;
        for index in 0..self.connections.len() {
            if self.connections[index].is_none()
                && let Err(error) = self.open(index, patience)
            {
                self.tally.error(format!("cannot reconnect: {error}"));
                reason = Some(error);
            }
        }
        match reason {
            Some(error) if self.connections.iter().all(Option::is_none) => {
                Err(Fault::Unreachable(error))
            }
            _ => Ok(()),
        }
    }

    /// Keeps one request in flight on every connection for the length of the burst, or begins them
    /// at the pace's rate, then waits for the replies that are missing.
    pub fn burst(&mut self, pace: Pace) -> Result<Burst, Fault> {
        let start = Instant::now();
        let deadline = start + pace.length;
        let give_up = deadline + pace.patience;
        let mut rush = Rush {
            schedule: Schedule::new(start, deadline, pace.rate),
            idle: (0..self.connections.len()).filter(|&index| self.is_usable(index)).collect(),
            in_flight: 0,
            requests: 0,
        };
        if pace.rate.is_none() {
            while let Some(index) = rush.idle.pop_front() {
                self.begin(&mut rush, index, Instant::now(), pace.patience)?;
            }
        }
        let mut now = Instant::now();
        let mut loss_check = now + LOSS_CHECK;
        while rush.in_flight > 0 || (!rush.idle.is_empty() && rush.schedule.goes_on(now)) {
            if now >= give_up {
                self.abandon(&rush, pace.patience);
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
            self.begin_due(&mut rush, now, pace.patience)?;
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
                        self.finished(&mut rush, index, now - since.unwrap_or(now));
                        self.begin_due(&mut rush, now, pace.patience)?;
                    }
                    Err(failure) => {
                        rush.in_flight -= usize::from(since.is_some());
                        self.lose(index, failure)?;
                    }
                }
            }
            // After what has arrived, for it may be this process that was late.
            if now >= loss_check {
                loss_check = now + LOSS_CHECK;
                self.give_up_lost(&mut rush, now, pace.patience);
                self.begin_due(&mut rush, now, pace.patience)?;
            }
        }
        Ok(Burst { requests: rush.requests, elapsed: start.elapsed() })
    }

    fn is_usable(&self, index: usize) -> bool {
        self.connections[index].is_some() || self.lifetime == Lifetime::SingleRequest
    }

    fn open(&mut self, index: usize, patience: Duration) -> io::Result<()> {
        let registry = self.poll.registry();
        let connection = Connection::open(&self.address, self.lifetime, patience, registry, index)?;
        self.connections[index] = Some(connection);
        Ok(())
    }

    /// Begins exchanges that are due by `now`, on connections that are idle.
    fn begin_due(
        &mut self,
        rush: &mut Rush,
        now: Instant,
        patience: Duration,
    ) -> Result<(), Fault> {
        while !rush.idle.is_empty()
            && let Some(since) = rush.schedule.take(now)
            && let Some(index) = rush.idle.pop_front()
        {
            self.begin(rush, index, since, patience)?;
        }
        Ok(())
    }

    /// Begins an exchange, if there is or can be a connection.
    fn begin(
        &mut self,
        rush: &mut Rush,
        index: usize,
        since: Instant,
        patience: Duration,
    ) -> Result<(), Fault> {
        if self.lifetime == Lifetime::SingleRequest
            && let Err(error) = self.open(index, patience)
        {
            return self.lose(index, error.into());
        }
        let Some(connection) = &mut self.connections[index] else {
            return Ok(());
        };
        match connection.begin(&self.protocol, since) {
            Ok(()) => {
                rush.in_flight += 1;
                Ok(())
            }
            Err(failure) => self.lose(index, failure),
        }
    }

    fn finished(&mut self, rush: &mut Rush, index: usize, latency: Duration) {
        rush.requests += 1;
        rush.in_flight -= 1;
        rush.idle.push_back(index);
        self.record(latency);
        if self.lifetime == Lifetime::SingleRequest {
            self.connections[index] = None;
        }
    }

    /// Counts the exchanges that got lost; their connections get new sockets and are idle then.
    fn give_up_lost(&mut self, rush: &mut Rush, now: Instant, patience: Duration) {
        for index in 0..self.connections.len() {
            if !self.connections[index].as_ref().is_some_and(|known| known.is_lost(now)) {
                continue;
            }
            self.tally.lost += 1;
            rush.in_flight -= 1;
            self.connections[index] = None;
            match self.open(index, patience) {
                Ok(()) => rush.idle.push_back(index),
                Err(error) => self.tally.error(format!("cannot reconnect: {error}")),
            }
        }
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

    fn abandon(&mut self, rush: &Rush, patience: Duration) {
        for (index, slot) in self.connections.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(|connection| connection.in_flight_since().is_some()) {
                *slot = None;
                let seconds = patience.as_secs_f64();
                self.tally.error(format!(
                    "connection {index}: no reply within {seconds} s after the burst"
                ));
            }
        }
        for _ in 0..rush.schedule.overdue() {
            self.tally.error("a request was due and could not be sent".into());
        }
    }
}
