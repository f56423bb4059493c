"""The system calls that a request costs, counted by strace."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support import LOCALHOST

CONNECTIONS = 100
SIZE = 1024

WAITS = ("io_uring_enter", "epoll_wait", "epoll_pwait2")

SERVER = """
import asyncio, kloop

class Echo(asyncio.Protocol):
    open = 0

    def connection_made(self, transport):
        Echo.open += 1
        self.transport = transport

    def data_received(self, data):
        {reply}

    def connection_lost(self, exc):
        Echo.open -= 1
        if not Echo.open:
            done.set()

async def main():
    global done
    done = asyncio.Event()
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await done.wait()

kloop.run(main())
"""


async def exchange(port: int, requests: int) -> None:
    """Make that many requests on each of the connections."""
    message = b"x" * SIZE

    streams = [await asyncio.open_connection(LOCALHOST, port) for _ in range(CONNECTIONS)]

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(requests):
            writer.write(message)
            assert await reader.readexactly(SIZE) == message

    await asyncio.gather(*(one(*stream) for stream in streams))
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()


def calls(strace: str, folder: Path, reply: str, requests: int) -> Counter[str]:
    """The system calls of a server's life, with so many requests on each connection."""
    report = folder / "strace.txt"
    command = [strace, "-f", "-qq", "-c", "-o", str(report), sys.executable, "-c"]
    command.append(SERVER.replace("{reply}", reply))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            asyncio.run(exchange(int(server.stdout.readline()), requests))
            assert server.wait(30) == 0
        finally:
            server.kill()
    counts: Counter[str] = Counter()
    for line in report.read_text().splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
            counts[fields[-1]] = int(fields[3])
    return counts


def calls_per_request(folder: Path, reply: str) -> dict[str, float]:
    """The system calls that a request adds, leaving out those that most requests do not need."""
    strace = shutil.which("strace")
    if strace is None:
        if os.environ.get("CI"):
            pytest.fail("strace is not installed")
        pytest.skip("strace is not installed")
    few, many = calls(strace, folder, reply, 10), calls(strace, folder, reply, 40)
    many.subtract(few)
    requests = 30 * CONNECTIONS
    return {name: count / requests for name, count in many.items() if count > requests / 100}


@pytest.mark.parametrize(
    ("reply", "send"),
    [
        ("self.transport.write(data)", "sendto"),
        ("self.transport.write(data[:100]); self.transport.write(data[100:])", "sendmsg"),
        ("for byte in data: self.transport.write(bytes([byte]))", "sendmsg"),
    ],
    ids=["one write", "two writes", "many writes"],
)
def test_an_echo_costs_one_read_one_send_and_a_share_of_the_wait(
    tmp_path: Path, reply: str, send: str
) -> None:
    cost = calls_per_request(tmp_path, reply)
    assert 1 <= cost.pop(send) <= 1.01
    assert 1 <= cost.pop("recvfrom") <= 1.01
    # One wait per turn, and a turn serves at least one request.
    assert sum(cost.pop(name, 0) for name in WAITS) <= 1
    assert cost == {}
