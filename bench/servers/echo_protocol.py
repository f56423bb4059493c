"""An echo server with `asyncio.Protocol`."""

from __future__ import annotations

import asyncio
from typing import cast

import serving


class Echo(asyncio.Protocol):
    """Write back what comes."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Write it back."""
        self.transport.write(data)


if __name__ == "__main__":
    serving.serve_protocol(Echo, __doc__)
