//! Notices fork(2): a child shares the memory of its parent's rings and must not touch them.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static FORKS: AtomicU32 = AtomicU32::new(0);
static WATCH: Once = Once::new();

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A number that differs between a process and the children it forks.
pub(super) fn generation() -> u32 {
    WATCH.call_once(|| {
        // SAFETY: the handler only adds to an atomic, which is allowed in a forked child. Where
        // there is no memory to register it, forks go unnoticed.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    current()
}

/// As [`generation`], for processes that have asked for it before.
#[inline]
pub(super) fn current() -> u32 {
    FORKS.load(Ordering::Relaxed)
}
