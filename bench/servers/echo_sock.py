"""An echo server with `loop.sock_accept`, `sock_recv` and `sock_sendall`."""

from __future__ import annotations

import asyncio
import socket

import serving

READ_BYTES = 64 * 1024


async def echo(sock: socket.socket) -> None:
    """Write back what comes."""
    loop = asyncio.get_running_loop()
    with sock:
        try:
            while data := await loop.sock_recv(sock, READ_BYTES):
                await loop.sock_sendall(sock, data)
        except ConnectionError:
            pass


async def accept(listener: socket.socket) -> None:
    """Start a task for each connection."""
    loop = asyncio.get_running_loop()
    tasks = set()
    while True:
        sock, _ = await loop.sock_accept(listener)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(echo(sock))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def listen() -> serving.Listening:
    """Open the listening socket and serve it."""
    listener = socket.create_server((serving.HOST, 0), backlog=serving.BACKLOG)
    listener.setblocking(False)
    task = asyncio.get_running_loop().create_task(accept(listener))
    return f"{serving.HOST}:{listener.getsockname()[1]}", task


if __name__ == "__main__":
    serving.run(listen, serving.parse(__doc__))
