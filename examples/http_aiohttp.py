"""HTTP on every core with aiohttp's low-level server, which is a protocol factory.

    python examples/http_aiohttp.py
    curl http://127.0.0.1:8000/           {"message": "hello", "core": 0}

Each core has its own interpreter, and so its own server: whatever it keeps (here the number of
requests) belongs to that core.
"""

import argparse
import asyncio
import functools
import itertools
from typing import Any

from aiohttp import web

import kloop


@functools.cache
def server() -> web.Server:
    """This core's server, made at its first connection: aiohttp wants the running loop."""
    number = itertools.count(1)

    async def hello(request: web.BaseRequest) -> web.Response:
        return web.json_response(
            {
                "message": "hello",
                "core": kloop.current_core().index,
                "requests": next(number),
                "path": request.path,
            }
        )

    return web.Server(hello)


def protocol() -> asyncio.Protocol:
    """The protocol of one connection."""
    return server()()


def ready(addresses: list[Any]) -> None:
    print("ready on", *(f"http://{address[0]}:{address[1]}/" for address in addresses), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="HTTP with aiohttp, on every core")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--cores", type=int, help="default: all that this process may use")
    options = parser.parse_args()
    kloop.serve_per_core(
        protocol,
        options.host,
        options.port,
        cores=options.cores,
        # Idle keep-alive connections would hold up the drain: give them this many seconds.
        drain_timeout=5.0,
        on_ready=ready,
    )


if __name__ == "__main__":
    main()
