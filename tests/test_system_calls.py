"""The system calls that a request costs, counted by strace."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import kloop
from support import LOCALHOST

CONNECTIONS = 100
SIZE = 1024

ONE_WRITE = "self.transport.write(data)"

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

kloop.run(main(), sqpoll=SQPOLL)
"""


async def exchange(port: int, requests: int, in_flight: int) -> None:
    """Make that many requests on each of the connections, so many of them ahead of the answers."""
    message = b"x" * SIZE

    streams = [await asyncio.open_connection(LOCALHOST, port) for _ in range(CONNECTIONS)]

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(requests + in_flight):
            if number < requests:
                writer.write(message)
            if number >= in_flight:
                assert await reader.readexactly(SIZE) == message

    await asyncio.gather(*(one(*stream) for stream in streams))
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()


def calls(
    folder: Path,
    requests: int,
    reply: str = ONE_WRITE,
    *,
    sqpoll: bool = False,
    in_flight: int = 0,
) -> Counter[str]:
    """The system calls of a server's life, with so many requests on each connection."""
    strace = shutil.which("strace")
    if strace is None:
        if os.environ.get("CI"):
            pytest.fail("strace is not installed")
        pytest.skip("strace is not installed")
    script = f"SQPOLL = {sqpoll}\n{SERVER}".replace("{reply}", reply)
    report = folder / "strace.txt"
    command = [strace, "-f", "-qq", "-c", "-o", str(report), sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            asyncio.run(exchange(int(server.stdout.readline()), requests, in_flight))
            assert server.wait(30) == 0
        finally:
            server.kill()
    counts: Counter[str] = Counter()
    for line in report.read_text().splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
            counts[fields[-1]] = int(fields[3])
    return counts


@pytest.mark.parametrize(
    ("reply", "send"),
    [
        (ONE_WRITE, "sendto"),
        ("self.transport.write(data[:100]); self.transport.write(data[100:])", "sendmsg"),
        ("for byte in data: self.transport.write(bytes([byte]))", "sendmsg"),
    ],
    ids=["one write", "two writes", "many writes"],
)
def test_an_echo_costs_one_read_one_send_and_a_share_of_the_wait(
    tmp_path: Path, reply: str, send: str
) -> None:
    few, many = calls(tmp_path, 10, reply), calls(tmp_path, 40, reply)
    requests = 30 * CONNECTIONS
    many.subtract(few)
    more = {name: count for name, count in many.items() if count > requests / 100}
    assert requests <= more.pop(send) <= requests * 1.01, many
    assert requests <= more.pop("recvfrom") <= requests * 1.01, many
    # One wait per turn, and a turn serves at least one request.
    assert sum(more.pop(name, 0) for name in WAITS) <= requests, many
    assert more == {}


def test_with_sqpoll_a_busy_loop_makes_no_system_call_for_a_request(tmp_path: Path) -> None:
    with contextlib.closing(kloop.new_event_loop()) as loop:
        if loop.driver == "epoll":
            pytest.skip("sqpoll needs io_uring")
    requests = 100 * CONNECTIONS
    # The loop goes to sleep, and its poller too, whenever the client cannot keep them busy: on a
    # machine that does other work, one of several tries shows what a busy loop does.
    for _ in range(5):
        few, many = (calls(tmp_path, number, sqpoll=True, in_flight=8) for number in (10, 110))
        many.subtract(few)
        if sum(many.values()) < requests * 0.05:
            return
    pytest.fail(f"{many} for {requests} requests")
