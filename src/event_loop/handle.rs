//! `Handle` and `TimerHandle`: callbacks that wait for their turn.
//!
//! They extend asyncio's classes of these names, whose slots stay empty: the attributes here hide
//! them. The arguments are stored in the handle itself, and the memory of dead handles is used
//! again.
//!
//! While its loop runs and has it in a queue, a handle is alive through the loop and the garbage
//! collector need not know it, which makes it cheaper. Whoever takes it out of the queue while
//! others refer to it makes it known.

use std::cell::Cell;
use std::ffi::CStr;

use super::EventLoop;
use super::run_lock::RunLock;
use crate::py::{
    CallArgs, FreeList, GetSet, Method, Native, Obj, ObjCell, Offset, Ref, Result, ToObj, Type,
    Variant, Visit, copy_current_context, enter_context,
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
    /// For handles that other threads may use.
    lock: Option<RunLock>,
}

/// The types of handles of one interpreter. They extend asyncio's.
pub struct HandleTypes {
    pub plain: Type<Handle>,
    pub timer: Type<Handle>,
    /// Since CPython 3.14.
    pub thread_safe: Option<Type<Handle>>,
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
        Self::make(home, &home.state.handles.plain, callback, args, context, 0.0, None)
    }

    /// A new handle whose creator may be in another thread.
    pub fn create_thread_safe(
        home: &Ref<EventLoop>,
        callback: &Obj,
        args: &[Obj],
        context: Option<&Obj>,
    ) -> Result<Ref<Handle>> {
        match &home.state.handles.thread_safe {
            Some(class) => {
                let lock = Some(RunLock::default());
                Self::make(home, class, callback, args, context, 0.0, lock)
            }
            None => Self::create(home, callback, args, context),
        }
    }

    /// A new timer for `when` seconds of the loop's clock.
    pub fn create_timer(
        home: &Ref<EventLoop>,
        when: f64,
        callback: &Obj,
        args: &[Obj],
        context: Option<&Obj>,
    ) -> Result<Ref<Handle>> {
        Self::make(home, &home.state.handles.timer, callback, args, context, when, None)
    }

    #[inline]
    fn make(
        home: &Ref<EventLoop>,
        class: &Type<Handle>,
        callback: &Obj,
        args: &[Obj],
        context: Option<&Obj>,
        when: f64,
        lock: Option<RunLock>,
    ) -> Result<Ref<Handle>> {
        let context = match context {
            Some(context) => context.clone(),
            None => copy_current_context(home.gil())?,
        };
        let handle = class.alloc_untracked(
            &home.state.spare_handles,
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
                lock,
            },
        )?;
        if !home.in_run_once.get() {
            handle.track();
        }
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
    pub(super) fn keep(this: &Ref<Handle>) {
        this.kept.set(true);
        this.track();
    }

    /// The handle is in no queue any more.
    #[inline]
    pub fn leave_queue(this: &Ref<Handle>) {
        if !this.is_sole() {
            this.track();
        }
    }

    /// Runs the handle when its turn has come. Only SystemExit and KeyboardInterrupt come back as
    /// errors; others go to the loop's exception handler.
    #[inline]
    pub fn run_queued(this: &Ref<Handle>) -> Result<()> {
        match &this.lock {
            None if this.kept.get() => Self::run_and_keep(this),
            None => Self::run_once(this),
            Some(lock) => lock.hold(&this.home.state, || Self::run_once(this)),
        }
    }

    /// As asyncio's `_run()`: the callback stays.
    fn run(this: &Ref<Handle>) -> Result<()> {
        match &this.lock {
            None => Self::run_and_keep(this),
            Some(lock) => lock.hold(&this.home.state, || Self::run_and_keep(this)),
        }
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
    fn run_and_keep(this: &Ref<Handle>) -> Result<()> {
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
        this.wait_for_runner()?;
        if this.cancelled.get() {
            return Ok(());
        }
        this.cancelled.set(true);
        if this.home.debug() {
            // Debug messages show what was cancelled.
            this.kept_repr.set(Some(this.obj().repr().to_obj(this.gil())?));
        }
        this.home.timer_cancelled(this);
        drop(this.callback.take());
        drop(this.args.replace(CallArgs::NONE));
        Ok(())
    }

    fn cancelled(this: &Ref<Handle>) -> Result<bool> {
        this.wait_for_runner()?;
        Ok(this.cancelled.get())
    }

    fn wait_for_runner(&self) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.wait(&self.home.state))
    }

    fn get_cancelled(this: &Ref<Handle>) -> Result<bool> {
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

    /// Hides the lock of asyncio's class; there is none to be had.
    fn get_lock(_: &Ref<Handle>) -> Result<()> {
        Ok(())
    }

    fn get_repr(this: &Ref<Handle>) -> Result<Option<Obj>> {
        Ok(this.kept_repr.get())
    }

    fn get_when(this: &Ref<Handle>) -> Result<f64> {
        Ok(this.when)
    }

    fn get_scheduled(this: &Ref<Handle>) -> Result<bool> {
        Ok(this.heap_index.get().is_some())
    }
}

impl HandleTypes {
    pub fn create(module: &Obj) -> Result<Self> {
        let events = Obj::import(module.gil(), c"asyncio.events")?;
        let (plain, timer) = (events.get(c"Handle")?, events.get(c"TimerHandle")?);
        let thread_safe = events.get(c"_ThreadSafeHandle").ok();
        Type::<Handle>::place_behind([&plain, &timer].into_iter().chain(&thread_safe));
        let plain = Variant {
            name: Handle::NAME,
            doc: Handle::DOC,
            getsets: Handle::GETSETS,
            base: Some(&plain),
        };
        let timer = Variant {
            name: c"kloop._kloop.TimerHandle",
            doc: c"A callback that runs at a time. As asyncio.TimerHandle.",
            getsets: TIMER_GETSETS,
            base: Some(&timer),
        };
        let thread_safe = thread_safe.as_ref().map(|base| Variant {
            name: c"kloop._kloop.ThreadSafeHandle",
            doc: c"A callback that other threads may cancel.",
            getsets: THREAD_SAFE_GETSETS,
            base: Some(base),
        });
        let create = |variant: &Variant<Handle>| Type::create_variant(module, variant);
        Ok(HandleTypes {
            plain: create(&plain)?,
            timer: create(&timer)?,
            thread_safe: thread_safe.as_ref().map(create).transpose()?,
        })
    }

    pub fn traverse(&self, visit: &mut Visit) {
        visit.class(&self.plain);
        visit.class(&self.timer);
        if let Some(class) = &self.thread_safe {
            visit.class(class);
        }
    }
}

const CALLBACK: GetSet<Handle> = GetSet::get(c"_callback", Handle::get_callback);
const ARGS: GetSet<Handle> = GetSet::get(c"_args", Handle::get_args);
const CANCELLED: GetSet<Handle> = GetSet::get(c"_cancelled", Handle::get_cancelled);
const CONTEXT: GetSet<Handle> = GetSet::get(c"_context", Handle::get_context);
const LOOP: GetSet<Handle> = GetSet::get(c"_loop", Handle::get_loop);
const REPR: GetSet<Handle> = GetSet::get(c"_repr", Handle::get_repr);
const SOURCE_TRACEBACK: GetSet<Handle> =
    GetSet::get(c"_source_traceback", Handle::get_source_traceback);

const THREAD_SAFE_GETSETS: &[GetSet<Handle>] = &[
    CALLBACK,
    ARGS,
    CANCELLED,
    CONTEXT,
    LOOP,
    REPR,
    SOURCE_TRACEBACK,
    GetSet::get(c"_lock", Handle::get_lock),
    GetSet::END,
];

const TIMER_GETSETS: &[GetSet<Handle>] = &[
    CALLBACK,
    ARGS,
    CANCELLED,
    CONTEXT,
    LOOP,
    REPR,
    SOURCE_TRACEBACK,
    GetSet::get(c"_when", Handle::get_when),
    GetSet::get(c"_scheduled", Handle::get_scheduled),
    GetSet::END,
];

static OFFSET: Offset = Offset::new();

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
    const GETSETS: &'static [GetSet<Self>] =
        &[CALLBACK, ARGS, CANCELLED, CONTEXT, LOOP, REPR, SOURCE_TRACEBACK, GetSet::END];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        visit.cell(&self.callback);
        visit.obj(&self.context);
        visit.cell(&self.source_traceback);
        if let Some(lock) = &self.lock {
            lock.traverse(visit);
        }
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
        Some(self.home.state.spare_handles.clone())
    }
}
