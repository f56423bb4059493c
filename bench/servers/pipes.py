"""Echo, take or give data through pipes whose descriptors come on the command line."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
from typing import TYPE_CHECKING, cast

import serving

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = b"c" * (256 * 1024)


class Echo(asyncio.Protocol):
    """Write back what comes."""

    def __init__(self, writer: asyncio.WriteTransport | None) -> None:
        """Write to `writer`."""
        assert writer is not None
        self.write = writer.write

    def data_received(self, data: bytes) -> None:
        """Write it back."""
        self.write(data)


class Sink(asyncio.Protocol):
    """Forget what comes."""

    def __init__(self, _: asyncio.WriteTransport | None) -> None:
        """Nothing is written."""

    def data_received(self, data: bytes) -> None:
        """Forget it."""


class Source(asyncio.BaseProtocol):
    """Write for ever, at the pace of the reader."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.write = cast("asyncio.WriteTransport", transport).write
        self.paused = False
        asyncio.get_running_loop().call_soon(self.resume_writing)

    def pause_writing(self) -> None:
        """Stop the loop below."""
        self.paused = True

    def resume_writing(self) -> None:
        """Write until the pipe is full."""
        self.paused = False
        while not self.paused:
            self.write(CHUNK)


READERS: dict[str, Callable[[asyncio.WriteTransport | None], asyncio.Protocol]] = {
    "echo": Echo,
    "sink": Sink,
}


async def serve(kind: str, pipes: list[tuple[int, int]]) -> None:
    """Run until the process is ended."""
    loop = asyncio.get_running_loop()
    for reading, writing in pipes:
        writer: asyncio.WriteTransport | None = None
        if kind in ("echo", "source"):
            factory = Source if kind == "source" else asyncio.BaseProtocol
            writer, _ = await loop.connect_write_pipe(factory, os.fdopen(writing, "wb", 0))
        if kind in READERS:
            await loop.connect_read_pipe(
                lambda writer=writer: READERS[kind](writer),  # type: ignore[misc]
                os.fdopen(reading, "rb", 0),
            )
    serving.announce("pipes")
    await loop.create_future()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", default="asyncio", help="the module with new_event_loop")
    parser.add_argument("--cpu", type=int, help="stay on this CPU")
    parser.add_argument("--kind", choices=("echo", "sink", "source"), default="echo")
    parser.add_argument("pipes", nargs="+", metavar="READ:WRITE", help="descriptors")
    arguments = parser.parse_args()
    serving.end_with_parent()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    pipes = []
    for pair in arguments.pipes:
        reading, _, writing = pair.partition(":")
        pipes.append((int(reading), int(writing)))
    factory = importlib.import_module(arguments.loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments.kind, pipes))


if __name__ == "__main__":
    main()
