//! The native base of `kloop.Loop`: what runs once per callback, timer or turn.
//!
//! `class Loop(SocketCalls, _kloop.Loop, asyncio.SelectorEventLoop)` inherits everything else from
//! asyncio. The attributes that asyncio's classes keep in the instance and that native code reads
//! in every turn (`_debug`, `_stopping`, ...) are attributes of the native base, which asyncio's own
//! code then sets without knowing.

#![deny(unsafe_code)]

mod choose;
mod engine;
mod handle;
mod mailbox;
mod poll;
mod run_lock;
mod schedule;
mod tasks;
mod timers;
mod turn;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CStr;
use std::hint::black_box;
use std::os::fd::RawFd;

pub use choose::{chosen_driver, open_driver};
pub use handle::{Handle, HandleTypes};
pub use mailbox::Mailbox;
pub use poll::Poll;
pub use watch::Watch;

use crate::driver::{Choice, Config, Driver, Event, OpId, Outcome, Process, Waker};
use crate::py::{
    Args, Bound, Construct, Exc, GetSet, Method, Native, Obj, ObjCell, Ref, Result, StateRef,
    ToObj, Type, Visit, state_of_type,
};
use crate::state::State;
use timers::Timers;
use watch::Direction;

/// What the driver reports about one operation to its owner.
pub struct Completion {
    pub op: OpId,
    /// Whether more completions of the operation follow.
    pub more: bool,
    pub outcome: Outcome,
}

/// What the owner of an operation hears.
pub enum Signal {
    Completed(Completion),
    /// The operation's ring is gone, and the operation with it: the loop has moved to another
    /// thread and has a new ring.
    RingLost(OpId),
}

/// Who hears of an operation. SystemExit and KeyboardInterrupt leave the loop; other errors go to
/// its exception handler.
pub type Owner = Bound<Signal, Result<()>>;

/// What is to be done when the callback that runs now has ended.
pub type AtEnd = Bound<(), Result<()>>;

/// The largest number of bytes that one read takes.
pub const READ_SIZE: usize = 256 * 1024;

pub struct EventLoop {
    pub state: StateRef<State>,
    driver: RefCell<Option<Driver<Owner>>>,
    driver_name: Cell<&'static str>,
    choice: Choice,
    config: Cell<Config>,
    /// Transports receive through the ring instead of polling.
    receives: Cell<bool>,
    /// Transports send through the ring, which takes no system call.
    sends: Cell<bool>,
    /// Whose loop it is: a forked child must leave it alone.
    process: Process,
    /// What the owners of operations on a ring that is gone have still to hear.
    last_news: RefCell<VecDeque<(Owner, Signal)>>,
    /// Gone once the loop is closed, like the driver.
    waker: RefCell<Option<Waker>>,
    ready: RefCell<VecDeque<Ref<Handle>>>,
    timers: RefCell<Timers>,
    watches: RefCell<HashMap<(RawFd, Direction), Ref<Watch>>>,
    /// Watches whose poll has fired and that poll again before the next wait.
    rearm: RefCell<Vec<Ref<Watch>>>,
    /// File descriptors that belong to transports, which `add_reader` must not touch.
    transports: RefCell<HashSet<RawFd>>,
    /// Where received bytes land before they are copied into a `bytes` of the exact size.
    scratch: RefCell<Vec<u8>>,
    in_run_once: Cell<bool>,
    /// Counts the beginnings and the ends of callbacks: odd while one runs.
    callback: Cell<u64>,
    /// What waits for its end.
    at_end: RefCell<Vec<AtEnd>>,
    has_at_end: Cell<bool>,
    stopping: Cell<bool>,
    closed: Cell<bool>,
    debug: Cell<bool>,
    /// The identity of the thread that runs the loop, or None.
    thread_id: ObjCell,
    task_factory: ObjCell,
    /// A future that is done, for `done_future`.
    done_future: ObjCell,
    mailbox: RefCell<Option<Mailbox>>,
}

impl EventLoop {
    fn construct(class: &Type<EventLoop>, args: &Args) -> Result<Ref<EventLoop>> {
        let state = state_of_type::<State, _>(class)?;
        let choice = chosen_driver(args.gil)?;
        let driver = open_driver(args.gil, choice, &Config::default())?;
        class.alloc(EventLoop {
            state,
            waker: RefCell::new(Some(driver.waker())),
            driver_name: Cell::new(driver.name()),
            choice,
            config: Cell::default(),
            receives: Cell::new(false),
            sends: Cell::new(false),
            process: Process::current(),
            driver: RefCell::new(Some(driver)),
            last_news: RefCell::default(),
            ready: RefCell::default(),
            timers: RefCell::default(),
            watches: RefCell::default(),
            rearm: RefCell::default(),
            transports: RefCell::default(),
            scratch: RefCell::default(),
            in_run_once: Cell::new(false),
            callback: Cell::new(0),
            at_end: RefCell::default(),
            has_at_end: Cell::new(false),
            stopping: Cell::new(false),
            closed: Cell::new(false),
            debug: Cell::new(false),
            thread_id: ObjCell::empty(),
            task_factory: ObjCell::empty(),
            done_future: ObjCell::empty(),
            mailbox: RefCell::new(None),
        })
    }

    /// Runs `body` with the driver. It must not run Python.
    ///
    /// `RuntimeError` once the loop is closed, where another thread waits in the driver, and in a
    /// forked child.
    #[inline]
    pub fn with_driver<R>(
        this: &Ref<EventLoop>,
        body: impl FnOnce(&mut Driver<Owner>) -> R,
    ) -> Result<R> {
        Self::check_process(this)?;
        match this.driver.try_borrow_mut() {
            Ok(mut driver) => match driver.as_mut() {
                Some(driver) => Ok(body(driver)),
                None => Err(Exc::runtime_error(this.gil(), "Event loop is closed")),
            },
            Err(_) => Err(Exc::runtime_error(
                this.gil(),
                "Non-thread-safe operation invoked on an event loop that another thread runs",
            )),
        }
    }

    /// As [`EventLoop::with_driver`], to start operations.
    #[inline]
    pub fn with_ring<R>(
        this: &Ref<EventLoop>,
        body: impl FnOnce(&mut Driver<Owner>) -> std::io::Result<R>,
    ) -> Result<R> {
        if !this.thread_id.is_some() {
            // While the loop does not run, any thread may prepare it or take it down.
            Self::adopt_ring(this)?;
        }
        Self::with_driver(this, body)?.map_err(|error| Exc::os(this.gil(), &error))
    }

    /// Asks the kernel to end operations, and waits until it refers to their file descriptors no
    /// more. On a closed loop there are none left, and in a forked child they are the parent's.
    pub fn cancel_ops(this: &Ref<EventLoop>, ops: &[OpId]) -> Result<()> {
        if ops.is_empty() || this.is_inherited() {
            return Ok(());
        }
        if !this.thread_id.is_some() && Self::adopt_ring(this)? {
            // They have ended with their ring.
            return Ok(());
        }
        if let Ok(mut driver) = this.driver.try_borrow_mut()
            && let Some(driver) = driver.as_mut()
        {
            // A failure means that the ring is gone, and its operations with it.
            let _ = driver.cancel(ops);
        }
        Ok(())
    }

    /// Asks the kernel to end an operation, whose descriptor stays open until that has reported its
    /// end.
    pub fn cancel_later(this: &Ref<EventLoop>, op: OpId) {
        if let Ok(mut driver) = this.driver.try_borrow_mut()
            && let Some(driver) = driver.as_mut()
        {
            // A failure means that the ring is gone, and its operations with it.
            let _ = driver.cancel_later(op);
        }
    }

    /// Runs `body` with the receive buffer, of [`READ_SIZE`] bytes. It must not run Python.
    pub fn with_scratch<R>(&self, body: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut scratch = self.scratch.take();
        if scratch.is_empty() {
            keep_reads_in_the_heap();
            scratch.resize(READ_SIZE, 0);
        }
        let result = body(&mut scratch);
        self.scratch.replace(scratch);
        result
    }

    #[inline]
    pub fn debug(&self) -> bool {
        self.debug.get()
    }

    /// Whether it is closed. To a forked child, its parent's loop is.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed.get() || self.is_inherited()
    }

    #[inline]
    pub fn check_closed(this: &Ref<EventLoop>) -> Result<()> {
        Self::check_process(this)?;
        if this.closed.get() {
            return Err(Exc::runtime_error(this.gil(), "Event loop is closed"));
        }
        Ok(())
    }

    /// Whether this is a forked child and the loop its parent's.
    #[inline]
    pub fn is_inherited(&self) -> bool {
        !self.process.is_current()
    }

    #[inline]
    pub fn check_process(this: &Ref<EventLoop>) -> Result<()> {
        if this.is_inherited() { Err(Self::inherited(this)) } else { Ok(()) }
    }

    #[cold]
    fn inherited(this: &Ref<EventLoop>) -> Exc {
        Exc::runtime_error(
            this.gil(),
            "this event loop belongs to the parent process; make a new one in the child",
        )
    }

    pub fn claim_fd(&self, fd: RawFd) {
        self.transports.borrow_mut().insert(fd);
    }

    pub fn release_fd(&self, fd: RawFd) {
        self.transports.borrow_mut().remove(&fd);
    }

    /// Raises `RuntimeError` if a transport owns the file descriptor.
    pub fn ensure_fd_no_transport(this: &Ref<EventLoop>, file: &Obj) -> Result<()> {
        let fd = match Self::file_descriptor(this, file) {
            Err(_) if Self::watched_before(this, file).is_some() => return Ok(()),
            fd => fd?,
        };
        if this.transports.borrow().contains(&fd) {
            return Err(Exc::runtime_error(
                this.gil(),
                format!("File descriptor {} is used by transport", file.repr()),
            ));
        }
        Ok(())
    }

    /// A file descriptor given as an integer or as an object with `fileno()`.
    pub fn file_descriptor(this: &Ref<EventLoop>, file: &Obj) -> Result<RawFd> {
        this.state.to_fd.call([file])?.to_i32()
    }

    /// Replaces a ring that belongs to another thread. In the next turn the owners of what was in
    /// flight on it hear what has come of it, or start it again. Returns whether that was
    /// necessary.
    fn adopt_ring(this: &Ref<EventLoop>) -> Result<bool> {
        Self::check_process(this)?;
        let usable = |driver: &Option<Driver<Owner>>| driver.as_ref().is_none_or(Driver::is_usable);
        // One that is borrowed is in use, by whichever thread.
        if this.driver.try_borrow().map_or(true, |driver| usable(&driver)) {
            return Ok(false);
        }
        let new = open_driver(this.gil(), this.choice, &this.config.get())?;
        // That may have run Python: another thread may have taken the loop over meanwhile.
        let old = match this.driver.try_borrow_mut() {
            Ok(mut driver) if !usable(&driver) => {
                this.driver_name.set(new.name());
                this.waker.replace(Some(new.waker()));
                driver.replace(new)
            }
            _ => return Ok(false),
        };
        if let Some(mut old) = old {
            let mut news = this.last_news.borrow_mut();
            while let Some(event) = old.next() {
                let Event { op, owner, more, outcome } = event;
                news.push_back((owner, Signal::Completed(Completion { op, more, outcome })));
            }
            news.extend(old.close().into_iter().map(|(op, owner)| (owner, Signal::RingLost(op))));
        }
        Ok(true)
    }

    /// Releases the ring, the callbacks and the timers. Idempotent.
    fn close_ring(this: &Ref<EventLoop>) -> Result<()> {
        let owners = this.take_driver().map(|mut driver| driver.close());
        this.waker.replace(None);
        this.forget_callbacks();
        drop(owners);
        Ok(())
    }

    fn take_driver(&self) -> Option<Driver<Owner>> {
        self.driver.try_borrow_mut().ok().and_then(|mut driver| driver.take())
    }

    fn forget_callbacks(&self) {
        self.track_queued();
        let ready = self.ready.take();
        let timers = self.timers.borrow_mut().drain();
        let watches = self.watches.take();
        let rearm = self.rearm.take();
        let news = self.last_news.take();
        let at_end = self.at_end.take();
        let done_future = self.done_future.take();
        drop((ready, timers, watches, rearm, news, at_end, done_future));
    }

    fn stats(this: &Ref<EventLoop>) -> Result<Obj> {
        let gil = this.gil();
        let in_flight = match this.driver.try_borrow() {
            Ok(driver) => driver.as_ref().map_or(0, Driver::in_flight),
            Err(_) => 0,
        };
        let stats = Obj::dict(gil)?;
        let transports = this.transports.borrow().len();
        let ready = this.ready.borrow().len();
        let timers = this.timers.borrow().len();
        stats.set_item("ops_in_flight", &in_flight.to_obj(gil)?)?;
        stats.set_item("transports", &transports.to_obj(gil)?)?;
        stats.set_item("ready", &ready.to_obj(gil)?)?;
        stats.set_item("timers", &timers.to_obj(gil)?)?;
        Ok(stats)
    }

    fn driver_name(this: &Ref<EventLoop>) -> Result<&'static str> {
        Ok(this.driver_name.get())
    }

    fn get_debug(this: &Ref<EventLoop>) -> Result<bool> {
        Ok(this.debug.get())
    }

    fn set_debug(this: &Ref<EventLoop>, value: &Obj) -> Result<()> {
        this.debug.set(value.truth()?);
        Ok(())
    }

    fn get_stopping(this: &Ref<EventLoop>) -> Result<bool> {
        Ok(this.stopping.get())
    }

    fn set_stopping(this: &Ref<EventLoop>, value: &Obj) -> Result<()> {
        this.stopping.set(value.truth()?);
        Ok(())
    }

    fn get_closed(this: &Ref<EventLoop>) -> Result<bool> {
        Ok(this.is_closed())
    }

    fn set_closed(this: &Ref<EventLoop>, value: &Obj) -> Result<()> {
        this.closed.set(value.truth()?);
        Ok(())
    }

    fn get_thread_id(this: &Ref<EventLoop>) -> Result<Option<Obj>> {
        Ok(this.thread_id.get())
    }

    fn set_thread_id(this: &Ref<EventLoop>, value: &Obj) -> Result<()> {
        this.thread_id.set(value.some().cloned());
        Ok(())
    }

    fn get_inherited(this: &Ref<EventLoop>) -> Result<bool> {
        Ok(this.is_inherited())
    }

    fn is_running(this: &Ref<EventLoop>) -> Result<bool> {
        Ok(this.thread_id.is_some() && !this.is_inherited())
    }

    fn get_task_factory(this: &Ref<EventLoop>) -> Result<Option<Obj>> {
        Ok(this.task_factory.get())
    }

    fn set_task_factory(this: &Ref<EventLoop>, value: &Obj) -> Result<()> {
        this.task_factory.set(value.some().cloned());
        Ok(())
    }
}

impl Native for EventLoop {
    const NAME: &'static CStr = c"kloop._kloop.Loop";
    const DOC: &'static CStr = c"The native base of kloop.Loop.";
    const SUBCLASSABLE: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(EventLoop::construct);
    const METHODS: &'static [Method<Self>] = &[
        Method::any(c"call_soon", EventLoop::call_soon),
        Method::any(c"call_soon_threadsafe", EventLoop::call_soon_threadsafe),
        Method::any(c"call_later", EventLoop::call_later),
        Method::any(c"call_at", EventLoop::call_at),
        Method::noargs(c"time", EventLoop::time),
        Method::noargs(c"create_future", EventLoop::create_future),
        Method::any(c"create_task", EventLoop::create_task),
        Method::noargs(c"get_debug", EventLoop::get_debug),
        Method::noargs(c"is_running", EventLoop::is_running),
        Method::noargs(c"is_closed", EventLoop::get_closed),
        Method::noargs(c"_check_closed", EventLoop::check_closed),
        Method::noargs(c"_run_once", EventLoop::run_once),
        Method::noargs(c"_write_to_self", EventLoop::wake),
        Method::any(c"_add_reader", EventLoop::add_reader),
        Method::one(c"_remove_reader", EventLoop::remove_reader),
        Method::any(c"_add_writer", EventLoop::add_writer),
        Method::one(c"_remove_writer", EventLoop::remove_writer),
        Method::any(c"_poll", EventLoop::poll),
        Method::one(c"_watched", EventLoop::watched),
        Method::one(c"_ensure_fd_no_transport", EventLoop::ensure_fd_no_transport),
        Method::any(c"_open_ring", EventLoop::open_ring),
        Method::noargs(c"_close_ring", EventLoop::close_ring),
        Method::noargs(c"stats", EventLoop::stats),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"driver", EventLoop::driver_name),
        GetSet::get(c"_inherited", EventLoop::get_inherited),
        GetSet::writable(c"_debug", EventLoop::get_debug, EventLoop::set_debug),
        GetSet::writable(c"_stopping", EventLoop::get_stopping, EventLoop::set_stopping),
        GetSet::writable(c"_closed", EventLoop::get_closed, EventLoop::set_closed),
        GetSet::writable(c"_thread_id", EventLoop::get_thread_id, EventLoop::set_thread_id),
        GetSet::writable(
            c"_task_factory",
            EventLoop::get_task_factory,
            EventLoop::set_task_factory,
        ),
        GetSet::END,
    ];

    fn traverse(&self, visit: &mut Visit) {
        visit.obj(self.state.module());
        visit.cell(&self.thread_id);
        visit.cell(&self.task_factory);
        visit.cell(&self.done_future);
        if let Ok(driver) = self.driver.try_borrow()
            && let Some(driver) = driver.as_ref()
        {
            driver.owners().for_each(|owner| visit.obj(owner.receiver()));
        }
        if let Ok(news) = self.last_news.try_borrow() {
            news.iter().for_each(|(owner, _)| visit.obj(owner.receiver()));
        }
        if let Ok(ready) = self.ready.try_borrow() {
            ready.iter().for_each(|handle| visit.native(handle));
        }
        if let Ok(at_end) = self.at_end.try_borrow() {
            at_end.iter().for_each(|todo| visit.obj(todo.receiver()));
        }
        if let Ok(timers) = self.timers.try_borrow() {
            timers.handles().for_each(|handle| visit.native(handle));
        }
        if let Ok(watches) = self.watches.try_borrow() {
            watches.values().for_each(|watch| visit.native(watch));
        }
        if let Ok(mailbox) = self.mailbox.try_borrow()
            && let Some(mailbox) = mailbox.as_ref()
        {
            visit.obj(mailbox.reader());
        }
        if let Ok(rearm) = self.rearm.try_borrow() {
            rearm.iter().for_each(|watch| visit.native(watch));
        }
    }

    fn clear(&self) {
        drop(self.take_driver().map(|mut driver| driver.close()));
        self.forget_callbacks();
        self.thread_id.set(None);
        self.task_factory.set(None);
        self.set_mailbox(None);
    }
}

/// glibc takes memory of the size of a long read from the kernel and returns it, each time, until a
/// piece as large has been freed whole, and it returns the free end of the heap beyond twice that
/// size (mallopt(3), `M_MMAP_THRESHOLD`). Reads are cut, so theirs do not count; this piece does,
/// and leaves room for what a stream makes of some reads.
fn keep_reads_in_the_heap() {
    drop(black_box(Vec::<u8>::with_capacity(4 * READ_SIZE)));
}
