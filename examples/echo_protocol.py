"""Echo on every core with an asyncio.Protocol: the least work for each request.

Try it with:  python examples/client.py --port 8000
"""

import argparse
import asyncio
from typing import Any

import kloop


class Echo(asyncio.Protocol):
    """Writes back what comes. The class itself is the protocol factory: one object a connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    # A client that reads slower than it writes must not make the server buffer without end.

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


def ready(addresses: list[Any]) -> None:
    print("ready on", *(f"{address[0]}:{address[1]}" for address in addresses), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="echo with a protocol, on every core")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--cores", type=int, help="default: all that this process may use")
    options = parser.parse_args()
    kloop.serve_per_core(Echo, options.host, options.port, cores=options.cores, on_ready=ready)


if __name__ == "__main__":
    main()
