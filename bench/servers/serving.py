"""What the echo servers share: arguments, the choice of a loop, and the announcement."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib
import os
import signal
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = "127.0.0.1"
BACKLOG = 1024
LOOPS = ("kloop", "uvloop", "asyncio")

# Room for a datagram of every client; the kernel takes what net.core.rmem_max allows.
RECEIVE_BYTES = 8 * 1024 * 1024


def serve_streams(protocol: Callable[[], asyncio.BaseProtocol], description: str | None) -> None:
    """Serve connections, over TCP unless `--unix` names a socket."""
    arguments = _parse(description, unix=True)

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        if arguments.unix:
            await loop.create_unix_server(protocol, arguments.unix, backlog=BACKLOG)
            announce(f"unix:{arguments.unix}")
        else:
            server = await loop.create_server(protocol, HOST, 0, backlog=BACKLOG)
            announce(f"{HOST}:{server.sockets[0].getsockname()[1]}")

    _run(listen, arguments)


def serve_datagrams(
    protocol: Callable[[], asyncio.DatagramProtocol], description: str | None
) -> None:
    """Serve one UDP socket."""
    arguments = _parse(description)

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(protocol, local_addr=(HOST, 0))
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        announce(f"udp:{HOST}:{sock.getsockname()[1]}")

    _run(listen, arguments)


def _parse(description: str | None, *, unix: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--cpu", type=int, help="stay on this CPU")
    if unix:
        parser.add_argument("--unix", metavar="PATH", help="serve a Unix socket there")
    return parser.parse_args()


def _run(listen: Callable[[], Awaitable[None]], arguments: argparse.Namespace) -> None:
    end_with_parent()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    loop = importlib.import_module(arguments.loop).new_event_loop()
    loop.run_until_complete(listen())
    loop.run_forever()


def announce(address: str) -> None:
    """Tell the benchmark where the server listens, in the words of the load client.

    A server that was given its pipes says "pipes".
    """
    print(f"LISTENS {address}", flush=True)


def end_with_parent() -> None:
    """Have the kernel kill this process when the benchmark dies, however it dies."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
