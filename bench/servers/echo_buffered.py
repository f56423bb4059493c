"""An echo server with `asyncio.BufferedProtocol`."""

from __future__ import annotations

import asyncio
from typing import cast

import serving

BUFFER_BYTES = 64 * 1024


class Echo(asyncio.BufferedProtocol):
    """Write back what comes into the connection's one buffer."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        """Make the buffer."""
        self.buffer = memoryview(bytearray(BUFFER_BYTES))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Offer the whole buffer, whatever `sizehint` says."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Write a copy back: the transport may keep what it cannot send at once."""
        self.transport.write(bytes(self.buffer[:nbytes]))


if __name__ == "__main__":
    serving.serve_protocol(Echo, __doc__)
