"""An ASGI application, and uvicorn and hypercorn serving it in the caller's loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import hypercorn
import hypercorn.asyncio
import uvicorn

import certificate
from support import listener

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CHUNK = bytes(range(256)) * 256
"""What /chunks answers with, again and again."""


class Application:
    """Answers requests by their path and echoes WebSocket messages."""

    def __init__(self) -> None:
        self.events: list[str] = []
        """What happened, in order."""
        self.waiting = asyncio.Event()
        """Set by a request to /wait or /gone."""
        self.proceed = asyncio.Event()
        """What /wait waits for."""
        self.finished = asyncio.Event()
        """Set by a request to /gone, and a WebSocket, whose client has gone."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        elif scope["type"] == "websocket":
            await self.websocket(receive, send)
        else:
            name = scope["path"].strip("/")
            await getattr(self, name)(scope, receive, send)

    async def lifespan(self, receive: Receive, send: Send) -> None:
        for expected in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{expected}"
            self.events.append(expected)
            await send({"type": f"lifespan.{expected}.complete"})

    async def websocket(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text")
            if text is not None and text.startswith("close "):
                await send({"type": "websocket.close", "code": int(text[6:]), "reason": "asked"})
                return
            await send({"type": "websocket.send", "text": text, "bytes": message.get("bytes")})
        self.events.append(f"closed {message['code']}")
        self.finished.set()

    async def hello(self, scope: Message, receive: Receive, send: Send) -> None:
        await respond(send, b"hello")

    async def loop(self, scope: Message, receive: Receive, send: Send) -> None:
        """The module of the running loop's class."""
        await respond(send, type(asyncio.get_running_loop()).__module__.encode())

    async def echo(self, scope: Message, receive: Receive, send: Send) -> None:
        """The request's body, part by part as it comes."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            more = message.get("more_body", False)
            await send(
                {
                    "type": "http.response.body",
                    "body": message.get("body", b""),
                    "more_body": more,
                }
            )

    async def chunks(self, scope: Message, receive: Receive, send: Send) -> None:
        """As many CHUNKs as the query says."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(int(scope["query_string"])):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body"})

    async def wait(self, scope: Message, receive: Receive, send: Send) -> None:
        self.waiting.set()
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        await respond(send, b"waited")

    async def gone(self, scope: Message, receive: Receive, send: Send) -> None:
        """Returns once the client has gone."""
        assert (await receive())["type"] == "http.request"
        self.waiting.set()
        self.events.append((await receive())["type"])
        self.finished.set()


async def respond(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """An Application made for each call, for servers that take it by name."""
    await Application()(scope, receive, send)


class UvicornServer:
    """A uvicorn server in the running loop, and the task that runs it."""

    def __init__(
        self, application: Any, sock: socket.socket, signals: bool, options: dict[str, Any]
    ) -> None:
        self.address: tuple[str, int] = sock.getsockname()
        self.scheme = "https" if "ssl_certfile" in options else "http"
        self.server = uvicorn.Server(uvicorn.Config(application, log_config=None, **options))
        serve = self.server.serve if signals else self.server._serve
        self.task = asyncio.create_task(serve([sock]))

    def url(self, path: str = "", scheme: str | None = None) -> str:
        host, port = self.address[:2]
        return f"{scheme or self.scheme}://{host}:{port}{path}"


@contextlib.asynccontextmanager
async def uvicorn_server(
    application: Any, *, signals: bool = True, **options: Any
) -> AsyncIterator[UvicornServer]:
    """Serve until the end of the body, which shuts down gracefully.

    Without signals uvicorn's own handlers are left out, as on a worker of serve_per_core.
    """
    with listener() as sock:
        served = UvicornServer(application, sock, signals, options)
        try:
            yield served
        finally:
            served.server.should_exit = True
            await served.task


@contextlib.asynccontextmanager
async def hypercorn_server(
    application: Any, *, tls: bool = False, **options: Any
) -> AsyncIterator[str]:
    """Serve until the end of the body, which shuts down gracefully. Gives the base URL."""
    sock = listener()
    host, port = sock.getsockname()
    with certificate.files() as (chain, key):
        config = hypercorn.Config()
        config.errorlog = None
        config.bind = [f"fd://{sock.detach()}"]
        if tls:
            config.certfile, config.keyfile = chain, key
        for name, value in options.items():
            setattr(config, name, value)
        stop = asyncio.Event()
        serving = hypercorn.asyncio.serve(application, config, shutdown_trigger=stop.wait)
        task = asyncio.create_task(serving)
        try:
            yield f"{'https' if tls else 'http'}://{host}:{port}"
        finally:
            stop.set()
            await task
