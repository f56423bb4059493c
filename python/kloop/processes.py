"""serve_per_core with a process per core, for programs that cannot run in subinterpreters.

The main process accepts and passes each connection's file descriptor to the process that has the
fewest, over a Unix socket (SCM_RIGHTS, unix(7)). ProcessCores and ProcessWorker have the interfaces
of _kloop.Cores and _kloop.Worker, so that the rest is the same code for both.
"""

import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

from kloop import _kloop, _worker
from kloop.loop import Loop

__all__ = ["ProcessCores", "ProcessWorker", "child_main"]

ABORT_LIMIT = 5.0
"""Seconds that processes have to end after an abort."""

ACCEPT_RETRY_DELAY = 0.1
"""Seconds before accept is tried again when file descriptors or memory have run out."""

MESSAGE_SIZE = 64 * 1024
"""The most bytes that one message takes; longer texts are cut."""

NO_WARNING = ("-W", "ignore:kloop runs on epoll:RuntimeWarning")
"""Flags of an interpreter that need not say again what the main process has said."""

Failure = tuple[int, str, str, str, str]


class Child:
    """One worker process as the main process sees it."""

    def __init__(self, index: int, cpu: int, job: str, flags: Sequence[str]) -> None:
        self.index = index
        self.cpu = cpu
        self.open = 0
        self.assigned = 0
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                    *flags,
                    "-c",
                    "import kloop.processes; kloop.processes.child_main()",
                    str(theirs.fileno()),
                    str(index),
                    str(cpu),
                ],
                pass_fds=[theirs.fileno()],
            )
        self.send(job)
        self.channel.setblocking(False)

    def send(self, message: str, fds: Sequence[int] = ()) -> None:
        """Send a message; one to a process that has died is dropped, and so are its connections."""
        try:
            socket.send_fds(self.channel, [message.encode()], fds)
        except (BrokenPipeError, ConnectionResetError):
            pass


class ProcessCores:
    """Workers in processes of their own, and the acceptor that feeds them."""

    def __init__(
        self,
        cpus: Iterable[int],
        listeners: Iterable[int],
        signals: int,
        job: str,
        drain_timeout: float,
        on_ready: Callable[[], object],
        on_stop: Callable[[], object],
        on_error: Callable[[OSError], object],
    ) -> None:
        with closing(Loop()) as loop:  # cannot be had, or warns, in the processes as here
            self._flags = NO_WARNING if loop.driver == "epoll" else ()
        self.stuck = False
        self._cpus = list(cpus)
        self._listeners = [socket.socket(fileno=os.dup(fd)) for fd in listeners]
        self._signals = socket.socket(fileno=os.dup(signals))
        self._job = job
        self._drain_limit = drain_timeout + ABORT_LIMIT
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._on_error = on_error
        self._children: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self._stops = 0
        self._told = 0
        self._ready = 0
        self._running = 0
        self._failure: Failure | None = None
        self._retry_at: float | None = None
        self._drained_at: float | None = None
        self._abort_at: float | None = None

    def run(self) -> Failure | None:
        """Serve until stop(); return what ended a worker, as _kloop.Cores.run does."""
        raised: BaseException | None = None
        try:
            self._start()
            while self._running:
                try:
                    self._turn()
                except BaseException as error:
                    raised = raised or error
                    self._stops = 2
                if self._abort_at is not None and time.monotonic() > self._abort_at:
                    for child in self._children:
                        child.process.kill()
        finally:
            self._release()
        if raised is not None:
            raise raised
        return self._failure

    def stop(self) -> None:
        """The first call drains, the second aborts."""
        self._stops += 1

    def _start(self) -> None:
        self._signals.setblocking(False)
        self._selector.register(self._signals, selectors.EVENT_READ, self._drain_signals)
        for index, cpu in enumerate(self._cpus):
            child = Child(index, cpu, self._job, self._flags)
            self._children.append(child)
            self._running += 1
            self._selector.register(
                child.channel, selectors.EVENT_READ, lambda child=child: self._receive(child)
            )

    def _release(self) -> None:
        for child in self._children:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
            child.channel.close()
        self._selector.close()
        for sock in (*self._listeners, self._signals):
            sock.close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._timeout()):
            key.data()
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._retry_at = None
            self._watch_listeners()
        drained_at = self._drained_at
        if self._failure is not None or (drained_at and time.monotonic() >= drained_at):
            self._stops = 2
        while self._told < min(self._stops, 2):
            self._told += 1
            if self._told == 1:
                self._unwatch_listeners()
                for listener in self._listeners:
                    listener.close()
                self._on_stop()
                self._drained_at = time.monotonic() + self._drain_limit
            if self._told == 2:
                self._drained_at = None
                self._abort_at = time.monotonic() + ABORT_LIMIT
            for child in self._children:
                child.send("drain" if self._told == 1 else "abort")

    def _timeout(self) -> float | None:
        deadlines = [at for at in (self._retry_at, self._drained_at, self._abort_at) if at]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _drain_signals(self) -> None:
        try:
            while self._signals.recv(64):
                pass
        except BlockingIOError:
            pass

    def _receive(self, child: Child) -> None:
        try:
            data = child.channel.recv(MESSAGE_SIZE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._ended(child)
            return
        kind, *details = json.loads(data)
        if kind == "ready":
            self._ready += 1
            if self._ready == len(self._children) and not self._stops:
                self._watch_listeners()
                self._on_ready()
        elif kind == "closed":
            child.open -= 1
        elif kind == "failed" and self._failure is None:
            module, name, message, trace = details
            self._failure = (child.index, module, name, message, trace)

    def _ended(self, child: Child) -> None:
        self._selector.unregister(child.channel)
        self._running -= 1
        status = child.process.wait()
        if status and self._failure is None:
            text = f"the worker process ended with status {status}"
            self._failure = (child.index, "builtins", "RuntimeError", text, "")

    def _watch_listeners(self) -> None:
        if self._told:
            return
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(
                listener, selectors.EVENT_READ, lambda listener=listener: self._accept(listener)
            )

    def _unwatch_listeners(self) -> None:
        for listener in self._listeners:
            if listener in self._selector.get_map():
                self._selector.unregister(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            self._unwatch_listeners()
            self._retry_at = time.monotonic() + ACCEPT_RETRY_DELAY
            self._on_error(error)
            return
        with connection:
            child = min(self._children, key=lambda child: (child.open, child.assigned))
            child.open += 1
            child.assigned += 1
            child.send("connection", [connection.fileno()])


class ProcessWorker:
    """The worker process's end of the channel."""

    interpreter_id = 0

    def __init__(self, channel: socket.socket, index: int, cpu: int) -> None:
        self.index = index
        self.cpu = cpu
        self._channel = channel
        self._transports: set[_kloop.StreamTransport] = set()
        self._loop: Loop | None = None

    @property
    def connections(self) -> int:
        return len(self._transports)

    def serve(
        self,
        loop: Any,
        protocol_factory: Callable[[], Any],
        on_message: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._factory = protocol_factory
        self._on_message = on_message
        self._channel.setblocking(False)
        loop.add_reader(self._channel, self._read)
        self._tell("ready")

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._channel)

    def abort_connections(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    def begin_import(self) -> bool:
        return True  # no process disturbs another's import

    def end_import(self, one_by_one: bool, /) -> None:
        pass

    def failed(self, module: str, name: str, message: str, traceback: str) -> None:
        self._tell("failed", module, name, message[:1000], traceback[-MESSAGE_SIZE // 8 :])

    def _tell(self, *message: str) -> None:
        self._channel.setblocking(True)
        try:
            self._channel.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the main process has died, which _read notices
        finally:
            self._channel.setblocking(False)

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(
                self._channel, MESSAGE_SIZE, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, fds = b"", []
        if fds:
            self._accept(socket.socket(fileno=fds[0]))
        elif data == b"connection":
            self._tell("closed")  # there was no room for its descriptor
        elif data:
            self._on_message(data.decode())
        else:
            self.stop()
            self._on_message("abort")  # the main process has died

    def _accept(self, sock: socket.socket) -> None:
        assert self._loop is not None
        sock.setblocking(False)
        try:
            protocol = self._factory()
        except Exception as error:
            sock.close()
            self._tell("closed")
            self._loop._connection_failed(error)
            return
        try:
            _kloop.StreamTransport(self._loop, sock, protocol, None, None, self)
        except Exception as error:  # the transport has closed the connection and left the count
            self._loop._connection_failed(error)

    def _attach(self, transport: _kloop.StreamTransport) -> None:
        self._transports.add(transport)

    def _detach(self, transport: _kloop.StreamTransport) -> None:
        self._transports.discard(transport)
        self._tell("closed")
        if not self._transports:
            self._on_message("idle")


def child_main() -> None:
    """The program of a worker process: its channel, index and CPU are the arguments."""
    fd, index, cpu = (int(argument) for argument in sys.argv[1:4])
    # The main process decides when to stop. A handler, unlike SIG_IGN, is not inherited by the
    # programs that a worker starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with socket.socket(fileno=fd) as channel:
        channel.set_inheritable(False)
        os.sched_setaffinity(0, {cpu})
        job = channel.recv(MESSAGE_SIZE).decode()
        if job:
            _worker.main(ProcessWorker(channel, index, cpu), job)
