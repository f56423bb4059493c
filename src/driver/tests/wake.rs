//! Waiting, time-outs, and wake-ups from other threads.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crossbeam_queue::SegQueue;

use super::*;

fn timed(driver: &mut Driver<u32>, timeout: Option<Duration>) -> Duration {
    let start = Instant::now();
    driver.prepare_wait(timeout).block().unwrap();
    start.elapsed()
}

#[test]
fn timeouts_are_neither_early_nor_late() {
    let mut driver = driver();
    for millis in [1, 5, 20, 50] {
        let timeout = Duration::from_millis(millis);
        let waits: Vec<Duration> = (0..6).map(|_| timed(&mut driver, Some(timeout))).collect();
        // A CPU that others use delays some, so the best one counts.
        let best = *waits.iter().min().unwrap();
        assert!(best >= timeout, "{timeout:?}: {waits:?}");
        assert!(best < timeout + Duration::from_millis(5), "{timeout:?}: {waits:?}");
    }
}

#[test]
fn a_zero_timeout_does_not_wait() {
    let mut driver = driver();
    let (near, _far) = pair();
    driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
    let start = Instant::now();
    while driver.next().is_none() {
        driver.prepare_wait(Some(Duration::ZERO)).block().unwrap();
        assert!(start.elapsed() < LIMIT, "what is queued is started");
    }
    let best = (0..5).map(|_| timed(&mut driver, Some(Duration::ZERO))).min();
    assert!(best.unwrap() < Duration::from_millis(1), "{best:?}");
}

#[test]
fn huge_timeouts_are_valid() {
    let mut driver = driver();
    let (near, _far) = pair();
    driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
    driver.prepare_wait(Some(Duration::MAX)).block().unwrap();
    assert!(driver.next().is_some());
}

#[test]
fn completions_that_are_there_end_a_wait() {
    let mut driver = driver();
    let (near, _far) = pair();
    driver.poll(near.as_raw_fd(), OUT, false, 1).unwrap();
    driver.submit().unwrap();
    driver.prepare_wait(None).block().unwrap();
    assert!(driver.next().is_some());
}

#[test]
fn a_wake_up_before_the_wait_counts_once() {
    let mut driver = driver();
    let waker = driver.waker();
    waker.wake();
    waker.wake();
    driver.prepare_wait(None).block().unwrap();
    assert!(driver.next().is_none());
    let pause = Duration::from_millis(10);
    assert!(timed(&mut driver, Some(pause)) >= pause);
}

#[test]
fn a_wake_up_between_the_announcement_and_the_wait() {
    let mut driver = driver();
    let waker = driver.waker();
    for _ in 0..100 {
        let wait = driver.prepare_wait(None);
        waker.wake();
        wait.block().unwrap();
        assert!(driver.next().is_none());
        assert_eq!(driver.in_flight(), 0);
    }
}

#[test]
fn an_abandoned_wait_keeps_wake_ups() {
    let mut driver = driver();
    let waker = driver.waker();
    waker.wake();
    drop(driver.prepare_wait(None));
    driver.prepare_wait(None).block().unwrap();

    let wait = driver.prepare_wait(None);
    waker.wake();
    drop(wait);
    driver.prepare_wait(None).block().unwrap();
}

#[test]
fn another_thread_ends_a_wait() {
    let mut driver = driver();
    let waker = driver.waker();
    let (go, gone) = mpsc::channel();
    let thread = thread::spawn(move || {
        for () in gone {
            waker.wake();
        }
    });
    for _ in 0..1000 {
        go.send(()).unwrap();
        driver.prepare_wait(None).block().unwrap();
    }
    drop(go);
    thread.join().unwrap();
}

#[test]
fn wakers_outlive_the_driver() {
    let driver = driver();
    let waker = driver.waker();
    drop(driver);
    waker.wake();
    waker.clone().wake();
}

/// Every item is seen although the driver sleeps whenever it can; a lost wake-up runs into the
/// time-out.
#[test]
fn a_hundred_thousand_wake_ups() {
    const EACH: usize = 50_000;
    let mut driver = driver();
    let queue = Arc::new(SegQueue::new());
    let seen = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let threads: Vec<_> = (0..2)
        .map(|producer| {
            let (queue, waker, seen) = (queue.clone(), driver.waker(), seen.clone());
            thread::spawn(move || {
                for item in 0..EACH {
                    queue.push(producer);
                    waker.wake();
                    // Every few items, a different few for each, let the driver go to sleep.
                    let pause = item % (5 + 2 * producer) == 0;
                    while pause && seen[producer].load(Ordering::Relaxed) <= item {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let start = Instant::now();
    let mut received = [0, 0];
    loop {
        while let Some(producer) = queue.pop() {
            received[producer] += 1;
        }
        for (to, from) in seen.iter().zip(received) {
            to.store(from, Ordering::Relaxed);
        }
        if received == [EACH, EACH] {
            break;
        }
        assert!(timed(&mut driver, Some(LIMIT)) < LIMIT, "{received:?}");
        assert!(driver.next().is_none());
        assert!(start.elapsed() < 3 * LIMIT, "{received:?}");
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn signals_end_a_wait_without_error() {
    extern "C" fn nothing(_: libc::c_int) {}
    let mut driver = driver();
    // SAFETY: the action is plain data, for which all zeros is valid, and the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    // SAFETY: no preconditions.
    let target = unsafe { libc::pthread_self() };
    let (stop, stopped) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        // Again and again, since the first may come before the wait.
        while stopped.recv_timeout(Duration::from_millis(5)) == Err(mpsc::RecvTimeoutError::Timeout)
        {
            // SAFETY: the target joins this thread, so it exists.
            unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
        }
    });
    let waited = timed(&mut driver, Some(LIMIT));
    drop(stop);
    thread.join().unwrap();
    assert!(waited < LIMIT);
}
