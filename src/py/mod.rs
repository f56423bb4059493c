//! The only code that touches the CPython C API: owned references, calls, errors, heap types,
//! module state, interpreters. It knows nothing of loops or rings.
//!
//! Everything here is written against `pyo3-ffi`, so that one process can hold many interpreters:
//! no Python object lives in a `static`, and types, names and imported objects are made once per
//! interpreter, in the module's state.
//!
//! How safety is argued:
//! * [`Gil`] is a token for "this thread is attached to an interpreter". [`Obj`] and `Gil` are
//!   neither `Send` nor `Sync`, and [`detach`] takes a `Send` closure, so neither can be reached
//!   while the thread is detached or from another thread.
//! * [`Ref<T>`] gives shared access to the Rust value inside a Python object. Values are never
//!   borrowed mutably through it: state sits in cells, and a borrow of a cell ends before Python
//!   runs, because a call, a DECREF or a garbage collection can re-enter any method.
//! * Every function that CPython calls goes through [`panic::guard`], so no panic crosses into C.

mod args;
mod buffer;
mod call;
mod class;
mod context;
mod convert;
mod coroutine;
mod error;
mod interpreter;
mod members;
mod module;
mod object;
mod panic;
mod recycle;
mod slots;
mod watched;
mod weak;

pub use args::{Args, Signature};
pub use buffer::{Buffer, WritableBuffer};
pub use call::{CallArgs, Getter};
pub use class::{Bound, Construct, Describe, Native, Offset, Ref, Type, Variant, Visit};
pub use context::{copy_context, copy_current_context, enter_context};
pub use convert::ToObj;
pub use coroutine::{Advance, Next, SpareStop, Step, warn_never_awaited};
pub use error::{Exc, Result};
pub use interpreter::{check_signals, detach, interpreter_id, run_in_own_interpreter};
pub use members::{GetSet, Method};
pub use module::{ModuleState, StateRef, module_init, state_of_module, state_of_type};
pub use object::{Gil, Obj, ObjCell};
pub use recycle::FreeList;
pub use watched::{ModuleAttribute, ModuleWatcher};
pub use weak::Weak;
