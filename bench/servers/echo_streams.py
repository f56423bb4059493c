"""An echo server with streams: asyncio's, or with `--native` those of the loop's module."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

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


def main() -> None:
    """Serve."""
    options = serving.parse(__doc__)
    module: Any = importlib.import_module(options.loop) if options.native else asyncio

    async def listen() -> serving.Listening:
        tls = options.context()
        if options.unix:
            server = await module.start_unix_server(
                echo, options.unix, backlog=serving.BACKLOG, ssl=tls
            )
        else:
            server = await module.start_server(
                echo, serving.HOST, 0, backlog=serving.BACKLOG, ssl=tls
            )
        return serving.address_of(server, options), server

    serving.run(listen, options)


if __name__ == "__main__":
    main()
