//! How other threads end a driver's wait: a park token, and an eventfd written only to sleepers.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, Ordering};

/// The driver's thread runs, nothing to tell it.
const AWAKE: u8 = 0;
/// It waits, or is about to: the next wake() must write the eventfd.
const ASLEEP: u8 = 1;
/// wake() was called since its last wait.
const NOTIFIED: u8 = 2;

/// Whether a wait may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    Sleep,
    Notified,
}

/// The state machine, apart from the eventfd so that loom can run it.
///
/// Every transition that matters is a read-modify-write, and these see the latest value. Whatever a
/// thread did before `notify` is visible after the driver's thread has consumed the notification.
struct Token(AtomicU8);

impl Token {
    fn new() -> Self {
        Token(AtomicU8::new(AWAKE))
    }

    /// Returns whether the sleeper needs to be woken. Release: publishes the caller's work.
    #[inline]
    fn notify(&self) -> bool {
        self.0.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP
    }

    /// Goes to sleep unless notified, and consumes the notification then.
    #[inline]
    fn prepare(&self) -> Permit {
        let slept = self.0.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
        match slept {
            Ok(_) => Permit::Sleep,
            Err(_) => self.consume(),
        }
    }

    /// Consumes a notification, without going to sleep.
    #[inline]
    fn consume(&self) -> Permit {
        self.0.swap(AWAKE, Ordering::AcqRel);
        Permit::Notified
    }

    /// After a wait. The caller looks at its queues next, so a notification is consumed too.
    #[inline]
    fn finish(&self) {
        self.0.swap(AWAKE, Ordering::AcqRel);
    }

    /// Instead of a wait. The caller may not look at its queues, so a notification is kept.
    fn abandon(&self, permit: Permit) {
        match permit {
            Permit::Notified => {
                self.0.swap(NOTIFIED, Ordering::AcqRel);
            }
            Permit::Sleep => {
                // Fails if notified meanwhile, which is as good.
                let _ = self.0.compare_exchange(ASLEEP, AWAKE, Ordering::AcqRel, Ordering::Acquire);
            }
        }
    }
}

struct Shared {
    token: Token,
    eventfd: OwnedFd,
}

impl Shared {
    fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is used as a descriptor.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Shared {
            token: Token::new(),
            // SAFETY: eventfd() succeeded, so this is a new descriptor without another owner.
            eventfd: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }
}

/// The driver's end.
pub(super) struct Parker(Arc<Shared>);

impl Parker {
    pub fn new() -> io::Result<Self> {
        Ok(Parker(Arc::new(Shared::new()?)))
    }

    /// Becomes readable with each wake() of a sleeper. The backend watches for that and need not
    /// read it: every write is an edge, and the counter cannot fill up in a lifetime.
    pub fn fd(&self) -> RawFd {
        self.0.eventfd.as_raw_fd()
    }

    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }

    #[inline]
    pub fn prepare(&self) -> Permit {
        self.0.token.prepare()
    }

    #[inline]
    pub fn consume(&self) -> Permit {
        self.0.token.consume()
    }

    #[inline]
    pub fn finish(&self) {
        self.0.token.finish();
    }

    pub fn abandon(&self, permit: Permit) {
        self.0.token.abandon(permit);
    }
}

/// Ends a driver's wait, from any thread. Outlives the driver harmlessly.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// Makes the driver's current or next wait return at once. Call it after queueing the work:
    /// what the caller wrote before is visible to the driver's thread once that wait has ended.
    ///
    /// One atomic instruction unless the driver sleeps.
    #[inline]
    pub fn wake(&self) {
        if self.0.token.notify() {
            self.write();
        }
    }

    #[cold]
    fn write(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is 8 readable bytes and the descriptor is open while `self` is.
        // The result carries no news: a non-blocking eventfd write fails only on a full counter,
        // and then the descriptor is readable anyway.
        unsafe { libc::write(self.0.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeper_needs_waking() {
        let token = Token::new();
        assert!(!token.notify());
        assert!(!token.notify());
        assert_eq!(token.prepare(), Permit::Notified);
        assert_eq!(token.prepare(), Permit::Sleep);
        assert!(token.notify());
        assert!(!token.notify());
        token.finish();
        assert_eq!(token.prepare(), Permit::Sleep);
    }

    #[test]
    fn an_abandoned_wait_keeps_its_notification() {
        let token = Token::new();
        token.notify();
        let permit = token.prepare();
        token.abandon(permit);
        assert_eq!(token.prepare(), Permit::Notified);

        let permit = token.prepare();
        assert_eq!(permit, Permit::Sleep);
        token.notify();
        token.abandon(permit);
        assert_eq!(token.prepare(), Permit::Notified);

        let permit = token.prepare();
        token.abandon(permit);
        assert!(!token.notify());
    }

    /// The number of writes to the eventfd since the last look.
    fn writes(parker: &Parker) -> u64 {
        let mut count = [0; 8];
        // SAFETY: the buffer is 8 writable bytes. An eventfd that nobody wrote says EAGAIN.
        unsafe { libc::read(parker.fd(), count.as_mut_ptr().cast(), count.len()) };
        u64::from_ne_bytes(count)
    }

    #[test]
    fn the_eventfd_is_written_for_a_sleeper_only_and_once() {
        let parker = Parker::new().unwrap();
        let waker = parker.waker();
        waker.wake();
        waker.wake();
        assert_eq!(writes(&parker), 0);
        assert_eq!(parker.prepare(), Permit::Notified);
        assert_eq!(parker.prepare(), Permit::Sleep);
        waker.wake();
        waker.wake();
        assert_eq!(writes(&parker), 1);
        parker.finish();
        waker.wake();
        assert_eq!(parker.consume(), Permit::Notified);
        assert_eq!(writes(&parker), 0);
    }
}

/// Run with `RUSTFLAGS="--cfg loom" cargo test --no-default-features --lib loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::AtomicUsize;
    use loom::sync::{Condvar, Mutex};
    use loom::thread;

    /// Stands for the eventfd: wait() blocks until write() was called since the last wait.
    struct Bell {
        rung: Mutex<bool>,
        condition: Condvar,
    }

    impl Bell {
        fn write(&self) {
            *self.rung.lock().unwrap() = true;
            self.condition.notify_one();
        }

        fn wait(&self) {
            let mut rung = self.rung.lock().unwrap();
            while !*rung {
                rung = self.condition.wait(rung).unwrap();
            }
            *rung = false;
        }
    }

    /// `producers` threads add to a plain counter and wake; the sleeper must see every addition. A
    /// lost wake-up is a deadlock, which loom reports. The counter is relaxed, so that only the
    /// token orders it, and the sleeper looks at it only after a wait.
    fn no_lost_wakeup(producers: usize, each: usize, abandon: bool) {
        loom::model(move || {
            let token = Arc::new(Token::new());
            let pushed = Arc::new(AtomicUsize::new(0));
            let bell = Arc::new(Bell { rung: Mutex::new(false), condition: Condvar::new() });
            for _ in 0..producers {
                let (token, pushed, bell) = (token.clone(), pushed.clone(), bell.clone());
                thread::spawn(move || {
                    for _ in 0..each {
                        pushed.fetch_add(1, Ordering::Relaxed);
                        if token.notify() {
                            bell.write();
                        }
                    }
                });
            }
            if abandon {
                let permit = token.prepare();
                token.abandon(permit);
            }
            loop {
                if token.prepare() == Permit::Sleep {
                    bell.wait();
                }
                token.finish();
                if pushed.load(Ordering::Relaxed) == producers * each {
                    break;
                }
            }
        });
    }

    #[test]
    fn loom_one_producer() {
        no_lost_wakeup(1, 2, false);
    }

    #[test]
    fn loom_two_producers() {
        no_lost_wakeup(2, 1, false);
    }

    #[test]
    fn loom_abandoned_wait() {
        no_lost_wakeup(1, 1, true);
    }
}
