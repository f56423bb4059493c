"""The greeting of hello.py from one of several processes that share a port: LOOP CPU PORT.

Port 0 picks a free one.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys

import hello

HOST = "127.0.0.1"
BACKLOG = 1024


async def listen(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(
        hello.Hello, HOST, port, backlog=BACKLOG, reuse_port=True
    )
    print(f"LISTENS {HOST}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    # No argument parser: what a server imports is in its memory, which is compared.
    module, cpu, port = sys.argv[1:]
    os.sched_setaffinity(0, {int(cpu)})
    importlib.import_module(module).new_event_loop().run_until_complete(listen(int(port)))
