"""serve_per_core: one event loop, interpreter and pinned thread per core, in one process."""

import builtins
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

from kloop import _kloop, leaving
from kloop._worker import Handler, Job, in_worker
from kloop.processes import ProcessCores
from kloop.sqpoll import Option, Plan, plan_for_workers

__all__ = ["WorkerError", "serve_per_core"]

logger = logging.getLogger("kloop")

# Modules whose static types CPython 3.13 shares between interpreters: they are initialised in the
# main interpreter before another one can import them (see docs/architecture.md).
SHARED_MODULES = (
    "asyncio",
    "datetime",
    "decimal",
    "hashlib",
    "logging",
    "socket",
    "sqlite3",
    "ssl",
)

KINDS: dict[str, type[_kloop.Cores | ProcessCores]] = {
    "threads": _kloop.Cores,
    "processes": ProcessCores,
}

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerError(RuntimeError):
    """A worker of serve_per_core has failed; the text holds the worker's own traceback."""


def serve_per_core(
    handler: Handler | str,
    host: str | Sequence[str] | None = "127.0.0.1",
    port: int = 8000,
    *,
    sock: socket.socket | None = None,
    cores: int | Iterable[int] | None = None,
    backlog: int = 1024,
    drain_timeout: float = 30.0,
    workers: Literal["threads", "processes"] = "threads",
    debug: bool = False,
    sqpoll: Option = False,
    on_ready: Callable[[list[Any]], object] | None = None,
) -> None:
    """Serve TCP on every core until SIGINT or SIGTERM. Must be called in the main thread.

    Each core has a pinned thread with its own interpreter, GIL and kloop event loop. Connections
    go to the core that has the fewest.

    handler: ``async def handler(reader, writer)`` as for asyncio.start_server, or a callable that
        returns an asyncio.Protocol or BufferedProtocol and is called in the worker's loop for each
        connection; or either one's name as "package.module:name". The workers import it by name.
    host, port: where to listen, with the meaning of loop.create_server; port 0 picks a free one.
    sock: a bound socket to listen on instead of host and port. It is closed with the server.
    cores: how many cores to use, or which CPUs; by default all of the process's affinity mask.
    backlog: the listening queue's length, in connections.
    drain_timeout: seconds that open connections and handlers are given to finish after the first
        signal. What is left then is aborted, as it is at once by a second signal. Workers that do
        not end within ten more seconds are given up: the process exits with status 1.
    workers: "threads" gives each core an interpreter of its own in this process; "processes" gives
        it a process of its own, which can use extension modules that do not support interpreters
        with their own GIL.
    debug: asyncio's debug mode in the workers.
    sqpoll: whether a kernel thread submits for the workers' rings, as Loop describes. "auto" turns
        it on only if the affinity mask has a CPU without a worker. It is pinned to the one of these
        with the highest number, and the workers share it; with workers="processes" each has its own
        there. The workers' loops say what came of it.
    on_ready: called with the bound addresses once all cores accept connections.

    The main thread and the workers use io_uring or epoll as every Loop does; see there.

    Raises TypeError or ValueError for arguments that cannot be served, OSError where the address
    cannot be bound, what Loop() raises, and what a worker raised if it could not start or failed
    later: an exception of the same built-in type, or WorkerError, with the worker's traceback as
    its cause.
    """
    check_place()
    if workers not in KINDS:
        raise ValueError(f'workers must be "threads" or "processes", not {workers!r}')
    cpus = choose_cpus(cores)
    job = make_job(handler, drain_timeout, debug, plan_for_workers(sqpoll, cpus))
    for name in SHARED_MODULES:
        importlib.import_module(name)
    listeners = listen(host, port, sock, backlog)

    def close_listeners() -> None:
        for listener in listeners:
            listener.close()

    try:
        addresses = [listener.getsockname() for listener in listeners]
        with signal_socket() as signals:
            run(
                KINDS[workers](
                    cpus,
                    [listener.fileno() for listener in listeners],
                    signals.fileno(),
                    json.dumps(job),
                    drain_timeout,
                    lambda: announce(addresses, cpus, on_ready),
                    close_listeners,
                    report_accept_error,
                )
            )
    finally:
        close_listeners()


def check_place() -> None:
    """Refuse calls that come from a worker or from outside the main thread."""
    if in_worker():
        raise RuntimeError(
            "serve_per_core() was called in a worker, which happens when it imports the module of "
            'the handler: put the call under `if __name__ == "__main__":`'
        )
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("serve_per_core() must be called in the main thread")


def make_job(handler: Handler | str, drain_timeout: float, debug: bool, sqpoll: Plan) -> Job:
    if drain_timeout < 0:
        raise ValueError(f"drain_timeout must not be negative: {drain_timeout!r}")
    target = handler if isinstance(handler, str) else name_of(handler)
    module, colon, qualname = target.partition(":")
    if not (module and colon and qualname):
        raise ValueError(f'a handler is named as "package.module:name", not {target!r}')
    main_path = main_name = None
    if module == "__main__":
        main_path, main_name = describe_main()
    path, argv = list(sys.path), list(sys.argv)
    return Job(target, main_path, main_name, path, argv, drain_timeout, debug, sqpoll)


def name_of(handler: Handler) -> str:
    """The "module:name" under which a worker finds the handler."""
    remedy = 'define it with def at the top level of a module, or pass its name as "module:name"'
    if not callable(handler):
        raise TypeError(f"the handler must be callable or a string, not {type(handler).__name__}")
    module = getattr(handler, "__module__", None)
    qualname = getattr(handler, "__qualname__", None)
    if module is None or qualname is None or getattr(handler, "__self__", None) is not None:
        raise TypeError(f"{handler!r} cannot be imported by the workers: {remedy}")
    if "<" in qualname:
        kind = "a lambda" if "<lambda>" in qualname else "a nested function"
        raise TypeError(f"{handler!r} is {kind}, which the workers cannot import: {remedy}")
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if found is not handler:
        raise TypeError(f"{module}:{qualname} is not {handler!r}: {remedy}")
    return f"{module}:{qualname}"


def describe_main() -> tuple[str | None, str | None]:
    """The path of the main module, or its name if it was run by ``python -m``."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return None, spec.name
    path = getattr(main, "__file__", None)
    if path is None or not os.path.exists(path):
        raise TypeError(
            "a handler of the interactive session or of `python -c` cannot be imported by the "
            "workers: put it into a module"
        )
    return os.path.abspath(path), None


def choose_cpus(cores: int | Iterable[int] | None) -> list[int]:
    allowed = sorted(os.sched_getaffinity(0))
    if cores is None:
        return allowed
    if isinstance(cores, int):
        if cores < 1:
            raise ValueError(f"cores must be at least 1, not {cores}")
        # More workers than CPUs share them.
        return [allowed[index % len(allowed)] for index in range(cores)]
    cpus = list(cores)
    if not cpus:
        raise ValueError("cores is empty")
    strange = [cpu for cpu in cpus if cpu not in allowed]
    if strange:
        raise ValueError(f"CPUs {strange} are not in the affinity mask {allowed}")
    return cpus


def listen(
    host: str | Sequence[str] | None, port: int, sock: socket.socket | None, backlog: int
) -> list[socket.socket]:
    """Listening sockets for every address of the hosts, as loop.create_server makes them."""
    if sock is not None:
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
        sock.setblocking(False)
        sock.listen(backlog)
        return [sock]
    hosts = [host] if host is None or isinstance(host, str) else list(host)
    infos = {
        info
        for name in hosts
        for info in socket.getaddrinfo(
            name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    }
    listeners: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in sorted(infos):
            listener = socket.socket(family, kind, proto)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bind(listener, address)
            listener.setblocking(False)
            listener.listen(backlog)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def bind(listener: socket.socket, address: Any) -> None:
    try:
        listener.bind(address)
    except OSError as error:
        text = f"error while attempting to bind on address {address!r}: {str(error).lower()}"
        raise OSError(error.errno, text) from None


@contextmanager
def signal_socket() -> Generator[socket.socket]:
    """A socket that becomes readable with each signal, whichever thread the kernel gives it to."""
    ours, wakeup = socket.socketpair()
    with ours, wakeup:
        ours.setblocking(False)
        wakeup.setblocking(False)
        before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(before)


def run(cores: _kloop.Cores | ProcessCores) -> None:
    """Run the workers with the stop signals in hand; raise what ended one of them."""
    before = {number: signal.signal(number, lambda *_: cores.stop()) for number in STOP_SIGNALS}
    if isinstance(cores, _kloop.Cores) and not leaving.INTERPRETERS_CAN_END:
        leaving.leave_interpreters_alone()
    try:
        failure = cores.run()
    finally:
        if cores.stuck:
            logger.critical("workers did not end in time: leaving without them")
            leaving.exit_now(1)
        for number, action in before.items():
            # None: a handler that was not set from Python cannot be set again.
            signal.signal(number, signal.SIG_DFL if action is None else action)
    if failure is not None:
        raise_failure(*failure)


def raise_failure(core: int, module: str, name: str, message: str, trace: str) -> NoReturn:
    if "does not support loading in subinterpreters" in message:
        message += (
            ". An extension module without support for per-interpreter GILs cannot be used in a "
            'worker thread of serve_per_core(): serve with workers="processes"'
        )
    cause = WorkerError(f"core {core} failed:\n\n{trace}" if trace else f"core {core} failed")
    kind = getattr(builtins, name, None) if module == "builtins" else None
    error: BaseException = WorkerError(f"{module}.{name}: {message}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind(message)
        except Exception:  # a class that needs other arguments, as UnicodeDecodeError does
            error = WorkerError(f"{name}: {message}")
    raise error from cause


def announce(
    addresses: list[Any], cpus: list[int], on_ready: Callable[[list[Any]], object] | None
) -> None:
    logger.info("serving on %s with %d cores (CPUs %s)", addresses, len(cpus), cpus)
    if on_ready is not None:
        on_ready(addresses)


def report_accept_error(error: OSError) -> None:
    logger.error("accept failed, trying again: %s", error)
