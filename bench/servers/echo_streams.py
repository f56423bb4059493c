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


def protocol() -> asyncio.StreamReaderProtocol:
    """Make the protocol that `asyncio.start_server` makes."""
    return asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo)


if __name__ == "__main__":
    serving.serve_streams(protocol, __doc__)
