import asyncio
import contextvars
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, Self, TypedDict, final

class Stats(TypedDict):
    ops_in_flight: int
    transports: int
    ready: int
    timers: int

@final
class Handle(asyncio.Handle): ...

@final
class TimerHandle(asyncio.TimerHandle): ...

class Loop:
    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    @property
    def driver(self) -> Literal["uring", "epoll"]: ...
    @property
    def _inherited(self) -> bool: ...
    def stats(self) -> Stats: ...
    def _open_ring(
        self, *, idle: int | None = None, cpu: int | None = None, receive: bool = False
    ) -> None: ...
    def _close_ring(self) -> None: ...
    def _add_reader(
        self,
        fd: Any,
        callback: Callable[..., object],
        /,
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle: ...
    def _remove_reader(self, fd: Any, /) -> bool: ...
    def _watched(self, fd: Any, /) -> int: ...
    def _ensure_fd_no_transport(self, fd: Any) -> None: ...
    def _poll(self, fd: int, events: int, /) -> Poll: ...

@final
class Poll:
    @property
    def future(self) -> asyncio.Future[None]: ...
    def cancel(self) -> None: ...

@final
class StreamTransport(asyncio.Transport):
    def __new__(
        cls,
        loop: Loop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: contextvars.Context | None = None,
    ) -> Self: ...
    @property
    def _sock(self) -> socket.socket: ...
    def _make_empty_waiter(self) -> asyncio.Future[None]: ...
    def _reset_empty_waiter(self) -> None: ...

@final
class DatagramTransport(asyncio.transports._FlowControlMixin, asyncio.DatagramTransport):
    def __new__(
        cls,
        loop: Loop,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Self: ...
    @property
    def _sock(self) -> socket.socket: ...

@final
class ReadPipeTransport(asyncio.ReadTransport):
    def __new__(
        cls,
        loop: Loop,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Self: ...

@final
class WritePipeTransport(asyncio.WriteTransport):
    def __new__(
        cls,
        loop: Loop,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Self: ...

@final
class StreamReader(asyncio.StreamReader):
    def __new__(cls, limit: int = 65536, loop: asyncio.AbstractEventLoop | None = None) -> Self: ...

@final
class StreamWriter(asyncio.StreamWriter):
    def __new__(
        cls,
        transport: asyncio.BaseTransport,
        protocol: StreamReaderProtocol,
        reader: StreamReader | None,
        loop: asyncio.AbstractEventLoop | None,
    ) -> Self: ...

@final
class StreamReaderProtocol(asyncio.StreamReaderProtocol):
    def __new__(
        cls,
        stream_reader: StreamReader | None,
        client_connected_cb: Callable[[StreamReader, StreamWriter], Awaitable[None] | None]
        | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Self: ...

@final
class Listener:
    def __new__(
        cls,
        loop: Loop,
        sock: socket.socket,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        server: Any = None,
        accept_socket: Callable[[socket.socket], None] | None = None,
        context: contextvars.Context | None = None,
    ) -> Self: ...
    @property
    def sock(self) -> socket.socket: ...
    def close(self) -> None: ...
    def _accept(self) -> None: ...
    def _accept_again(self) -> None: ...

@final
class Worker:
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

@final
class Cores:
    def __new__(
        cls,
        cpus: Iterable[int],
        listeners: Iterable[int],
        signals: int,
        job: str,
        drain_timeout: float,
        on_ready: Callable[[], object],
        on_stop: Callable[[], object],
        on_error: Callable[[OSError], object],
    ) -> Self: ...
    @property
    def stuck(self) -> bool: ...
    def run(self) -> tuple[int, str, str, str, str] | None: ...
    def stop(self) -> None: ...
