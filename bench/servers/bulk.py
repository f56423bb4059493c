"""One-way streams: a connection that takes a number of bytes and then gives a number of bytes.

A request begins with the two numbers, of eight bytes each, big-endian.
"""

from __future__ import annotations

import asyncio
from typing import cast

import serving

HEAD_BYTES = 16
CHUNK = memoryview(b"d" * (256 * 1024))


class Bulk(asyncio.Protocol):
    """Forget what comes, and write at the pace of the reader."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        """Wait for a head."""
        self.head = b""
        self.take = 0
        self.give = 0
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read a head, or count what follows it."""
        if self.take:
            self.take -= len(data)
        else:
            self.head += data
            if len(self.head) < HEAD_BYTES:
                return
            self.take = int.from_bytes(self.head[:8]) - (len(self.head) - HEAD_BYTES)
            self.give = int.from_bytes(self.head[8:HEAD_BYTES])
            self.head = b""
        if not self.take:
            self.write_on()

    def pause_writing(self) -> None:
        """Stop `write_on`."""
        self.paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False
        self.write_on()

    def write_on(self) -> None:
        """Write until all is written or the transport has enough."""
        while self.give and not self.paused:
            chunk = CHUNK[: self.give]
            self.give -= len(chunk)
            self.transport.write(chunk)


if __name__ == "__main__":
    serving.serve_protocol(Bulk, __doc__)
