//! Cancelling in every state, and what the caller may do right after.

use std::collections::HashSet;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

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
    start_queued(&mut driver);
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
fn cancelling_one_operation_leaves_the_others_of_its_descriptor() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    fill(&near);
    let multishot = driver.poll(fd, IN, true, 1).unwrap();
    driver.poll(fd, IN, false, 2).unwrap();
    let send = driver.send(fd, vec![1; 100], 0, 3).unwrap();
    no_event(&mut driver);
    driver.cancel(&[multishot, send]).unwrap();
    for op in [multishot, send] {
        let event = event(&mut driver);
        assert_eq!((event.op, event.more), (op, false));
    }
    no_event(&mut driver);
    far.write_all(b"x").unwrap();
    assert_eq!(event(&mut driver).owner, 2);
}

/// A descriptor whose file is kept open by another, or by a forked child.
#[test]
fn a_number_that_is_used_again_reports_its_new_file_only() {
    for (first, multishot) in [(IN, true), (IN, false), (OUT, false)] {
        let mut driver = driver();
        let (near, mut far) = pair();
        let _kept = near.try_clone().unwrap();
        let (other, mut other_far) = pair();
        let number = near.as_raw_fd();
        let stale = driver.poll(number, first, multishot, 1).unwrap();
        // A poll for writing has ended and left nothing but traces.
        let live = first == IN;
        assert!(if live { true } else { event(&mut driver).op == stale });
        no_event(&mut driver);
        // SAFETY: no pointers. dup3 closes `number`, which `near` gives up here.
        let new = unsafe {
            libc::dup3(other.as_raw_fd(), near.into_raw_fd(), libc::O_CLOEXEC);
            OwnedFd::from_raw_fd(number)
        };
        let op = driver.poll(number, IN, true, 2).unwrap();
        no_event(&mut driver);
        far.write_all(b"old").unwrap();
        driver.prepare_wait(Some(Duration::from_millis(20))).block().unwrap();
        while let Some(event) = driver.next() {
            assert_eq!(event.owner, 1, "{event:?}");
        }
        other_far.write_all(b"new").unwrap();
        assert_eq!(event(&mut driver).op, op);
        if driver.in_flight() == 2 {
            driver.cancel(&[stale]).unwrap();
            let last = event(&mut driver);
            assert_eq!((last.op, last.more), (stale, false));
        }
        other_far.write_all(b"still there").unwrap();
        assert_eq!(event(&mut driver).op, op);
        driver.cancel(&[op]).unwrap();
        drop(new);
        finish(&mut driver);
    }
}

#[test]
fn a_send_never_reaches_the_next_file_of_its_number() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let _kept = near.try_clone().unwrap();
    let (other, other_far) = pair();
    let number = near.as_raw_fd();
    let filled = fill(&near);
    let send = driver.send(number, vec![1; 32 << 20], 0, 1).unwrap();
    no_event(&mut driver);
    // SAFETY: no pointers. dup3 closes `number`, which `near` gives up here.
    let new = unsafe {
        libc::dup3(other.as_raw_fd(), near.into_raw_fd(), libc::O_CLOEXEC);
        OwnedFd::from_raw_fd(number)
    };
    let poll = driver.poll(number, IN, true, 2).unwrap();
    no_event(&mut driver);
    far.read_exact(&mut vec![0; filled]).unwrap();
    driver.prepare_wait(Some(Duration::from_millis(20))).block().unwrap();
    no_event(&mut driver);
    driver.cancel(&[send, poll]).unwrap();
    finish(&mut driver);
    drop((new, other));
    assert!(at_end(&other_far));
}

#[test]
fn a_cancelled_poll_ends_no_wait() {
    let mut driver = driver();
    let (near, mut far) = pair();
    for multishot in [true, false] {
        let op = driver.poll(near.as_raw_fd(), IN, multishot, 1).unwrap();
        no_event(&mut driver);
        driver.cancel(&[op]).unwrap();
        finish(&mut driver);
        far.write_all(b"x").unwrap();
        let pause = Duration::from_millis(20);
        let start = Instant::now();
        driver.prepare_wait(Some(pause)).block().unwrap();
        assert!(start.elapsed() >= pause);
        assert_eq!(socket::recv(near.as_raw_fd(), &mut [0; 8]).unwrap(), 1);
    }
}

/// What is ready for ever on a file that nobody asks about any more.
#[test]
fn a_closed_number_whose_file_lives_on_keeps_nobody_awake() {
    let mut driver = driver();
    for multishot in [true, false] {
        let (near, mut far) = pair();
        let _kept = near.try_clone().unwrap();
        let op = driver.poll(near.as_raw_fd(), IN, multishot, 1).unwrap();
        no_event(&mut driver);
        drop(near);
        far.write_all(b"x").unwrap();
        let pause = Duration::from_millis(20);
        let waits = (0..5).map(|_| {
            while driver.next().is_some() {}
            let start = Instant::now();
            driver.prepare_wait(Some(pause)).block().unwrap();
            start.elapsed() < pause
        });
        assert!(waits.filter(|cut_short| *cut_short).count() <= 1);
        driver.cancel(&[op]).unwrap();
        finish(&mut driver);
    }
}

#[test]
fn a_file_may_come_back_to_its_number() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let kept = near.try_clone().unwrap();
    let number = near.as_raw_fd();
    let op = driver.poll(number, IN, true, 1).unwrap();
    no_event(&mut driver);
    drop(near);
    driver.cancel(&[op]).unwrap();
    finish(&mut driver);
    // SAFETY: no pointers; the number is free since `near` was dropped.
    let back = unsafe {
        assert_eq!(libc::dup3(kept.as_raw_fd(), number, libc::O_CLOEXEC), number);
        OwnedFd::from_raw_fd(number)
    };
    driver.poll(number, IN, true, 2).unwrap();
    no_event(&mut driver);
    far.write_all(b"x").unwrap();
    assert_eq!(event(&mut driver).owner, 2);
    drop(driver);
    drop(back);
}

#[test]
fn cancelled_accepts_leak_no_descriptor() {
    in_own_process(module_path!(), "cancelled_accepts_leak_no_descriptor", || {
        let mut driver = driver();
        let before = open_fds();
        for _ in 0..50 {
            let listener = listener();
            let address = listener.local_addr().unwrap();
            let op = driver.accept(listener.as_raw_fd(), 1).unwrap();
            driver.submit().unwrap();
            let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address)).collect();
            start_queued(&mut driver);
            let late: Vec<_> = (0..3).map(|_| TcpStream::connect(address)).collect();
            driver.cancel(&[op]).unwrap();
            // Those accepted before are still delivered, each owned by its event.
            assert!(finish(&mut driver).len() >= 4);
            drop((clients, late));
        }
        assert_eq!(open_fds(), before);
    });
}
