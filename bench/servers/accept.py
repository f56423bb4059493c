"""A server that answers the first request of a connection and closes it."""

from __future__ import annotations

import asyncio
from typing import cast

import serving


class Once(asyncio.Protocol):
    """Write back what comes, and close."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Write it back, and close."""
        self.transport.write(data)
        self.transport.close()


if __name__ == "__main__":
    serving.serve_protocol(Once, __doc__)
