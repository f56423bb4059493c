//! Messages from other threads that are no Python callbacks.

use super::EventLoop;
use crate::driver::Waker;
use crate::py::{Bound, Native, Obj, Ref, Result};

/// A queue that the loop looks at in every turn. Whoever fills it wakes the loop.
pub struct Mailbox {
    has_mail: Box<dyn Fn() -> bool>,
    read: Bound<(), Result<()>>,
}

impl Mailbox {
    /// `has_mail` must be cheap and run no Python; where it says yes, `read` is called.
    pub fn new<T: Native, F>(has_mail: Box<dyn Fn() -> bool>, reader: Ref<T>, read: F) -> Self
    where
        F: Fn(&Ref<T>, ()) -> Result<()> + Copy,
    {
        Mailbox { has_mail, read: Bound::new(reader, read) }
    }

    pub(super) fn reader(&self) -> &Obj {
        self.read.receiver()
    }
}

impl EventLoop {
    pub fn set_mailbox(&self, mailbox: Option<Mailbox>) {
        let old = self.mailbox.replace(mailbox);
        drop(old);
    }

    /// What wakes the loop from another thread; None once it is closed.
    pub fn waker(this: &Ref<EventLoop>) -> Option<Waker> {
        this.waker.borrow().clone()
    }

    pub(super) fn read_mail(this: &Ref<EventLoop>) -> Result<()> {
        let read = match this.mailbox.borrow().as_ref() {
            Some(mailbox) if (mailbox.has_mail)() => mailbox.read.clone(),
            _ => return Ok(()),
        };
        match read.call(()) {
            Err(error) if !error.is_exit() => {
                let method = &this.state.names._io_failed;
                this.obj().call_method(method, [read.receiver(), error.object()]).map(drop)
            }
            result => result,
        }
    }
}
