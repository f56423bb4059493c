"""uvicorn on the loop, started as its users start it."""

import http.client
import signal
import socket
import subprocess
import sys
from pathlib import Path

APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    import asyncio
    body = type(asyncio.get_running_loop()).__module__.encode()
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})
"""


def test_uvicorn_takes_the_loop_by_name(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "--loop", "kloop:new_event_loop"]
        command += ["--fd", str(listener.fileno()), "--log-level", "warning", "application:app"]
        server = subprocess.Popen(
            command, cwd=tmp_path, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True
        )
        try:
            client = http.client.HTTPConnection(*listener.getsockname(), timeout=20)
            for _ in range(100):
                client.request("GET", "/")
                assert client.getresponse().read() == b"kloop.loop"
            client.close()
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=20)
        finally:
            server.kill()
            server.wait()
    assert errors == ""
    assert server.returncode in (0, -signal.SIGTERM)  # uvicorn raises the signal again
