"""An echo server with `asyncio.DatagramProtocol`, over UDP."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import serving


class Echo(asyncio.DatagramProtocol):
    """Send back what comes, to where it came from."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Send it back."""
        self.transport.sendto(data, addr)


if __name__ == "__main__":
    serving.serve_datagrams(Echo, __doc__)
