//! Owned references to Python objects, and the token that allows making them.

use std::cell::Cell;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::NonNull;

use pyo3_ffi as ffi;

use super::error::{Exc, Result};

/// Proof that this thread is attached to an interpreter. Not `Send`: see the module's page.
#[derive(Clone, Copy)]
pub struct Gil(PhantomData<*mut ()>);

impl Gil {
    /// # Safety
    /// The calling thread must be attached to an interpreter for as long as the token is used.
    pub(super) unsafe fn assume() -> Self {
        Gil(PhantomData)
    }
}

/// A strong reference to a Python object. Cloning and dropping adjust the reference count.
#[repr(transparent)]
pub struct Obj(NonNull<ffi::PyObject>);

impl Clone for Obj {
    #[inline]
    fn clone(&self) -> Self {
        // SAFETY: the pointer is a live object and an `Obj` exists only on an attached thread.
        unsafe { ffi::Py_INCREF(self.as_ptr()) };
        Obj(self.0)
    }
}

impl Drop for Obj {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: as for `clone`; this gives back the reference that the value owns.
        unsafe { ffi::Py_DECREF(self.as_ptr()) };
    }
}

impl Obj {
    /// Takes over a new reference; a null pointer means that Python has raised.
    ///
    /// # Safety
    /// `ptr` is null with an exception set, or a reference that the caller owns.
    #[inline]
    pub(super) unsafe fn owned(ptr: *mut ffi::PyObject) -> Result<Self> {
        match NonNull::new(ptr) {
            Some(ptr) => Ok(Obj(ptr)),
            // SAFETY: the caller got the null from the C API, so the thread is attached.
            None => Err(Exc::fetch(unsafe { Gil::assume() })),
        }
    }

    /// # Safety
    /// `ptr` is a live object and the thread is attached.
    #[inline]
    pub(super) unsafe fn borrowed(ptr: *mut ffi::PyObject) -> Self {
        // SAFETY: the caller promises a live, hence non-null, object.
        unsafe {
            ffi::Py_INCREF(ptr);
            Obj(NonNull::new_unchecked(ptr))
        }
    }

    /// Views a pointer that lives elsewhere as a reference to an `Obj`.
    ///
    /// # Safety
    /// `*ptr` is a live object for as long as the result is used.
    #[inline]
    pub(super) unsafe fn view(ptr: &*mut ffi::PyObject) -> &Obj {
        // SAFETY: `Obj` is a transparent wrapper round a non-null object pointer.
        unsafe { &*(ptr as *const *mut ffi::PyObject).cast() }
    }

    #[inline]
    pub(super) fn as_ptr(&self) -> *mut ffi::PyObject {
        self.0.as_ptr()
    }

    #[inline]
    pub(super) fn into_ptr(self) -> *mut ffi::PyObject {
        let ptr = self.as_ptr();
        std::mem::forget(self);
        ptr
    }

    /// An `Obj` exists only on an attached thread, so it can stand in for the token.
    #[inline]
    pub fn gil(&self) -> Gil {
        Gil(PhantomData)
    }

    #[inline]
    pub fn none(_: Gil) -> Self {
        // SAFETY: `None` is immortal and the token proves that the thread is attached.
        unsafe { Obj::borrowed(ffi::Py_None()) }
    }

    #[inline]
    pub fn is_none(&self) -> bool {
        // SAFETY: only compares addresses.
        self.as_ptr() == unsafe { ffi::Py_None() }
    }

    /// `None` for Python's `None`.
    pub fn some(&self) -> Option<&Obj> {
        if self.is_none() { None } else { Some(self) }
    }

    #[inline]
    pub fn is(&self, other: &Obj) -> bool {
        self.0 == other.0
    }

    /// The object's address, for use as a key while the object is alive.
    pub fn address(&self) -> usize {
        self.as_ptr() as usize
    }

    /// Imports a module by its full name.
    pub fn import(_: Gil, name: &CStr) -> Result<Self> {
        // SAFETY: attached; `name` is a C string.
        unsafe { Obj::owned(ffi::PyImport_ImportModule(name.as_ptr())) }
    }

    /// Makes an interned string, so that attribute look-ups compare by address.
    pub fn interned(_: Gil, text: &CStr) -> Result<Self> {
        // SAFETY: attached; `text` is a C string in UTF-8.
        unsafe { Obj::owned(ffi::PyUnicode_InternFromString(text.as_ptr())) }
    }

    pub fn tuple(_: Gil, items: &[Obj]) -> Result<Self> {
        // SAFETY: attached; SetItem steals one reference for each slot of the new tuple.
        unsafe {
            let tuple = Obj::owned(ffi::PyTuple_New(items.len() as ffi::Py_ssize_t))?;
            for (index, item) in items.iter().enumerate() {
                let item = item.clone().into_ptr();
                ffi::PyTuple_SetItem(tuple.as_ptr(), index as ffi::Py_ssize_t, item);
            }
            Ok(tuple)
        }
    }

    pub fn dict(_: Gil) -> Result<Self> {
        // SAFETY: attached.
        unsafe { Obj::owned(ffi::PyDict_New()) }
    }

    /// `self[key] = value` for a dict.
    pub fn set_item(&self, key: &str, value: &Obj) -> Result<()> {
        use super::ToObj;
        let key = key.to_obj(self.gil())?;
        // SAFETY: live objects; returns -1 with an exception set on failure.
        self.check(unsafe { ffi::PyObject_SetItem(self.as_ptr(), key.as_ptr(), value.as_ptr()) })
    }

    /// `self.get(key)` for a dict.
    #[inline]
    pub fn dict_item(&self, key: &Obj) -> Result<Option<Obj>> {
        // SAFETY: live objects; a null without an exception means that the key is missing.
        unsafe {
            let value = ffi::PyDict_GetItemWithError(self.as_ptr(), key.as_ptr());
            if !value.is_null() {
                return Ok(Some(Obj::borrowed(value)));
            }
            if !ffi::PyErr_Occurred().is_null() {
                return Err(Exc::fetch(self.gil()));
            }
            Ok(None)
        }
    }

    /// `self.update(other)` for a dict.
    pub fn update_dict(&self, other: &Obj) -> Result<()> {
        // SAFETY: live objects; returns -1 with an exception set on failure.
        self.check(unsafe { ffi::PyDict_Update(self.as_ptr(), other.as_ptr()) })
    }

    pub fn attr(&self, name: &Obj) -> Result<Obj> {
        // SAFETY: live objects.
        unsafe { Obj::owned(ffi::PyObject_GetAttr(self.as_ptr(), name.as_ptr())) }
    }

    /// Looks an attribute up by a name known at compile time (for set-up code; hot code interns).
    pub fn get(&self, name: &CStr) -> Result<Obj> {
        // SAFETY: a live object and a C string.
        unsafe { Obj::owned(ffi::PyObject_GetAttrString(self.as_ptr(), name.as_ptr())) }
    }

    pub fn is_instance(&self, class: &Obj) -> Result<bool> {
        // SAFETY: live objects.
        let answer = unsafe { ffi::PyObject_IsInstance(self.as_ptr(), class.as_ptr()) };
        self.check(answer.min(0))?;
        Ok(answer == 1)
    }

    /// `self is other or self == other`, as containers compare.
    pub fn equals(&self, other: &Obj) -> Result<bool> {
        // SAFETY: live objects.
        let answer =
            unsafe { ffi::PyObject_RichCompareBool(self.as_ptr(), other.as_ptr(), ffi::Py_EQ) };
        self.check(answer.min(0))?;
        Ok(answer == 1)
    }

    pub fn truth(&self) -> Result<bool> {
        // SAFETY: a live object.
        let answer = unsafe { ffi::PyObject_IsTrue(self.as_ptr()) };
        self.check(answer.min(0))?;
        Ok(answer == 1)
    }

    /// The name of the object's type, for messages.
    pub fn type_name(&self) -> String {
        // SAFETY: a live object has a live type, whose name is a C string.
        unsafe { CStr::from_ptr((*ffi::Py_TYPE(self.as_ptr())).tp_name) }
            .to_string_lossy()
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    /// `str(self)`, or a placeholder where that fails.
    pub fn display(&self) -> String {
        // SAFETY: a live object.
        unsafe { Obj::owned(ffi::PyObject_Str(self.as_ptr())) }
            .and_then(|text| text.to_str().map(str::to_owned))
            .unwrap_or_else(|_| String::from("<unprintable>"))
    }

    /// `repr(self)`, or a placeholder where that fails.
    pub fn repr(&self) -> String {
        // SAFETY: a live object.
        unsafe { Obj::owned(ffi::PyObject_Repr(self.as_ptr())) }
            .and_then(|text| text.to_str().map(str::to_owned))
            .unwrap_or_else(|_| format!("<unprintable {}>", self.type_name()))
    }

    /// Turns a C API status into a result: negative means that Python has raised.
    #[inline]
    pub(super) fn check(&self, status: std::ffi::c_int) -> Result<()> {
        if status < 0 { Err(Exc::fetch(self.gil())) } else { Ok(()) }
    }
}

/// A place for an optional reference that can change while Python runs: no borrow ever escapes.
#[derive(Default)]
pub struct ObjCell(Cell<Option<Obj>>);

impl ObjCell {
    pub const fn empty() -> Self {
        ObjCell(Cell::new(None))
    }

    pub const fn new(value: Obj) -> Self {
        ObjCell(Cell::new(Some(value)))
    }

    pub const fn from(value: Option<Obj>) -> Self {
        ObjCell(Cell::new(value))
    }

    #[inline]
    pub fn get(&self) -> Option<Obj> {
        let value = self.0.take();
        let copy = value.clone();
        self.0.set(value);
        copy
    }

    pub fn is_some(&self) -> bool {
        let value = self.0.take();
        let answer = value.is_some();
        self.0.set(value);
        answer
    }

    /// The old value is released after the new one is in place.
    pub fn set(&self, value: Option<Obj>) {
        drop(self.0.replace(value));
    }

    #[inline]
    pub fn take(&self) -> Option<Obj> {
        self.0.take()
    }

    pub(super) fn with_ptr(&self, f: impl FnOnce(*mut ffi::PyObject)) {
        let value = self.0.take();
        if let Some(obj) = &value {
            f(obj.as_ptr());
        }
        self.0.set(value);
    }
}
