//! Memory of dead objects, kept for new ones of the same size.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use pyo3_ffi as ffi;

/// A bounded stock of object memory that belongs to one interpreter. Clones share the stock.
#[derive(Clone)]
pub struct FreeList(Rc<Stock>);

struct Stock {
    memory: RefCell<Vec<*mut ffi::PyObject>>,
    limit: usize,
    closed: Cell<bool>,
}

impl FreeList {
    /// A stock of at most `limit` objects' memory.
    pub fn with_limit(limit: usize) -> Self {
        FreeList(Rc::new(Stock { memory: RefCell::default(), limit, closed: Cell::new(false) }))
    }

    #[inline]
    pub(super) fn pop(&self) -> Option<*mut ffi::PyObject> {
        self.0.memory.borrow_mut().pop()
    }

    /// Takes the memory over unless the stock is full.
    #[inline]
    pub(super) fn push(&self, memory: *mut ffi::PyObject) -> bool {
        // A free-threaded build keeps per-object state that PyObject_Init cannot renew.
        if cfg!(Py_GIL_DISABLED) || self.0.closed.get() {
            return false;
        }
        let mut stock = self.0.memory.borrow_mut();
        if stock.len() == self.0.limit {
            return false;
        }
        stock.push(memory);
        true
    }

    /// Gives the memory back and takes no more. Needed before the types that it was used for die:
    /// how memory is freed depends on its object's type.
    pub fn close(&self) {
        self.0.closed.set(true);
        for memory in self.0.memory.take() {
            // SAFETY: memory of untracked, dead GC objects that nothing else refers to, whose
            // types are alive. Module state is dropped on an attached thread.
            unsafe { ffi::PyObject_GC_Del(memory.cast()) };
        }
    }
}
