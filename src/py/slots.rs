//! The type slots of native types: what CPython calls to make, show, collect and end instances.

use std::ffi::{c_int, c_void};

use pyo3_ffi as ffi;

use super::args::Args;
use super::class::{Native, Ref, Type, Visit, offset, value};
use super::error::Exc;
use super::members::finish;
use super::object::{Gil, Obj};
use super::panic::guard_silent;

// Not in pyo3-ffi.
unsafe extern "C" {
    fn PyObject_VisitManagedDict(
        this: *mut ffi::PyObject,
        visit: ffi::visitproc,
        arg: *mut c_void,
    ) -> c_int;
    fn PyObject_ClearManagedDict(this: *mut ffi::PyObject);
}

pub(super) unsafe extern "C" fn construct<T: Native>(
    class: *mut ffi::PyTypeObject,
    args: *mut ffi::PyObject,
    kwargs: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: CPython passes a class, a tuple and a dict or null, on an attached thread.
    unsafe {
        let gil = Gil::assume();
        finish(gil, || {
            let class = Type::<T>::from_obj(Obj::borrowed(class.cast()));
            let positional = Obj::borrowed(args).to_vec()?;
            let (names, values) = if kwargs.is_null() {
                (None, Vec::new())
            } else {
                let names = Obj::owned(ffi::PySequence_Tuple(kwargs))?;
                let values = Obj::owned(ffi::PyDict_Values(kwargs))?.to_vec()?;
                (Some(names), values)
            };
            let args =
                Args { gil, positional: &positional, names: names.as_ref(), values: &values };
            match T::CONSTRUCT {
                Some(body) => body(&class, &args),
                None => Err(Exc::type_error(gil, "the type cannot be instantiated")),
            }
        })
    }
}

pub(super) unsafe extern "C" fn no_init(
    _: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> c_int {
    0
}

pub(super) unsafe extern "C" fn repr<T: Native>(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: as for `call_noargs`.
    unsafe {
        finish(Gil::assume(), || match T::REPR {
            Some(body) => body(Ref::view(&this)),
            None => Ok(Obj::view(&this).type_name()),
        })
    }
}

pub(super) unsafe extern "C" fn finalize<T: Native>(this: *mut ffi::PyObject) {
    // SAFETY: as for `call_noargs`. A finaliser must leave a pending exception as it found it.
    unsafe {
        let pending = ffi::PyErr_GetRaisedException();
        if let Some(body) = T::FINALIZE {
            guard_silent(|| body(Ref::view(&this)));
        }
        ffi::PyErr_SetRaisedException(pending);
    }
}

pub(super) unsafe extern "C" fn traverse<T: Native>(
    this: *mut ffi::PyObject,
    visit_proc: ffi::visitproc,
    arg: *mut c_void,
) -> c_int {
    let mut visit = Visit::new(visit_proc, arg);
    // SAFETY: the collector passes live instances.
    unsafe {
        visit.ptr(ffi::Py_TYPE(this).cast());
        guard_silent(|| value::<T>(this).traverse(&mut visit));
        match visit.result() {
            0 if T::DICT => PyObject_VisitManagedDict(this, visit_proc, arg),
            result => result,
        }
    }
}

pub(super) unsafe extern "C" fn clear<T: Native>(this: *mut ffi::PyObject) -> c_int {
    // SAFETY: the collector passes live instances and keeps them alive during the call.
    unsafe {
        guard_silent(|| value::<T>(this).clear());
        if T::DICT {
            PyObject_ClearManagedDict(this);
        }
    }
    0
}

pub(super) unsafe extern "C" fn dealloc<T: Native>(this: *mut ffi::PyObject) {
    // SAFETY: called once, when the last reference is gone, on an attached thread. The order is
    // CPython's own: finaliser (which may revive the object), untrack, weak references,
    // value, attributes, memory, type.
    unsafe {
        if T::FINALIZE.is_some() && ffi::PyObject_CallFinalizerFromDealloc(this) < 0 {
            return;
        }
        ffi::PyObject_GC_UnTrack(this.cast());
        let class = ffi::Py_TYPE(this);
        let weak_references = (*class).tp_weaklistoffset; // the type's own, or its base class's
        if weak_references != 0
            && !this.byte_offset(weak_references).cast::<*mut ffi::PyObject>().read().is_null()
        {
            ffi::PyObject_ClearWeakRefs(this);
        }
        let data = this.byte_add(offset::<T>()).cast::<T>();
        let list = (*data).free_list();
        guard_silent(|| std::ptr::drop_in_place(data));
        if T::DICT {
            PyObject_ClearManagedDict(this);
        }
        if !list.is_some_and(|list| list.push(this)) {
            let free = (*class).tp_free.unwrap_or(ffi::PyObject_GC_Del);
            free(this.cast());
        }
        ffi::Py_DECREF(class.cast());
    }
}
