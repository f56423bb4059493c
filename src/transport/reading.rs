//! When to read: a poll tells, unless the protocol has paused reading. What a ring has received
//! while reading was paused is kept as if it were still to be read.

use super::base::{Transport, owner};
use super::lifecycle::Lifecycle;
use crate::driver::{Driver, OpId, Outcome};
use crate::event_loop::{EventLoop, Owner};
use crate::py::{Exc, Ref, Result};

pub(super) trait Reading: Transport {
    fn start_reading(this: &Ref<Self>) -> Result<()> {
        let done = this.closing.get() || this.read_ended.get();
        let receives = this.receives();
        // What is known to be there is read first.
        if done
            || this.read_op.get().is_some()
            || this.missed.get() != 0
            || receives && this.paused.get()
        {
            return Ok(());
        }
        let (fd, events, owner) = (this.fd.get(), this.read_events(), owner(this));
        let multishot = this.is_multishot();
        let start = |driver: &mut Driver<Owner>| match receives {
            true => driver.receive(fd, owner),
            false => driver.poll(fd, events, multishot, owner),
        };
        match EventLoop::with_ring(&this.home, start) {
            Ok(op) => {
                this.read_op.set(Some(op));
                Ok(())
            }
            Err(error) => Self::fatal_error(this, error, Self::READ_ERROR),
        }
    }

    /// There is nothing more to read.
    fn stop_reading(this: &Ref<Self>) -> Result<()> {
        match this.read_op.take() {
            Some(op) => EventLoop::cancel_ops(&this.home, &[op]),
            None => Ok(()),
        }
    }

    fn on_read_op(this: &Ref<Self>, op: OpId, more: bool, outcome: Outcome) -> Result<()> {
        if !more {
            this.read_op.set(None);
        }
        let result = match outcome {
            Outcome::Poll(result) => result,
            outcome => return Self::on_received(this, op, more, outcome),
        };
        let read = match result {
            Ok(events) => Self::read_or_keep(this, events),
            Err(error) => Self::fatal_error(this, Exc::os(this.gil(), &error), Self::READ_ERROR),
        };
        // A poll ends with its report; a multishot one too sometimes, as when the completion queue
        // was full.
        if more { read } else { read.and(Self::start_reading(this)) }
    }

    /// Reads what a pause has kept back, or what was left when the turn was over.
    fn read_missed(this: &Ref<Self>) -> Result<()> {
        let events = this.missed.replace(0);
        if events == 0 {
            return Ok(());
        }
        Self::read_or_keep(this, events)?;
        Self::start_reading(this)
    }

    /// An error leaves the loop, but what it has left unread must not be forgotten: the poll does
    /// not tell twice.
    fn read_or_keep(this: &Ref<Self>, events: u32) -> Result<()> {
        let read = Self::read(this, events);
        if read.is_err() {
            Self::read_later(this, events)?;
        }
        read
    }

    fn read_later(this: &Ref<Self>, events: u32) -> Result<()> {
        if this.missed.replace(this.missed.get() | events) != 0 {
            return Ok(()); // It is to be read anyway: soon, or after the pause.
        }
        let read = this.obj().attr(&this.home.state.names._read_ready)?;
        EventLoop::soon(&this.home, &read, &[], Some(&this.context))
    }

    /// Whether to go on reading. If reading is paused, `events` are kept for later.
    fn may_read(this: &Ref<Self>, events: u32) -> bool {
        if this.paused.get() {
            this.missed.set(this.missed.get() | events);
        }
        !this.closing.get() && !this.read_ended.get() && !this.paused.get()
    }

    fn is_reading(this: &Ref<Self>) -> Result<bool> {
        Ok(!this.closing.get() && !this.paused.get())
    }

    fn pause_reading(this: &Ref<Self>) -> Result<()> {
        if !Self::is_reading(this)? {
            return Ok(());
        }
        this.paused.set(true);
        Self::debug_log(this, "pauses reading")
    }

    /// What came during the pause is read in the next turn.
    fn resume_reading(this: &Ref<Self>) -> Result<()> {
        if this.closing.get() || !this.paused.replace(false) {
            return Ok(());
        }
        if this.missed.get() != 0 {
            let read = this.obj().attr(&this.home.state.names._read_ready)?;
            EventLoop::soon(&this.home, &read, &[], Some(&this.context))?;
        } else if this.receives() {
            Self::start_reading(this)?;
        }
        Self::debug_log(this, "resumes reading")
    }

    fn get_paused(this: &Ref<Self>) -> Result<bool> {
        Ok(this.paused.get())
    }
}

impl<T: Transport> Reading for T {}
