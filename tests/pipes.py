"""Pipe transports of the loop under test, with a plain file at the other end."""

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kloop
from support import Recorder


def make_pipe(flags: int = 0) -> tuple[io.FileIO, io.FileIO]:
    """A reader and a writer."""
    reader, writer = os.pipe2(flags | os.O_CLOEXEC)
    return open_raw(reader, "rb"), open_raw(writer, "wb")


def open_raw(file: int | str | Path, mode: str) -> io.FileIO:
    return io.FileIO(file, mode)  # unlike open(), for terminals too


@dataclass
class End[T: asyncio.BaseTransport]:
    """A transport of the loop under test and the file at the other end."""

    transport: T
    protocol: Recorder
    peer: Any

    async def receive(self, size: int) -> bytes:
        """Exactly size bytes of the peer, or what came before its end."""
        data = bytearray()
        while len(data) < size:
            await readable(self.peer)
            chunk = os.read(self.peer.fileno(), min(size - len(data), 1 << 20))
            if not chunk:
                break
            data += chunk
        return bytes(data)

    async def receive_all(self) -> bytes:
        return await self.receive(1 << 62)


async def readable(file: Any) -> None:
    """Return when a read from the file does not wait."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(file, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(file)


@contextlib.asynccontextmanager
async def reading(
    make: Callable[[], Recorder] = Recorder, ends: tuple[Any, Any] | None = None
) -> AsyncIterator[End[asyncio.ReadTransport]]:
    """A transport that reads from the first of two ends, by default those of a new pipe."""
    ours, theirs = ends or make_pipe()
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.connect_read_pipe(make, ours)
        async with _closing(transport, protocol):
            yield End(transport, protocol, theirs)
    finally:
        if theirs is not None:
            theirs.close()


@contextlib.asynccontextmanager
async def writing(
    make: Callable[[], Recorder] = Recorder, ends: tuple[Any, Any] | None = None
) -> AsyncIterator[End[asyncio.WriteTransport]]:
    """A transport that writes to the second of two ends, by default those of a new pipe."""
    theirs, ours = ends or make_pipe()
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.connect_write_pipe(make, ours)
        async with _closing(transport, protocol):
            yield End(transport, protocol, theirs)
    finally:
        if theirs is not None:
            theirs.close()


@contextlib.asynccontextmanager
async def _closing(transport: asyncio.BaseTransport, protocol: Recorder) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if isinstance(transport, asyncio.WriteTransport) and not transport.is_closing():
            transport.abort()
        transport.close()
    await protocol.lost


def operations_of(loop: asyncio.AbstractEventLoop) -> int:
    """The number of operations that kloop has in flight; 0 on other loops."""
    return loop.stats()["ops_in_flight"] if isinstance(loop, kloop.Loop) else 0
