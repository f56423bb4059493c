//! What is so with epoll only: any thread may use it, and a call is needed to know what is ready.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::thread;

use super::*;
use crate::driver::tests::setup::deny;

#[test]
fn another_thread_may_use_the_driver_and_close_it() {
    let mut driver = driver();
    let (near, mut far) = pair();
    let (buf, page) = large_buffer();
    driver.poll(near.as_raw_fd(), IN, true, 1).unwrap();
    driver.send(near.as_raw_fd(), buf, 0, 2).unwrap();
    driver.submit().unwrap();
    let smuggled = Smuggled(driver);
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut smuggled = smuggled;
            let driver: &mut Smuggled<Driver<u32>> = &mut smuggled;
            assert!(driver.0.is_usable());
            far.write_all(b"x").unwrap();
            assert_eq!(event(&mut driver.0).owner, 1);
            owners(driver.0.close())
        });
        let mut owners = thread.join().unwrap();
        owners.sort_unstable();
        assert_eq!(owners, [1, 2]);
    });
    assert!(!is_mapped(page));
}

/// With the calls denied, any use of them would show.
#[test]
fn a_turn_with_nothing_in_flight_makes_no_system_call() {
    thread::spawn(|| {
        let mut driver = driver();
        let (near, _far) = pair();
        driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
        event(&mut driver);
        let calls = [
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
        ];
        deny(&calls, libc::EACCES);
        driver.submit().unwrap();
        driver.prepare_wait(Some(Duration::ZERO)).block().unwrap();
        assert!(driver.next().is_none());
        let blocking = driver.prepare_wait(Some(LIMIT)).block();
        assert_errno(blocking, libc::EACCES);
    })
    .join()
    .unwrap();
}

#[test]
fn timeouts_work_without_pwait2() {
    for errno in [libc::ENOSYS, libc::EPERM] {
        thread::spawn(move || {
            let mut driver = driver();
            deny(&[libc::SYS_epoll_pwait2], errno);
            for _ in 0..2 {
                let pause = Duration::from_micros(1500);
                let start = Instant::now();
                driver.prepare_wait(Some(pause)).block().unwrap();
                assert!(start.elapsed() >= pause);
            }
        })
        .join()
        .unwrap();
    }
}

#[test]
fn many_connections_at_once_keep_nobody_else_waiting() {
    let mut driver = driver();
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    driver.accept(listener.as_raw_fd(), 1).unwrap();
    let (near, _far) = pair();
    driver.poll(near.as_raw_fd(), OUT, false, 2).unwrap();
    let before = (0..clients.len()).take_while(|_| event(&mut driver).owner == 1).count();
    assert!(before < clients.len());
}
