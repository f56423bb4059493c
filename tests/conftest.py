"""Every test runs on the stock asyncio loop, which proves the test, and on kloop.

``KLOOP_TESTS_LOOPS`` (a comma-separated list of ``asyncio``, ``kloop`` and ``kloop-sqpoll``; the
first two by default) chooses the loops. What ``kloop-sqpoll`` does in its own way, TCP streams, is
tested on it, too, wherever ``kloop`` is and io_uring works. A test may be a coroutine function: it
then runs on the ``loop`` fixture, with a time limit. After each test nothing may be left behind: no
open file descriptor, no report to the loop's exception handler that the test did not take, and no
warning.
"""

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

import kloop
from support import ErrorLog, StartChild, open_fds

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

TIME_LIMIT = 25.0
"""Seconds a coroutine test may take: less than pytest's limit, so that its tasks are unwound."""

FACTORIES: dict[str, LoopFactory] = {
    "asyncio": asyncio.new_event_loop,
    "kloop": kloop.new_event_loop,
    "kloop-sqpoll": functools.partial(kloop.new_event_loop, sqpoll=True),
}

WITH_SQPOLL = (
    "test_stream_reading",
    "test_streams",
    "test_tcp_client",
    "test_tcp_faults",
    "test_tcp_protocol_errors",
    "test_tcp_reading",
    "test_tcp_server",
    "test_tcp_tls_and_sendfile",
    "test_tcp_transport",
    "test_tcp_writing",
)

CHOSEN = [name for name in os.environ.get("KLOOP_TESTS_LOOPS", "asyncio,kloop").split(",") if name]

PRELUDES = {
    "asyncio": "import asyncio\nfrom asyncio import new_event_loop\n",
    "kloop": "import asyncio\nfrom kloop import new_event_loop\n",
    "kloop-sqpoll": (
        "import asyncio, functools, kloop\n"
        "new_event_loop = functools.partial(kloop.new_event_loop, sqpoll=True)\n"
    ),
}

failed_key = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "asyncio_leaks: the stock loop, and only it, may leave sockets to the garbage collector",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    if "loop_name" not in metafunc.fixturenames or any("loop_name" in m.args[0] for m in marks):
        return
    module = metafunc.module.__name__.rpartition(".")[2]
    sqpoll = module in WITH_SQPOLL and "kloop" in CHOSEN and has_sqpoll()
    names = [*CHOSEN, "kloop-sqpoll"] if sqpoll else CHOSEN
    metafunc.parametrize("loop_name", names, indirect=True)


@functools.cache
def has_sqpoll() -> bool:
    with warnings.catch_warnings(action="ignore"):
        loop = kloop.new_event_loop()
    loop.close()
    return loop.driver == "uring"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not is_native_on_asyncio(item)]
    for item in items:
        if item.get_closest_marker("asyncio_leaks") and item.name.endswith("[asyncio]"):
            for ignored in ("unclosed", ":pytest.PytestUnraisableExceptionWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{ignored}"))


def is_native_on_asyncio(item: pytest.Item) -> bool:
    """Whether a test would have kloop's streams on the loop of asyncio, which they refuse."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("streams") == "native" and params.get("loop_name") == "asyncio"


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what is there now need not be looked at by the collection after each test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[failed_key] = report.failed
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test on its loop, under TIME_LIMIT."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def limited() -> None:
        async with asyncio.timeout(TIME_LIMIT):
            await test(**arguments)

    loop = pyfuncitem.funcargs["loop"]
    assert isinstance(loop, asyncio.AbstractEventLoop)
    loop.run_until_complete(limited())
    return True


@pytest.fixture
def loop_name(request: pytest.FixtureRequest) -> str:
    """The name of the loop under test: "asyncio", "kloop" or "kloop-sqpoll"."""
    return str(request.param)


@pytest.fixture(params=["stock", "native"])
def streams(request: pytest.FixtureRequest) -> types.ModuleType:
    """The module whose streams are tested: asyncio, or kloop on its own loop only."""
    return kloop if request.param == "native" else asyncio


@pytest.fixture
def new_loop(loop_name: str) -> LoopFactory:
    """Makes a loop of the kind under test."""
    return FACTORIES[loop_name]


@pytest.fixture
def no_fd_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test if it leaves a file descriptor open once its loop is closed."""
    gc.collect()
    before = open_fds()
    yield
    if request.node.stash.get(failed_key, False):
        return  # the traceback keeps the test's sockets alive
    gc.collect()
    left = {fd: target for fd, target in open_fds().items() if before.get(fd) != target}
    assert left == {}


@pytest.fixture
def errors() -> ErrorLog:
    """What the loop reported to its exception handler; a test must take what it expects."""
    return ErrorLog()


@pytest.fixture
def loop(
    new_loop: LoopFactory, no_fd_left: None, errors: ErrorLog, request: pytest.FixtureRequest
) -> Iterator[asyncio.AbstractEventLoop]:
    """A new loop, closed afterwards."""
    loop = new_loop()
    loop.set_exception_handler(errors.handle)
    yield loop
    if not loop.is_closed():
        try:
            for task in asyncio.all_tasks(loop):
                task.cancel()
                loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
    del loop
    if not request.node.stash.get(failed_key, False):
        gc.collect()
        assert errors == []


@pytest.fixture
def start_child(loop_name: str) -> Iterator[StartChild]:
    """Starts a Python script, in which ``asyncio`` and ``new_event_loop`` are imported."""
    with contextlib.ExitStack() as stack:

        def start(script: str, **options: Any) -> subprocess.Popen[str]:
            child = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", PRELUDES[loop_name] + script],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **options,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            return child

        yield start
