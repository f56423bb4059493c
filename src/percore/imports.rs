//! `ImportOrder`: which worker may import the handler's modules, and when.
//!
//! Extension modules that say they support interpreters with their own GIL need not support being
//! initialised by two of them at once, or being used by one while another initialises them: those
//! that Cython makes keep a table of interpreters without a lock. So the first core imports alone,
//! and says what it has loaded; the others follow together, or one by one where it was such
//! modules. No worker serves before all have imported.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Core 0 has not imported yet.
    First,
    Together,
    /// Of the core named, if any.
    OneByOne(Option<usize>),
    /// Nobody imports any more.
    Stopped,
}

pub struct ImportOrder {
    turn: Mutex<Turn>,
    changed: Condvar,
}

impl ImportOrder {
    pub fn new() -> Self {
        ImportOrder { turn: Mutex::new(Turn::First), changed: Condvar::new() }
    }

    /// Blocks until `core` may import. Returns false where it must not any more.
    pub fn begin(&self, core: usize) -> bool {
        let not_yet = |turn: &mut Turn| match *turn {
            Turn::First => core != 0,
            Turn::Together | Turn::Stopped => false,
            Turn::OneByOne(whose) => whose.is_some(),
        };
        let turn = self.lock();
        let mut turn =
            self.changed.wait_while(turn, not_yet).unwrap_or_else(PoisonError::into_inner);
        if let Turn::OneByOne(whose) = &mut *turn {
            *whose = Some(core);
        }
        *turn != Turn::Stopped
    }

    /// The workers are to end: those that have not begun need not.
    pub fn stop(&self) {
        *self.lock() = Turn::Stopped;
        self.changed.notify_all();
    }

    /// `core` has imported; if it is the first, `one_by_one` says how the others follow.
    pub fn end(&self, core: usize, one_by_one: bool) {
        let mut turn = self.lock();
        match *turn {
            Turn::First if core == 0 && one_by_one => *turn = Turn::OneByOne(None),
            Turn::First if core == 0 => *turn = Turn::Together,
            Turn::OneByOne(Some(whose)) if whose == core => *turn = Turn::OneByOne(None),
            _ => return,
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// The most cores that imported at once, and the core that began first.
    fn import_on_cores(cores: usize, one_by_one: bool, together: usize) -> (usize, usize) {
        let (order, importing, most) =
            (ImportOrder::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        let first = Mutex::new(None);
        thread::scope(|scope| {
            for core in (0..cores).rev() {
                let (order, importing, most, first) = (&order, &importing, &most, &first);
                scope.spawn(move || {
                    assert!(order.begin(core));
                    first.lock().unwrap().get_or_insert(core);
                    most.fetch_max(importing.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    // Those that may import together wait for each other, which shows that they do.
                    while core != 0 && most.load(Ordering::SeqCst) < together {
                        thread::yield_now();
                    }
                    importing.fetch_sub(1, Ordering::SeqCst);
                    order.end(core, one_by_one);
                });
            }
        });
        let first = first.lock().unwrap().unwrap();
        (most.into_inner(), first)
    }

    #[test]
    fn the_first_core_imports_alone_and_the_others_together() {
        assert_eq!(import_on_cores(5, false, 4), (4, 0));
    }

    #[test]
    fn cores_import_one_by_one_where_the_first_asks_for_it() {
        assert_eq!(import_on_cores(5, true, 1), (1, 0));
    }

    #[test]
    fn a_first_core_that_ends_without_an_import_holds_nobody_up() {
        let order = ImportOrder::new();
        order.end(0, false);
        assert!(order.begin(1));
        order.end(1, false);
    }

    #[test]
    fn a_core_that_ends_gives_back_only_its_own_turn() {
        let order = ImportOrder::new();
        assert!(order.begin(0));
        order.end(0, true);
        assert!(order.begin(2));
        order.end(1, false);
        assert_eq!(*order.lock(), Turn::OneByOne(Some(2)));
    }

    #[test]
    fn those_that_wait_give_up_when_the_workers_are_to_end() {
        let order = ImportOrder::new();
        assert!(order.begin(0));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| order.begin(1));
            order.stop();
            assert!(!waiting.join().unwrap());
        });
        order.end(0, true);
        assert!(!order.begin(2));
    }
}
