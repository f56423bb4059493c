//! Attributes of modules, looked up again only after one of the modules has changed.

use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3_ffi as ffi;

use super::class::Visit;
use super::error::Result;
use super::object::{Obj, ObjCell};

// Not in pyo3-ffi.
unsafe extern "C" {
    fn PyDict_AddWatcher(
        callback: unsafe extern "C" fn(
            event: c_int,
            dict: *mut ffi::PyObject,
            key: *mut ffi::PyObject,
            value: *mut ffi::PyObject,
        ) -> c_int,
    ) -> c_int;
}

/// Changes of watched modules in the whole process: one that happens in another interpreter only
/// costs a look-up. Within an interpreter the GIL orders them.
static CHANGES: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn note_change(
    _: c_int,
    _: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> c_int {
    CHANGES.fetch_add(1, Ordering::Relaxed);
    0
}

/// One of the few watchers that an interpreter has; without one, every use is a look-up.
pub struct ModuleWatcher(Option<c_int>);

impl ModuleWatcher {
    pub fn new(module: &Obj) -> Self {
        // SAFETY: attached, as there is an object; the callback lives as long as the process.
        let id = unsafe { PyDict_AddWatcher(note_change) };
        if id < 0 {
            drop(super::Exc::fetch(module.gil()));
            return ModuleWatcher(None);
        }
        ModuleWatcher(Some(id))
    }

    /// An attribute of a module, which need not exist yet.
    pub fn attribute(&self, module: &Obj, name: &Obj) -> ModuleAttribute {
        let is_watched = self.0.is_some_and(|id| {
            // SAFETY: live objects; the id is ours.
            unsafe {
                let dict = ffi::PyModule_GetDict(module.as_ptr());
                let watched = !dict.is_null() && ffi::PyDict_Watch(id, dict) == 0;
                if !watched {
                    drop(super::Exc::fetch(module.gil()));
                }
                watched
            }
        });
        ModuleAttribute {
            module: module.clone(),
            name: name.clone(),
            is_watched,
            value: ObjCell::empty(),
            seen: Cell::new(0),
        }
    }
}

impl Drop for ModuleWatcher {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            // SAFETY: the id is ours. Module state is dropped on an attached thread. Dictionaries
            // that stay marked as watched by it are no longer reported to anybody.
            unsafe { ffi::PyDict_ClearWatcher(id) };
        }
    }
}

pub struct ModuleAttribute {
    module: Obj,
    name: Obj,
    is_watched: bool,
    value: ObjCell,
    /// The number of changes when the value was looked up.
    seen: Cell<usize>,
}

impl ModuleAttribute {
    /// The attribute's present value. AttributeError where there is none.
    #[inline]
    pub fn get(&self) -> Result<Obj> {
        let changes = CHANGES.load(Ordering::Relaxed);
        if self.seen.get() == changes
            && let Some(value) = self.value.get()
        {
            return Ok(value);
        }
        self.look_up(changes)
    }

    #[cold]
    fn look_up(&self, changes: usize) -> Result<Obj> {
        let value = self.module.attr(&self.name)?;
        if self.is_watched {
            self.value.set(Some(value.clone()));
            self.seen.set(changes);
        }
        Ok(value)
    }

    pub fn traverse(&self, visit: &mut Visit) {
        visit.obj(&self.module);
        visit.cell(&self.value);
    }
}
