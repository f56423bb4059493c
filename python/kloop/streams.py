"""Streams over native readers and writers, with the interface of asyncio's.

`StreamReader` and `StreamWriter` are instances of asyncio's classes of these names, and behave as
they do.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from kloop._kloop import StreamReader, StreamReaderProtocol, StreamWriter
from kloop.loop import Loop

__all__ = [
    "StreamReader",
    "StreamReaderProtocol",
    "StreamWriter",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]

LIMIT = 2**16
"""Bytes of a line at most, and half of what a reader takes before it stops to receive."""

ConnectedCallback = Callable[[StreamReader, StreamWriter], Awaitable[None] | None]


async def open_connection(
    host: str | bytes | None = None,
    port: str | int | None = None,
    *,
    limit: int = LIMIT,
    **options: Any,
) -> tuple[StreamReader, StreamWriter]:
    """Connect over TCP. See asyncio.open_connection.

    `options` are those of loop.create_connection(). RuntimeError outside a loop of kloop's.
    """
    loop, reader, protocol = _client("open_connection", limit)
    connect: Any = loop.create_connection
    transport, _ = await connect(lambda: protocol, host, port, **options)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_server(
    client_connected_cb: ConnectedCallback,
    host: Any = None,
    port: str | int | None = None,
    *,
    limit: int = LIMIT,
    **options: Any,
) -> asyncio.Server:
    """Serve TCP connections. See asyncio.start_server.

    `options` are those of loop.create_server(). RuntimeError outside a loop of kloop's.
    """
    loop = _running_loop("start_server")
    factory = protocol_factory(client_connected_cb, limit, loop)
    serve: Any = loop.create_server
    return await serve(factory, host, port, **options)  # type: ignore[no-any-return]


async def open_unix_connection(
    path: str | bytes | os.PathLike[Any] | None = None, *, limit: int = LIMIT, **options: Any
) -> tuple[StreamReader, StreamWriter]:
    """Connect to a Unix socket. See asyncio.open_unix_connection.

    `options` are those of loop.create_unix_connection(). RuntimeError outside a loop of kloop's.
    """
    loop, reader, protocol = _client("open_unix_connection", limit)
    connect: Any = loop.create_unix_connection
    transport, _ = await connect(lambda: protocol, path, **options)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_unix_server(
    client_connected_cb: ConnectedCallback,
    path: str | bytes | os.PathLike[Any] | None = None,
    *,
    limit: int = LIMIT,
    **options: Any,
) -> asyncio.Server:
    """Serve connections to a Unix socket. See asyncio.start_unix_server.

    `options` are those of loop.create_unix_server(). RuntimeError outside a loop of kloop's.
    """
    loop = _running_loop("start_unix_server")
    factory = protocol_factory(client_connected_cb, limit, loop)
    serve: Any = loop.create_unix_server
    return await serve(factory, path, **options)  # type: ignore[no-any-return]


def protocol_factory(
    client_connected_cb: ConnectedCallback, limit: int, loop: Loop
) -> Callable[[], StreamReaderProtocol]:
    """Return what makes the protocols of a server's connections."""

    def factory() -> StreamReaderProtocol:
        reader = StreamReader(limit, loop)
        return StreamReaderProtocol(reader, client_connected_cb, loop)

    return factory


def _client(function: str, limit: int) -> tuple[Loop, StreamReader, StreamReaderProtocol]:
    loop = _running_loop(function)
    reader = StreamReader(limit, loop)
    return loop, reader, StreamReaderProtocol(reader, None, loop)


def _running_loop(function: str) -> Loop:
    loop = asyncio.get_running_loop()
    if isinstance(loop, Loop):
        return loop
    raise RuntimeError(
        f"kloop.{function}() needs a loop of kloop's, as kloop.run() makes it; on {loop!r} use "
        f"asyncio.{function}()"
    )
