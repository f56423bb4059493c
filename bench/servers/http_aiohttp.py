"""aiohttp's server, on any loop."""

from __future__ import annotations

import hello
import serving
from aiohttp import web


async def greet(_: web.Request) -> web.Response:
    """Answer a request."""
    return web.Response(body=hello.BODY)


async def listen() -> serving.Listening:
    """Start the server on the running loop."""
    app = web.Application()
    app.router.add_get("/", greet)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, serving.HOST, 0, backlog=serving.BACKLOG).start()
    return f"{serving.HOST}:{runner.addresses[0][1]}", runner


if __name__ == "__main__":
    serving.run(listen, serving.parse(__doc__))
