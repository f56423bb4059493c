//! Futures and tasks: asyncio's C types, made without a detour through Python. As asyncio does,
//! this looks the classes up each time, for tests and tools replace them.

use super::EventLoop;
use crate::py::{Args, Obj, Ref, Result, ToObj};

impl EventLoop {
    pub fn create_future(this: &Ref<EventLoop>) -> Result<Obj> {
        let state = &this.state;
        let future = state.futures.module_item(&state.names.Future)?;
        future.call_with_names(&[this.obj()], &state.loop_keyword)
    }

    /// `asyncio.Task(coro, loop=self, **kwargs)`. Task factories, debug mode and wrong calls are
    /// left to asyncio's own method.
    pub(super) fn create_task(this: &Ref<EventLoop>, args: &Args) -> Result<Obj> {
        let gil = args.gil;
        let keywords = args.keywords()?;
        let [coroutine] = args.positional else {
            return Self::create_task_by_asyncio(this, args);
        };
        let known = keywords
            .iter()
            .all(|(name, _)| matches!(name.to_str(), Ok("name" | "context" | "eager_start")));
        if !known || this.debug() || this.is_closed() || this.task_factory.is_some() {
            return Self::create_task_by_asyncio(this, args);
        }
        let task = this.state.tasks.module_item(&this.state.names.Task)?;
        if keywords.is_empty() {
            let args = [coroutine, this.obj()];
            return task.call_with_names(&args, &this.state.loop_keyword);
        }
        let mut names = vec!["loop".to_obj(gil)?];
        let mut values = vec![coroutine, this.obj()];
        for (name, value) in &keywords {
            names.push(name.clone());
            values.push(value);
        }
        task.call_with_names(&values, &Obj::tuple(gil, &names)?)
    }

    fn create_task_by_asyncio(this: &Ref<EventLoop>, args: &Args) -> Result<Obj> {
        let all: Vec<&Obj> =
            std::iter::once(this.obj()).chain(args.positional).chain(args.values).collect();
        match args.names {
            Some(names) => this.state.base_create_task.call_with_names(&all, names),
            None => this.state.base_create_task.call_with_names(&all, &Obj::tuple(args.gil, &[])?),
        }
    }
}
