//! `add_reader` and its siblings: level-triggered watches on file descriptors.
//!
//! A watch is a one-shot poll that is armed again after its callback has run, which gives exactly
//! the level-triggered behaviour of asyncio's selectors. Re-arming rides on the next wait's system
//! call.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::os::fd::RawFd;

use super::{EventLoop, Handle, Owner, Signal};
use crate::driver::socket::check_pollable;
use crate::driver::{OpId, Outcome};
use crate::py::{Args, Exc, GetSet, Method, Native, Obj, Ref, Result, Visit};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    Read,
    Write,
}

impl Direction {
    fn events(self) -> u32 {
        let events = match self {
            Direction::Read => libc::POLLIN,
            Direction::Write => libc::POLLOUT,
        };
        events as u32
    }
}

/// One watched direction of one file descriptor.
pub struct Watch {
    home: Ref<EventLoop>,
    fd: RawFd,
    /// What was given for the descriptor: as with a selector, a watched socket stays open, and can
    /// be named after it was closed.
    file: Obj,
    direction: Direction,
    /// None once removed.
    handle: RefCell<Option<Ref<Handle>>>,
    op: Cell<Option<OpId>>,
}

impl EventLoop {
    pub(super) fn add_reader(this: &Ref<EventLoop>, args: &Args) -> Result<Ref<Handle>> {
        Self::add_watch(this, "add_reader", Direction::Read, args)
    }

    pub(super) fn add_writer(this: &Ref<EventLoop>, args: &Args) -> Result<Ref<Handle>> {
        Self::add_watch(this, "add_writer", Direction::Write, args)
    }

    pub(super) fn remove_reader(this: &Ref<EventLoop>, file: &Obj) -> Result<bool> {
        Self::remove_watch(this, Direction::Read, file)
    }

    pub(super) fn remove_writer(this: &Ref<EventLoop>, file: &Obj) -> Result<bool> {
        Self::remove_watch(this, Direction::Write, file)
    }

    /// What is watched on a file descriptor, as the `selectors` module's EVENT_READ (1) and
    /// EVENT_WRITE (2).
    pub(super) fn watched(this: &Ref<EventLoop>, file: &Obj) -> Result<i32> {
        let fd = Self::file_descriptor(this, file)?;
        let watches = this.watches.borrow();
        let reading = i32::from(watches.contains_key(&(fd, Direction::Read)));
        let writing = i32::from(watches.contains_key(&(fd, Direction::Write)));
        Ok(reading | writing << 1)
    }

    fn add_watch(
        this: &Ref<EventLoop>,
        method: &str,
        direction: Direction,
        args: &Args,
    ) -> Result<Ref<Handle>> {
        Self::check_closed(this)?;
        // Since CPython 3.15 asyncio's own transports give the context to run in.
        let context = args.only_keyword(method, &this.state.names.context, c"context")?;
        let [file, callback, rest @ ..] = args.positional else {
            return Err(Exc::type_error(
                args.gil,
                format!("{method}() takes a file descriptor, a callback and its arguments"),
            ));
        };
        let fd = Self::file_descriptor(this, file)?;
        check_pollable(fd).map_err(|error| Exc::os(args.gil, &error))?;
        let handle = Handle::create(this, callback, rest, context.and_then(Obj::some))?;
        Handle::keep(&handle);
        let watch = this.state.watch.alloc(Watch {
            home: this.clone(),
            fd,
            file: file.clone(),
            direction,
            handle: RefCell::new(Some(handle.clone())),
            op: Cell::new(None),
        })?;
        Watch::arm(&watch)?;
        // What is replaced is cancelled: its poll may be of a file closed long ago.
        let replaced = this.watches.borrow_mut().insert((fd, direction), watch);
        Self::retire_watch(this, replaced)?;
        Ok(handle)
    }

    fn remove_watch(this: &Ref<EventLoop>, direction: Direction, file: &Obj) -> Result<bool> {
        if this.is_closed() {
            return Ok(false);
        }
        let fd = Self::file_descriptor(this, file)
            .or_else(|error| Self::watched_before(this, file).ok_or(error))?;
        let removed = this.watches.borrow_mut().remove(&(fd, direction));
        Self::retire_watch(this, removed)
    }

    /// The descriptor that a file had when it was given to be watched, if it still is.
    pub(super) fn watched_before(this: &Ref<EventLoop>, file: &Obj) -> Option<RawFd> {
        let watches = this.watches.borrow();
        watches.values().find(|watch| watch.file.is(file)).map(|watch| watch.fd)
    }

    /// Ends a watch that is in the table no more. Returns whether there was one.
    fn retire_watch(this: &Ref<EventLoop>, watch: Option<Ref<Watch>>) -> Result<bool> {
        let Some(watch) = watch else { return Ok(false) };
        let handle = watch.handle.take();
        if let Some(op) = watch.op.take() {
            Self::cancel_ops(this, &[op])?;
        }
        if let Some(handle) = handle {
            Handle::cancel(&handle)?;
        }
        Ok(true)
    }

    pub(super) fn rearm_watches(this: &Ref<EventLoop>) -> Result<()> {
        if this.rearm.borrow().is_empty() {
            return Ok(());
        }
        let mut due = this.rearm.take().into_iter();
        while let Some(watch) = due.next() {
            let live = watch.handle.borrow().is_some();
            if live
                && watch.op.get().is_none()
                && let Err(error) = Watch::arm(&watch)
            {
                this.rearm.borrow_mut().extend(std::iter::once(watch).chain(due));
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Watch {
    fn arm(this: &Ref<Watch>) -> Result<()> {
        let owner = Owner::new(this.clone(), Watch::on_signal);
        let events = this.direction.events();
        let op =
            EventLoop::with_ring(&this.home, |driver| driver.poll(this.fd, events, false, owner))?;
        this.op.set(Some(op));
        Ok(())
    }

    fn on_signal(this: &Ref<Watch>, signal: Signal) -> Result<()> {
        let (op, outcome) = match signal {
            Signal::Completed(completion) => (completion.op, Some(completion.outcome)),
            Signal::RingLost(op) => (op, None),
        };
        if this.op.get() != Some(op) {
            return Ok(());
        }
        this.op.set(None);
        let handle = this.handle.borrow().clone();
        let Some(handle) = handle.filter(|handle| !handle.is_cancelled()) else { return Ok(()) };
        match outcome {
            // The file was closed under the watch: like a selector, fall silent.
            Some(Outcome::Poll(Err(_))) => Ok(()),
            Some(_) => {
                this.home.rearm.borrow_mut().push(this.clone());
                EventLoop::run_handle(&this.home, &handle)
            }
            None => Watch::arm(this),
        }
    }
}

impl Native for Watch {
    const NAME: &'static CStr = c"kloop._kloop.Watch";
    const DOC: &'static CStr = c"A watched file descriptor.";
    const METHODS: &'static [Method<Self>] = &[Method::END];
    const GETSETS: &'static [GetSet<Self>] = &[GetSet::END];

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        visit.obj(&self.file);
        if let Ok(handle) = self.handle.try_borrow()
            && let Some(handle) = handle.as_ref()
        {
            visit.native(handle);
        }
    }

    fn clear(&self) {
        let handle = self.handle.take();
        drop(handle);
    }
}
