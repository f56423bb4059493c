"""Faults: lost connections, cancelled connects, closing servers, and no descriptors left."""

import asyncio
import contextlib
import gc
import random
import signal
import socket
import subprocess
from typing import Any

import pytest

from support import (
    LOCALHOST,
    Echo,
    Factory,
    Recorder,
    StartChild,
    address_of,
    fill,
    linked,
    listener,
    open_fds,
    pattern,
    reset,
    settle,
)

Loop = asyncio.AbstractEventLoop


@pytest.mark.parametrize("accepted", [False, True], ids=["connected", "accepted"])
async def test_a_peer_that_resets_while_much_is_written(loop: Loop, accepted: bool) -> None:
    async with linked(Recorder, accepted=accepted, small=True) as link:
        link.transport.write(pattern(5_000_000))
        await link.receive(100_000)
        link.reset()
        lost = await link.protocol.lost
        assert isinstance(lost, (ConnectionResetError, BrokenPipeError))
        assert link.transport.get_write_buffer_size() == 0
        link.transport.write(b"ignored")
        link.transport.writelines([])
        link.transport.abort()
        link.transport.close()
        await settle()
        assert link.protocol.calls == ["connection_made", "pause_writing", "connection_lost"]


async def test_a_peer_that_closes_with_data_unread(loop: Loop) -> None:
    async with linked(Recorder, small=True) as link:
        fill(link.transport)
        link.peer.close()
        lost = await link.protocol.lost
        assert isinstance(lost, (ConnectionResetError, BrokenPipeError))


async def test_a_reset_while_reading_is_paused_and_nothing_is_written(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.transport.pause_reading()
        link.send(b"data")
        link.reset()
        await settle()
        link.transport.resume_reading()
        assert isinstance(await link.protocol.lost, ConnectionResetError)


async def test_two_thousand_connections_leave_nothing_behind(loop: Loop) -> None:
    """Connections that close, reset or half close, some with data and some at once."""
    count, at_once = 2000, 50
    chance = random.Random(11)
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, LOCALHOST, 0, backlog=at_once)
    address = address_of(server)

    async def client(number: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            if number % 2:
                await loop.sock_sendall(sock, b"x" * chance.randrange(1, 5000))
            if number % 10 == 1:
                await loop.sock_recv(sock, 10_000)
            way = number % 3
            if way == 0:
                reset(sock)
            elif way == 1:
                sock.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(sock, 10_000):
                    pass
        finally:
            sock.close()

    await asyncio.gather(*(client(number) for number in range(at_once)))
    for protocol in [await protocols.next() for _ in range(at_once)]:
        await protocol.lost
    await settle()
    before = open_fds()
    for start in range(at_once, count, at_once):
        await asyncio.gather(*(client(number) for number in range(start, start + at_once)))
    for protocol in [await protocols.next() for _ in range(count - at_once)]:
        lost = await protocol.lost
        assert lost is None or isinstance(lost, (ConnectionResetError, BrokenPipeError))
        assert protocol.calls[0] == "connection_made"
        assert protocol.calls.count("connection_lost") == 1
    await settle()
    assert open_fds() == before
    assert len(protocols.made) == count
    server.close()
    await server.wait_closed()


async def test_cancelled_connects_to_a_server_that_does_not_answer(loop: Loop) -> None:
    with listener(backlog=0) as full, socket.socket() as first:
        first.connect(full.getsockname())
        before = open_fds()
        tasks = [
            loop.create_task(loop.create_connection(Recorder, *full.getsockname()))
            for _ in range(20)
        ]
        await settle()
        assert not any(task.done() for task in tasks)
        assert len(open_fds()) == len(before) + 20
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 20
        await settle()
        assert open_fds() == before


async def test_connects_that_time_out(loop: Loop) -> None:
    with listener(backlog=0) as full, socket.socket() as first:
        first.connect(full.getsockname())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await loop.create_connection(Recorder, *full.getsockname())


async def test_connects_cancelled_at_any_turn(loop: Loop) -> None:
    protocols = Factory(Recorder)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    connected = 0
    for number in range(120):
        task = loop.create_task(loop.create_connection(Recorder, *address_of(server)))
        for _ in range(number % 12):
            await asyncio.sleep(0)
        task.cancel()
        try:
            transport, protocol = await task
        except asyncio.CancelledError:
            continue
        connected += 1
        transport.close()
        await protocol.lost
    await settle(10)
    server.close()
    server.abort_clients()
    await server.wait_closed()
    assert len(protocols.made) >= connected
    for accepted in protocols.made:
        await accepted.lost


@pytest.mark.asyncio_leaks
async def test_connections_that_arrive_as_the_server_closes(loop: Loop) -> None:
    """Each is either served or ended: none hangs, and none is left open."""
    for number in range(60):
        protocols = Factory(Echo)
        server = await loop.create_server(protocols, LOCALHOST, 0)
        clients = []
        for _ in range(5):
            client = socket.create_connection(address_of(server))
            client.setblocking(False)
            clients.append(client)
        for _ in range(number % 6):
            await asyncio.sleep(0)
        server.close()
        assert not server.is_serving()
        await settle()
        gc.collect()
        served = 0
        for client in clients:
            try:
                await loop.sock_sendall(client, b"hello")
                served += await loop.sock_recv(client, 100) == b"hello"
            except (ConnectionResetError, BrokenPipeError):
                pass
            client.close()
        assert served <= len(protocols.made)
        await server.wait_closed()
        for protocol in protocols.made:
            if protocol.calls:
                await protocol.lost


async def test_a_server_closed_by_a_protocol(loop: Loop) -> None:
    class Closing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            server.close()
            transport.close()

    protocols = Factory(Closing)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    with socket.create_connection(address_of(server)):
        await (await protocols.next()).lost
        await server.wait_closed()
    assert not server.is_serving()


@pytest.mark.asyncio_leaks
@pytest.mark.filterwarnings("ignore:unclosed")
def test_a_loop_closed_with_everything_open(loop: Loop) -> None:
    """What is left is closed once it is collected: the fixture looks."""

    async def main() -> list[Any]:
        server = await loop.create_server(Echo, LOCALHOST, 0)
        clients = [socket.create_connection(address_of(server)) for _ in range(10)]
        made = [await loop.create_connection(Recorder, *address_of(server)) for _ in range(10)]
        for transport, _ in made[:5]:
            fill(transport)
        await settle()
        server.close()
        return clients

    for client in loop.run_until_complete(main()):
        client.close()
    loop.close()


CROWDED_SERVER = """
import json
import os
import resource
import sys

def report(loop, context):
    if held:
        print(json.dumps([context["message"], type(context["exception"]).__name__,
                          context["exception"].errno, "socket" in context]), flush=True)
    while held:
        os.close(held.pop())

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(report)
    # Before the server: the kernel reads the limit when an accept operation starts.
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    loop.add_reader(0, take)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

def take():
    if not os.read(0, 1):
        asyncio.get_running_loop().remove_reader(0)
        return
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        print("full", flush=True)

held = []
# Before the server starts: an accept that is under way in io_uring keeps the limit it began with.
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


def test_a_server_out_of_descriptors_says_so_and_recovers(start_child: StartChild) -> None:
    child = start_child(CROWDED_SERVER, stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    port = int(child.stdout.readline())

    def ask(question: bytes) -> bytes:
        with socket.create_connection((LOCALHOST, port), timeout=20) as client:
            client.sendall(question)
            return client.recv(100)

    assert ask(b"before") == b"before"
    child.stdin.write("x")
    child.stdin.flush()
    assert child.stdout.readline() == "full\n"
    with contextlib.ExitStack() as stack:  # the connection of before may yet free a descriptor
        clients = [
            stack.enter_context(socket.create_connection((LOCALHOST, port), timeout=20))
            for _ in range(3)
        ]
        assert child.stdout.readline() == (
            '["socket.accept() out of system resource", "OSError", 24, true]\n'
        )
        for client in clients:
            client.sendall(b"meanwhile")
            assert client.recv(100) == b"meanwhile"
    for _ in range(100):
        assert ask(b"after") == b"after"
    child.send_signal(signal.SIGINT)
    output, complaints = child.communicate(timeout=20)
    assert output == ""
    assert complaints.splitlines()[-1].startswith("KeyboardInterrupt")
