//! Direct socket calls and addresses.

use std::fs::File;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};

use super::*;
use crate::driver::socket::*;

#[test]
fn calls_on_blocking_sockets_do_not_wait() {
    let (near, far) = UnixStream::pair().unwrap();
    let fd = near.as_raw_fd();
    assert_errno(recv(fd, &mut [0; 8]), libc::EAGAIN);
    assert_eq!(send(far.as_raw_fd(), b"hello").unwrap(), 5);
    let mut buf = [0; 8];
    assert_eq!(recv(fd, &mut buf).unwrap(), 5);
    assert_eq!(&buf[..5], b"hello");
    while send(fd, &[0; 1 << 16]).is_ok() {}
    assert_errno(send(fd, b"x"), libc::EAGAIN);
    assert_errno(send_vectored(fd, [&b"x"[..]].into_iter()), libc::EAGAIN);
    shutdown_write(far.as_raw_fd()).unwrap();
    assert_eq!(recv(fd, &mut buf).unwrap(), 0);
    drop(far);
    assert_errno(send(fd, b"no signal"), libc::EPIPE);
    assert_errno(send_vectored(fd, [&b"x"[..]].into_iter()), libc::EPIPE);
}

#[test]
fn parts_are_sent_in_order_and_at_most_1024() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let data: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
    assert_eq!(send_vectored(near.as_raw_fd(), data.chunks(2)).unwrap(), 2048);
    assert_eq!(send_vectored(near.as_raw_fd(), [].into_iter()).unwrap(), 0);
    drop(near);
    let mut got = Vec::new();
    far.read_to_end(&mut got).unwrap();
    assert_eq!(got, data[..2048]);
}

#[test]
fn any_number_of_parts_is_sent() {
    for count in [1, 7, 8, 9, 10, 1023] {
        let (near, mut far) = UnixStream::pair().unwrap();
        let data: Vec<u8> = (0..count).map(|n| n as u8).collect();
        assert_eq!(send_vectored(near.as_raw_fd(), data.chunks(1)).unwrap(), count);
        drop(near);
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert_eq!(got, data);
    }
}

#[test]
fn datagrams_come_with_their_senders_address() {
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = SocketAddress::local(far.as_raw_fd()).unwrap();
    let mut from = SocketAddress::empty();
    let mut buf = [0; 8];
    assert_errno(recv_from(far.as_raw_fd(), &mut buf, &mut from), libc::EAGAIN);
    for data in [&b"one"[..], b"", b"longer than the buffer"] {
        assert_eq!(send_to(near.as_raw_fd(), data, &to).unwrap(), data.len());
        let count = recv_from(far.as_raw_fd(), &mut buf, &mut from).unwrap();
        assert_eq!(buf[..count], data[..data.len().min(8)]);
        assert_eq!(from, SocketAddress::local(near.as_raw_fd()).unwrap());
        assert_ne!(from, to);
    }
    assert_errno(send_to(near.as_raw_fd(), &[0; 65508], &to), libc::EMSGSIZE);
}

#[test]
fn an_unnamed_sender_has_no_address() {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.send(b"x").unwrap();
    let mut from = SocketAddress::from_unix_path(b"/left/over").unwrap();
    assert_eq!(recv_from(far.as_raw_fd(), &mut [0; 8], &mut from).unwrap(), 1);
    assert_eq!(from.family(), libc::AF_UNSPEC);
    assert_eq!((from.unix_path(), from.inet()), (None, None));
    assert_eq!(from, SocketAddress::empty());
}

#[test]
fn hosts_are_written_as_inet_ntop_does() {
    for text in ["127.0.0.1", "::", "::1", "::1.2.3.4", "::ffff:1.2.3.4", "1::", "1:0:2::4"] {
        assert_eq!(host_text(text.parse().unwrap()), text);
    }
    assert_eq!(host_text("::0102:0304".parse().unwrap()), "::1.2.3.4");
    assert_eq!(host_text("1:2:3:4:5:6:0:8".parse().unwrap()), "1:2:3:4:5:6:0:8");
}

#[test]
fn what_epoll_refuses_is_not_pollable() {
    let (near, _far) = UnixStream::pair().unwrap();
    check_pollable(near.as_raw_fd()).unwrap();
    let (reader, _writer) = io::pipe().unwrap();
    check_pollable(reader.as_raw_fd()).unwrap();
    // SAFETY: no pointers; checked before it is used as a descriptor.
    let eventfd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(eventfd >= 0);
    check_pollable(eventfd).unwrap();
    close(eventfd).unwrap();
    assert_errno(check_pollable(eventfd), libc::EBADF);
    assert_errno(close(eventfd), libc::EBADF);
    for path in ["/proc/self/exe", "/", "/dev/null"] {
        let file = File::open(path).unwrap();
        assert_errno(check_pollable(file.as_raw_fd()), libc::EPERM);
    }
}

#[test]
fn nodelay_is_for_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert!(!stream.nodelay().unwrap());
    set_nodelay(stream.as_raw_fd()).unwrap();
    assert!(stream.nodelay().unwrap());
    let (unix, _other) = UnixStream::pair().unwrap();
    assert_errno(set_nodelay(unix.as_raw_fd()), libc::EOPNOTSUPP);
}

#[test]
fn inet_addresses_survive_the_round_trip() {
    for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::1]:8080", "[2001:db8::7]:1"] {
        let address: SocketAddr = text.parse().unwrap();
        let raw = SocketAddress::from_inet(address);
        assert_eq!(raw.inet(), Some(address));
        assert_eq!(raw.unix_path(), None);
        assert_eq!(format!("{raw:?}"), format!("SocketAddress({text})"));
    }
    let full = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9, 0x12345, 7);
    let raw = SocketAddress::from_inet(full.into());
    assert_eq!(raw.inet(), Some(full.into()));
    assert_eq!(raw.family(), libc::AF_INET6);
}

#[test]
fn addresses_are_those_the_kernel_knows() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = SocketAddress::peer(stream.as_raw_fd()).unwrap();
    assert_eq!(peer.inet(), Some(listener.local_addr().unwrap()));
    let local = SocketAddress::local(stream.as_raw_fd()).unwrap();
    assert_eq!(local.inet(), Some(stream.local_addr().unwrap()));
    assert_errno(SocketAddress::peer(listener.as_raw_fd()), libc::ENOTCONN);
    assert_errno(SocketAddress::local(-1), libc::EBADF);
    if let Ok(v6) = UdpSocket::bind("[::1]:0") {
        let local = SocketAddress::local(v6.as_raw_fd()).unwrap();
        assert_eq!(local.inet(), Some(v6.local_addr().unwrap()));
    }
}

#[test]
fn unix_addresses() {
    let (unnamed, _other) = UnixStream::pair().unwrap();
    let local = SocketAddress::local(unnamed.as_raw_fd()).unwrap();
    assert_eq!(local.unix_path(), Some(&b""[..]));
    assert_eq!((local.family(), local.inet()), (libc::AF_UNIX, None));
    let longest = [b'p'; 107];
    let longest_abstract = [&[0][..], &[b'a'; 107]].concat();
    for path in [&b"/tmp/x"[..], b"\0abstract", b"\0a\0b", &longest, &longest_abstract] {
        let address = SocketAddress::from_unix_path(path).unwrap();
        assert_eq!(address.unix_path(), Some(path));
    }
    for path in [[b'p'; 108].to_vec(), [&[0][..], &[b'a'; 108]].concat()] {
        assert_errno(SocketAddress::from_unix_path(&path), libc::ENAMETOOLONG);
    }
    assert_errno(SocketAddress::from_unix_path(b"a\0b"), libc::EINVAL);
}

#[test]
fn the_clock_goes_forward() {
    let start = monotonic();
    std::thread::sleep(Duration::from_millis(2));
    assert!(monotonic() - start >= Duration::from_millis(2));
}
