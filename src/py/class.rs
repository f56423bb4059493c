//! Heap types: Rust values inside Python objects.
//!
//! A type is described by [`Native`]: tables of methods and attributes (see `members.rs`) and what
//! the garbage collector needs to know (see `slots.rs`).

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3_ffi as ffi;

use super::args::Args;
use super::coroutine::{self, Advance, Next, SpareStop};
use super::error::{Exc, Result};
use super::members::{GetSet, Method, conjure};
use super::object::{Gil, Obj, ObjCell};
use super::recycle::FreeList;
use super::slots;

/// The body of a type's call.
pub type Construct<T> = fn(&Type<T>, &Args) -> Result<Ref<T>>;

/// The body of a type's repr().
pub type Describe<T> = fn(&Ref<T>) -> Result<String>;

/// A Rust type that lives inside Python objects of its own heap type.
pub trait Native: Sized + 'static {
    /// The full name, as `kloop._kloop.Handle`.
    const NAME: &'static CStr;
    const DOC: &'static CStr;
    /// Ends with [`Method::END`].
    const METHODS: &'static [Method<Self>];
    /// Ends with [`GetSet::END`].
    const GETSETS: &'static [GetSet<Self>];
    /// Whether Python classes may inherit from the type.
    const SUBCLASSABLE: bool = false;
    const WEAK_REFERENCES: bool = false;
    /// Whether instances take any attribute. Goes with [`GetSet::DICT`].
    const DICT: bool = false;
    /// Makes an instance for a call of the type; without it the type cannot be called.
    const CONSTRUCT: Option<Construct<Self>> = None;
    const REPR: Option<Describe<Self>> = None;
    /// Runs once, before the object is torn down (PEP 442).
    const FINALIZE: Option<fn(&Ref<Self>)> = None;

    /// With it instances can be awaited, as coroutines.
    const ADVANCE: Option<Advance<Self>> = None;
    /// `__anext__`, for asynchronous iterators.
    const ASYNC_NEXT: Option<Next<Self>> = None;

    /// Where the value starts in an instance, for a type that extends a Python class.
    fn extends() -> Option<&'static Offset> {
        None
    }

    /// Shows the garbage collector every reference that the value owns. Must not run Python. What
    /// is borrowed at the moment may be left out: that only delays a collection.
    fn traverse(&self, visit: &mut Visit);

    /// Gives up references that can be part of a cycle.
    fn clear(&self);

    /// Where the memory of dead instances is kept for new ones.
    fn free_list(&self) -> Option<FreeList> {
        None
    }

    /// What carries the results of a type with [`Native::ADVANCE`].
    fn spare_stop(&self) -> Option<&SpareStop> {
        None
    }
}

/// The distance of a value from the start of its object, where the base class's size is known only
/// at run time. It is the same in all interpreters of a process.
pub struct Offset(AtomicUsize);

impl Offset {
    pub const fn new() -> Self {
        Offset(AtomicUsize::new(0))
    }
}

/// CPython aligns instances as `max_align_t`, and so does this what a type adds to its base.
const TYPE_DATA_ALIGNMENT: usize = 16;

const fn own_offset<T>() -> usize {
    size_of::<ffi::PyObject>().next_multiple_of(align_of::<T>())
}

#[inline]
pub(super) fn offset<T: Native>() -> usize {
    T::extends().map_or(const { own_offset::<T>() }, |offset| offset.0.load(Ordering::Relaxed))
}

/// # Safety
/// `obj` is an instance of `T`'s type (or of a subclass) that holds a value, alive for `'a`.
#[inline]
pub(super) unsafe fn value<'a, T: Native>(obj: *mut ffi::PyObject) -> &'a T {
    // SAFETY: instances are allocated with room for the value at this offset.
    unsafe { &*obj.byte_add(offset::<T>()).cast::<T>() }
}

/// A strong reference to an instance of a native type.
#[repr(transparent)]
pub struct Ref<T: Native>(Obj, PhantomData<*const T>);

impl<T: Native> Ref<T> {
    /// # Safety
    /// As for [`value`].
    #[inline]
    pub(super) unsafe fn view(ptr: &*mut ffi::PyObject) -> &Self {
        // SAFETY: a transparent wrapper of a transparent wrapper of the pointer.
        unsafe { &*(ptr as *const *mut ffi::PyObject).cast() }
    }

    /// # Safety
    /// `obj` is an instance of `T`'s type.
    #[inline]
    pub(super) unsafe fn from_obj(obj: Obj) -> Self {
        Ref(obj, PhantomData)
    }

    #[inline]
    pub fn obj(&self) -> &Obj {
        &self.0
    }

    #[inline]
    pub fn into_obj(self) -> Obj {
        self.0
    }

    #[inline]
    pub fn gil(&self) -> Gil {
        self.0.gil()
    }

    /// Makes the object known to the garbage collector. To one that does not know it, whatever it
    /// refers to is alive: it must be known before it can be part of garbage.
    #[inline]
    pub fn track(&self) {
        // SAFETY: a live object of a type with garbage collection, whose value is complete.
        unsafe {
            if ffi::PyObject_GC_IsTracked(self.0.as_ptr()) == 0 {
                ffi::PyObject_GC_Track(self.0.as_ptr().cast());
            }
        }
    }

    /// Whether this is the only reference.
    #[inline]
    pub fn is_sole(&self) -> bool {
        // SAFETY: a live object.
        unsafe { ffi::Py_REFCNT(self.0.as_ptr()) == 1 }
    }
}

impl<T: Native> Clone for Ref<T> {
    #[inline]
    fn clone(&self) -> Self {
        Ref(self.0.clone(), PhantomData)
    }
}

impl<T: Native> Deref for Ref<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a `Ref<T>` is only made from instances of `T`'s type.
        unsafe { value::<T>(self.0.as_ptr()) }
    }
}

/// A native method with its receiver, where callers need not know the receiver's type.
pub struct Bound<A, R> {
    receiver: Obj,
    run: unsafe fn(&Obj, A) -> R,
}

impl<A, R> Bound<A, R> {
    #[inline]
    pub fn new<T: Native, F: Fn(&Ref<T>, A) -> R + Copy>(receiver: Ref<T>, _method: F) -> Self {
        unsafe fn run<T: Native, F: Fn(&Ref<T>, A) -> R + Copy, A, R>(
            receiver: &Obj,
            argument: A,
        ) -> R {
            let ptr = receiver.as_ptr();
            // SAFETY: `new` pairs this function with a receiver of type `T`.
            unsafe { conjure::<F>()(Ref::view(&ptr), argument) }
        }
        Bound { receiver: receiver.into_obj(), run: run::<T, F, A, R> }
    }

    #[inline]
    pub fn call(&self, argument: A) -> R {
        // SAFETY: the receiver is the one that `run` was made for.
        unsafe { (self.run)(&self.receiver, argument) }
    }

    pub fn receiver(&self) -> &Obj {
        &self.receiver
    }
}

impl<A, R> Clone for Bound<A, R> {
    #[inline]
    fn clone(&self) -> Self {
        Bound { receiver: self.receiver.clone(), run: self.run }
    }
}

/// What the types of one `T` differ in.
pub struct Variant<'a, T: Native> {
    pub name: &'static CStr,
    pub doc: &'static CStr,
    /// Ends with [`GetSet::END`].
    pub getsets: &'static [GetSet<T>],
    /// The Python class that the type extends.
    pub base: Option<&'a Obj>,
}

/// A type object of one interpreter.
pub struct Type<T: Native>(Obj, PhantomData<*const T>);

impl<T: Native> Clone for Type<T> {
    fn clone(&self) -> Self {
        Type(self.0.clone(), PhantomData)
    }
}

impl<T: Native> Type<T> {
    /// `class` must be a type object whose instances hold a `T`.
    pub(super) fn from_obj(class: Obj) -> Self {
        Type(class, PhantomData)
    }

    /// Makes the type for `module` and adds it there. `base` is the Python class that it extends,
    /// or a tuple of classes.
    pub fn create(module: &Obj, base: Option<&Obj>) -> Result<Self> {
        Self::place_behind(base);
        let variant = Variant { name: T::NAME, doc: T::DOC, getsets: T::GETSETS, base };
        Self::create_variant(module, &variant)
    }

    /// Says which classes the types of a `T` extend: the value lies behind what any of them has.
    pub fn place_behind<'a>(bases: impl IntoIterator<Item = &'a Obj>) {
        let Some(place) = T::extends() else { return };
        let end = bases.into_iter().map(instance_size).max().unwrap_or_default();
        place.0.store(end.next_multiple_of(TYPE_DATA_ALIGNMENT), Ordering::Relaxed);
    }

    /// As [`Type::create`], for one of several types of a `T`. [`Type::place_behind`] comes first.
    pub fn create_variant(module: &Obj, variant: &Variant<T>) -> Result<Self> {
        let Variant { name, doc, getsets, base } = variant;
        if base.is_some_and(|base| instance_size(base) > offset::<T>()) {
            return Err(Exc::runtime_error(module.gil(), "the value would lie inside its base"));
        }
        let methods = T::METHODS;
        debug_assert!(methods.last().is_some_and(Method::is_end));
        debug_assert!(getsets.last().is_some_and(GetSet::is_end));
        let mut flags = ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_HAVE_GC;
        if T::SUBCLASSABLE {
            flags |= ffi::Py_TPFLAGS_BASETYPE;
        }
        if T::WEAK_REFERENCES {
            flags |= ffi::Py_TPFLAGS_MANAGED_WEAKREF;
        }
        if T::DICT {
            flags |= ffi::Py_TPFLAGS_MANAGED_DICT;
        }
        if T::CONSTRUCT.is_none() {
            flags |= ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION;
        }
        let mut table = vec![
            slot(ffi::Py_tp_doc, doc.as_ptr().cast_mut().cast()),
            slot(ffi::Py_tp_methods, methods.as_ptr().cast_mut().cast()),
            slot(ffi::Py_tp_getset, getsets.as_ptr().cast_mut().cast()),
            slot(ffi::Py_tp_dealloc, slots::dealloc::<T> as *mut c_void),
            slot(ffi::Py_tp_traverse, slots::traverse::<T> as *mut c_void),
            slot(ffi::Py_tp_clear, slots::clear::<T> as *mut c_void),
        ];
        if T::CONSTRUCT.is_some() {
            table.push(slot(ffi::Py_tp_new, slots::construct::<T> as *mut c_void));
        }
        if T::CONSTRUCT.is_some() && T::extends().is_some() {
            // The instance is complete: the base class's __init__ has nothing to add.
            table.push(slot(ffi::Py_tp_init, slots::no_init as *mut c_void));
        }
        if T::REPR.is_some() {
            table.push(slot(ffi::Py_tp_repr, slots::repr::<T> as *mut c_void));
        }
        if T::FINALIZE.is_some() {
            table.push(slot(ffi::Py_tp_finalize, slots::finalize::<T> as *mut c_void));
        }
        if T::ADVANCE.is_some() {
            table.extend([
                slot(ffi::Py_am_await, coroutine::itself as *mut c_void),
                slot(ffi::Py_am_send, coroutine::am_send::<T> as *mut c_void),
                slot(ffi::Py_tp_iter, coroutine::itself as *mut c_void),
                slot(ffi::Py_tp_iternext, coroutine::iternext::<T> as *mut c_void),
            ]);
        }
        if T::ASYNC_NEXT.is_some() {
            table.extend([
                slot(ffi::Py_am_aiter, coroutine::itself as *mut c_void),
                slot(ffi::Py_am_anext, coroutine::anext::<T> as *mut c_void),
            ]);
        }
        table.push(slot(0, std::ptr::null_mut()));
        let mut spec = ffi::PyType_Spec {
            name: name.as_ptr(),
            basicsize: (offset::<T>() + size_of::<T>()) as c_int,
            itemsize: 0,
            flags: flags as c_uint,
            slots: table.as_mut_ptr(),
        };
        // SAFETY: the spec and its slots are read during the call; the tables are constants. The
        // trampolines match the slots' signatures.
        unsafe {
            let base = base.map_or(std::ptr::null_mut(), Obj::as_ptr);
            let made = Obj::owned(ffi::PyType_FromModuleAndSpec(module.as_ptr(), &mut spec, base))?;
            module.check(ffi::PyModule_AddType(module.as_ptr(), made.as_ptr().cast()))?;
            Ok(Type(made, PhantomData))
        }
    }

    /// A new instance that holds `value`.
    pub fn alloc(&self, value: T) -> Result<Ref<T>> {
        let class = self.0.as_ptr().cast::<ffi::PyTypeObject>();
        // SAFETY: tp_alloc gives a zeroed object with room for the value, or null. Nothing can
        // look at it before the value is written, for no Python runs in between.
        unsafe {
            let alloc = (*class).tp_alloc.unwrap_or(ffi::PyType_GenericAlloc);
            let obj = Obj::owned(alloc(class, 0))?;
            obj.as_ptr().byte_add(offset::<T>()).cast::<T>().write(value);
            Ok(Ref(obj, PhantomData))
        }
    }

    /// As [`Type::alloc`], in the memory of a dead instance where there is one.
    #[inline]
    pub fn alloc_from(&self, list: &FreeList, value: T) -> Result<Ref<T>> {
        let made = self.alloc_untracked(list, value)?;
        made.track();
        Ok(made)
    }

    /// As [`Type::alloc_from`], but unknown to the garbage collector: see [`Ref::track`].
    #[inline]
    pub fn alloc_untracked(&self, list: &FreeList, value: T) -> Result<Ref<T>> {
        let class = self.0.as_ptr().cast::<ffi::PyTypeObject>();
        // SAFETY: either memory that was an object of a type of this size, is untracked and owned
        // by us, or a new object, of which only the head is set. The rest of the base class's part
        // is zeroed, as tp_alloc would, and the value written before anything can look at it.
        unsafe {
            let memory = match list.pop() {
                Some(memory) => {
                    ffi::PyObject_Init(memory, class);
                    memory
                }
                None => {
                    let memory: *mut ffi::PyObject = ffi::PyObject_GC_New(class);
                    if !memory.is_null() {
                        let head = size_of::<ffi::PyObject>();
                        memory.byte_add(head).cast::<u8>().write_bytes(0, offset::<T>() - head);
                    }
                    memory
                }
            };
            let obj = Obj::owned(memory)?;
            obj.as_ptr().byte_add(offset::<T>()).cast::<T>().write(value);
            Ok(Ref(obj, PhantomData))
        }
    }

    pub fn is_type_of(&self, obj: &Obj) -> bool {
        // SAFETY: live objects.
        unsafe { ffi::PyObject_TypeCheck(obj.as_ptr(), self.0.as_ptr().cast()) != 0 }
    }

    /// The instance behind `obj`, if it is one.
    #[inline]
    pub fn instance<'a>(&self, obj: &'a Obj) -> Option<&'a Ref<T>> {
        // SAFETY: an instance of the type may be viewed as a `Ref`.
        self.is_type_of(obj).then(|| unsafe { &*(obj as *const Obj).cast() })
    }

    /// The instance behind `obj`; `TypeError` where it is something else.
    pub fn cast<'a>(&self, obj: &'a Obj) -> Result<&'a Ref<T>> {
        self.instance(obj).ok_or_else(|| {
            let (name, given) = (self.name(), obj.type_name());
            Exc::type_error(obj.gil(), format!("a {name} was expected, got {given}"))
        })
    }

    pub fn obj(&self) -> &Obj {
        &self.0
    }

    fn name(&self) -> String {
        T::NAME.to_string_lossy().rsplit('.').next().unwrap_or_default().to_owned()
    }
}

/// The size in bytes of the instances of a class, or of the largest of a tuple of classes.
fn instance_size(base: &Obj) -> usize {
    // SAFETY: a live object; what is checked to be a type has a size.
    unsafe {
        if ffi::PyType_Check(base.as_ptr()) != 0 {
            return (*base.as_ptr().cast::<ffi::PyTypeObject>()).tp_basicsize as usize;
        }
    }
    let classes = (0..).map_while(|index| base.tuple_item(index));
    classes.map(|class| instance_size(&class)).max().unwrap_or_default()
}

fn slot(slot: c_int, pfunc: *mut c_void) -> ffi::PyType_Slot {
    ffi::PyType_Slot { slot, pfunc }
}

/// The garbage collector's visitor.
pub struct Visit {
    visit: ffi::visitproc,
    arg: *mut c_void,
    result: c_int,
}

impl Visit {
    pub(super) fn new(visit: ffi::visitproc, arg: *mut c_void) -> Self {
        Visit { visit, arg, result: 0 }
    }

    pub(super) fn result(&self) -> c_int {
        self.result
    }

    #[inline]
    pub fn obj(&mut self, obj: &Obj) {
        self.ptr(obj.as_ptr());
    }

    pub fn native<T: Native>(&mut self, obj: &Ref<T>) {
        self.ptr(obj.obj().as_ptr());
    }

    pub fn class<T: Native>(&mut self, class: &Type<T>) {
        self.ptr(class.0.as_ptr());
    }

    pub fn cell(&mut self, cell: &ObjCell) {
        cell.with_ptr(|ptr| self.ptr(ptr));
    }

    pub(super) fn ptr(&mut self, ptr: *mut ffi::PyObject) {
        if self.result == 0 {
            // SAFETY: `visit` and `arg` are the collector's, valid during the traversal.
            self.result = unsafe { (self.visit)(ptr, self.arg) };
        }
    }
}
