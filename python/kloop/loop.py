"""kloop.Loop: asyncio's own event loop with its engine replaced.

The native base overrides what runs per callback, timer, turn or packet; this module overrides what
runs once per loop, server or connection set-up. Everything else is inherited from asyncio.

Names of asyncio's that are overridden or relied upon here and in the native base, checked against
CPython 3.13, 3.14 and 3.15: _add_callback, _add_reader, _add_writer, _check_callback,
_check_closed, _check_thread, _close_self_pipe, _closed, _csock, _current_handle, _debug,
_ensure_fd_no_transport, _ensure_resolved, _internal_fds, _make_datagram_transport,
_make_read_pipe_transport, _make_self_pipe, _make_socket_transport, _make_ssl_transport,
_make_subprocess_transport, _make_write_pipe_transport, _remove_reader, _remove_writer, _run_once,
_sendfile_native, _signal_handlers, _sock_sendfile_native, _ssock, _start_serving, _stop_serving,
_stopping, _task_factory, _thread_id, _write_to_self; the slots of Handle, TimerHandle and
_ThreadSafeHandle; BaseSelectorEventLoop._accept_connection2; BaseSubprocessTransport._proc,
_process_exited and _wait; Server._attach and _detach; SSLProtocol._app_transport;
base_events._check_ssl_socket and _format_handle; constants._SendfileMode;
format_helpers._format_callback_source; futures.Future and _set_result_unless_cancelled;
selectors._fileobj_to_fd; tasks.Task; transports._FlowControlMixin;
unix_events._UnixSubprocessTransport.
"""

import asyncio
import errno
import functools
import os
import selectors
import socket
import warnings
import weakref
from asyncio import base_events, constants, format_helpers, sslproto, trsock, unix_events
from asyncio.log import logger
from collections.abc import Callable, Coroutine
from contextvars import Context
from ssl import SSLContext
from typing import Any, cast

from kloop import _kloop
from kloop.children import ChildWatcher
from kloop.sockets import SocketCalls
from kloop.sqpoll import Option, Plan, SqPoll, plan_for_loop

__all__ = ["Loop", "new_event_loop", "run"]


class _WatchTable:
    """Stands where asyncio's loop has a selector; asyncio's transports ask it what is watched."""

    def __init__(self, loop: _kloop.Loop) -> None:
        self._loop = weakref.ref(loop)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        loop = self._loop()
        events = loop._watched(fileobj) if loop is not None else 0
        if not events:
            raise KeyError(f"{fileobj!r} is not registered")
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return selectors.SelectorKey(fileobj, fd, events, None)

    def close(self) -> None:
        pass


class Loop(SocketCalls, _kloop.Loop, asyncio.SelectorEventLoop):
    """An asyncio event loop that waits, accepts, reads and writes through one io_uring ring.

    The semantics are those of asyncio.SelectorEventLoop, whose documentation applies.

    Where io_uring cannot be used, as in most containers, epoll takes its place; the first such
    loop of a process gives a RuntimeWarning with the cause and the remedy. The environment variable
    KLOOP_DRIVER decides when a loop is made: "auto", the default, does as just said, "epoll" takes
    epoll without trying or warning, and "uring" raises OSError where io_uring cannot be used. The
    attribute `driver` says which it is, "uring" or "epoll". Raises ValueError for other values.

    sqpoll: whether a kernel thread (IORING_SETUP_SQPOLL, io_uring_setup(2)) submits for the loop.
        Then a busy loop makes no system call for what its TCP connections send and receive, and
        answers come sooner; but the thread keeps a CPU of its own busy while there is work, and
        costs more CPU time in sum. So it is off unless asked for. True turns it on; so does an
        int, the milliseconds without work after which the thread sleeps (4 by default). "auto"
        turns it on only if a CPU is known to be spare: the loop's thread is pinned to one CPU, and
        the main thread may use others. The thread is pinned to the spare CPU with the highest
        number if one is known. Loops of a process that ask for the same share one thread. Raises
        TypeError or ValueError for what is no such value; unless "auto", OSError where the kernel
        refuses and RuntimeError where the loop runs on epoll. The attribute `sqpoll` says what came
        of it, and why.

    A forked child cannot use the loops of its parent: to it they are closed, and what would need
    them raises RuntimeError. It can make loops of its own.
    """

    _internal_fds: int  # asyncio's count of the descriptors that it holds for itself

    sqpoll: SqPoll
    """Whether a kernel thread submits for the loop, where, and why."""

    def __init__(self, *, sqpoll: Option | Plan = False) -> None:
        self._listeners: dict[int, _kloop.Listener] = {}
        self._ssock: socket.socket | None = None
        self._csock: socket.socket | None = None
        self._child_watcher = ChildWatcher()
        super().__init__(cast(Any, _WatchTable(self)))
        try:
            self.sqpoll = self._start_poller(plan_for_loop(sqpoll))
        except BaseException:
            self.close()
            raise

    def _start_poller(self, plan: Plan) -> SqPoll:
        if not plan.wanted:
            return SqPoll(False, None, None, plan.reason)
        try:
            if self.driver == "epoll":
                raise RuntimeError("sqpoll needs io_uring, and this loop runs on epoll")
            self._open_ring(idle=plan.idle_ms, cpu=plan.cpu)
        except (OSError, RuntimeError) as error:
            if plan.required:
                raise
            return SqPoll(False, None, None, f"{plan.reason}, but {error}")
        return SqPoll(True, plan.cpu, plan.idle_ms, plan.reason)

    def close(self) -> None:
        """Close the loop and its ring. See asyncio.loop.close."""
        super().close()
        self._listeners.clear()
        self._close_ring()
        self._child_watcher.close()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See asyncio.loop.call_exception_handler. Does nothing in a forked child."""
        if not self._inherited:
            super().call_exception_handler(context)

    # Signals arrive through a socket pair, which exists only once a handler is added.

    def _make_self_pipe(self) -> None:
        self._internal_fds += 1  # what wakes the ring

    def _close_self_pipe(self) -> None:
        self._internal_fds -= 1
        if self._csock is not None:
            super()._close_self_pipe()  # type: ignore[misc]

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        """See asyncio.loop.add_signal_handler."""
        if self._csock is None and not self.is_closed():
            super()._make_self_pipe()  # type: ignore[misc]
        super().add_signal_handler(sig, callback, *args)

    def _add_callback(self, handle: Any) -> None:
        # Signal handlers are asyncio.Handle objects, which native code does not know.
        if not handle._cancelled:
            self.call_soon(_run_unless_cancelled, handle)

    # Transports and servers

    # CPython 3.15 adds `context`: what the callbacks run in instead of a copy of the current one.

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: Context | None = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(sock)
        return _kloop.StreamTransport(self, sock, protocol, waiter, extra, server, context)

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.DatagramTransport:
        self._ensure_fd_no_transport(sock)
        return _kloop.DatagramTransport(self, sock, protocol, address, waiter, extra)

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: SSLContext | None,
        waiter: asyncio.Future[Any] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Context | None = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(rawsock)
        make_tls: Any = sslproto.SSLProtocol
        tls = make_tls(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        _kloop.StreamTransport(self, rawsock, tls, None, extra, server, context)
        return tls._app_transport  # type: ignore[no-any-return]

    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.ReadTransport:
        return _kloop.ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.WriteTransport:
        return _kloop.WritePipeTransport(self, pipe, protocol, waiter, extra)

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        *args: Any,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> asyncio.SubprocessTransport:
        waiter = self.create_future()
        make: Any = unix_events._UnixSubprocessTransport  # type: ignore[attr-defined]
        try:
            transport = make(self, protocol, *args, waiter=waiter, extra=extra, **kwargs)
        except RuntimeError as error:
            if "subinterpreters" not in str(error):
                raise
            raise RuntimeError(
                "a worker of serve_per_core() cannot run preexec_fn, for it is a subinterpreter: "
                "use Popen's other options (cwd, umask, user, start_new_session, ...), or "
                'workers="processes"'
            ) from error
        try:
            self._child_watcher.watch(self, transport)
        except BaseException:
            self._child_watcher.give_up(transport)
            raise
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await asyncio.shield(transport._wait())
            raise
        return transport  # type: ignore[no-any-return]

    async def _sendfile_native(
        self, transp: _kloop.StreamTransport, file: Any, offset: int, count: int | None
    ) -> int:
        was_reading = transp.is_reading()
        transp.pause_reading()
        await transp._make_empty_waiter()
        try:
            sent = await self.sock_sendfile(transp._sock, file, offset, count, fallback=False)
        finally:
            transp._reset_empty_waiter()
            if was_reading:
                transp.resume_reading()
        return sent

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: SSLContext | None = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Context | None = None,
    ) -> None:
        def accept_tls(conn: socket.socket) -> None:
            options: dict[str, Any] = {} if context is None else {"context": context.copy()}
            accepting = self._accept_connection2(  # type: ignore[attr-defined]
                protocol_factory,
                conn,
                {},
                sslcontext,
                server,
                ssl_handshake_timeout,
                ssl_shutdown_timeout,
                **options,
            )
            self.create_task(accepting, **options)

        self._listeners[sock.fileno()] = _kloop.Listener(
            self,
            sock,
            protocol_factory,
            server,
            None if sslcontext is None else accept_tls,
            context,
        )

    def _stop_serving(self, sock: socket.socket) -> None:
        listener = self._listeners.pop(sock.fileno(), None)
        if listener is not None:
            listener.close()
        super()._stop_serving(sock)  # type: ignore[misc]

    def _accept_failed(self, listener: _kloop.Listener, error: OSError, retry: bool) -> None:
        message = "socket.accept() failed"
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            message = "socket.accept() out of system resource"
        if retry:
            self.call_later(constants.ACCEPT_RETRY_DELAY, listener._accept)
        self.call_exception_handler(
            {
                "message": message,
                "exception": error,
                "socket": trsock.TransportSocket(listener.sock),
            }
        )

    def _connection_failed(self, error: BaseException) -> None:
        if self.get_debug():
            self.call_exception_handler(
                {
                    "message": "Error on transport creation for incoming connection",
                    "exception": error,
                }
            )

    # What native code leaves to Python: reports, and debug mode.

    def _callback_failed(self, handle: Any, error: BaseException) -> None:
        source = format_helpers._format_callback_source(handle._callback, handle._args or ())
        context = {
            "message": f"Exception in callback {source}",
            "exception": error,
            "handle": handle,
        }
        if handle._source_traceback:
            context["source_traceback"] = handle._source_traceback
        self.call_exception_handler(context)

    def _io_failed(self, owner: Any, error: BaseException) -> None:
        self.call_exception_handler(
            {"message": f"Exception in I/O callback of {owner!r}", "exception": error}
        )

    def _run_in_debug_mode(self, handle: Any) -> None:
        self._current_handle = handle
        try:
            start = self.time()
            handle._run()
            self._check_duration(handle, self.time() - start)
        finally:
            # The traceback of an exception that is kept must not keep the handle: that is a cycle.
            self._current_handle = handle = None

    def _check_duration(self, executed: Any, seconds: float) -> None:
        if seconds >= self.slow_callback_duration:
            name = repr(executed)
            if isinstance(executed, asyncio.Handle):
                name = base_events._format_handle(executed)  # type: ignore[attr-defined]
            message = "Executing %s took %.3f seconds"
            base_events.logger.warning(message, name, seconds)  # type: ignore[attr-defined]

    def _debug_log(self, message: str, error: BaseException | None = None) -> None:
        logger.debug("%s", message, exc_info=error)

    def _warn(self, message: str) -> None:
        logger.warning(message)


def _warn_of_fallback(cause: str) -> None:
    """Called by native code where io_uring cannot be used, once per process."""
    warnings.warn(
        f"kloop runs on epoll, since io_uring cannot be used here: {cause}. "
        "Set KLOOP_DRIVER=epoll to choose epoll without this warning.",
        RuntimeWarning,
        skip_file_prefixes=(os.path.dirname(__file__), os.path.dirname(asyncio.__file__)),
    )


def _run_unless_cancelled(handle: Any) -> None:
    if not handle._cancelled:
        handle._run()


def new_event_loop(*, sqpoll: Option = False) -> Loop:
    """Make a Loop: usable as asyncio.Runner's loop_factory and as ``uvicorn --loop``.

    sqpoll: see Loop.
    """
    return Loop(sqpoll=sqpoll)


def run[T](main: Coroutine[Any, Any, T], *, debug: bool | None = None, sqpoll: Option = False) -> T:
    """Run a coroutine on a new Loop and return its result. See asyncio.run, and Loop for sqpoll."""
    factory = functools.partial(new_event_loop, sqpoll=sqpoll)
    return asyncio.run(main, debug=debug, loop_factory=factory)
