//! Where a target is, and a socket connected to it: TCP, TLS, Unix stream or UDP.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{self, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpStream, UdpSocket, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::sockopt::set_socket_linger;

use crate::tls::TlsStream;

/// What is reached how: `HOST:PORT`, `tls:HOST:PORT`, `unix:PATH` or `udp:HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Tls(SocketAddr),
    Unix(PathBuf),
    Udp(SocketAddr),
}

impl FromStr for Address {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let resolve = |host: &str| {
            let none = || io::Error::new(io::ErrorKind::NotFound, "no address");
            host.to_socket_addrs()?.next().ok_or_else(none)
        };
        if let Some(path) = text.strip_prefix("unix:") {
            Ok(Self::Unix(path.into()))
        } else if let Some(host) = text.strip_prefix("tls:") {
            resolve(host).map(Self::Tls)
        } else if let Some(host) = text.strip_prefix("udp:") {
            resolve(host).map(Self::Udp)
        } else {
            resolve(text).map(Self::Tcp)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(formatter, "{address}"),
            Self::Tls(address) => write!(formatter, "tls:{address}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Udp(address) => write!(formatter, "udp:{address}"),
        }
    }
}

/// A socket that never waits.
pub enum Socket {
    Tcp(TcpStream),
    Tls(TlsStream),
    Unix(UnixStream),
    Udp(UdpSocket),
}

impl Socket {
    /// Connects, over TCP within `timeout`, and shakes hands.
    pub fn connect(address: &Address, timeout: Duration) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let stream = net::TcpStream::connect_timeout(address, timeout)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpStream::from_std(stream)))
            }
            Address::Tls(address) => {
                let stream = net::TcpStream::connect_timeout(address, timeout)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(timeout))?;
                TlsStream::handshake(stream).map(Self::Tls)
            }
            Address::Unix(path) => {
                let stream = unix::net::UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Self::Unix(UnixStream::from_std(stream)))
            }
            Address::Udp(address) => {
                let any = match address {
                    SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(*address)?;
                Ok(Self::Udp(socket))
            }
        }
    }

    /// Begins to connect over TCP: the socket takes and gives nothing until it is connected. It is
    /// closed by a reset, which leaves nothing behind that would occupy the port for a minute.
    /// Other sockets connect as above.
    pub fn dial(address: &Address, timeout: Duration) -> io::Result<Self> {
        let Address::Tcp(address) = address else { return Self::connect(address, timeout) };
        let stream = TcpStream::connect(*address)?;
        stream.set_nodelay(true)?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(Self::Tcp(stream))
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let source: &mut dyn Source = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => &mut stream.tcp,
            Self::Unix(stream) => stream,
            Self::Udp(socket) => socket,
        };
        registry.register(source, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Whether what is sent, or its reply, may get lost without a word.
    pub fn is_lossy(&self) -> bool {
        matches!(self, Self::Udp(_))
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Udp(socket) => socket.recv(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(data),
            Self::Tls(stream) => stream.write(data),
            Self::Unix(stream) => stream.write(data),
            Self::Udp(socket) => socket.send(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
