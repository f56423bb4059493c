//! Weak references to instances of native types.

use std::marker::PhantomData;

use pyo3_ffi as ffi;

use super::class::{Native, Ref, Visit};
use super::error::Result;
use super::object::Obj;

/// A `weakref.ref` to an instance of a type with [`Native::WEAK_REFERENCES`].
pub struct Weak<T: Native>(Obj, PhantomData<*const T>);

impl<T: Native> Weak<T> {
    pub fn new(target: &Ref<T>) -> Result<Self> {
        // SAFETY: a live object; no callback.
        let made = unsafe { ffi::PyWeakref_NewRef(target.obj().as_ptr(), std::ptr::null_mut()) };
        // SAFETY: a new reference, or null with an exception set.
        unsafe { Obj::owned(made) }.map(|made| Weak(made, PhantomData))
    }

    /// The instance, if it is still alive.
    #[inline]
    pub fn get(&self) -> Option<Ref<T>> {
        let mut target = std::ptr::null_mut();
        // SAFETY: a live weak reference, made from an instance of the type; what comes back is a
        // new reference, or null.
        unsafe {
            match ffi::PyWeakref_GetRef(self.0.as_ptr(), &mut target) {
                1 => Obj::owned(target).ok().map(|obj| Ref::from_obj(obj)),
                _ => None,
            }
        }
    }

    pub fn traverse(&self, visit: &mut Visit) {
        visit.obj(&self.0);
    }
}
