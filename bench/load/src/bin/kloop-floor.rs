//! `kloop-floor`: the least that an echo costs, to set event loops against.
//!
//! Level-triggered epoll, one buffer, one read and one write per event: what is read is written
//! back at once, and only what the socket does not take is kept.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

use kloop_load::clock::pin_to_cpu;
use lexopt::prelude::*;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::process::{Signal, set_parent_process_death_signal};

const USAGE: &str = "usage: kloop-floor --listen HOST:PORT|unix:PATH|udp:HOST:PORT [--cpu K]";

/// As large as the largest read of any loop it is compared with.
const BUFFER_BYTES: usize = 256 * 1024;

/// Events taken from the kernel at a time.
const EVENTS: usize = 256;

trait Stream: Read + Write + AsFd {}

impl<T: Read + Write + AsFd> Stream for T {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _): (TcpStream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => {
                let (stream, _): (UnixStream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

struct Connection {
    stream: Box<dyn Stream>,
    /// What the socket did not take; nothing is read while there is any.
    unsent: Vec<u8>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("kloop-floor: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let (mut address, mut parser) = (None, lexopt::Parser::from_env());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => address = Some(parser.value()?.string()?),
            Long("cpu") => pin_to_cpu(parser.value()?.parse()?)?,
            other => return Err(other.unexpected().into()),
        }
    }
    let address = address.ok_or(USAGE)?;
    if let Some(host) = address.strip_prefix("udp:") {
        let socket = UdpSocket::bind(host)?;
        println!("LISTENS udp:{}", socket.local_addr()?);
        echo_datagrams(&socket)?;
    } else if let Some(path) = address.strip_prefix("unix:") {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        println!("LISTENS {address}");
        echo_streams(&Listener::Unix(listener))?;
    } else {
        let listener = TcpListener::bind(&address)?;
        listener.set_nonblocking(true)?;
        println!("LISTENS {}", listener.local_addr()?);
        echo_streams(&Listener::Tcp(listener))?;
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (count, from) = socket.recv_from(&mut buffer)?;
        // The client may be gone.
        let _ = socket.send_to(&buffer[..count], from);
    }
}

fn echo_streams(listener: &Listener) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let listening = slot(listener);
    epoll::add(&epoll, listener, EventData::new_u64(listening as u64), EventFlags::IN)?;
    // By descriptor; an event that comes late finds the slot empty or the socket not ready.
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        for event in &events {
            let index = event.data.u64() as usize;
            if index == listening {
                // Level-triggered: the next connection is another event.
                let Some(stream) = ready(listener.accept())? else { continue };
                let index = slot(&stream);
                epoll::add(&epoll, &stream, EventData::new_u64(index as u64), EventFlags::IN)?;
                connections.resize_with(connections.len().max(index + 1), || None);
                connections[index] = Some(Connection { stream, unsent: Vec::new() });
                continue;
            }
            let Some(connection) = &mut connections[index] else { continue };
            let was_stuck = !connection.unsent.is_empty();
            if !connection.turn(&mut buffer).unwrap_or(false) {
                connections[index] = None;
                continue;
            }
            let is_stuck = !connection.unsent.is_empty();
            if is_stuck != was_stuck {
                let flags = if is_stuck { EventFlags::OUT } else { EventFlags::IN };
                let data = EventData::new_u64(index as u64);
                epoll::modify(&epoll, &connection.stream, data, flags)?;
            }
        }
    }
}

/// The descriptor's number, which is small.
fn slot(socket: &impl AsFd) -> usize {
    socket.as_fd().as_raw_fd() as usize
}

impl Connection {
    /// Echoes once, or goes on with what is unsent; whether the connection lives on.
    fn turn(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        if self.unsent.is_empty() {
            let count = match ready(self.stream.read(buffer))? {
                None => return Ok(true),
                Some(0) => return Ok(false),
                Some(count) => count,
            };
            let sent = ready(self.stream.write(&buffer[..count]))?.unwrap_or(0);
            self.unsent.extend_from_slice(&buffer[sent..count]);
        } else {
            let sent = ready(self.stream.write(&self.unsent))?.unwrap_or(0);
            self.unsent.drain(..sent);
        }
        Ok(true)
    }
}

/// None where the socket was not ready, which is no error.
fn ready<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
