"""An echo server with streams."""

from __future__ import annotations

import asyncio

import serving

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


async def listen() -> asyncio.Server:
    """Open the server."""
    return await asyncio.start_server(echo, serving.HOST, 0, backlog=serving.BACKLOG)


if __name__ == "__main__":
    serving.main(listen, __doc__)
