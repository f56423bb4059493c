//! Socket calls that never wait, socket addresses, and the clock.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::slice;
use std::time::Duration;

/// The most parts that sendmsg(2) and writev(2) take: `UIO_MAXIOV` of linux/uio.h.
pub(super) const IOV_MAX: usize = 1024;

#[inline]
pub(super) fn check(result: libc::ssize_t) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// Repeats a call that a signal interrupted.
#[inline]
pub(super) fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match check(call()) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            result => return result,
        }
    }
}

/// Counts nothing where the call would have to wait.
pub fn ignore_would_block(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// Receives what is there, 0 at the end of the stream: recv(2) with `MSG_DONTWAIT`.
///
/// # Errors
/// Those of recv(2), `EAGAIN` if there is nothing.
#[inline]
pub fn recv(fd: RawFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of an exclusively borrowed slice.
    retry(|| unsafe { libc::recv(fd, buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) })
}

/// Like [`recv`], into memory that may be uninitialised; returns what was received.
#[inline]
pub fn recv_uninit(fd: RawFd, room: &mut [MaybeUninit<u8>]) -> io::Result<&mut [u8]> {
    let start = room.as_mut_ptr();
    // SAFETY: the pointer and length are those of an exclusively borrowed slice.
    let count = retry(|| unsafe { libc::recv(fd, start.cast(), room.len(), libc::MSG_DONTWAIT) })?;
    // SAFETY: the kernel has written so many bytes, at most as many as there is room for.
    Ok(unsafe { slice::from_raw_parts_mut(start.cast(), count) })
}

/// Sends as much as there is room for: send(2) with `MSG_DONTWAIT | MSG_NOSIGNAL`.
///
/// # Errors
/// Those of send(2), `EAGAIN` if there is no room.
#[inline]
pub fn send(fd: RawFd, data: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and length are those of a borrowed slice.
    retry(|| unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), flags) })
}

/// Like [`send`], of several parts as if they were one: sendmsg(2). Parts beyond the 1024th are
/// not sent, as if there had been no room for them.
#[inline]
pub fn send_vectored<'a>(fd: RawFd, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
    let mut parts = parts.take(IOV_MAX).map(IoSlice::new);
    let mut few = [IoSlice::new(&[]); 8];
    let mut count = 0;
    for (place, part) in few.iter_mut().zip(&mut parts) {
        *place = part;
        count += 1;
    }
    match parts.next() {
        None => send_slices(fd, &few[..count]),
        Some(next) => {
            let all: Vec<_> = few.into_iter().chain([next]).chain(parts).collect();
            send_slices(fd, &all)
        }
    }
}

fn send_slices(fd: RawFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: msghdr is plain data, for which all zeros is "nothing".
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    // The kernel only reads them, and std guarantees that IoSlice is laid out like iovec.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    // SAFETY: `message` refers to as many valid parts as it says, borrowed during the call.
    retry(|| unsafe { libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

/// Takes a connection, non-blocking and close-on-exec: accept4(2). Waits for one unless `fd` is
/// non-blocking.
pub(super) fn accept(fd: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the peer's address is not asked for.
    let accept = || unsafe { libc::accept4(fd, ptr::null_mut(), ptr::null_mut(), flags) } as _;
    // SAFETY: accept4 succeeded, so this is a new descriptor without another owner.
    retry(accept).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes calls on the file that would wait fail instead: ioctl(2) with `FIONBIO`.
pub(super) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer is to the integer that the call reads.
    check(unsafe { libc::ioctl(fd, libc::FIONBIO, &raw const on) } as _).map(drop)
}

/// Receives a datagram, cut to the length of `buf`, and where it comes from: recvfrom(2) with
/// `MSG_DONTWAIT`. The address is empty where the sender has none.
///
/// # Errors
/// Those of recvfrom(2), `EAGAIN` if there is nothing.
#[inline]
pub fn recv_from(fd: RawFd, buf: &mut [u8], from: &mut SocketAddress) -> io::Result<usize> {
    from.len = SocketAddress::ROOM;
    // SAFETY: the pointers and lengths are those of an exclusively borrowed slice and address. An
    // address that is longer than its room is cut, which `len` then tells. A call that a signal
    // interrupts leaves `len` as it is.
    let count = retry(|| unsafe {
        let (address, len) = ((&raw mut from.storage).cast(), &raw mut from.len);
        libc::recvfrom(fd, buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT, address, len)
    })?;
    from.len = from.len.min(SocketAddress::ROOM);
    Ok(count)
}

/// Sends a datagram: sendto(2) with `MSG_DONTWAIT | MSG_NOSIGNAL`.
///
/// # Errors
/// Those of sendto(2), `EAGAIN` if there is no room.
#[inline]
pub fn send_to(fd: RawFd, data: &[u8], to: &SocketAddress) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointers and lengths are those of a borrowed slice and a borrowed address.
    retry(|| unsafe {
        libc::sendto(fd, data.as_ptr().cast(), data.len(), flags, to.as_ptr(), to.len())
    })
}

/// Ends the stream that is sent: shutdown(2) with `SHUT_WR`.
pub fn shutdown_write(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(fd, libc::SHUT_WR) } as _).map(drop)
}

/// Whether the connection is gone in both directions: poll(2).
pub fn is_hung_up(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: the pointer is to one pollfd.
    let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
    count > 0 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
}

/// Closes a descriptor: close(2). `EINTR` is success, since Linux has closed it by then.
pub fn close(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers; that the descriptor is the caller's to close is the caller's business,
    // as with every call here that takes a number.
    match check(unsafe { libc::close(fd) } as _) {
        Err(error) if error.raw_os_error() != Some(libc::EINTR) => Err(error),
        _ => Ok(()),
    }
}

/// Sends small segments at once: `TCP_NODELAY` of tcp(7).
pub fn set_nodelay(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length are those of `on`.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(result as _).map(drop)
}

/// Fails where epoll_ctl(2) with `EPOLL_CTL_ADD` would: `EBADF` for a closed descriptor, `EPERM`
/// for regular files, directories and others that are always ready.
pub fn check_pollable(fd: RawFd) -> io::Result<()> {
    match file_type(fd)? {
        libc::S_IFSOCK | libc::S_IFIFO => Ok(()),
        libc::S_IFREG | libc::S_IFDIR => Err(io::Error::from_raw_os_error(libc::EPERM)),
        // Devices and anonymous inodes: only the kernel knows.
        _ => try_epoll(fd),
    }
}

/// `S_IFIFO`, `S_IFSOCK`, `S_IFCHR`, ...: fstat(2).
pub(super) fn file_type(fd: RawFd) -> io::Result<libc::mode_t> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes one stat structure, for which there is room.
    check(unsafe { libc::fstat(fd, status.as_mut_ptr()) } as _)?;
    // SAFETY: fstat succeeded, so it has written all of it.
    Ok(unsafe { status.assume_init() }.st_mode & libc::S_IFMT)
}

fn try_epoll(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers; checked before it is used as a descriptor.
    let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } as _)? as RawFd;
    // SAFETY: epoll_create1 succeeded, so this is a new descriptor without another owner.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the pointer is to one epoll_event.
    let result =
        unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    check(result as _).map(drop)
}

/// The clock of Python's `time.monotonic()`: clock_gettime(2) with `CLOCK_MONOTONIC`.
#[inline]
pub fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to one timespec. The call cannot fail for this clock; if it did, the
    // time would be 0.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// An address of any family, as the kernel has it: sockaddr_storage(3type) and its length.
#[derive(Clone, Copy)]
pub struct SocketAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl SocketAddress {
    const PATH: usize = offset_of!(libc::sockaddr_un, sun_path);
    const ROOM: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

    /// No address, of no family.
    pub fn empty() -> Self {
        SocketAddress {
            // SAFETY: sockaddr_storage is plain data, for which all zeros is AF_UNSPEC.
            storage: unsafe { MaybeUninit::zeroed().assume_init() },
            len: 0,
        }
    }

    /// An address whose first bytes are those of `address`.
    fn from_raw<A: Copy>(address: A, len: usize) -> Self {
        const { assert!(size_of::<A>() <= size_of::<libc::sockaddr_storage>()) };
        let mut this = Self::empty();
        // SAFETY: the storage is large enough, checked above, and has the strictest alignment of
        // all address types.
        unsafe { (&raw mut this.storage).cast::<A>().write(address) };
        this.len = len.min(size_of::<A>()) as libc::socklen_t;
        this
    }

    fn read<A: Copy>(&self) -> Option<A> {
        const { assert!(size_of::<A>() <= size_of::<libc::sockaddr_storage>()) };
        if (self.len as usize) < size_of::<A>() {
            return None;
        }
        // SAFETY: the storage is large and aligned enough, as in from_raw, and wholly initialised;
        // the address types are plain integers.
        Some(unsafe { (&raw const self.storage).cast::<A>().read() })
    }

    /// The address that `fd` is connected to: getpeername(2).
    pub fn peer(fd: RawFd) -> io::Result<Self> {
        Self::ask(fd, libc::getpeername)
    }

    /// The address that `fd` is bound to: getsockname(2).
    pub fn local(fd: RawFd) -> io::Result<Self> {
        Self::ask(fd, libc::getsockname)
    }

    fn ask(
        fd: RawFd,
        call: unsafe extern "C" fn(
            libc::c_int,
            *mut libc::sockaddr,
            *mut libc::socklen_t,
        ) -> libc::c_int,
    ) -> io::Result<Self> {
        let mut this = Self::empty();
        this.len = Self::ROOM;
        // SAFETY: both calls write at most `len` bytes of address, and its full length to `len`.
        let result = unsafe { call(fd, (&raw mut this.storage).cast(), &raw mut this.len) };
        check(result as _)?;
        this.len = this.len.min(Self::ROOM);
        Ok(this)
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(super) fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// `AF_INET`, `AF_INET6`, `AF_UNIX`, ...; `AF_UNSPEC` for no address.
    pub fn family(&self) -> i32 {
        if self.len == 0 { libc::AF_UNSPEC } else { i32::from(self.storage.ss_family) }
    }

    fn as_bytes(&self) -> &[u8] {
        // SAFETY: the storage is wholly initialised and at least `len` bytes long.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len as usize) }
    }

    /// The IPv4 or IPv6 address with its port, and for IPv6 flow information and scope id.
    pub fn inet(&self) -> Option<SocketAddr> {
        match self.family() {
            libc::AF_INET => {
                let raw: libc::sockaddr_in = self.read()?;
                let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
                let port = u16::from_be(raw.sin_port);
                Some(SocketAddr::V4(SocketAddrV4::new(ip, port)))
            }
            libc::AF_INET6 => {
                let raw: libc::sockaddr_in6 = self.read()?;
                Some(SocketAddr::V6(SocketAddrV6::new(
                    Ipv6Addr::from(raw.sin6_addr.s6_addr),
                    u16::from_be(raw.sin6_port),
                    u32::from_be(raw.sin6_flowinfo),
                    raw.sin6_scope_id,
                )))
            }
            _ => None,
        }
    }

    /// The flow information in host byte order, as Python's socket module has it.
    pub fn from_inet(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                Self::from_raw(raw, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo().to_be(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                Self::from_raw(raw, size_of::<libc::sockaddr_in6>())
            }
        }
    }

    /// The path of a Unix address: unix(7). Empty for an unnamed socket; an abstract name begins
    /// with a NUL. `None` for other families.
    pub fn unix_path(&self) -> Option<&[u8]> {
        if self.family() != libc::AF_UNIX {
            return None;
        }
        let len = (self.len as usize).clamp(Self::PATH, size_of::<libc::sockaddr_un>());
        // SAFETY: the storage is larger than sockaddr_un, wholly initialised, and borrowed for as
        // long as the slice.
        let path = unsafe {
            std::slice::from_raw_parts(
                (&raw const self.storage).cast::<u8>().add(Self::PATH),
                len - Self::PATH,
            )
        };
        match path {
            [] | [0, ..] => Some(path),
            // Path names end with a NUL that the length may or may not count.
            _ => path.split(|byte| *byte == 0).next(),
        }
    }

    /// The address of a path, or with a leading NUL of an abstract name. An empty path is the
    /// address with which bind(2) picks an abstract name.
    ///
    /// # Errors
    /// `ENAMETOOLONG` over 107 bytes (108 for abstract names), `EINVAL` for a path with a NUL in
    /// it.
    pub fn from_unix_path(path: &[u8]) -> io::Result<Self> {
        let abstract_name = matches!(path, [] | [0, ..]);
        // SAFETY: sockaddr_un is plain data, for which all zeros is valid.
        let mut raw: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
        raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
        if path.len() + usize::from(!abstract_name) > raw.sun_path.len() {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        if !abstract_name && path.contains(&0) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        for (to, from) in raw.sun_path.iter_mut().zip(path) {
            *to = *from as libc::c_char;
        }
        let len = Self::PATH + path.len() + usize::from(!abstract_name);
        Ok(Self::from_raw(raw, len))
    }
}

/// An IP address as inet_ntop(3) writes it. Rust writes IPv4-compatible addresses, as
/// `::192.0.2.1`, without dots.
pub fn host_text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
                format!("::{}", Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
            }
            _ => v6.to_string(),
        },
    }
}

impl PartialEq for SocketAddress {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for SocketAddress {}

impl fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.inet() {
            write!(f, "SocketAddress({address})")
        } else if let Some(path) = self.unix_path() {
            write!(f, "SocketAddress(unix:{})", path.escape_ascii())
        } else {
            write!(f, "SocketAddress(family {})", self.family())
        }
    }
}
