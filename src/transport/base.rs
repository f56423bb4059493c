//! What every kind of transport has, and what each kind says of itself.

use std::cell::Cell;
use std::ops::Deref;
use std::os::fd::RawFd;

use super::flow::HIGH_WATER;
use super::reading::Reading;
use crate::driver::{OpId, Outcome};
use crate::event_loop::{Completion, EventLoop, Owner, Signal};
use crate::py::{Exc, Native, Obj, ObjCell, Ref, Result, Visit, enter_context};

pub struct Base {
    pub home: Ref<EventLoop>,
    /// -1 once released.
    pub fd: Cell<RawFd>,
    /// The Python socket or pipe that owns the file descriptor. Accepted connections get a socket
    /// when somebody asks for it; until then the transport owns the descriptor.
    pub file: ObjCell,
    pub protocol: ObjCell,
    /// The protocol's callbacks run in this context.
    pub context: Obj,
    /// What the maker of the transport adds to get_extra_info(): a dict.
    pub extra: ObjCell,

    /// close() or abort() was called, or the connection failed.
    pub closing: Cell<bool>,
    /// Above zero once connection_lost() is scheduled; counts writes after that.
    pub lost: Cell<u32>,

    /// The poll that tells when to read.
    pub read_op: Cell<Option<OpId>>,
    /// Reading is paused by the protocol.
    pub paused: Cell<bool>,
    /// There is nothing more to read, and the protocol keeps our side open.
    pub read_ended: Cell<bool>,
    /// Poll events that came while reading was paused.
    pub missed: Cell<u32>,

    /// The operation that makes progress with what is unsent.
    pub write_op: Cell<Option<OpId>>,
    /// Bytes not yet taken by the kernel.
    pub unsent: Cell<usize>,
    pub protocol_paused: Cell<bool>,
    pub high_water: Cell<usize>,
    pub low_water: Cell<usize>,
}

impl Base {
    pub fn new(home: &Ref<EventLoop>, fd: RawFd, file: Option<&Obj>, context: Obj) -> Self {
        Base {
            home: home.clone(),
            fd: Cell::new(fd),
            file: ObjCell::from(file.cloned()),
            protocol: ObjCell::empty(),
            context,
            extra: ObjCell::empty(),
            closing: Cell::new(false),
            lost: Cell::new(0),
            read_op: Cell::new(None),
            paused: Cell::new(false),
            read_ended: Cell::new(false),
            missed: Cell::new(0),
            write_op: Cell::new(None),
            unsent: Cell::new(0),
            protocol_paused: Cell::new(false),
            high_water: Cell::new(HIGH_WATER),
            low_water: Cell::new(HIGH_WATER / 4),
        }
    }

    pub fn is_released(&self) -> bool {
        self.fd.get() < 0
    }

    pub fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        visit.obj(&self.context);
        for cell in [&self.file, &self.protocol, &self.extra] {
            visit.cell(cell);
        }
    }

    pub fn clear(&self) {
        self.protocol.set(None);
        self.extra.set(None);
    }
}

/// A kind of transport. What is not said here is the same for all: see `Lifecycle`, `Reading`
/// and `FlowControl`.
pub trait Transport: Native + Deref<Target = Base> {
    /// The poll(2) events that tell when to read.
    const READ_EVENTS: u32;
    const READ_ERROR: &'static str;
    /// The warning about many writes after the connection was lost.
    const LOST_WARNING: &'static str = "";

    /// Reads what is there, in the transport's context, and gives it to the protocol.
    fn read(this: &Ref<Self>, events: u32) -> Result<()>;

    /// Whether one poll tells of each arrival once, so that `read` must leave nothing behind.
    /// Otherwise there is a new poll after each read, which tells of what is left.
    fn is_multishot(&self) -> bool {
        true
    }

    /// The poll(2) events that tell when to read, where that depends on the file.
    fn read_events(&self) -> u32 {
        Self::READ_EVENTS
    }

    /// `write_op` has something to report.
    fn on_written(_: &Ref<Self>, _: Outcome) -> Result<()> {
        Ok(())
    }

    /// `write_op` is lost with its ring: the loop has moved to another thread.
    fn on_write_lost(_: &Ref<Self>) -> Result<()> {
        Ok(())
    }

    /// Whether it receives through the ring, instead of reading when a poll says so.
    fn receives(&self) -> bool {
        false
    }

    /// The ring has received something.
    fn on_received(_: &Ref<Self>, _: OpId, _more: bool, _: Outcome) -> Result<()> {
        Ok(())
    }

    /// Sends what waits for the end of a callback.
    fn send_held(_: &Ref<Self>) -> Result<()> {
        Ok(())
    }

    /// Forgets what was not sent yet.
    fn drop_unsent(&self) {}

    /// Whether an error goes without a report, as those of the network do.
    fn is_expected(error: &Exc) -> bool {
        error.is_os_error()
    }

    /// Whether the protocol is to be called in the transport's context.
    fn needs_context(&self) -> bool {
        true
    }

    /// Runs while the transport is released, before its file is closed.
    fn on_release(_: &Ref<Self>) -> Result<()> {
        Ok(())
    }

    /// Runs after connection_lost().
    fn on_lost(_: &Ref<Self>) -> Result<()> {
        Ok(())
    }
}

/// The owner of a transport's operations, which report here.
pub fn owner<T: Transport>(this: &Ref<T>) -> Owner {
    Owner::new(this.clone(), on_signal::<T>)
}

fn on_signal<T: Transport>(this: &Ref<T>, signal: Signal) -> Result<()> {
    let _entered = this.needs_context().then(|| enter_context(&this.context)).transpose()?;
    match signal {
        Signal::Completed(Completion { op, more, outcome }) => {
            if this.read_op.get() == Some(op) {
                T::on_read_op(this, op, more, outcome)
            } else if this.write_op.get() == Some(op) {
                if !more {
                    this.write_op.set(None);
                }
                T::on_written(this, outcome)
            } else {
                Ok(())
            }
        }
        Signal::RingLost(op) if this.read_op.get() == Some(op) => {
            this.read_op.set(None);
            T::start_reading(this)
        }
        Signal::RingLost(op) if this.write_op.get() == Some(op) => {
            this.write_op.set(None);
            T::on_write_lost(this)
        }
        Signal::RingLost(_) => Ok(()),
    }
}
