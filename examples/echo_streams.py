"""Echo on every core with streams: what asyncio.start_server serves, kloop serves on all CPUs.

Run it, then try it from another terminal:  python examples/client.py --port 8000
SIGINT or SIGTERM drains it: open connections are finished, no new ones are taken.
"""

import argparse
import asyncio
from typing import Any

import kloop

READ_BYTES = 64 * 1024


async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection. Runs on the core that the connection was given to."""
    try:
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the client has gone
    finally:
        writer.close()


def ready(addresses: list[Any]) -> None:
    """Say where the server listens, once every core is up."""
    print("ready on", *(f"{address[0]}:{address[1]}" for address in addresses), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="echo with streams, on every core")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--cores", type=int, help="default: all that this process may use")
    options = parser.parse_args()
    kloop.serve_per_core(handler, options.host, options.port, cores=options.cores, on_ready=ready)


# The workers import this file to find the handler: the guard keeps them from serving, too.
if __name__ == "__main__":
    main()
