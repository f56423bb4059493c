//! Closing with work in flight: nothing lost, nothing leaked, nothing freed under the kernel.

use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::thread;

use super::*;
use crate::driver::backend::{Backend, Completion, Operation};

/// One of each, none of which can finish by itself.
fn start_all(driver: &mut Driver<u32>, near: &TcpStream, listener: &TcpListener) {
    let fd = near.as_raw_fd();
    fill(near);
    driver.poll(fd, IN, true, 1).unwrap();
    driver.poll(fd, IN, false, 2).unwrap();
    driver.send(fd, vec![0; 1 << 20], 0, 3).unwrap();
    driver.accept(listener.as_raw_fd(), 4).unwrap();
}

#[test]
fn close_returns_every_owner() {
    let mut driver = driver();
    let (near, _far) = pair();
    let listener = listener();
    start_all(&mut driver, &near, &listener);
    no_event(&mut driver);
    // One more that is queued only.
    driver.poll(near.as_raw_fd(), IN, false, 5).unwrap();
    let start = Instant::now();
    let mut owners = owners(driver.close());
    assert!(start.elapsed() < DRAIN_LIMIT);
    owners.sort_unstable();
    assert_eq!(owners, [1, 2, 3, 4, 5]);
    assert_eq!(driver.in_flight(), 0);
    assert!(driver.close().is_empty());
}

#[test]
fn a_closed_driver_says_so() {
    let mut driver = driver();
    driver.close();
    assert!(["uring", "epoll"].contains(&driver.name()));
    assert_errno(driver.poll(0, IN, false, 1), libc::EBADF);
    assert_errno(driver.send(0, vec![0; 8], 0, 1), libc::EBADF);
    assert_errno(driver.prepare_wait(None).block(), libc::EBADF);
    driver.submit().unwrap();
    assert_eq!(driver.in_flight(), 0);
    assert!(driver.next().is_none());
}

#[test]
fn close_leaks_no_descriptor() {
    in_own_process(module_path!(), "close_leaks_no_descriptor", || {
        let (near, _far) = pair();
        let listener = listener();
        let before = open_fds();
        for _ in 0..50 {
            let mut driver = driver();
            start_all(&mut driver, &near, &listener);
            driver.submit().unwrap();
            // Accepted, but never taken.
            let clients: Vec<TcpStream> = (0..3)
                .map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap())
                .collect();
            start_queued(&mut driver);
            drop(driver);
            // The server's ends are gone as well.
            for client in &clients {
                client.set_read_timeout(Some(LIMIT)).unwrap();
                assert!(at_end(client));
            }
        }
        assert_eq!(open_fds(), before);
    });
}

#[test]
fn many_drivers_on_one_thread() {
    let mut drivers: Vec<Driver<u32>> = (0..20).map(|_| small_driver(4, 8)).collect();
    let (near, _far) = pair();
    for driver in &mut drivers {
        driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
        assert!(matches!(event(driver).outcome, Outcome::Poll(Ok(_))));
    }
    drivers.truncate(10);
    for driver in &mut drivers {
        driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
        assert_eq!(finish(driver).len(), 1);
    }
}

#[test]
fn owners_are_dropped_with_the_driver() {
    let owner = Rc::new(());
    let mut driver: Driver<Rc<()>> = Driver::new(&Config::default(), CHOICE).unwrap();
    let (near, mut far) = pair();
    fill(&near);
    driver.poll(near.as_raw_fd(), IN, true, owner.clone()).unwrap();
    driver.send(near.as_raw_fd(), vec![0; 8], 0, owner.clone()).unwrap();
    assert_eq!(Rc::strong_count(&owner), 3);
    assert_eq!(driver.owners().filter(|each| Rc::ptr_eq(each, &owner)).count(), 2);
    std::io::Write::write_all(&mut far, b"x").unwrap();
    driver.prepare_wait(Some(LIMIT)).block().unwrap();
    while driver.next().is_some() {}
    drop(driver);
    assert_eq!(Rc::strong_count(&owner), 1);
}

#[test]
fn drained_buffers_are_freed() {
    let mut driver = driver();
    let (near, _far) = pair();
    let (buf, page) = large_buffer();
    fill(&near);
    driver.send(near.as_raw_fd(), buf, 0, 3).unwrap();
    driver.submit().unwrap();
    assert!(is_mapped(page));
    assert_eq!(owners(driver.close()), [3]);
    assert!(!is_mapped(page));
}

#[test]
fn a_kernel_that_does_not_answer_keeps_the_buffers() {
    let mut driver: Driver<u32> = Driver::with_backend(Box::new(Silent), Parker::new().unwrap());
    let (buf, page) = large_buffer();
    driver.send(0, buf, 0, 3).unwrap();
    let start = Instant::now();
    assert_eq!(owners(driver.close()), [3]);
    assert!((DRAIN_LIMIT..LIMIT).contains(&start.elapsed()));
    assert!(is_mapped(page));
}

/// A kernel that takes operations and never completes one.
struct Silent;

impl Backend for Silent {
    fn name(&self) -> &'static str {
        "silent"
    }

    fn is_usable(&self) -> bool {
        true
    }

    unsafe fn start(&mut self, _: OpId, _: Operation) -> io::Result<()> {
        Ok(())
    }

    fn cancel(&mut self, _: OpId) -> io::Result<()> {
        Ok(())
    }

    fn settle(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        thread::sleep(timeout.unwrap());
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        None
    }
}

/// A forked child shares the ring or epoll instance with its parent and must leave it alone.
#[test]
fn a_forked_child_may_drop_its_copy() {
    let mut driver = driver();
    let (near, mut far) = pair();
    driver.poll(near.as_raw_fd(), IN, false, 3).unwrap();
    driver.poll(near.as_raw_fd(), libc::POLLPRI as u32, true, 4).unwrap();
    driver.submit().unwrap();
    // SAFETY: the child only closes the driver and exits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let code = i32::from(driver.close().len() != 2);
        // SAFETY: no preconditions.
        unsafe { libc::_exit(code) };
    }
    let mut status = -1;
    // SAFETY: the pointer is to one integer.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    std::io::Write::write_all(&mut far, b"still here").unwrap();
    assert!(matches!(event(&mut driver).outcome, Outcome::Poll(Ok(IN))));
    assert_eq!(driver.in_flight(), 1);
    assert_eq!(owners(driver.close()), [4]);
}

/// What the child does must not reach the kernel.
#[test]
fn a_forked_child_cannot_use_the_driver() {
    let mut driver: Driver<u32> = Driver::new(&Config::default(), CHOICE).unwrap();
    let (near, mut far) = pair();
    let poll = driver.poll(near.as_raw_fd(), IN, true, 1).unwrap();
    driver.submit().unwrap();
    // SAFETY: the child only uses the driver and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = driver.send(near.as_raw_fd(), vec![7; 100], 0, 2).is_err()
            && driver.cancel(&[poll]).is_err()
            && driver.submit().is_err()
            && driver.prepare_wait(None).block().is_err()
            && driver.next().is_none();
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(i32::from(!refused)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is writable.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    std::io::Write::write_all(&mut far, b"x").unwrap();
    let event = event(&mut driver);
    assert_eq!(event.owner, 1);
    assert!(event.more);
}
