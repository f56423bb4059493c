"""A greeting over HTTP, with no framework and for ASGI, after a given amount of work.

The amount comes from the environment variable `KLOOP_BENCH_WORK`, so that all workers of all
servers of a comparison do the same. `python hello.py US` prints the amount that
takes US microseconds of processor time here, as `WORK <n>`.

`GET /who` is answered with the names of the process and the thread that serve it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BODY = b"Hello, world!"
WORK = int(os.environ.get("KLOOP_BENCH_WORK", "0"))


def work(amount: int) -> int:
    """Keep the interpreter busy; the time taken is proportional to `amount`."""
    total = 0
    for number in range(amount):
        total += number * number % 7
    return total


def who() -> bytes:
    """Name the worker that serves this request."""
    return b"%d-%d" % (os.getpid(), threading.get_native_id())


def response(body: bytes) -> bytes:
    """Make a whole HTTP response."""
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


HELLO = response(BODY)


class Hello(asyncio.Protocol):
    """Answer requests that come whole, one at a time."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer a request."""
        if WORK:
            work(WORK)
        self.transport.write(response(who()) if data.startswith(b"GET /who ") else HELLO)


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer an ASGI request."""
    if scope["type"] == "lifespan":
        await receive()
        # Each worker says so when it is there; one write, for they share the pipe.
        if address := os.environ.get("KLOOP_BENCH_ADDRESS"):
            os.write(1, b"LISTENS %b\n" % address.encode())
        await send({"type": "lifespan.startup.complete"})
        return
    if WORK:
        work(WORK)
    body = who() if scope["path"] == "/who" else BODY
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def calibrate(microseconds: float) -> int:
    """Find the amount of work that takes `microseconds` of processor time."""
    # Not at the top: what a server imports is in its memory, which is compared.
    import statistics
    import time

    probe = 2000
    times = []
    for _ in range(1000):
        start = time.thread_time_ns()
        work(probe)
        times.append(time.thread_time_ns() - start)
    return max(1, round(probe * microseconds * 1000 / statistics.median(times)))


if __name__ == "__main__":
    print(f"WORK {calibrate(float(sys.argv[1]))}")
