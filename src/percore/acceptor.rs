//! The main thread's driver: it accepts on every listening socket and notices signals.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::driver::{Driver, OpId, Outcome, Wait, Waker, socket};

/// How long to wait before trying again when file descriptors or memory have run out.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Errors of accept(2) that concern one connection, which is gone already.
const TRANSIENT: [i32; 4] = [libc::ECONNABORTED, libc::EINTR, libc::EAGAIN, libc::EPROTO];

/// What an operation of the acceptor is on.
#[derive(Clone, Copy)]
pub enum Source {
    Listener(usize),
    Signals,
}

/// What [`Acceptor::take`] finds.
pub enum Found {
    Connection(OwnedFd),
    /// accept(2) failed; it is tried again after a while.
    Error(io::Error),
}

pub struct Acceptor {
    driver: Driver<Source>,
    listeners: Vec<RawFd>,
    /// The accept operation of each listener that has one.
    accepts: Vec<Option<OpId>>,
    accepting: bool,
    retry_at: Option<Instant>,
    signals: RawFd,
}

impl Acceptor {
    /// `signals` is a socket that becomes readable when a signal arrives (signal.set_wakeup_fd).
    pub fn new(driver: Driver<Source>, listeners: Vec<RawFd>, signals: RawFd) -> Self {
        let accepts = vec![None; listeners.len()];
        let mut acceptor =
            Acceptor { driver, listeners, accepts, accepting: false, retry_at: None, signals };
        acceptor.watch_signals();
        acceptor
    }

    pub fn waker(&self) -> Waker {
        self.driver.waker()
    }

    pub fn start(&mut self) -> io::Result<()> {
        self.accepting = true;
        self.accept_where_idle()
    }

    /// Stops accepting: on return the listening sockets can be closed.
    pub fn stop(&mut self) -> io::Result<()> {
        self.accepting = false;
        let ops: Vec<OpId> = self.accepts.iter_mut().filter_map(Option::take).collect();
        self.driver.cancel(&ops)
    }

    /// A wait for the next connection, signal or wake-up, of at most `limit`.
    pub fn prepare_wait(&mut self, limit: Option<Duration>) -> Wait<'_> {
        let retry = self.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = match (limit, retry) {
            (Some(limit), Some(retry)) => Some(limit.min(retry)),
            (limit, retry) => limit.or(retry),
        };
        self.driver.prepare_wait(timeout)
    }

    /// The next connection or error that has come, until there is none.
    pub fn take(&mut self) -> io::Result<Option<Found>> {
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
            self.accept_where_idle()?;
        }
        while let Some(event) = self.driver.next() {
            match (event.owner, event.outcome) {
                (Source::Signals, _) => {
                    let mut bytes = [0; 64];
                    while socket::recv(self.signals, &mut bytes).is_ok_and(|count| count > 0) {}
                    if !event.more {
                        self.watch_signals();
                    }
                }
                (Source::Listener(index), Outcome::Accept(result)) => {
                    let current = self.accepts[index] == Some(event.op);
                    if current && !event.more {
                        self.accepts[index] = None;
                    }
                    match result {
                        // Accepted while accepting ended: dropped, as those in the backlog are.
                        _ if !current => {}
                        Ok(connection) => {
                            if !event.more {
                                self.accept_where_idle()?;
                            }
                            return Ok(Some(Found::Connection(connection)));
                        }
                        Err(error) if is_transient(&error) => self.accept_where_idle()?,
                        Err(error) => {
                            self.retry_at = Some(Instant::now() + RETRY_DELAY);
                            return Ok(Some(Found::Error(error)));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn accept_where_idle(&mut self) -> io::Result<()> {
        if !self.accepting {
            return Ok(());
        }
        for (index, accept) in self.accepts.iter_mut().enumerate() {
            if accept.is_none() {
                let source = Source::Listener(index);
                *accept = Some(self.driver.accept(self.listeners[index], source)?);
            }
        }
        Ok(())
    }

    /// Where this fails, signals still interrupt the wait when the main thread receives them.
    fn watch_signals(&mut self) {
        let _ = self.driver.poll(self.signals, libc::POLLIN as u32, true, Source::Signals);
    }
}

fn is_transient(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| TRANSIENT.contains(&errno))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::driver::{Choice, Config};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_secs(5);

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn acceptor(choice: Choice, listeners: &[TcpListener], signals: &UnixStream) -> Acceptor {
        let driver = Driver::new(&Config::default(), choice).unwrap();
        let listeners = listeners.iter().map(AsRawFd::as_raw_fd).collect();
        Acceptor::new(driver, listeners, signals.as_raw_fd())
    }

    fn wait_for_connection(acceptor: &mut Acceptor) -> OwnedFd {
        let limit = Instant::now() + SOON;
        while Instant::now() < limit {
            acceptor.prepare_wait(Some(SOON)).block().unwrap();
            while let Some(found) = acceptor.take().unwrap() {
                if let Found::Connection(connection) = found {
                    return connection;
                }
            }
        }
        panic!("no connection in time");
    }

    #[test]
    fn accepts_on_every_listener_until_stopped() {
        for choice in [Choice::Uring, Choice::Epoll] {
            let listeners = [listener(), listener()];
            let (signals, _ours) = UnixStream::pair().unwrap();
            let mut acceptor = acceptor(choice, &listeners, &signals);
            acceptor.start().unwrap();
            for listener in &listeners {
                let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                drop(wait_for_connection(&mut acceptor));
            }
            acceptor.stop().unwrap();
            let address = listeners[0].local_addr().unwrap();
            drop(listeners);
            let again = TcpListener::bind(address).unwrap();
            drop(again);
        }
    }

    #[test]
    fn a_signal_ends_the_wait() {
        for choice in [Choice::Uring, Choice::Epoll] {
            let (signals, mut ours) = UnixStream::pair().unwrap();
            signals.set_nonblocking(true).unwrap();
            let mut acceptor = acceptor(choice, &[], &signals);
            ours.write_all(&[15]).unwrap();
            let start = Instant::now();
            acceptor.prepare_wait(Some(SOON)).block().unwrap();
            assert!(acceptor.take().unwrap().is_none());
            assert!(start.elapsed() < SOON);
            // Drained: the next wait lasts.
            acceptor.prepare_wait(Some(Duration::from_millis(20))).block().unwrap();
            assert!(acceptor.take().unwrap().is_none());
        }
    }
}
