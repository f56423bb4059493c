//! Multi-phase initialisation (PEP 489) with state for each interpreter.

use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::sync::OnceLock;

use pyo3_ffi as ffi;

use super::class::{Native, Type, Visit};
use super::error::{Exc, Result};
use super::object::{Gil, Obj};
use super::panic::{guard, guard_silent};

/// What one interpreter's copy of the module holds.
///
/// Its references are visited but never cleared: the types in it, the module and the state form a
/// cycle that CPython breaks at the types.
pub trait ModuleState: Sized + 'static {
    const NAME: &'static CStr;
    const DOC: &'static CStr;
    fn create(module: &Obj) -> Result<Self>;
    fn traverse(&self, visit: &mut Visit);
}

/// The module's state as CPython keeps it: zeroed memory that `exec` fills.
struct Place<S> {
    filled: bool,
    state: MaybeUninit<S>,
}

/// The address of the module definition, which is process-wide plain data and lives for ever.
static DEFINITION: OnceLock<usize> = OnceLock::new();

fn definition<S: ModuleState>() -> *mut ffi::PyModuleDef {
    *DEFINITION.get_or_init(|| {
        let slot = |slot, value| ffi::PyModuleDef_Slot { slot, value };
        let mut slots = vec![
            slot(ffi::Py_mod_exec, exec::<S> as *mut c_void),
            slot(ffi::Py_mod_multiple_interpreters, ffi::Py_MOD_PER_INTERPRETER_GIL_SUPPORTED),
        ];
        if cfg!(Py_GIL_DISABLED) {
            let audited = cfg!(feature = "free-threaded");
            let value = if audited { ffi::Py_MOD_GIL_NOT_USED } else { ffi::Py_MOD_GIL_USED };
            slots.push(slot(ffi::Py_mod_gil, value));
        }
        slots.push(slot(0, std::ptr::null_mut()));
        let definition = Box::new(ffi::PyModuleDef {
            m_base: ffi::PyModuleDef_HEAD_INIT,
            m_name: S::NAME.as_ptr(),
            m_doc: S::DOC.as_ptr(),
            m_size: size_of::<Place<S>>() as ffi::Py_ssize_t,
            m_methods: std::ptr::null_mut(),
            m_slots: slots.leak().as_mut_ptr(),
            m_traverse: Some(traverse::<S>),
            m_clear: None,
            m_free: Some(free::<S>),
        });
        Box::leak(definition) as *mut ffi::PyModuleDef as usize
    }) as *mut ffi::PyModuleDef
}

/// The body of the module's `PyInit_` function.
pub fn module_init<S: ModuleState>() -> *mut c_void {
    // SAFETY: CPython calls PyInit_ on an attached thread; the definition lives for ever.
    unsafe { ffi::PyModuleDef_Init(definition::<S>()).cast() }
}

unsafe extern "C" fn exec<S: ModuleState>(module: *mut ffi::PyObject) -> c_int {
    // SAFETY: CPython passes a new module whose state is zeroed memory of the size asked for.
    unsafe {
        let result = guard(Gil::assume(), || {
            let state = S::create(Obj::view(&module))?;
            let place = ffi::PyModule_GetState(module).cast::<Place<S>>();
            (*place).state.write(state);
            (*place).filled = true;
            Ok(())
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

unsafe extern "C" fn traverse<S: ModuleState>(
    module: *mut ffi::PyObject,
    visit: ffi::visitproc,
    arg: *mut c_void,
) -> c_int {
    let mut visit = Visit::new(visit, arg);
    // SAFETY: the collector passes a live module; its state may not be filled yet, or be null.
    unsafe {
        let place = ffi::PyModule_GetState(module).cast::<Place<S>>();
        if !place.is_null() && (*place).filled {
            guard_silent(|| (*place).state.assume_init_ref().traverse(&mut visit));
        }
    }
    visit.result()
}

unsafe extern "C" fn free<S: ModuleState>(module: *mut c_void) {
    // SAFETY: called once, when the module dies; state that was filled is dropped.
    unsafe {
        let place = ffi::PyModule_GetState(module.cast()).cast::<Place<S>>();
        if !place.is_null() && (*place).filled {
            (*place).filled = false;
            guard_silent(|| (*place).state.assume_init_drop());
        }
    }
}

/// Access to the state of this interpreter's module, which it keeps alive.
pub struct StateRef<S> {
    module: Obj,
    state: *const S,
    owned: PhantomData<S>,
}

impl<S> StateRef<S> {
    pub fn module(&self) -> &Obj {
        &self.module
    }
}

impl<S> Clone for StateRef<S> {
    fn clone(&self) -> Self {
        StateRef { module: self.module.clone(), state: self.state, owned: PhantomData }
    }
}

impl<S> Deref for StateRef<S> {
    type Target = S;

    #[inline]
    fn deref(&self) -> &S {
        // SAFETY: the state lives as long as the module, which `self` keeps alive.
        unsafe { &*self.state }
    }
}

/// The state of this interpreter's module, which is imported if need be.
pub fn state_of_module<S: ModuleState>(gil: Gil, name: &CStr) -> Result<StateRef<S>> {
    let module = Obj::import(gil, name)?;
    // SAFETY: a live module; its state is `S` where it was made from our definition.
    unsafe {
        if ffi::PyModule_Check(module.as_ptr()) == 0
            || ffi::PyModule_GetDef(module.as_ptr()) != definition::<S>()
        {
            return Err(Exc::type_error(gil, format!("{} is another module", module.repr())));
        }
        state_ref(gil, module)
    }
}

/// # Safety
/// The module was made from the definition that belongs to `S`.
unsafe fn state_ref<S>(gil: Gil, module: Obj) -> Result<StateRef<S>> {
    // SAFETY: as the caller says; a state that is not filled yet is refused.
    unsafe {
        let place = ffi::PyModule_GetState(module.as_ptr()).cast::<Place<S>>();
        if place.is_null() || !(*place).filled {
            return Err(Exc::runtime_error(gil, "the module is not initialised"));
        }
        Ok(StateRef { module, state: (*place).state.as_ptr(), owned: PhantomData })
    }
}

/// The state of the module that made `class` or a base of it.
pub fn state_of_type<S: ModuleState, T: Native>(class: &Type<T>) -> Result<StateRef<S>> {
    // SAFETY: a live type; the module found was made from our definition, so its state is `S`.
    unsafe {
        let class = class.obj().as_ptr().cast();
        let module = ffi::PyType_GetModuleByDef(class, definition::<S>());
        if module.is_null() {
            return Err(Exc::fetch(Gil::assume()));
        }
        state_ref(Gil::assume(), Obj::borrowed(module))
    }
}
