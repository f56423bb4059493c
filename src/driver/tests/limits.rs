//! More than the queues hold, more than the process may open, and completions nobody asked for.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::*;
use crate::driver::backend::{Backend, Completion, Operation};

#[test]
fn two_thousand_operations_through_a_queue_of_eight() {
    let mut driver = small_driver(8, 4096);
    let (near, far) = pair();
    for owner in 0..2000 {
        driver.poll(near.as_raw_fd(), IN, false, owner).unwrap();
    }
    no_event(&mut driver);
    assert_eq!(driver.in_flight(), 2000);
    drop(far);
    let owners: HashSet<u32> = finish(&mut driver).iter().map(|event| event.owner).collect();
    assert_eq!(owners, (0..2000).collect());
}

#[test]
fn ten_thousand_completions_through_a_queue_of_sixteen() {
    let mut driver = small_driver(8, 16);
    let (near, _far) = pair();
    for owner in 0..10_000 {
        driver.poll(near.as_raw_fd(), OUT, false, owner).unwrap();
    }
    driver.submit().unwrap();
    let mut owners: Vec<u32> = Vec::new();
    // As a loop does: what is there, then a call that does not wait.
    let start = Instant::now();
    while driver.in_flight() > 0 {
        while let Some(event) = driver.next() {
            assert!(matches!(event.outcome, Outcome::Poll(Ok(_))), "{event:?}");
            owners.push(event.owner);
        }
        driver.submit().unwrap();
        assert!(start.elapsed() < LIMIT);
    }
    owners.sort_unstable();
    assert!(owners.into_iter().eq(0..10_000));
}

/// A multishot operation that finds the queue full goes on or says that it does not.
#[test]
fn multishot_operations_survive_a_full_queue() {
    let mut driver = small_driver(4, 4);
    let listener = listener();
    let address = listener.local_addr().unwrap();
    driver.accept(listener.as_raw_fd(), 0).unwrap();
    driver.submit().unwrap();
    let mut clients = Vec::new();
    let mut accepted = Vec::new();
    for _ in 0..100 {
        clients.push(TcpStream::connect(address).unwrap());
    }
    while accepted.len() < clients.len() {
        let event = event(&mut driver);
        let Outcome::Accept(Ok(fd)) = event.outcome else { panic!("{event:?}") };
        accepted.push(fd);
        if !event.more {
            driver.accept(listener.as_raw_fd(), 0).unwrap();
        }
    }
    no_event(&mut driver);
}

#[test]
fn wake_up_works_after_the_completion_queue_overflowed() {
    let mut driver = small_driver(2, 2);
    let waker = driver.waker();
    let (near, _far) = pair();
    for round in 0..50 {
        for owner in 0..20 {
            driver.poll(near.as_raw_fd(), OUT, false, owner).unwrap();
        }
        let wait = driver.prepare_wait(Some(LIMIT));
        waker.wake();
        wait.block().unwrap();
        assert_eq!(finish(&mut driver).len(), 20, "{round}");
    }
    let start = Instant::now();
    let wait = driver.prepare_wait(Some(LIMIT));
    waker.wake();
    wait.block().unwrap();
    assert!(start.elapsed() < LIMIT);
    assert!(driver.next().is_none());
}

#[test]
fn the_limit_on_open_files_ends_an_accept_that_can_be_started_again() {
    in_own_process(
        module_path!(),
        "the_limit_on_open_files_ends_an_accept_that_can_be_started_again",
        || {
            let mut driver = driver();
            let listener = listener();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            set_file_limit(64);
            let mut fds: Vec<OwnedFd> = Vec::new();
            while let Ok(fd) = listener.as_fd().try_clone_to_owned() {
                fds.push(fd);
            }
            for _ in 0..3 {
                driver.accept(listener.as_raw_fd(), 1).unwrap();
                let event = event(&mut driver);
                assert!(!event.more);
                let Outcome::Accept(result) = event.outcome else { panic!("{event:?}") };
                assert_errno(result, libc::EMFILE);
            }
            fds.truncate(fds.len() - 2);
            driver.accept(listener.as_raw_fd(), 1).unwrap();
            let event = event(&mut driver);
            let Outcome::Accept(Ok(fd)) = event.outcome else { panic!("{event:?}") };
            let peer = SocketAddress::peer(fd.as_raw_fd()).unwrap();
            assert_eq!(peer.inet(), Some(client.local_addr().unwrap()));
        },
    );
}

/// A kernel that says what it is told to.
struct Script(VecDeque<Completion>);

impl Backend for Script {
    fn name(&self) -> &'static str {
        "script"
    }

    fn is_usable(&self) -> bool {
        true
    }

    unsafe fn start(&mut self, id: OpId, _: Operation) -> io::Result<()> {
        let mut tell = |user_data, result, more| {
            self.0.push_back(Completion::new(user_data, result, more));
        };
        tell(u64::MAX, 1, true);
        tell(id.user_data() ^ 1 << 32, 1, false);
        tell(id.user_data() ^ 1, 1, true);
        tell(id.user_data(), 7, false);
        tell(id.user_data(), 8, false);
        tell(id.user_data(), 9, true);
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

    fn wait(&mut self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        self.0.pop_front()
    }
}

#[test]
fn stale_completions_are_ignored() {
    let script = Box::new(Script(VecDeque::new()));
    let mut driver: Driver<u32> = Driver::with_backend(script, Parker::new().unwrap());
    assert_eq!(driver.name(), "script");
    for _ in 0..3 {
        let op = driver.poll(0, IN, true, 1).unwrap();
        let event = driver.next().unwrap();
        assert_eq!((event.op, event.more), (op, false));
        assert!(matches!(event.outcome, Outcome::Poll(Ok(7))));
        assert!(driver.next().is_none());
    }
}
