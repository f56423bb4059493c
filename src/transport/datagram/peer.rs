//! The address of a peer in both its forms, so that it need not be converted for every datagram.

use std::cell::RefCell;

use crate::driver::SocketAddress;
use crate::py::{Obj, Visit};

/// One address, as the kernel and as Python has it. The Python object cannot change.
#[derive(Default)]
pub(super) struct PeerCache(RefCell<Option<(SocketAddress, Obj)>>);

impl PeerCache {
    /// The Python object for `address`.
    #[inline]
    pub fn shown(&self, address: &SocketAddress) -> Option<Obj> {
        match &*self.0.borrow() {
            Some((known, shown)) if known == address => Some(shown.clone()),
            _ => None,
        }
    }

    /// The address that `shown`, the very same object, stands for.
    #[inline]
    pub fn address(&self, shown: &Obj) -> Option<SocketAddress> {
        match &*self.0.borrow() {
            Some((address, known)) if known.is(shown) => Some(*address),
            _ => None,
        }
    }

    pub fn set(&self, address: SocketAddress, shown: &Obj) {
        drop(self.0.replace(Some((address, shown.clone()))));
    }

    pub fn clear(&self) {
        drop(self.0.take());
    }

    pub fn traverse(&self, visit: &mut Visit) {
        if let Ok(known) = self.0.try_borrow()
            && let Some((_, shown)) = known.as_ref()
        {
            visit.obj(shown);
        }
    }
}
