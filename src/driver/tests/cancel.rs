//! Cancelling in every state, and what the caller may do right after.

use std::collections::HashSet;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::*;

fn poll_errno(event: &Event<u32>) -> Option<i32> {
    match &event.outcome {
        Outcome::Poll(Err(error)) => error.raw_os_error(),
        _ => None,
    }
}

#[test]
fn a_poll_that_was_not_submitted_yet() {
    let mut driver = driver();
    let (near, _far) = pair();
    let op = driver.poll(near.as_raw_fd(), IN, true, 3).unwrap();
    driver.cancel(&[op]).unwrap();
    let last = driver.next().unwrap();
    assert_eq!((last.op, last.owner, last.more), (op, 3, false));
    assert_eq!(poll_errno(&last), Some(libc::ECANCELED));
    no_event(&mut driver);
}

#[test]
fn a_poll_that_waits() {
    let mut driver = driver();
    let (near, _far) = pair();
    let op = driver.poll(near.as_raw_fd(), IN, true, 3).unwrap();
    no_event(&mut driver);
    driver.cancel(&[op]).unwrap();
    assert_eq!(poll_errno(&driver.next().unwrap()), Some(libc::ECANCELED));
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn a_poll_with_reports_due_and_queued() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let op = driver.poll(near.as_raw_fd(), IN, true, 3).unwrap();
    far.write_all(b"queued").unwrap();
    driver.submit().unwrap();
    far.write_all(b"due").unwrap();
    driver.cancel(&[op]).unwrap();
    let events = finish(&mut driver);
    let (last, before) = events.split_last().unwrap();
    assert_eq!(poll_errno(last), Some(libc::ECANCELED));
    assert!(!before.is_empty());
    assert!(before.iter().all(|event| event.more && event.op == op));
}

#[test]
fn finished_and_repeated_ids_are_ignored() {
    let mut driver = driver();
    let (near, mut far) = pair();
    far.write_all(b"x").unwrap();
    let finished = driver.poll(near.as_raw_fd(), IN, false, 1).unwrap();
    assert_eq!(event(&mut driver).op, finished);
    driver.cancel(&[finished]).unwrap();
    driver.cancel(&[]).unwrap();
    // Finished in the kernel, but not taken yet.
    let queued = driver.poll(near.as_raw_fd(), IN, false, 2).unwrap();
    driver.submit().unwrap();
    driver.cancel(&[queued, queued]).unwrap();
    driver.cancel(&[queued]).unwrap();
    assert_eq!(finish(&mut driver).len(), 1);
    no_event(&mut driver);
}

#[test]
fn a_stale_id_does_not_hit_its_slots_next_tenant() {
    let mut driver = driver();
    let (near, mut far) = pair();
    far.write_all(b"x").unwrap();
    let stale = driver.poll(near.as_raw_fd(), IN, false, 1).unwrap();
    event(&mut driver);
    let live = driver.poll(near.as_raw_fd(), libc::POLLPRI as u32, true, 2).unwrap();
    assert_eq!(stale.index, live.index);
    assert_ne!(stale, live);
    driver.cancel(&[stale]).unwrap();
    no_event(&mut driver);
    assert_eq!(driver.in_flight(), 1);
}

#[test]
fn a_send_reports_what_it_had_sent() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let op = driver.send(near.as_raw_fd(), vec![1; 64 << 20], 0, 1).unwrap();
    no_event(&mut driver);
    driver.cancel(&[op]).unwrap();
    let Outcome::Send(Ok(sent), buf) = event(&mut driver).outcome else { panic!() };
    assert!(sent > 0 && sent < buf.len(), "{sent}");
    drop(near);
    let mut got = Vec::new();
    far.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), sent);
}

#[test]
fn a_send_that_had_sent_nothing() {
    let mut driver = driver();
    let (near, _far) = pair();
    fill(&near);
    let op = driver.send(near.as_raw_fd(), vec![1; 100], 0, 1).unwrap();
    no_event(&mut driver);
    driver.cancel(&[op]).unwrap();
    let Outcome::Send(result, _) = event(&mut driver).outcome else { panic!() };
    assert_errno(result, libc::ECANCELED);
}

fn stream_socket() -> OwnedFd {
    // SAFETY: no pointers; the result is checked before it is used as a descriptor.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0) };
    assert!(fd >= 0);
    // SAFETY: a new descriptor without another owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Binds without SO_REUSEADDR, so that any socket left on the port is in the way.
fn bound(fd: &OwnedFd, port: u16) -> SocketAddress {
    let address = SocketAddress::from_inet(([127, 0, 0, 1], port).into());
    // SAFETY: the pointer and length are those of `address`.
    let result = unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr(), address.len()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    SocketAddress::local(fd.as_raw_fd()).unwrap()
}

/// The port is free as soon as the listener is closed. Without the task work that cancel() runs,
/// the operation would keep the listener open.
#[test]
fn an_accept_lets_go_of_its_listener() {
    let mut driver = driver();
    let mut port = 0;
    for _ in 0..20 {
        let fd = stream_socket();
        port = bound(&fd, port).inet().unwrap().port();
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::listen(fd.as_raw_fd(), 8) }, 0);
        let op = driver.accept(fd.as_raw_fd(), 1).unwrap();
        driver.submit().unwrap();
        driver.cancel(&[op]).unwrap();
        socket::close(fd.into_raw_fd()).unwrap();
    }
    assert_eq!(finish(&mut driver).len(), 20);
}

#[test]
fn a_poll_lets_go_of_its_socket() {
    let mut driver = driver();
    let (near, far) = pair();
    let op = driver.poll(near.as_raw_fd(), IN, true, 1).unwrap();
    no_event(&mut driver);
    driver.cancel(&[op]).unwrap();
    socket::close(near.into_raw_fd()).unwrap();
    assert!(at_end(&far));
}

/// The kernel runs 20 pieces of task work per call; the cancelled ones may come last.
#[test]
fn polls_let_go_of_their_sockets_behind_much_other_work() {
    let mut driver = driver();
    let mut busy: Vec<(TcpStream, TcpStream)> = (0..300).map(|_| pair()).collect();
    let closing: Vec<(TcpStream, TcpStream)> = (0..300).map(|_| pair()).collect();
    for (near, _) in &busy {
        driver.poll(near.as_raw_fd(), IN, true, 1).unwrap();
    }
    let ops: Vec<OpId> = closing
        .iter()
        .map(|(near, _)| driver.poll(near.as_raw_fd(), IN, true, 2).unwrap())
        .collect();
    no_event(&mut driver);
    for (_, far) in &mut busy {
        far.write_all(b"work").unwrap();
    }
    driver.cancel(&ops).unwrap();
    for (near, far) in closing {
        socket::close(near.into_raw_fd()).unwrap();
        assert!(at_end(&far));
    }
    let mut seen = HashSet::new();
    while driver.in_flight() > busy.len() {
        let event = event(&mut driver);
        if !event.more {
            assert!(seen.insert(event.op), "{event:?}");
        }
    }
    assert_eq!(seen, ops.into_iter().collect());
}

/// A send that had to wait often is handed to a kernel thread, which is cancelled in its own time.
/// Also returns how much the far end has read.
fn laborious_send(driver: &mut Driver<u32>) -> (OpId, usize, [UnixStream; 2]) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let op = driver.send(near.as_raw_fd(), vec![1; 128 << 20], 0, 1).unwrap();
    let start = Instant::now();
    let mut read = 0;
    let mut buf = vec![0; 1 << 16];
    while !has_kernel_thread() {
        driver.submit().unwrap();
        assert!(driver.next().is_none());
        while let Ok(n) = socket::recv(far.as_raw_fd(), &mut buf) {
            read += n;
        }
        assert!(start.elapsed() < LIMIT);
    }
    (op, read, [near, far])
}

fn has_kernel_thread() -> bool {
    fs::read_dir("/proc/self/task").unwrap().any(|task| {
        let name = fs::read_to_string(task.unwrap().path().join("comm"));
        name.is_ok_and(|name| name.starts_with("iou-wrk"))
    })
}

#[test]
fn a_send_on_a_kernel_thread() {
    let mut driver = driver();
    let (op, read, [near, mut far]) = laborious_send(&mut driver);
    driver.cancel(&[op]).unwrap();
    drop(near);
    let Outcome::Send(Ok(sent), buf) = event(&mut driver).outcome else { panic!() };
    assert!(sent < buf.len());
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).unwrap();
    assert_eq!(read + rest.len(), sent);
}

#[test]
fn close_waits_for_a_kernel_thread() {
    let mut driver = driver();
    let (_, _, sockets) = laborious_send(&mut driver);
    let start = Instant::now();
    assert_eq!(owners(driver.close()), [1]);
    assert!(start.elapsed() < DRAIN_LIMIT);
    drop(sockets);
}

/// The descriptor number may mean another file at once.
#[test]
fn an_operation_queued_before_a_close_is_not_moved_to_the_next_file() {
    let mut driver = driver();
    let (near, far) = pair();
    let (other, mut other_far) = pair();
    let number = near.as_raw_fd();
    let op = driver.poll(number, IN, false, 1).unwrap();
    driver.cancel(&[op]).unwrap();
    let other_number = other.into_raw_fd();
    // SAFETY: no pointers. dup3 closes `number`, which `near` gives up here.
    unsafe { libc::dup3(other_number, near.into_raw_fd(), libc::O_CLOEXEC) };
    socket::close(other_number).unwrap();
    other_far.write_all(b"mine").unwrap();
    assert_eq!(poll_errno(&event(&mut driver)), Some(libc::ECANCELED));
    let mut buf = [0; 16];
    driver.poll(number, IN, false, 1).unwrap();
    event(&mut driver);
    assert_eq!(socket::recv(number, &mut buf).unwrap(), 4);
    assert!(at_end(&far));
    socket::close(number).unwrap();
}

#[test]
fn cancelled_accepts_leak_no_descriptor() {
    in_own_process("driver::tests::cancel::cancelled_accepts_leak_no_descriptor", || {
        let mut driver = driver();
        let before = open_fds();
        for _ in 0..50 {
            let listener = listener();
            let address = listener.local_addr().unwrap();
            let op = driver.accept(listener.as_raw_fd(), 1).unwrap();
            driver.submit().unwrap();
            let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address)).collect();
            driver.submit().unwrap();
            let late: Vec<_> = (0..3).map(|_| TcpStream::connect(address)).collect();
            driver.cancel(&[op]).unwrap();
            // Those accepted before are still delivered, each owned by its event.
            assert!(finish(&mut driver).len() >= 4);
            drop((clients, late));
        }
        assert_eq!(open_fds(), before);
    });
}
