"""An echo server with kloop's native streams."""

from __future__ import annotations

import argparse
import asyncio
import os

import serving

import kloop

READ_BYTES = 64 * 1024


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write back what comes."""
    try:
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def echo_undrained(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write back what comes, and wait for nothing."""
    try:
        while data := await reader.read(READ_BYTES):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


async def echo_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write back line by line."""
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


HANDLERS = {"drained": echo, "undrained": echo_undrained, "lines": echo_lines}


async def main() -> None:
    """Serve until the benchmark ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--handler", choices=HANDLERS, default="drained")
    parser.add_argument("--loop", choices=("kloop",), default="kloop")
    parser.add_argument("--cpu", type=int, help="stay on this CPU")
    arguments = parser.parse_args()
    serving.end_with_parent()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    handler = HANDLERS[arguments.handler]
    server = await kloop.start_server(handler, serving.HOST, 0, backlog=serving.BACKLOG)
    serving.announce(f"{serving.HOST}:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


if __name__ == "__main__":
    kloop.run(main())
