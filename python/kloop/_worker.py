"""What runs in the interpreter of each core of serve_per_core."""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kloop.loop import Loop
from kloop.sqpoll import Plan
from kloop.streams import LIMIT, protocol_factory

MAIN_ALIAS = "__mp_main__"
"""The name that a worker gives to the program's main module, as multiprocessing's spawn does."""

Handler = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Core:
    """The core that a handler runs on."""

    index: int
    """From 0 to the number of cores less one."""
    cpu: int
    """The CPU that the core's thread is pinned to."""
    interpreter_id: int
    """The interpreter's number in the process; 0 is the main one."""


class Job(NamedTuple):
    """What a worker is to do, as plain data that crosses interpreters as JSON."""

    target: str
    """The handler, as "module:name"."""
    main_path: str | None
    """The program's file, where the handler is defined in a script."""
    main_name: str | None
    """The program's module, where it was run by ``python -m``."""
    sys_path: list[str]
    argv: list[str]
    drain_timeout: float
    debug: bool
    sqpoll: Plan


_current: Core | None = None


def current_core() -> Core:
    """The core whose handler is running. RuntimeError outside serve_per_core's workers."""
    if _current is None:
        raise RuntimeError("current_core() was called outside a worker of serve_per_core()")
    return _current


def in_worker() -> bool:
    return _current is not None


class WorkerEnd(Protocol):
    """A worker's connection to the main thread or process: _kloop.Worker or ProcessWorker."""

    @property
    def index(self) -> int: ...
    @property
    def cpu(self) -> int: ...
    @property
    def interpreter_id(self) -> int: ...
    @property
    def connections(self) -> int: ...
    def begin_import(self) -> bool: ...
    def end_import(self, one_by_one: bool, /) -> None: ...
    def serve(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        on_message: Callable[[str], None],
    ) -> None: ...
    def stop(self) -> None: ...
    def abort_connections(self) -> None: ...
    def failed(self, module: str, name: str, message: str, traceback: str) -> None: ...


class WorkerLoop(Loop):
    """The loop of a worker, which signals do not reach if it is a thread."""

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        """See asyncio.loop.add_signal_handler."""
        try:
            super().add_signal_handler(sig, callback, *args)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}: a worker of serve_per_core() gets no signals; the main thread does, and "
                "SIGINT and SIGTERM make it drain the workers"
            ) from error


def main(worker: WorkerEnd, job_text: str) -> None:
    """Serve until the main thread says stop. Failures are reported to it, not raised."""
    global _current
    try:
        job = Job(*json.loads(job_text))
        _current = Core(worker.index, worker.cpu, worker.interpreter_id)
        sys.path[:] = job.sys_path
        sys.argv[:] = job.argv
        if not worker.begin_import():
            return
        handler = load_handler(job)
        worker.end_import(extension_is_loaded())
        make_loop = functools.partial(WorkerLoop, sqpoll=Plan(*job.sqpoll))
        with asyncio.Runner(debug=job.debug, loop_factory=make_loop) as runner:
            runner.run(_Service(worker, handler, job.drain_timeout).run())
    except BaseException as error:
        report(worker, error)


def report(worker: WorkerEnd, error: BaseException) -> None:
    kind = type(error)
    worker.failed(kind.__module__, kind.__qualname__, str(error), traceback.format_exc())


def load_handler(job: Job) -> Handler:
    """Import the handler. Whatever the import raises, or AttributeError or TypeError."""
    module_name, _, qualname = job.target.partition(":")
    module = load_main(job) if module_name == "__main__" else importlib.import_module(module_name)
    handler: Any = module
    for name in qualname.split("."):
        handler = getattr(handler, name)
    if not callable(handler):
        raise TypeError(f"the handler {job.target!r} is a {type(handler).__name__}, not a callable")
    return handler  # type: ignore[no-any-return]


def extension_is_loaded() -> bool:
    """Whether an extension module is loaded that is neither CPython's nor kloop's.

    Such modules may break when two interpreters import them at the same time.
    """
    own = sys.stdlib_module_names | {"kloop"}
    for name, module in list(sys.modules.items()):
        # Not getattr(): a module may import another to answer.
        file = getattr(module, "__dict__", {}).get("__file__")
        is_extension = isinstance(file, str) and file.endswith(tuple(EXTENSION_SUFFIXES))
        if is_extension and str(name).partition(".")[0] not in own:
            return True
    return False


def load_main(job: Job) -> types.ModuleType:
    """Run the program's main module again under another name, as multiprocessing's spawn does."""
    module = types.ModuleType(MAIN_ALIAS)
    if job.main_name is not None:
        spec = importlib.util.find_spec(job.main_name)
        if spec is None or spec.origin is None:
            raise ImportError(f"the main module {job.main_name!r} is not found", name=job.main_name)
        module.__spec__ = spec
        module.__package__ = spec.parent
        path = spec.origin
    else:
        assert job.main_path is not None
        path = job.main_path
    module.__file__ = path
    sys.modules["__main__"] = sys.modules[MAIN_ALIAS] = module
    exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)
    return module


class _Service:
    """One core's server: from the first connection to the end of the drain."""

    def __init__(self, worker: WorkerEnd, handler: Handler, drain_timeout: float) -> None:
        self._worker = worker
        self._handler = handler
        self._drain_timeout = drain_timeout
        self._drain = asyncio.Event()
        self._abort = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        streams = inspect.iscoroutinefunction(self._handler)
        factory = protocol_factory(self._handle_streams, LIMIT, loop) if streams else self._handler
        self._worker.serve(loop, factory, self._on_message)
        try:
            await self._drain.wait()
            await self._finish()
        finally:
            self._worker.stop()
            self._worker.abort_connections()
            # connection_lost() of what was aborted is called in the next turn.
            await asyncio.sleep(0)

    def _on_message(self, message: str) -> None:
        if message == "idle":
            self._idle.set()
        else:
            self._drain.set()
            if message == "abort":
                self._abort.set()

    async def _finish(self) -> None:
        """Wait until every connection is closed and every handler done, an abort or the timeout."""
        done = asyncio.ensure_future(self._everything_done())
        abort = asyncio.ensure_future(self._abort.wait())
        await asyncio.wait(
            (done, abort), timeout=self._drain_timeout, return_when=asyncio.FIRST_COMPLETED
        )
        for task in (done, abort):
            task.cancel()

    async def _everything_done(self) -> None:
        while self._worker.connections or self._tasks:
            if self._tasks:
                await asyncio.wait(self._tasks)
            if self._worker.connections:
                self._idle.clear()
                await self._idle.wait()

    async def _handle_streams(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._handler(reader, writer)
        finally:
            self._tasks.discard(task)
