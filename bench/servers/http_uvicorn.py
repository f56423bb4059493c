"""uvicorn with httptools, on any loop."""

from __future__ import annotations

import asyncio
import socket

import hello
import serving
import uvicorn


async def listen() -> serving.Listening:
    """Start the server on the running loop."""
    sock = socket.create_server((serving.HOST, 0), backlog=serving.BACKLOG)
    config = uvicorn.Config(
        hello.app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        backlog=serving.BACKLOG,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.01)
    return f"{serving.HOST}:{sock.getsockname()[1]}", task


if __name__ == "__main__":
    serving.run(listen, serving.parse(__doc__))
