//! `Handle` and `TimerHandle`: callbacks that wait for their turn.
//!
//! The semantics are those of asyncio.Handle and asyncio.TimerHandle. The arguments are stored in
//! the handle itself, and the memory of dead handles is used again.

use std::cell::Cell;
use std::ffi::CStr;

use super::EventLoop;
use crate::py::{
    CallArgs, Describe, FreeList, GetSet, Method, Native, Obj, ObjCell, Ref, Result, ToObj, Type,
    Visit, copy_current_context, enter_context,
};

pub struct Handle {
    home: Ref<EventLoop>,
    callback: ObjCell,
    args: Cell<CallArgs>,
    context: Obj,
    cancelled: Cell<bool>,
    /// Whether the callback stays after a run, as that of a reader does.
    kept: Cell<bool>,
    /// In debug mode, where the callback was scheduled.
    source_traceback: ObjCell,
    /// In debug mode, the representation from before the handle was cancelled.
    kept_repr: ObjCell,
    /// For timers: when to run, in seconds of the loop's clock.
    when: f64,
    /// For timers that wait: the place in the loop's heap.
    pub(super) heap_index: Cell<Option<u32>>,
}

impl Handle {
    /// A new handle. Without a context it runs in a copy of the current one.
    #[inline]
    pub fn create(
        home: &Ref<EventLoop>,
        callback: &Obj,
        args: &[Obj],
        context: Option<&Obj>,
    ) -> Result<Ref<Handle>> {
        Self::make(home, &home.state.handle, callback, args, context, 0.0)
    }

    /// A new timer for `when` seconds of the loop's clock.
    pub fn create_timer(
        home: &Ref<EventLoop>,
        when: f64,
        callback: &Obj,
        args: &[Obj],
        context: Option<&Obj>,
    ) -> Result<Ref<Handle>> {
        Self::make(home, &home.state.timer, callback, args, context, when)
    }

    #[inline]
    fn make(
        home: &Ref<EventLoop>,
        class: &Type<Handle>,
        callback: &Obj,
        args: &[Obj],
        context: Option<&Obj>,
        when: f64,
    ) -> Result<Ref<Handle>> {
        let context = match context {
            Some(context) => context.clone(),
            None => copy_current_context(home.gil())?,
        };
        let handle = class.alloc_from(
            &home.state.handles,
            Handle {
                home: home.clone(),
                callback: ObjCell::new(callback.clone()),
                args: Cell::new(CallArgs::new(args)),
                context,
                cancelled: Cell::new(false),
                kept: Cell::new(false),
                source_traceback: ObjCell::empty(),
                kept_repr: ObjCell::empty(),
                when,
                heap_index: Cell::new(None),
            },
        )?;
        if home.debug() {
            handle.source_traceback.set(Some(home.state.extract_stack.call([])?));
        }
        Ok(handle)
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    pub fn when(&self) -> f64 {
        self.when
    }

    /// Makes the handle run its callback as often as it is queued, until it is cancelled.
    pub(super) fn keep(&self) {
        self.kept.set(true);
    }

    /// Runs the handle when its turn has come. Only SystemExit and KeyboardInterrupt come back as
    /// errors; others go to the loop's exception handler.
    #[inline]
    pub fn run_queued(this: &Ref<Handle>) -> Result<()> {
        if this.kept.get() { Self::run(this) } else { Self::run_once(this) }
    }

    /// Takes the callback out to call it, which saves the references that a copy would cost.
    #[inline]
    fn run_once(this: &Ref<Handle>) -> Result<()> {
        let Some(callback) = this.callback.take() else { return Ok(()) };
        let args = this.args.replace(CallArgs::NONE);
        let Err(error) = this.call(&callback, &args) else { return Ok(()) };
        if !this.cancelled.get() {
            // The report shows the callback.
            this.args.set(args);
            this.callback.set(Some(callback));
        }
        EventLoop::callback_failed(&this.home, this, error)
    }

    /// Runs the callback and keeps it, for handles that run many times.
    pub fn run(this: &Ref<Handle>) -> Result<()> {
        let Some(callback) = this.callback.get() else { return Ok(()) };
        let args = this.copy_args();
        match this.call(&callback, &args) {
            Ok(()) => Ok(()),
            Err(error) => EventLoop::callback_failed(&this.home, this, error),
        }
    }

    #[inline]
    fn call(&self, callback: &Obj, args: &CallArgs) -> Result<()> {
        let _entered = enter_context(&self.context)?;
        callback.call_kept(args).map(drop)
    }

    fn copy_args(&self) -> CallArgs {
        let args = self.args.replace(CallArgs::NONE);
        let copy = args.clone();
        self.args.set(args);
        copy
    }

    pub fn cancel(this: &Ref<Handle>) -> Result<()> {
        if this.cancelled.get() {
            return Ok(());
        }
        this.cancelled.set(true);
        if this.home.debug() {
            // Debug messages show what was cancelled.
            this.kept_repr.set(Some(Handle::describe(this)?.to_obj(this.gil())?));
        }
        this.home.timer_cancelled(this);
        drop(this.callback.take());
        drop(this.args.replace(CallArgs::NONE));
        Ok(())
    }

    fn cancelled(this: &Ref<Handle>) -> Result<bool> {
        Ok(this.cancelled.get())
    }

    fn get_context(this: &Ref<Handle>) -> Result<Obj> {
        Ok(this.context.clone())
    }

    fn get_loop(this: &Ref<Handle>) -> Result<Obj> {
        Ok(this.home.obj().clone())
    }

    fn get_callback(this: &Ref<Handle>) -> Result<Option<Obj>> {
        Ok(this.callback.get())
    }

    /// A tuple, or None once cancelled, as asyncio has it.
    fn get_args(this: &Ref<Handle>) -> Result<Option<Obj>> {
        if this.cancelled.get() {
            return Ok(None);
        }
        let items: Vec<Obj> = this.copy_args().iter().cloned().collect();
        Obj::tuple(this.gil(), &items).map(Some)
    }

    fn get_source_traceback(this: &Ref<Handle>) -> Result<Option<Obj>> {
        Ok(this.source_traceback.get())
    }

    fn describe(this: &Ref<Handle>) -> Result<String> {
        if let Some(kept) = this.kept_repr.get() {
            return Ok(kept.display());
        }
        let names = &this.home.state.names;
        Ok(this.home.obj().call_method(&names._describe_handle, [this.obj()])?.display())
    }

    fn get_when(this: &Ref<Handle>) -> Result<f64> {
        Ok(this.when)
    }

    fn get_scheduled(this: &Ref<Handle>) -> Result<bool> {
        Ok(this.heap_index.get().is_some())
    }

    pub fn timer_type(handle: &Type<Handle>, module: &Obj) -> Result<Type<Handle>> {
        handle.variant(
            module,
            c"kloop._kloop.TimerHandle",
            c"A callback that runs at a time. As asyncio.TimerHandle.",
            const { &[Method::noargs(c"when", Handle::get_when), Method::END] },
            const {
                &[
                    GetSet::get(c"_when", Handle::get_when),
                    GetSet::get(c"_scheduled", Handle::get_scheduled),
                    GetSet::END,
                ]
            },
        )
    }
}

impl Native for Handle {
    const NAME: &'static CStr = c"kloop._kloop.Handle";
    const DOC: &'static CStr = c"A scheduled callback. As asyncio.Handle.";
    const METHODS: &'static [Method<Self>] = &[
        Method::noargs(c"cancel", Handle::cancel),
        Method::noargs(c"cancelled", Handle::cancelled),
        Method::noargs(c"get_context", Handle::get_context),
        Method::noargs(c"_run", Handle::run),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"_callback", Handle::get_callback),
        GetSet::get(c"_args", Handle::get_args),
        GetSet::get(c"_cancelled", Handle::cancelled),
        GetSet::get(c"_context", Handle::get_context),
        GetSet::get(c"_loop", Handle::get_loop),
        GetSet::get(c"_source_traceback", Handle::get_source_traceback),
        GetSet::END,
    ];
    // TimerHandle inherits from it.
    const SUBCLASSABLE: bool = true;
    const REPR: Option<Describe<Self>> = Some(Handle::describe);

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        visit.cell(&self.callback);
        visit.obj(&self.context);
        visit.cell(&self.source_traceback);
        let args = self.args.replace(CallArgs::NONE);
        args.iter().for_each(|arg| visit.obj(arg));
        self.args.set(args);
    }

    fn clear(&self) {
        drop(self.callback.take());
        drop(self.args.replace(CallArgs::NONE));
        drop(self.source_traceback.take());
    }

    fn free_list(&self) -> Option<FreeList> {
        Some(self.home.state.handles.clone())
    }
}
