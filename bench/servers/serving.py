"""What the echo servers share: arguments, the choice of a loop, and the announcement."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = "127.0.0.1"
BACKLOG = 1024
LOOPS = ("kloop", "uvloop", "asyncio")


def main(listen: Callable[[], Awaitable[asyncio.Server]], description: str | None) -> None:
    """Run the server that `listen` opens, on the loop that the command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--cpu", type=int, help="stay on this CPU")
    arguments = parser.parse_args()
    end_with_parent()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    factory = importlib.import_module(arguments.loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(listen))


async def _serve(listen: Callable[[], Awaitable[asyncio.Server]]) -> None:
    server = await listen()
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def announce(port: int) -> None:
    """Tell the benchmark which port the kernel chose."""
    print(f"PORT {port}", flush=True)


def end_with_parent() -> None:
    """Have the kernel kill this process when the benchmark dies, however it dies."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
