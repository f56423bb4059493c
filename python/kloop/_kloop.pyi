import asyncio
import contextvars
import socket
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, final

class Stats(TypedDict):
    ops_in_flight: int
    transports: int
    ready: int
    timers: int

class Handle:
    def cancel(self) -> None: ...
    def cancelled(self) -> bool: ...
    def get_context(self) -> contextvars.Context: ...
    def _run(self) -> None: ...

class TimerHandle(Handle):
    def when(self) -> float: ...

class Loop:
    def __new__(cls, *args: Any, **kwargs: Any) -> Loop: ...
    @property
    def driver(self) -> str: ...
    def stats(self) -> Stats: ...
    def _close_ring(self) -> None: ...
    def _ensure_fd_no_transport(self, fd: Any) -> None: ...

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
    ) -> StreamTransport: ...

@final
class Listener:
    def __new__(
        cls,
        loop: Loop,
        sock: socket.socket,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        server: Any = None,
        accept_socket: Callable[[socket.socket], None] | None = None,
    ) -> Listener: ...
    @property
    def sock(self) -> socket.socket: ...
    def close(self) -> None: ...
    def _accept(self) -> None: ...
