//! What is so with io_uring only: kernel threads, a ring's own thread, no system call without need.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;
use crate::driver::tests::setup::deny;

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

/// The kernel refuses to work with another thread, so the buffers must outlive the driver.
#[test]
fn a_foreign_thread_leaks_buffers_and_returns_owners() {
    let mut driver = driver();
    let (near, _far) = pair();
    let (buf, page) = large_buffer();
    fill(&near);
    driver.send(near.as_raw_fd(), buf, 0, 3).unwrap();
    driver.submit().unwrap();
    let smuggled = Smuggled(driver);
    let closed = thread::spawn(move || {
        let mut smuggled = smuggled;
        let driver: &mut Smuggled<Driver<u32>> = &mut smuggled;
        driver.0.close()
    });
    assert_eq!(owners(closed.join().unwrap()), [3]);
    assert!(is_mapped(page));
}

/// With io_uring_enter denied, any use of it would show.
#[test]
fn a_turn_with_nothing_to_do_makes_no_system_call() {
    thread::spawn(|| {
        let mut driver = driver();
        let (near, _far) = pair();
        driver.poll(near.as_raw_fd(), IN, true, 1).unwrap();
        driver.poll(near.as_raw_fd(), OUT, false, 2).unwrap();
        driver.submit().unwrap();
        deny(&[libc::SYS_io_uring_enter], libc::EPERM);
        driver.submit().unwrap();
        driver.prepare_wait(None).block().unwrap();
        assert_eq!(driver.next().unwrap().owner, 2);
        assert!(driver.next().is_none());
        driver.submit().unwrap();
        driver.prepare_wait(Some(Duration::ZERO)).block().unwrap();
        driver.waker().wake();
        driver.prepare_wait(None).block().unwrap();
        let blocking = driver.prepare_wait(Some(LIMIT)).block();
        assert_errno(blocking, libc::EPERM);
        // Nor can this drain: the owner comes back, the poll dies with the ring.
        assert_eq!(owners(driver.close()), [1]);
    })
    .join()
    .unwrap();
}
