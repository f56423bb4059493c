//! The only code that touches io_uring and epoll. Knows nothing of Python.
//!
//! A [`Driver`] starts operations on file descriptors, keeps the memory
//! they need until the kernel is done with it, and hands out their completions as [`Event`]s. Each
//! operation carries an *owner*, a value of the caller's choice that comes back with every event.
//!
//! One turn of a loop on it: [`Driver::next`] until it is empty, run what became ready, then
//! [`Driver::submit`] if there is more to do, else [`Driver::prepare_wait`] and [`Wait::block`].
//! Other threads end a wait with a [`Waker`].
//!
//! Semantics: io_uring(7), io_uring_enter(2), epoll(7), and the man page named at each operation.
//! Where the two differ, the methods say so.

mod backend;
mod choice;
mod chunk;
mod epoll;
mod fork;
mod op;
pub mod pipe;
mod setup_error;
mod slab;
pub mod socket;
mod uring;
mod waker;

#[cfg(all(test, not(loom)))]
mod tests;

use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backend::{Backend, Closed, Completion, Operation};
use op::{Kind, Op};
use slab::Slab;
use waker::{Parker, Permit};

pub use choice::Choice;
pub use chunk::Chunk;
pub use fork::Process;
pub use op::{Event, OpId, Outcome};
pub use setup_error::SetupError;
pub use socket::SocketAddress;
pub use waker::Waker;

/// How long [`Driver::close`] waits for the kernel to give buffers back.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Sizes of the queues. For a ring the kernel rounds up to powers of two and clamps to its maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Submission queue entries: operations that one system call can start. With epoll, descriptors
    /// that one wait can report.
    pub entries: u32,
    /// Completion queue entries. Completions beyond this wait in kernel memory: slower, never lost.
    /// Not used with epoll.
    pub cq_entries: u32,
    /// Whether [`Driver::receive`] is wanted, for which memory is set aside. Without effect with
    /// epoll, and before Linux 6.12: see [`Driver::receives`].
    pub receive: bool,
    /// Has a kernel thread submit what is queued. Without effect with epoll.
    pub poller: Option<Poller>,
}

/// A kernel thread that submits for a ring (`IORING_SETUP_SQPOLL`), so that the process makes no
/// system call for that. While it finds work it keeps a CPU busy; without work it sleeps.
///
/// Rings of one process that ask for the same share one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poller {
    /// Milliseconds without work before it sleeps; the kernel rounds up to its clock's ticks. Zero
    /// means a second.
    pub idle: u32,
    /// The CPU that it is pinned to; without one it roams over all.
    pub cpu: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Config { entries: 256, cq_entries: 4096, receive: false, poller: None }
    }
}

/// Operations in flight, and the ring or epoll instance that runs them.
///
/// `T` is the owner of an operation. The methods that return `io::Result<OpId>` only queue the
/// operation; a bad descriptor and the like are reported by its event. They fail, without having
/// started anything and dropping the buffer, with `EBADF` after [`close`](Self::close), and with
/// `EAGAIN` or `ENOMEM` when the kernel is out of memory.
pub struct Driver<T> {
    backend: Box<dyn Backend>,
    ops: Slab<Op<T>>,
    parker: Parker,
    name: &'static str,
    /// Why it is not io_uring, which was preferred.
    fallback: Option<SetupError>,
    /// Its forked children must not use the driver.
    process: Process,
    /// A ring accepts calls from the thread that made it only, unless it has a poller.
    not_send: PhantomData<*mut ()>,
}

impl<T> Driver<T> {
    /// Makes a driver for the calling thread.
    ///
    /// # Errors
    /// Whatever keeps the kernel interface from working here, with its remedy: see [`SetupError`].
    /// [`Choice::Auto`] fails only where epoll would fail too, as it does without descriptors.
    pub fn new(config: &Config, choice: Choice) -> Result<Self, SetupError> {
        let parker = Parker::new().map_err(|error| SetupError::failed("eventfd", &error))?;
        let eventfd = parker.fd();
        if choice == Choice::Epoll {
            let epoll = epoll::Epoll::new(config, eventfd)?;
            return Ok(Self::with_backend(Box::new(epoll), parker));
        }
        match uring::Uring::new(config, eventfd) {
            Ok(uring) => Ok(Self::with_backend(Box::new(uring), parker)),
            Err(error) if choice == Choice::Uring || error.is_out_of_descriptors() => Err(error),
            Err(error) => {
                let epoll = epoll::Epoll::new(config, eventfd)?;
                let mut driver = Self::with_backend(Box::new(epoll), parker);
                driver.fallback = Some(error);
                Ok(driver)
            }
        }
    }

    fn with_backend(backend: Box<dyn Backend>, parker: Parker) -> Self {
        Driver {
            name: backend.name(),
            backend,
            ops: Slab::new(first_generation()),
            parker,
            fallback: None,
            process: Process::current(),
            not_send: PhantomData,
        }
    }

    /// `"uring"` or `"epoll"`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What kept [`Choice::Auto`] from io_uring.
    pub fn fallback(&self) -> Option<&SetupError> {
        self.fallback.as_ref()
    }

    /// A handle with which any thread can end this driver's wait.
    pub fn waker(&self) -> Waker {
        self.parker.waker()
    }

    /// Reports readiness of `fd`: `events` is a mask of poll(2) (`POLLIN`, `POLLOUT`, ...), to
    /// which the kernel adds `POLLERR` and `POLLHUP`. The outcome is [`Outcome::Poll`].
    ///
    /// A multishot poll reports what is ready at the start and each new arrival: it is edge
    /// triggered, so read until `EAGAIN`. On a stream socket a short count will do if `POLLRDHUP`
    /// was asked for and not reported; without it an end that came with the data goes unnoticed.
    /// It may tell twice: with epoll it does so when other operations on `fd` start. One-shot, it
    /// ends with the first report.
    ///
    /// A descriptor that is closed meanwhile goes on being polled by the ring; with epoll the
    /// operation may fall silent. Either way it stays in flight until it is cancelled.
    #[inline]
    pub fn poll(&mut self, fd: RawFd, events: u32, multishot: bool, owner: T) -> io::Result<OpId> {
        let operation = Operation::Poll { fd, events, multishot };
        self.start(Kind::Poll, owner, operation)
    }

    /// Accepts connections on the listening socket `fd` until cancelled or failed. They are
    /// non-blocking and close-on-exec: accept4(2). The outcomes are [`Outcome::Accept`].
    ///
    /// An error (`EMFILE`, `ECONNABORTED`, ...) ends the operation; the caller starts it again. The
    /// kernel reserves the descriptor before it looks for a connection: at the limit the operation
    /// fails at once, connection or not. The ring reads `RLIMIT_NOFILE` when the operation starts.
    ///
    /// With epoll the listening socket is made non-blocking.
    pub fn accept(&mut self, fd: RawFd, owner: T) -> io::Result<OpId> {
        self.start(Kind::Accept, owner, Operation::Accept { fd })
    }

    /// Sends `buf[start..]`, all of it unless it fails, is cancelled, or exceeds 2 GiB: send(2)
    /// with `MSG_WAITALL | MSG_NOSIGNAL`. Comes back as [`Outcome::Send`].
    ///
    /// After 128 waits for room io_uring moves it to a thread of its own (seen at 28 MB on a Unix
    /// socket, 560 MB on TCP), so very large data is better sent in pieces.
    ///
    /// # Errors
    /// `EINVAL` if `start` is beyond the end of `buf`.
    pub fn send(&mut self, fd: RawFd, buf: Vec<u8>, start: usize, owner: T) -> io::Result<OpId> {
        let Some(rest) = buf.get(start..) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let operation = Operation::Send { fd, data: rest.as_ptr(), len: transfer_len(rest.len()) };
        self.start(Kind::Send(buf), owner, operation)
    }

    /// Whether [`receive`](Self::receive) works.
    pub fn receives(&self) -> bool {
        self.backend.receives()
    }

    /// Receives from the stream socket `fd` until the end of the stream, an error or cancellation:
    /// recv(2), multishot. The outcomes are [`Outcome::Receive`]. Take all events after a
    /// cancellation: what arrived before it comes first.
    ///
    /// # Errors
    /// `EOPNOTSUPP` unless [`receives`](Self::receives).
    pub fn receive(&mut self, fd: RawFd, owner: T) -> io::Result<OpId> {
        self.check_process()?;
        let id = self.ops.insert(Op { owner, kind: Kind::Receive { fd, cancelled: false } })?;
        match self.backend.receive(id, fd) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.ops.remove(id);
                Err(error)
            }
        }
    }

    #[inline]
    fn start(&mut self, kind: Kind, owner: T, operation: Operation) -> io::Result<OpId> {
        self.check_process()?;
        let id = self.ops.insert(Op { owner, kind })?;
        // SAFETY: what `operation` points to is on the heap and owned by `kind`, which stays in the
        // slab until the terminal completion, and which close() frees only after a full drain.
        match unsafe { self.backend.start(id, operation) } {
            Ok(()) => Ok(id),
            Err(error) => {
                self.ops.remove(id);
                Err(error)
            }
        }
    }

    /// Cancels those of `ops` that are still live; their last events come from
    /// [`next`](Self::next) as usual, most with `ECANCELED`.
    ///
    /// On return the kernel refers to none of these operations' descriptor *numbers* any more, and
    /// polls and accepts have let go of the file too, so that the caller may close the descriptor
    /// at once. Events queued before may still deliver data or connections.
    ///
    /// # Errors
    /// Those of io_uring_enter(2). With epoll none.
    pub fn cancel(&mut self, ops: &[OpId]) -> io::Result<()> {
        self.check_process()?;
        let mut any = false;
        for &id in ops {
            any |= self.cancel_one(id)?;
        }
        if any {
            self.backend.settle(self.ops.len() + ops.len())?;
        }
        Ok(())
    }

    /// Cancels an operation without waiting for the kernel to do so. Its descriptor must stay open
    /// until the last event.
    ///
    /// # Errors
    /// Those of io_uring_enter(2).
    pub fn cancel_later(&mut self, id: OpId) -> io::Result<()> {
        self.check_process()?;
        self.cancel_one(id).map(drop)
    }

    /// Whether the operation is live still.
    fn cancel_one(&mut self, id: OpId) -> io::Result<bool> {
        let Some(op) = self.ops.get_mut(id) else { return Ok(false) };
        if let Kind::Receive { cancelled, .. } = &mut op.kind {
            *cancelled = true;
        }
        self.backend.cancel(id)?;
        Ok(true)
    }

    /// Whether [`submit`](Self::submit) and [`next`](Self::next) would find nothing to do. Where
    /// that takes a system call to find out, it is not.
    #[inline]
    pub fn is_quiet(&mut self) -> bool {
        self.process.is_current() && self.backend.is_quiet()
    }

    /// Starts what is queued and lets the kernel post what is due. Never waits, and makes no system
    /// call when there is neither; with epoll, which cannot tell, when nothing is in flight.
    ///
    /// # Errors
    /// Those of io_uring_enter(2) or epoll_wait(2), except the transient ones (`EINTR`, `EAGAIN`,
    /// `EBUSY`): what they held up is tried again at the next call.
    #[inline]
    pub fn submit(&mut self) -> io::Result<()> {
        self.check_process()?;
        self.backend.submit()
    }

    /// Announces a wait of at most `timeout` (`None`: until something happens) to the wakers.
    ///
    /// A [`Waker::wake`] since the last wait makes this one not block, so work queued before a
    /// wake() is never slept on: look at the queues after each wait.
    #[inline]
    pub fn prepare_wait(&mut self, timeout: Option<Duration>) -> Wait<'_> {
        let permit = if timeout == Some(Duration::ZERO) {
            self.parker.consume()
        } else {
            self.parker.prepare()
        };
        Wait {
            allowed: self.check_process(),
            backend: &mut *self.backend,
            parker: &self.parker,
            permit,
            timeout,
            blocked: false,
        }
    }

    /// The next completion that has already been posted. No system call. A poller posts without
    /// being asked: what it has posted since the last submit() or wait is left for after the next.
    ///
    /// Not an iterator: between two calls the caller may use the driver.
    #[inline]
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Event<T>>
    where
        T: Clone,
    {
        self.check_process().ok()?;
        while let Some(completion) = self.backend.next() {
            let op = OpId::from_user_data(completion.user_data);
            if completion.more {
                if let Some((owner, outcome)) = self.partial(op, completion) {
                    return Some(Event { op, owner: owner.clone(), more: true, outcome });
                }
            } else if completion.result == -libc::ENOBUFS && self.receive_later(op) {
                // Nobody need know.
            } else if let Some(Op { owner, kind }) = self.ops.remove(op) {
                return Some(Event {
                    op,
                    owner,
                    more: false,
                    outcome: kind.finish(completion.result, completion.chunk),
                });
            }
        }
        None
    }

    /// Has a receive operation that found no memory go on later, unless it is to end.
    #[cold]
    fn receive_later(&mut self, id: OpId) -> bool {
        match self.ops.get(id) {
            Some(Op { kind: Kind::Receive { fd, cancelled: false }, .. }) => {
                self.backend.receive_later(id, *fd);
                true
            }
            _ => false,
        }
    }

    /// What a multishot operation reports before its end. `None` for stale ids.
    #[inline]
    fn partial(&self, id: OpId, completion: Completion) -> Option<(&T, Outcome)> {
        let op = self.ops.get(id)?;
        Some((&op.owner, op.kind.report(completion.result, completion.chunk)?))
    }

    /// Whether the calling thread may use the driver: a ring belongs to the thread that made it;
    /// one with a poller, and an epoll instance, to the process.
    pub fn is_usable(&self) -> bool {
        self.backend.is_usable()
    }

    /// `EBADF` in a forked child, which shares its parent's ring or epoll instance.
    #[inline]
    fn check_process(&self) -> io::Result<()> {
        if !self.process.is_current() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        Ok(())
    }

    /// The number of operations that have not reported their end through [`next`](Self::next).
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// The owners of the operations in flight, one for each, for a garbage collector.
    pub fn owners(&self) -> impl Iterator<Item = &T> {
        self.ops.iter().map(|op| &op.owner)
    }

    /// Cancels everything, waits up to a second for the kernel to be done, closes the ring or epoll
    /// instance, frees the buffers, and returns the operations with their owners. Connections
    /// accepted meanwhile are closed.
    ///
    /// Where draining is impossible (a ring's foreign thread, a forked child, the kernel too slow),
    /// buffers are leaked rather than freed under the kernel. A second call does nothing.
    pub fn close(&mut self) -> Vec<(OpId, T)> {
        let mut backend = mem::replace(&mut self.backend, Box::new(Closed));
        let mut owners = Vec::with_capacity(self.ops.len());
        // An error leaves operations in the slab, and these are treated as undrained below.
        let _ = self.drain(&mut *backend, &mut owners);
        if self.ops.len() > 0 {
            backend.abandon();
        }
        drop(backend);
        for (id, op) in mem::replace(&mut self.ops, Slab::new(0)).into_entries() {
            owners.push((id, op.owner));
            mem::forget(op.kind);
        }
        owners
    }

    fn drain(&mut self, backend: &mut dyn Backend, owners: &mut Vec<(OpId, T)>) -> io::Result<()> {
        if !backend.is_usable() {
            // What has arrived can be taken by any thread, but not by a forked child.
            if self.check_process().is_ok() {
                self.discard(backend, owners);
            }
            return Ok(());
        }
        if self.ops.len() == 0 {
            return Ok(());
        }
        for id in self.ops.ids() {
            backend.cancel(id)?;
        }
        backend.settle(2 * self.ops.len())?;
        let deadline = socket::monotonic() + DRAIN_LIMIT;
        loop {
            self.discard(backend, owners);
            let left = deadline.saturating_sub(socket::monotonic());
            if self.ops.len() == 0 || left.is_zero() {
                return Ok(());
            }
            backend.wait(Some(left))?;
        }
    }

    fn discard(&mut self, backend: &mut dyn Backend, owners: &mut Vec<(OpId, T)>) {
        while let Some(completion) = backend.next() {
            let id = OpId::from_user_data(completion.user_data);
            if completion.more {
                drop(self.partial(id, completion));
            } else if let Some(op) = self.ops.remove(id) {
                owners.push((id, op.owner));
                drop(op.kind.finish(completion.result, completion.chunk));
            }
        }
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

/// A wait announced by [`Driver::prepare_wait`]. Dropping it takes the announcement back.
#[must_use = "the loop only sleeps in block()"]
pub struct Wait<'a> {
    backend: &'a mut dyn Backend,
    parker: &'a Parker,
    permit: Permit,
    timeout: Option<Duration>,
    allowed: io::Result<()>,
    blocked: bool,
}

// SAFETY: for callers that pass it through a closure which must be Send because it runs without the
// GIL, on the same thread. On another thread a ring refuses the call (EEXIST), epoll does not mind,
// and the parker is atomic; the exclusive borrow keeps the driver's own thread away meanwhile.
unsafe impl Send for Wait<'_> {}

impl Wait<'_> {
    /// Starts what is queued and waits for a completion, a [`Waker::wake`], a signal or the
    /// timeout: io_uring_enter(2), which does all of it in one system call, or epoll_pwait2(2);
    /// where that is missing, timeouts are rounded up to milliseconds. Does not block if
    /// completions are there.
    ///
    /// # Errors
    /// Those of io_uring_enter(2) or epoll_wait(2), except `ETIME`, `EINTR`, `EAGAIN` and `EBUSY`,
    /// which end the wait like any event. `EBADF` after [`Driver::close`].
    pub fn block(mut self) -> io::Result<()> {
        self.blocked = true;
        mem::replace(&mut self.allowed, Ok(()))?;
        let timeout = match self.permit {
            Permit::Sleep => self.timeout,
            Permit::Notified => Some(Duration::ZERO),
        };
        self.backend.wait(timeout)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.blocked {
            self.parker.finish();
        } else {
            self.parker.abandon(self.permit);
        }
    }
}

/// Ids of different drivers differ too, as far as 32 bits go: a stale one names nothing.
fn first_generation() -> u32 {
    static DRIVERS: AtomicU32 = AtomicU32::new(0);
    // Multiplied by an odd number near 2^32 divided by the golden ratio, which spreads them.
    DRIVERS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b1)
}

/// The kernel moves at most `MAX_RW_COUNT` bytes at a time, read(2).
fn transfer_len(len: usize) -> u32 {
    len.min(0x7fff_f000) as u32
}

/// Fails to compile if `Driver` becomes Send: both impls would apply, and `_` be ambiguous.
const _: fn() = || {
    trait UnlessSend<A> {
        fn check() {}
    }
    impl<T: ?Sized> UnlessSend<()> for T {}
    impl<T: ?Sized + Send> UnlessSend<u8> for T {}
    let _ = <Driver<()> as UnlessSend<_>>::check;
};
