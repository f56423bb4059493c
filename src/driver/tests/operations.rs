//! What each operation does and reports.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;

use super::*;

#[test]
fn one_shot_poll_ends_with_its_report() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let op = driver.poll(near.as_raw_fd(), IN, false, 5).unwrap();
    assert_eq!(driver.in_flight(), 1);
    assert_eq!(driver.owners().copied().collect::<Vec<_>>(), [5]);
    no_event(&mut driver);
    far.write_all(b"x").unwrap();
    let event = event(&mut driver);
    assert_eq!((event.op, event.owner, event.more), (op, 5, false));
    assert!(matches!(event.outcome, Outcome::Poll(Ok(IN))), "{event:?}");
    assert_eq!(driver.in_flight(), 0);
    assert_eq!(driver.owners().count(), 0);
}

#[test]
fn multishot_poll_reports_each_arrival_and_what_was_there() {
    let mut driver = driver();
    let (near, mut far) = pair();
    far.write_all(b"first").unwrap();
    let op = driver.poll(near.as_raw_fd(), IN, true, 5).unwrap();
    for _ in 0..3 {
        let event = event(&mut driver);
        assert_eq!((event.op, event.owner, event.more), (op, 5, true));
        assert!(matches!(event.outcome, Outcome::Poll(Ok(mask)) if mask & IN != 0));
        let mut buf = [0; 16];
        assert!(socket::recv(near.as_raw_fd(), &mut buf).unwrap() > 0);
        assert_errno(socket::recv(near.as_raw_fd(), &mut buf), libc::EAGAIN);
        no_event(&mut driver);
        far.write_all(b"again").unwrap();
    }
    assert_eq!(driver.in_flight(), 1);
}

/// What lets a reader stop at a short count.
#[test]
fn an_end_that_comes_with_data_is_reported() {
    const RDHUP: u32 = libc::POLLRDHUP as u32;
    let mut driver = driver();
    for separately in [false, true] {
        let (near, mut far) = pair();
        let op = driver.poll(near.as_raw_fd(), IN | RDHUP, true, 5).unwrap();
        no_event(&mut driver);
        far.write_all(b"last").unwrap();
        if separately {
            let report = event(&mut driver);
            assert!(matches!(report.outcome, Outcome::Poll(Ok(IN))), "{report:?}");
        }
        far.shutdown(Shutdown::Write).unwrap();
        let mut mask = 0;
        while mask & RDHUP == 0 {
            let Outcome::Poll(Ok(more)) = event(&mut driver).outcome else { panic!() };
            mask |= more;
        }
        assert_eq!(mask, IN | RDHUP);
        driver.cancel(&[op]).unwrap();
        finish(&mut driver);
    }
}

#[test]
fn poll_for_writing_reports_room() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let sent = fill(&near);
    driver.poll(near.as_raw_fd(), OUT, false, 0).unwrap();
    no_event(&mut driver);
    let reader = thread::spawn(move || {
        far.read_exact(&mut vec![0; sent]).unwrap();
        far
    });
    let event = event(&mut driver);
    assert!(matches!(event.outcome, Outcome::Poll(Ok(mask)) if mask & OUT != 0));
    drop(reader.join().unwrap());
}

/// io_uring reports `POLLRDHUP` to polls that did not ask for it.
#[test]
fn a_poll_for_writing_waits_past_the_end_of_the_other_direction() {
    let mut driver = driver();
    for ended_before in [true, false] {
        let (near, mut far) = pair();
        let sent = fill(&near);
        if ended_before {
            far.shutdown(Shutdown::Write).unwrap();
        }
        let op = driver.poll(near.as_raw_fd(), OUT, false, 0).unwrap();
        no_event(&mut driver);
        if !ended_before {
            far.shutdown(Shutdown::Write).unwrap();
        }
        no_event(&mut driver);
        let reader = thread::spawn(move || far.read_exact(&mut vec![0; sent]).map(|()| far));
        let event = event(&mut driver);
        assert_eq!((event.op, event.more), (op, false));
        assert!(matches!(event.outcome, Outcome::Poll(Ok(OUT))), "{event:?}");
        let far = reader.join().unwrap().unwrap();
        assert_eq!(driver.in_flight(), 0);
        no_event(&mut driver);
        // Nothing holds the file any more.
        drop(near);
        far.set_read_timeout(Some(LIMIT)).unwrap();
        assert!(at_end(&far));
    }
}

#[test]
fn a_poll_for_writing_that_waits_past_an_end_can_be_cancelled() {
    let mut driver = driver();
    let (near, far) = pair();
    fill(&near);
    far.shutdown(Shutdown::Write).unwrap();
    let op = driver.poll(near.as_raw_fd(), OUT, false, 0).unwrap();
    no_event(&mut driver);
    driver.cancel(&[op]).unwrap();
    let Outcome::Poll(result) = event(&mut driver).outcome else { panic!() };
    assert_errno(result, libc::ECANCELED);
    no_event(&mut driver);
}

#[test]
fn poll_reports_hang_up_and_bad_descriptors() {
    let mut driver = driver();
    let (near, far) = UnixStream::pair().unwrap();
    driver.poll(near.as_raw_fd(), IN, true, 0).unwrap();
    no_event(&mut driver);
    drop(far);
    let hangup = event(&mut driver);
    assert!(matches!(hangup.outcome, Outcome::Poll(Ok(mask)) if mask & libc::POLLHUP as u32 != 0));
    driver.poll(-1, IN, true, 1).unwrap();
    let bad = event(&mut driver);
    assert!(!bad.more);
    let Outcome::Poll(result) = bad.outcome else { panic!("{bad:?}") };
    assert_errno(result, libc::EBADF);
}

/// As selectors do not: epoll refuses such files.
#[test]
fn files_that_never_make_anybody_wait_are_ready_at_once() {
    let mut driver = driver();
    for path in ["/", "/proc/self/exe", "/dev/null"] {
        let file = fs::File::open(path).unwrap();
        for multishot in [false, true] {
            for events in [IN, OUT, IN | OUT] {
                driver.poll(file.as_raw_fd(), events, multishot, 0).unwrap();
                let event = event(&mut driver);
                assert!(!event.more);
                assert!(matches!(event.outcome, Outcome::Poll(Ok(mask)) if mask == events));
            }
            driver.poll(file.as_raw_fd(), libc::POLLPRI as u32, multishot, 0).unwrap();
            let Outcome::Poll(result) = event(&mut driver).outcome else { panic!() };
            assert_errno(result, libc::EINVAL);
        }
    }
}

#[test]
fn each_poll_of_a_descriptor_ends_with_its_own_event() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    fill(&near);
    for owner in [1, 2] {
        driver.poll(fd, IN, false, owner).unwrap();
    }
    let writer = driver.poll(fd, OUT, false, 3).unwrap();
    no_event(&mut driver);
    far.write_all(b"x").unwrap();
    let mut owners = [event(&mut driver), event(&mut driver)].map(|event| event.owner);
    owners.sort_unstable();
    assert_eq!(owners, [1, 2]);
    no_event(&mut driver);
    driver.poll(fd, IN, false, 4).unwrap();
    assert_eq!(event(&mut driver).owner, 4);
    let drain = thread::spawn(move || while far.read(&mut [0; 1 << 16]).is_ok_and(|n| n > 0) {});
    assert_eq!(event(&mut driver).op, writer);
    drop(near);
    drain.join().unwrap();
}

#[test]
fn a_descriptor_is_polled_while_it_sends() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    let poll = driver.poll(fd, IN, true, 1).unwrap();
    no_event(&mut driver);
    let data: Vec<u8> = (0..8 << 20).map(|n: u32| (n % 251) as u8).collect();
    let send = driver.send(fd, data.clone(), 0, 2).unwrap();
    no_event(&mut driver);
    let peer = thread::spawn(move || {
        let mut got = vec![0; 8 << 20];
        let (first, second) = got.split_at_mut(1 << 20);
        far.read_exact(first).unwrap();
        far.write_all(b"half-way").unwrap();
        far.read_exact(second).unwrap();
        (far, got)
    });
    let (mut sent, mut readable) = (false, false);
    while !(sent && readable) {
        let event = event(&mut driver);
        match event.outcome {
            Outcome::Poll(Ok(IN)) => {
                assert_eq!((event.op, event.more), (poll, true));
                readable = true;
            }
            Outcome::Send(Ok(count), _) => {
                assert_eq!((event.op, count), (send, data.len()));
                sent = true;
            }
            other => panic!("{other:?}"),
        }
    }
    let (mut far, got) = peer.join().unwrap();
    assert!(got == data);
    assert_eq!(socket::recv(fd, &mut [0; 64]).unwrap(), 8);
    no_event(&mut driver);
    far.write_all(b"again").unwrap();
    assert_eq!(event(&mut driver).op, poll);
}

#[test]
fn two_descriptors_of_one_file() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let twin = near.try_clone().unwrap();
    let first = driver.poll(near.as_raw_fd(), IN, true, 1).unwrap();
    driver.poll(twin.as_raw_fd(), IN, true, 2).unwrap();
    no_event(&mut driver);
    far.write_all(b"x").unwrap();
    let mut owners = [event(&mut driver), event(&mut driver)].map(|event| event.owner);
    owners.sort_unstable();
    assert_eq!(owners, [1, 2]);
    driver.cancel(&[first]).unwrap();
    drop(near);
    assert_eq!(event(&mut driver).op, first);
    far.write_all(b"y").unwrap();
    assert_eq!(event(&mut driver).owner, 2);
    no_event(&mut driver);
}

#[test]
fn a_descriptor_that_is_closed_before_the_start_is_bad() {
    let mut driver = driver();
    if POLLER.is_some() {
        return; // which may start it at once
    }
    let (near, _far) = pair();
    let fd = near.as_raw_fd();
    driver.poll(fd, IN, false, 1).unwrap();
    driver.accept(fd, 2).unwrap();
    driver.send(fd, vec![1], 0, 3).unwrap();
    drop(near);
    for event in finish(&mut driver) {
        assert!(!event.more);
        match event.outcome {
            Outcome::Poll(result) => assert_errno(result, libc::EBADF),
            Outcome::Accept(result) => assert_errno(result, libc::EBADF),
            Outcome::Send(result, _) => assert_errno(result, libc::EBADF),
            Outcome::Receive(result) => assert_errno(result, libc::EBADF),
        }
    }
}

#[test]
fn what_is_no_socket_neither_accepts_nor_sends() {
    let mut driver = driver();
    let file = fs::File::open("/proc/self/exe").unwrap();
    let (reader, writer) = io::pipe().unwrap();
    for fd in [file.as_raw_fd(), reader.as_raw_fd(), writer.as_raw_fd()] {
        driver.accept(fd, 0).unwrap();
        let Outcome::Accept(result) = event(&mut driver).outcome else { panic!() };
        assert_errno(result, libc::ENOTSOCK);
        driver.send(fd, vec![1], 0, 0).unwrap();
        let Outcome::Send(result, buf) = event(&mut driver).outcome else { panic!() };
        assert_errno(result, libc::ENOTSOCK);
        assert_eq!(buf, [1]);
    }
}

#[test]
fn accept_goes_on_and_makes_non_blocking_descriptors() {
    let mut driver = driver();
    let listener = listener();
    let op = driver.accept(listener.as_raw_fd(), 9).unwrap();
    for _ in 0..3 {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let event = event(&mut driver);
        assert_eq!((event.op, event.owner, event.more), (op, 9, true));
        let Outcome::Accept(Ok(fd)) = event.outcome else { panic!("{event:?}") };
        // SAFETY: fcntl with these commands takes no pointers.
        let (status, flags) = unsafe {
            let fd = fd.as_raw_fd();
            (libc::fcntl(fd, libc::F_GETFL), libc::fcntl(fd, libc::F_GETFD))
        };
        assert_ne!(status & libc::O_NONBLOCK, 0);
        assert_ne!(flags & libc::FD_CLOEXEC, 0);
        client.write_all(b"hi").unwrap();
        let peer = SocketAddress::peer(fd.as_raw_fd()).unwrap();
        assert_eq!(peer.inet(), Some(client.local_addr().unwrap()));
    }
}

#[test]
fn a_blocking_listener_does_not_block_the_driver() {
    let mut driver = driver();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    driver.accept(listener.as_raw_fd(), 1).unwrap();
    no_event(&mut driver);
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert!(matches!(event(&mut driver).outcome, Outcome::Accept(Ok(_))));
    no_event(&mut driver);
}

#[test]
fn connections_that_wait_are_accepted_at_the_start() {
    let mut driver = driver();
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    driver.accept(listener.as_raw_fd(), 1).unwrap();
    for client in &clients {
        let event = event(&mut driver);
        assert!(event.more);
        let Outcome::Accept(Ok(fd)) = event.outcome else { panic!("{event:?}") };
        let peer = SocketAddress::peer(fd.as_raw_fd()).unwrap();
        assert_eq!(peer.inet(), Some(client.local_addr().unwrap()));
    }
    no_event(&mut driver);
}

#[test]
fn accept_ends_when_its_socket_stops_listening() {
    let mut driver = driver();
    let listener = listener();
    driver.accept(listener.as_raw_fd(), 1).unwrap();
    no_event(&mut driver);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) }, 0);
    let event = event(&mut driver);
    assert!(!event.more);
    let Outcome::Accept(result) = event.outcome else { panic!("{event:?}") };
    assert_errno(result, libc::EINVAL);
}

#[test]
fn accept_on_a_socket_that_does_not_listen_fails() {
    let mut driver = driver();
    let (near, _far) = pair();
    driver.accept(near.as_raw_fd(), 0).unwrap();
    let event = event(&mut driver);
    assert!(!event.more);
    let Outcome::Accept(result) = event.outcome else { panic!("{event:?}") };
    assert_errno(result, libc::EINVAL);
}

#[test]
fn send_starts_where_told() {
    let mut driver = driver();
    let (near, mut far) = pair();
    driver.send(near.as_raw_fd(), b"hello world".to_vec(), 6, 1).unwrap();
    let Outcome::Send(Ok(5), buf) = event(&mut driver).outcome else { panic!() };
    assert_eq!(buf, b"hello world");
    let mut got = [0; 5];
    far.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"world");
    assert_errno(driver.send(near.as_raw_fd(), vec![0; 3], 4, 1), libc::EINVAL);
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn send_goes_on_until_all_is_sent() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let data: Vec<u8> = (0..8 << 20).map(|n: u32| (n % 251) as u8).collect();
    driver.send(near.as_raw_fd(), data.clone(), 0, 1).unwrap();
    let reader = thread::spawn(move || {
        let mut got = vec![0; 8 << 20];
        far.read_exact(&mut got).unwrap();
        got
    });
    let Outcome::Send(Ok(n), _) = event(&mut driver).outcome else { panic!() };
    assert_eq!(n, data.len());
    assert!(reader.join().unwrap() == data);
}

#[test]
fn nothing_and_datagrams_are_sent() {
    let mut driver = driver();
    let (near, far) = UnixDatagram::pair().unwrap();
    for data in [&b""[..], b"datagram"] {
        driver.send(near.as_raw_fd(), data.to_vec(), 0, 1).unwrap();
        let Outcome::Send(Ok(count), _) = event(&mut driver).outcome else { panic!() };
        assert_eq!(count, data.len());
        let mut got = [0; 64];
        assert_eq!(far.recv(&mut got).unwrap(), data.len());
    }
}

#[test]
fn a_send_that_fails_half_way_reports_what_it_had_sent() {
    let mut driver = driver();
    let (near, far) = UnixStream::pair().unwrap();
    driver.send(near.as_raw_fd(), vec![1; 64 << 20], 0, 1).unwrap();
    no_event(&mut driver);
    drop(far);
    let Outcome::Send(Ok(sent), _) = event(&mut driver).outcome else { panic!() };
    assert!(sent > 0 && sent < 64 << 20, "{sent}");
    driver.send(near.as_raw_fd(), vec![1], 0, 1).unwrap();
    let Outcome::Send(result, _) = event(&mut driver).outcome else { panic!() };
    assert_errno(result, libc::EPIPE);
}

#[test]
fn send_to_a_closed_peer_fails_without_a_signal() {
    let mut driver = driver();
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    driver.send(near.as_raw_fd(), vec![1], 0, 1).unwrap();
    let Outcome::Send(result, _) = event(&mut driver).outcome else { panic!() };
    assert_errno(result, libc::EPIPE);
}
