//! The lock of a thread-safe handle. As the RLock of asyncio's, but free where nobody waits.

use std::cell::Cell;

use crate::py::{ObjCell, Result, Visit};
use crate::state::State;

/// Held while the handle's callback runs. The GIL protects the lock itself.
#[derive(Default)]
pub struct RunLock {
    /// The thread that runs the callback; 0 for none.
    runner: Cell<usize>,
    /// A threading.Event for those who wait.
    released: ObjCell,
}

impl RunLock {
    /// Waits until no other thread runs the callback. As in any wait of Python's, a signal's
    /// handler may raise.
    pub fn wait(&self, state: &State) -> Result<()> {
        while self.is_held_by_another() {
            if !self.released.is_some() {
                let released = state.threading_event.call([])?;
                // Meanwhile other threads may have run.
                if !self.released.is_some() && self.is_held_by_another() {
                    self.released.set(Some(released));
                }
                continue;
            }
            if let Some(released) = self.released.get() {
                released.call_method(&state.names.wait, [])?;
            }
        }
        Ok(())
    }

    fn is_held_by_another(&self) -> bool {
        self.runner.get() != 0 && self.runner.get() != this_thread()
    }

    /// Runs `body` with the lock held.
    pub fn hold(&self, state: &State, body: impl FnOnce() -> Result<()>) -> Result<()> {
        self.wait(state)?;
        let before = self.runner.replace(this_thread());
        let result = body();
        self.runner.set(before);
        if before != 0 {
            return result; // held by a call further out
        }
        match self.released.take() {
            Some(released) => {
                let told = released.call_method(&state.names.set, []);
                result.and(told.map(drop))
            }
            None => result,
        }
    }

    pub fn traverse(&self, visit: &mut Visit) {
        visit.cell(&self.released);
    }
}

/// A number that no other live thread has.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}
