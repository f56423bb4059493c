"""What the echo servers share: arguments, the choice of a loop, and the announcement."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib
import os
import signal
import socket
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = "127.0.0.1"
BACKLOG = 1024

# Room for a datagram of every client; the kernel takes what net.core.rmem_max allows.
RECEIVE_BYTES = 8 * 1024 * 1024


# An address in the words of the load client, and what has to live as long as the server.
type Listening = tuple[str, object]


class Options(argparse.Namespace):
    """The command line of an echo server."""

    loop: str
    cpu: int | None
    unix: str | None
    tls: str | None
    native: bool

    def context(self) -> ssl.SSLContext | None:
        """The TLS context, if there is to be one."""
        if self.tls is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.tls)
        return context


def serve_protocol(protocol: Callable[[], asyncio.BaseProtocol], description: str | None) -> None:
    """Serve connections with `protocol`, over TCP unless `--unix` names a socket."""
    options = parse(description)

    async def listen() -> Listening:
        loop = asyncio.get_running_loop()
        tls = options.context()
        if options.unix:
            server = await loop.create_unix_server(protocol, options.unix, backlog=BACKLOG, ssl=tls)
        else:
            server = await loop.create_server(protocol, HOST, 0, backlog=BACKLOG, ssl=tls)
        return address_of(server, options), server

    run(listen, options)


def serve_datagrams(
    protocol: Callable[[], asyncio.DatagramProtocol], description: str | None
) -> None:
    """Serve one UDP socket."""

    async def listen() -> Listening:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(protocol, local_addr=(HOST, 0))
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        return f"udp:{HOST}:{sock.getsockname()[1]}", transport

    run(listen, parse(description))


def parse(description: str | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--loop", default="asyncio", help="the module with new_event_loop")
    parser.add_argument("--cpu", type=int, help="stay on this CPU")
    parser.add_argument("--unix", metavar="PATH", help="serve a Unix socket there")
    parser.add_argument("--tls", metavar="FILE", help="serve TLS with this certificate and key")
    parser.add_argument("--native", action="store_true", help="use the loop's own streams")
    return parser.parse_args(namespace=Options())


def run(listen: Callable[[], Awaitable[Listening]], options: Options) -> None:
    """Run until the process is ended, with what `listen` starts."""
    end_with_parent()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})

    async def serve() -> None:
        address, _held = await listen()
        announce(address)
        await asyncio.get_running_loop().create_future()

    loop = importlib.import_module(options.loop).new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(serve())


def address_of(server: Any, options: Options) -> str:
    """The address that `server` listens at, as the load client has it."""
    if options.unix:
        return f"unix:{options.unix}"
    scheme = "tls:" if options.tls else ""
    return f"{scheme}{HOST}:{server.sockets[0].getsockname()[1]}"


def announce(address: str) -> None:
    """Tell the benchmark where the server listens, in the words of the load client.

    A server that was given its pipes says "pipes".
    """
    print(f"LISTENS {address}", flush=True)


def end_with_parent() -> None:
    """Have the kernel kill this process when the benchmark dies, however it dies."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
