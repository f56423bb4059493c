//! Memory of dead objects, kept for new ones of the same size.

use std::cell::RefCell;
use std::rc::Rc;

use pyo3_ffi as ffi;

/// A bounded stock of object memory that belongs to one interpreter. Clones share the stock.
#[derive(Clone)]
pub struct FreeList(Rc<Stock>);

struct Stock(RefCell<Vec<*mut ffi::PyObject>>);

impl FreeList {
    pub fn with_capacity(capacity: usize) -> Self {
        FreeList(Rc::new(Stock(RefCell::new(Vec::with_capacity(capacity)))))
    }

    #[inline]
    pub(super) fn pop(&self) -> Option<*mut ffi::PyObject> {
        self.0.0.borrow_mut().pop()
    }

    /// Takes the memory over unless the stock is full.
    #[inline]
    pub(super) fn push(&self, memory: *mut ffi::PyObject) -> bool {
        // A free-threaded build keeps per-object state that PyObject_Init cannot renew.
        if cfg!(Py_GIL_DISABLED) {
            return false;
        }
        let mut stock = self.0.0.borrow_mut();
        if stock.len() == stock.capacity() {
            return false;
        }
        stock.push(memory);
        true
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        for memory in self.0.borrow_mut().drain(..) {
            // SAFETY: memory of untracked, dead GC objects that nothing else refers to. The stock
            // lives in module state, which is freed on an attached thread.
            unsafe { ffi::PyObject_GC_Del(memory.cast()) };
        }
    }
}
