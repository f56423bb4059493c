//! Method and attribute tables of native types, made of plain Rust functions.
//!
//! Each entry is made by a `const fn` that turns the function's own (zero-sized) type into a C
//! trampoline, so no macro and no allocation is involved, and one table serves every interpreter.

use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;

use pyo3_ffi as ffi;

use super::args::{Args, Signature};
use super::class::{Native, Ref};
use super::convert::ToObj;
use super::error::{Exc, Result};
use super::object::{Gil, Obj};
use super::panic::guard;

/// An entry of a type's method table.
#[repr(transparent)]
pub struct Method<T>(ffi::PyMethodDef, PhantomData<fn(T)>);

impl<T> Method<T> {
    pub const END: Self = Method(ffi::PyMethodDef::zeroed(), PhantomData);

    pub(super) fn is_end(&self) -> bool {
        self.0.ml_name.is_null()
    }
}

impl<T: Native> Method<T> {
    /// A method without arguments.
    pub const fn noargs<F, R>(name: &'static CStr, _body: F) -> Self
    where
        F: Fn(&Ref<T>) -> Result<R> + Copy,
        R: ToObj,
    {
        let meth = ffi::PyMethodDefPointer { PyCFunction: call_noargs::<T, F, R> };
        Method(method_def(name, meth, ffi::METH_NOARGS), PhantomData)
    }

    /// A method with exactly one positional argument.
    pub const fn one<F, R>(name: &'static CStr, _body: F) -> Self
    where
        F: Fn(&Ref<T>, &Obj) -> Result<R> + Copy,
        R: ToObj,
    {
        let meth = ffi::PyMethodDefPointer { PyCFunction: call_one::<T, F, R> };
        Method(method_def(name, meth, ffi::METH_O), PhantomData)
    }

    /// A method with one argument, by position or by the name that `signature()` gives.
    pub const fn named<S, F, R>(name: &'static CStr, _signature: S, _body: F) -> Self
    where
        S: Fn() -> Signature<1> + Copy,
        F: Fn(&Ref<T>, &Obj) -> Result<R> + Copy,
        R: ToObj,
    {
        let meth =
            ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: call_named::<T, S, F, R> };
        Method(method_def(name, meth, ffi::METH_FASTCALL | ffi::METH_KEYWORDS), PhantomData)
    }

    /// A method with any arguments.
    pub const fn any<F, R>(name: &'static CStr, _body: F) -> Self
    where
        F: Fn(&Ref<T>, &Args) -> Result<R> + Copy,
        R: ToObj,
    {
        let meth = ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: call_any::<T, F, R> };
        Method(method_def(name, meth, ffi::METH_FASTCALL | ffi::METH_KEYWORDS), PhantomData)
    }
}

const fn method_def(
    name: &'static CStr,
    meth: ffi::PyMethodDefPointer,
    flags: c_int,
) -> ffi::PyMethodDef {
    ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: meth,
        ml_flags: flags,
        ml_doc: std::ptr::null(),
    }
}

/// An entry of a type's attribute table.
#[repr(transparent)]
pub struct GetSet<T>(ffi::PyGetSetDef, PhantomData<fn(T)>);

impl<T> GetSet<T> {
    pub const END: Self = GetSet(
        ffi::PyGetSetDef {
            name: std::ptr::null(),
            get: None,
            set: None,
            doc: std::ptr::null(),
            closure: std::ptr::null_mut(),
        },
        PhantomData,
    );

    pub(super) fn is_end(&self) -> bool {
        self.0.name.is_null()
    }
}

impl<T: Native> GetSet<T> {
    /// `__dict__`, for types with [`Native::DICT`].
    pub const DICT: Self = GetSet(
        ffi::PyGetSetDef {
            name: c"__dict__".as_ptr(),
            get: Some(ffi::PyObject_GenericGetDict),
            set: Some(ffi::PyObject_GenericSetDict),
            doc: std::ptr::null(),
            closure: std::ptr::null_mut(),
        },
        PhantomData,
    );

    /// A read-only attribute.
    pub const fn get<G, R>(name: &'static CStr, _get: G) -> Self
    where
        G: Fn(&Ref<T>) -> Result<R> + Copy,
        R: ToObj,
    {
        GetSet(
            ffi::PyGetSetDef {
                name: name.as_ptr(),
                get: Some(get_attr::<T, G, R>),
                set: None,
                doc: std::ptr::null(),
                closure: std::ptr::null_mut(),
            },
            PhantomData,
        )
    }

    /// An attribute that can be assigned to, but not deleted.
    pub const fn writable<G, R, S>(name: &'static CStr, _get: G, _set: S) -> Self
    where
        G: Fn(&Ref<T>) -> Result<R> + Copy,
        R: ToObj,
        S: Fn(&Ref<T>, &Obj) -> Result<()> + Copy,
    {
        GetSet(
            ffi::PyGetSetDef {
                name: name.as_ptr(),
                get: Some(get_attr::<T, G, R>),
                set: Some(set_attr::<T, S>),
                doc: std::ptr::null(),
                closure: std::ptr::null_mut(),
            },
            PhantomData,
        )
    }
}

/// The one value of a function item's or a captureless closure's zero-sized type.
///
/// # Safety
/// A value of `F` exists: the tables above take one when an entry is made.
#[inline]
pub(super) unsafe fn conjure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "methods are plain functions") };
    // SAFETY: a zero-sized type has no bytes to get wrong, and the caller vouches for inhabitance.
    unsafe { std::mem::transmute_copy(&()) }
}

/// Finishes a call from C: a result becomes a new reference, an error the pending exception.
#[inline]
pub(super) fn finish<R: ToObj>(gil: Gil, body: impl FnOnce() -> Result<R>) -> *mut ffi::PyObject {
    match guard(gil, || body()?.to_obj(gil)) {
        Ok(obj) => obj.into_ptr(),
        Err(error) => {
            error.restore();
            std::ptr::null_mut()
        }
    }
}

unsafe extern "C" fn call_noargs<T, F, R>(
    this: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject
where
    T: Native,
    F: Fn(&Ref<T>) -> Result<R> + Copy,
    R: ToObj,
{
    // SAFETY: CPython calls methods on attached threads with instances of the type.
    unsafe { finish(Gil::assume(), || conjure::<F>()(Ref::view(&this))) }
}

unsafe extern "C" fn call_one<T, F, R>(
    this: *mut ffi::PyObject,
    arg: *mut ffi::PyObject,
) -> *mut ffi::PyObject
where
    T: Native,
    F: Fn(&Ref<T>, &Obj) -> Result<R> + Copy,
    R: ToObj,
{
    // SAFETY: as for `call_noargs`; the argument is a live object.
    unsafe { finish(Gil::assume(), || conjure::<F>()(Ref::view(&this), Obj::view(&arg))) }
}

unsafe extern "C" fn call_named<T, S, F, R>(
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject
where
    T: Native,
    S: Fn() -> Signature<1> + Copy,
    F: Fn(&Ref<T>, &Obj) -> Result<R> + Copy,
    R: ToObj,
{
    // SAFETY: as for `call_any`.
    unsafe {
        let gil = Gil::assume();
        finish(gil, || {
            let args = Args::from_vectorcall(gil, &args, count, &names);
            let argument = match (args.positional, args.names) {
                ([argument], None) => Some(argument),
                _ => args.bind(&conjure::<S>()())?[0],
            };
            match argument {
                Some(argument) => conjure::<F>()(Ref::view(&this), argument),
                None => Err(Exc::type_error(gil, "missing argument")),
            }
        })
    }
}

unsafe extern "C" fn call_any<T, F, R>(
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject
where
    T: Native,
    F: Fn(&Ref<T>, &Args) -> Result<R> + Copy,
    R: ToObj,
{
    // SAFETY: as for `call_noargs`; the arguments follow the vectorcall convention.
    unsafe {
        let gil = Gil::assume();
        finish(gil, || {
            let args = Args::from_vectorcall(gil, &args, count, &names);
            conjure::<F>()(Ref::view(&this), &args)
        })
    }
}

unsafe extern "C" fn get_attr<T, G, R>(
    this: *mut ffi::PyObject,
    _: *mut c_void,
) -> *mut ffi::PyObject
where
    T: Native,
    G: Fn(&Ref<T>) -> Result<R> + Copy,
    R: ToObj,
{
    // SAFETY: as for `call_noargs`.
    unsafe { finish(Gil::assume(), || conjure::<G>()(Ref::view(&this))) }
}

unsafe extern "C" fn set_attr<T, S>(
    this: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    _: *mut c_void,
) -> c_int
where
    T: Native,
    S: Fn(&Ref<T>, &Obj) -> Result<()> + Copy,
{
    // SAFETY: as for `call_noargs`; a null value asks for deletion.
    unsafe {
        let gil = Gil::assume();
        let result = guard(gil, || {
            if value.is_null() {
                return Err(Exc::type_error(gil, "the attribute cannot be deleted"));
            }
            conjure::<S>()(Ref::view(&this), Obj::view(&value))
        });
        match result {
            Ok(()) => 0,
            Err(error) => {
                error.restore();
                -1
            }
        }
    }
}
