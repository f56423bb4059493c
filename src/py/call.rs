//! Calls into Python by the vectorcall protocol.

use std::ptr;

use pyo3_ffi as ffi;

use super::args::Args;
use super::class::Visit;
use super::error::Result;
use super::object::Obj;

// As in pyo3-ffi, but with leave to unwind: see HangIfUnwound.
unsafe extern "C-unwind" {
    fn PyObject_Vectorcall(
        callable: *mut ffi::PyObject,
        args: *const *mut ffi::PyObject,
        count: usize,
        names: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
    fn PyObject_VectorcallMethod(
        name: *mut ffi::PyObject,
        args: *const *mut ffi::PyObject,
        count: usize,
        names: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
}

/// Stops the thread where CPython ends it inside a call.
///
/// When the main thread finalises the interpreter, CPython 3.13 ends other threads that ask for the
/// GIL by pthread_exit(3), which unwinds the stack: destructors here would then touch objects
/// without the GIL. CPython 3.14 hangs such threads, and so does this.
struct HangIfUnwound;

impl HangIfUnwound {
    #[inline]
    fn around<R>(call: impl FnOnce() -> R) -> R {
        let guard = HangIfUnwound;
        let result = call();
        std::mem::forget(guard);
        result
    }
}

impl Drop for HangIfUnwound {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// Arguments with a free slot in front, so that a bound method need not copy them.
#[repr(C)]
struct WithSlot<const N: usize> {
    slot: *mut ffi::PyObject,
    args: [*mut ffi::PyObject; N],
}

impl Obj {
    /// `self(*args)`.
    #[inline]
    pub fn call<const N: usize>(&self, args: [&Obj; N]) -> Result<Obj> {
        let mut array = WithSlot { slot: ptr::null_mut(), args: args.map(Obj::as_ptr) };
        // SAFETY: live objects; the slot before the first argument is ours to lend.
        unsafe {
            Obj::owned(HangIfUnwound::around(|| {
                PyObject_Vectorcall(
                    self.as_ptr(),
                    array.args.as_mut_ptr(),
                    N | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                    ptr::null_mut(),
                )
            }))
        }
    }

    /// `self.name(*args)` without making a bound method.
    #[inline]
    pub fn call_method<const N: usize>(&self, name: &Obj, args: [&Obj; N]) -> Result<Obj> {
        #[repr(C)]
        struct Frame<const N: usize> {
            slot: *mut ffi::PyObject,
            this: *mut ffi::PyObject,
            args: [*mut ffi::PyObject; N],
        }
        let mut frame =
            Frame { slot: ptr::null_mut(), this: self.as_ptr(), args: args.map(Obj::as_ptr) };
        // SAFETY: live objects; `this` and `args` are adjacent (repr(C)), with a slot before them.
        unsafe {
            let first = (&raw mut frame.slot).add(1);
            Obj::owned(HangIfUnwound::around(|| {
                PyObject_VectorcallMethod(
                    name.as_ptr(),
                    first,
                    (N + 1) | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                    ptr::null_mut(),
                )
            }))
        }
    }

    /// `self(*args, **kwargs)`: `names` is a tuple of the keywords of the last arguments.
    pub fn call_with_names(&self, args: &[&Obj], names: &Obj) -> Result<Obj> {
        self.call_with(args.iter().copied(), Some(names))
    }

    /// Hands a call on with all its arguments.
    #[inline]
    pub fn call_like(&self, args: &Args) -> Result<Obj> {
        self.call_with(args.positional.iter().chain(args.values), args.names)
    }

    fn call_with<'a>(
        &self,
        args: impl Iterator<Item = &'a Obj>,
        names: Option<&Obj>,
    ) -> Result<Obj> {
        const ROOM: usize = 8;
        let mut few = WithSlot { slot: ptr::null_mut(), args: [ptr::null_mut(); ROOM] };
        let mut many = Vec::new();
        let mut count = 0;
        for arg in args {
            if count == ROOM {
                many.push(ptr::null_mut());
                many.extend_from_slice(&few.args);
            }
            if count < ROOM {
                few.args[count] = arg.as_ptr();
            } else {
                many.push(arg.as_ptr());
            }
            count += 1;
        }
        // SAFETY: live objects, behind a slot that is ours to lend; `names` is a tuple of strings,
        // at most as long as `args`.
        unsafe {
            let keywords = match names {
                Some(names) => ffi::PyTuple_Size(names.as_ptr()),
                None => 0,
            };
            self.check(keywords.min(0) as std::ffi::c_int)?;
            let positional = count.saturating_sub(keywords as usize);
            let first = match count {
                0..=ROOM => (&raw mut few.slot).add(1),
                _ => many.as_mut_ptr().add(1),
            };
            Obj::owned(HangIfUnwound::around(|| {
                PyObject_Vectorcall(
                    self.as_ptr(),
                    first,
                    positional | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                    names.map_or(ptr::null_mut(), Obj::as_ptr),
                )
            }))
        }
    }

    /// `self(*args)` with arguments kept by a handle.
    #[inline]
    pub fn call_kept(&self, args: &CallArgs) -> Result<Obj> {
        match args {
            CallArgs::Few(items) => {
                let count = items.iter().take_while(|item| item.is_some()).count();
                let mut array = WithSlot {
                    slot: ptr::null_mut(),
                    args: std::array::from_fn::<_, FEW, _>(|index| {
                        items[index].as_ref().map_or(ptr::null_mut(), Obj::as_ptr)
                    }),
                };
                // SAFETY: the first `count` pointers are live objects; the slot is ours to lend.
                unsafe {
                    Obj::owned(HangIfUnwound::around(|| {
                        PyObject_Vectorcall(
                            self.as_ptr(),
                            array.args.as_mut_ptr(),
                            count | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                            ptr::null_mut(),
                        )
                    }))
                }
            }
            CallArgs::Many(items) => {
                // SAFETY: `Obj` is a transparent pointer, so the items are an argument array;
                // there is no slot before it, so the offset flag is not set.
                unsafe {
                    Obj::owned(HangIfUnwound::around(|| {
                        PyObject_Vectorcall(
                            self.as_ptr(),
                            items.as_ptr().cast(),
                            items.len(),
                            ptr::null_mut(),
                        )
                    }))
                }
            }
        }
    }
}

const FEW: usize = 3;

/// Arguments kept for a later call: a few in place, more on the heap, never a tuple.
pub enum CallArgs {
    Few([Option<Obj>; FEW]),
    Many(Box<[Obj]>),
}

impl CallArgs {
    pub const NONE: CallArgs = CallArgs::Few([None, None, None]);

    #[inline]
    pub fn new(args: &[Obj]) -> Self {
        if args.len() <= FEW {
            CallArgs::Few(std::array::from_fn(|index| args.get(index).cloned()))
        } else {
            CallArgs::Many(args.into())
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Obj> {
        let (few, many): (&[Option<Obj>], &[Obj]) = match self {
            CallArgs::Few(items) => (items, &[]),
            CallArgs::Many(items) => (&[], items),
        };
        few.iter().flatten().chain(many)
    }
}

impl Clone for CallArgs {
    fn clone(&self) -> Self {
        match self {
            CallArgs::Few(items) => CallArgs::Few(items.clone()),
            CallArgs::Many(items) => CallArgs::Many(items.clone()),
        }
    }
}

/// A function of a module, without arguments, that is called where every nanosecond counts.
pub struct Getter {
    function: Obj,
    /// What a builtin function does, and the module it belongs to; other callables are just called.
    direct: Option<(ffi::PyCFunction, *mut ffi::PyObject)>,
}

impl Getter {
    pub fn new(function: Obj) -> Self {
        let ptr = function.as_ptr();
        // SAFETY: a live object, whose type is checked before it is asked. The module stays as long
        // as the function, which `self` keeps.
        let direct = unsafe {
            if ffi::PyCFunction_CheckExact(ptr) != 0
                && ffi::PyCFunction_GetFlags(ptr) == ffi::METH_NOARGS
            {
                ffi::PyCFunction_GetFunction(ptr).map(|body| (body, ffi::PyCFunction_GetSelf(ptr)))
            } else {
                None
            }
        };
        Getter { function, direct }
    }

    #[inline]
    pub fn call(&self) -> Result<Obj> {
        match self.direct {
            // SAFETY: called as METH_NOARGS functions are.
            Some((body, module)) => unsafe { Obj::owned(body(module, ptr::null_mut())) },
            None => self.function.call([]),
        }
    }

    pub fn traverse(&self, visit: &mut Visit) {
        visit.obj(&self.function);
    }
}
