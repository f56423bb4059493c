//! What the main thread and the workers share: counters and queues.

use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_queue::SegQueue;

use super::imports::ImportOrder;
use crate::driver::Waker;

/// From the main thread to a worker.
#[derive(Debug)]
pub enum Message {
    Connection(OwnedFd),
    /// Finish what is open; no connection follows.
    Drain,
    /// End now.
    Abort,
}

/// From a worker to the main thread.
#[derive(Debug)]
pub enum Report {
    /// The worker accepts connections.
    Ready,
    Failed(Failure),
    /// The worker's thread has ended, after whatever it reported before.
    Ended,
}

/// The exception that ended a worker, in plain text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    pub core: usize,
    /// The exception class: its module and qualified name.
    pub module: String,
    pub name: String,
    pub message: String,
    pub traceback: String,
}

/// One worker as the others see it.
pub struct Core {
    pub index: usize,
    /// The CPU that the worker's thread is pinned to.
    pub cpu: usize,
    /// Connections handed to the worker that are not closed yet.
    open: AtomicUsize,
    /// Connections ever handed to the worker.
    assigned: AtomicUsize,
    mailbox: SegQueue<Message>,
    has_mail: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Core {
    fn new(index: usize, cpu: usize) -> Self {
        Core {
            index,
            cpu,
            open: AtomicUsize::new(0),
            assigned: AtomicUsize::new(0),
            mailbox: SegQueue::new(),
            has_mail: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    pub fn send(&self, message: Message) {
        self.mailbox.push(message);
        self.has_mail.store(true, Ordering::Release);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = waker.as_ref() {
            waker.wake();
        }
    }

    /// Whether messages may have come since the last call. Cheap: a worker asks in every turn.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire) && self.has_mail.swap(false, Ordering::AcqRel)
    }

    pub fn receive(&self) -> Option<Message> {
        self.mailbox.pop()
    }

    /// Names the loop to wake for messages, and wakes it for those that have come already.
    pub fn set_waker(&self, waker: Option<Waker>) {
        let mut place = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = &waker {
            waker.wake();
        }
        *place = waker;
    }

    pub fn connection_closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn assigned(&self) -> usize {
        self.assigned.load(Ordering::Relaxed)
    }
}

pub struct Team {
    cores: Vec<Core>,
    reports: SegQueue<(usize, Report)>,
    main: Waker,
    pub imports: ImportOrder,
}

impl Team {
    /// `main` wakes the thread that reads the reports.
    pub fn new(cpus: &[usize], main: Waker) -> Self {
        let cores = cpus.iter().enumerate().map(|(index, cpu)| Core::new(index, *cpu)).collect();
        Team { cores, reports: SegQueue::new(), main, imports: ImportOrder::new() }
    }

    pub fn core(&self, index: usize) -> &Core {
        &self.cores[index]
    }

    pub fn size(&self) -> usize {
        self.cores.len()
    }

    /// Hands a connection to the core with the fewest open ones; among equals, to the one that was
    /// given the fewest. Only the main thread assigns, so counts can only fall meanwhile.
    pub fn assign(&self, connection: OwnedFd) {
        if let Some(core) = self.cores.iter().min_by_key(|core| (core.open(), core.assigned())) {
            core.open.fetch_add(1, Ordering::Relaxed);
            core.assigned.fetch_add(1, Ordering::Relaxed);
            core.send(Message::Connection(connection));
        }
    }

    pub fn broadcast(&self, message: impl Fn() -> Message) {
        self.cores.iter().for_each(|core| core.send(message()));
    }

    pub fn report(&self, core: usize, report: Report) {
        self.reports.push((core, report));
        self.main.wake();
    }

    pub fn next_report(&self) -> Option<(usize, Report)> {
        self.reports.pop()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::driver::{Choice, Config, Driver};
    use std::net::TcpListener;

    fn team(cpus: &[usize]) -> (Driver<()>, Team) {
        let driver = Driver::<()>::new(&Config::default(), Choice::Auto).unwrap();
        let team = Team::new(cpus, driver.waker());
        (driver, team)
    }

    fn descriptor() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    fn open(team: &Team) -> Vec<usize> {
        team.cores.iter().map(Core::open).collect()
    }

    #[test]
    fn connections_go_to_the_core_with_the_fewest() {
        let (_driver, team) = team(&[4, 5, 6]);
        (0..7).for_each(|_| team.assign(descriptor()));
        assert_eq!(open(&team), [3, 2, 2]);
        team.core(0).connection_closed();
        team.core(0).connection_closed();
        team.assign(descriptor());
        assert_eq!(open(&team), [2, 2, 2]);
    }

    #[test]
    fn short_connections_rotate() {
        let (_driver, team) = team(&[0, 1]);
        for _ in 0..10 {
            team.assign(descriptor());
            for core in &team.cores {
                while let Some(Message::Connection(_)) = core.receive() {
                    core.connection_closed();
                }
            }
        }
        assert_eq!([team.core(0).assigned(), team.core(1).assigned()], [5, 5]);
    }

    #[test]
    fn mail_is_announced_once_and_arrives_in_order() {
        let (_driver, team) = team(&[0]);
        let core = team.core(0);
        assert!(!core.has_mail());
        team.assign(descriptor());
        team.broadcast(|| Message::Drain);
        assert!(core.has_mail());
        assert!(!core.has_mail());
        assert!(matches!(core.receive(), Some(Message::Connection(_))));
        assert!(matches!(core.receive(), Some(Message::Drain)));
        assert!(core.receive().is_none());
    }

    #[test]
    fn reports_wake_the_main_thread() {
        let (mut driver, team) = team(&[0, 1]);
        std::thread::scope(|scope| {
            scope.spawn(|| team.report(1, Report::Ready));
        });
        driver.prepare_wait(None).block().unwrap();
        assert!(matches!(team.next_report(), Some((1, Report::Ready))));
    }
}
