"""anyio's asyncio backend on the loop, given as its loop_factory."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_process
import anyio.to_thread
import pytest
from anyio.abc import AnyByteStream, ByteStream, SocketAttribute, TaskStatus
from anyio.streams.text import TextReceiveStream
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream

from support import LOCALHOST, client_context, pattern, server_context

TIMEOUT = 20.0

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture
def run(new_loop: LoopFactory, no_fd_left: None) -> Run:
    """Runs a coroutine function as anyio's users do."""

    def run_main(main: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            with anyio.fail_after(TIMEOUT):
                await main()

        anyio.run(limited, backend_options={"loop_factory": new_loop})

    return run_main


async def receive_exactly(stream: AnyByteStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.receive()
    return bytes(data)


async def echo(stream: AnyByteStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def talk(stream: AnyByteStream) -> None:
    """Check that a lot of data comes back from an echo."""
    data = pattern(2_000_000)
    async with stream, anyio.create_task_group() as group:
        group.start_soon(stream.send, data)
        assert await receive_exactly(stream, len(data)) == data


def test_tcp_streams(run: Run) -> None:
    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host=LOCALHOST)
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            for _ in range(20):
                group.start_soon(connect_and_talk, port)
            async with await anyio.connect_tcp(LOCALHOST, port) as stream:
                assert stream.extra(SocketAttribute.remote_address) == (LOCALHOST, port)
                await stream.send(b"last")
                await stream.send_eof()
                assert await receive_exactly(stream, 4) == b"last"
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
            finished.set()
            await everybody.wait()
            group.cancel_scope.cancel()

    finished, everybody = anyio.Event(), anyio.Event()
    left = 20

    async def connect_and_talk(port: int) -> None:
        nonlocal left
        stream = await anyio.connect_tcp(LOCALHOST, port)
        await stream.send(b"hello")
        assert await receive_exactly(stream, 5) == b"hello"
        await finished.wait()
        await stream.aclose()
        left -= 1
        if not left:
            everybody.set()

    run(main)


def test_unix_streams(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        listener = await anyio.create_unix_listener(tmp_path / "anyio.sock")
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            await talk(await anyio.connect_unix(tmp_path / "anyio.sock"))
            group.cancel_scope.cancel()

    run(main)


def test_descriptors_pass_through_unix_sockets(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        listener = await anyio.create_unix_listener(tmp_path / "anyio.sock")
        ours, theirs = socket.socketpair()
        with ours, theirs:

            async def send(stream: anyio.abc.UNIXSocketStream) -> None:
                async with stream:
                    await stream.send_fds(b"here", [theirs.fileno()])

            async with listener, anyio.create_task_group() as group:
                group.start_soon(listener.serve, send)
                async with await anyio.connect_unix(tmp_path / "anyio.sock") as stream:
                    message, [fd] = await stream.receive_fds(10, 1)
                assert message == b"here"
                with socket.socket(fileno=fd) as received:
                    received.send(b"hello")
                    assert ours.recv(5) == b"hello"
                group.cancel_scope.cancel()

    run(main)


def test_udp(run: Run) -> None:
    async def main() -> None:
        async with await anyio.create_udp_socket(local_host=LOCALHOST) as server:
            port = server.extra(SocketAttribute.local_port)
            async with await anyio.create_connected_udp_socket(LOCALHOST, port) as client:
                for number in range(300):
                    await client.send(b"%d" % number)
                    data, address = await server.receive()
                    assert data == b"%d" % number
                    await server.sendto(data, *address[:2])
                    assert await client.receive() == data

    run(main)


def test_tls_streams(run: Run) -> None:
    async def main() -> None:
        tcp = await anyio.create_tcp_listener(local_host=LOCALHOST)
        port = tcp.extra(SocketAttribute.local_port)
        listener = TLSListener(tcp, ssl_context=server_context())
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            stream = await anyio.connect_tcp(LOCALHOST, port, ssl_context=client_context())
            assert stream.extra(TLSAttribute.tls_version).startswith("TLSv1.")
            await talk(stream)
            async with await anyio.connect_tcp(LOCALHOST, port) as plain:
                with pytest.raises(ssl.SSLCertVerificationError):
                    await TLSStream.wrap(plain, hostname=LOCALHOST)
            group.cancel_scope.cancel()

    run(main)


def test_a_cancelled_receive_leaves_the_stream_usable(run: Run) -> None:
    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host=LOCALHOST)
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            async with await anyio.connect_tcp(LOCALHOST, port) as stream:
                for number in range(20):
                    with anyio.move_on_after(0.005) as scope:
                        await stream.receive()
                    assert scope.cancelled_caught
                    await stream.send(b"%d" % number)
                    assert await stream.receive() == b"%d" % number
            group.cancel_scope.cancel()

    run(main)


def test_a_busy_stream_is_one_at_a_time(run: Run) -> None:
    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host=LOCALHOST)
        port = listener.extra(SocketAttribute.local_port)
        async with listener, await anyio.connect_tcp(LOCALHOST, port) as stream:
            async with anyio.create_task_group() as group:
                group.start_soon(receive_until_closed, stream)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(anyio.BusyResourceError):
                    await stream.receive()
                await stream.aclose()

    async def receive_until_closed(stream: ByteStream) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()

    run(main)


def test_readiness_of_plain_sockets(run: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await anyio.wait_writable(ours)
            with anyio.move_on_after(0.01) as scope:
                await anyio.wait_readable(ours)
            assert scope.cancelled_caught
            theirs.send(b"x")
            await anyio.wait_readable(ours)
            async with anyio.create_task_group() as group:
                ours.recv(1)
                group.start_soon(wait_until_closing, ours)
                await anyio.wait_all_tasks_blocked()
                anyio.notify_closing(ours)

    async def wait_until_closing(sock: socket.socket) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await anyio.wait_readable(sock)

    run(main)


# Processes and signals


def test_processes(run: Run) -> None:
    async def main() -> None:
        done = await anyio.run_process([sys.executable, "-c", "print(input()[::-1])"], input=b"abc")
        assert done.stdout == b"cba\n"
        with pytest.raises(subprocess.CalledProcessError) as failed:
            await anyio.run_process("echo out; echo err >&2; exit 3")
        assert (failed.value.returncode, failed.value.stdout, failed.value.stderr) == (
            3,
            b"out\n",
            b"err\n",
        )
        async with await anyio.open_process(["cat"]) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            data = pattern(1_000_000)
            async with anyio.create_task_group() as group:
                group.start_soon(process.stdin.send, data)
                assert await receive_exactly(process.stdout, len(data)) == data
            await process.stdin.send(b"last line\n")
            await process.stdin.aclose()
            assert [text async for text in TextReceiveStream(process.stdout)] == ["last line\n"]
            assert await process.wait() == 0
        async with await anyio.open_process(["sleep", "1000"]) as process:
            process.terminate()
            assert await process.wait() == -signal.SIGTERM

    run(main)


def test_signals(run: Run) -> None:
    async def main() -> None:
        with anyio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                assert await anext(signals) == number

    run(main)


# Tasks and threads


def test_task_groups(run: Run) -> None:
    async def main() -> None:
        ended = []

        async def wait(*, task_status: TaskStatus[str]) -> None:
            task_status.started("started")
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                ended.append("wait")

        async def fail() -> None:
            raise LookupError("it fails")

        async def together() -> None:
            async with anyio.create_task_group() as group:
                assert await group.start(wait) == "started"
                group.start_soon(fail)

        with pytest.raises(ExceptionGroup) as raised:
            await together()
        assert [str(error) for error in raised.value.exceptions] == ["it fails"]
        assert ended == ["wait"]

    run(main)


def test_memory_streams_and_limits(run: Run) -> None:
    async def main() -> None:
        sending, receiving = anyio.create_memory_object_stream[int](10)
        limiter = anyio.CapacityLimiter(3)
        inside = 0

        async def produce(first: int) -> None:
            nonlocal inside
            async with limiter:
                inside += 1
                assert inside <= 3
                for number in range(first, first + 100):
                    await sending.send(number)
                inside -= 1

        received = []
        async with receiving, anyio.create_task_group() as group:
            for first in range(0, 1000, 100):
                group.start_soon(produce, first)
            while len(received) < 1000:
                received.append(await receiving.receive())
        sending.close()
        assert sorted(received) == list(range(1000))

    run(main)


def test_threads(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = []

        async def in_loop(number: int) -> int:
            assert asyncio.get_running_loop() is loop
            await anyio.sleep(0.001)
            return number * 2

        def in_thread(number: int) -> int:
            return anyio.from_thread.run(in_loop, number)

        async def one(number: int) -> None:
            results.append(await anyio.to_thread.run_sync(in_thread, number))

        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(one, number)
        assert sorted(results) == [2 * number for number in range(60)]

    run(main)


def test_a_portal_into_the_loop(new_loop: LoopFactory, no_fd_left: None) -> None:
    async def add(a: int, b: int) -> int:
        await anyio.sleep(0.001)
        return a + b

    options = {"loop_factory": new_loop}
    with anyio.from_thread.start_blocking_portal("asyncio", options) as portal:
        assert portal.call(add, 1, 2) == 3
        futures = [portal.start_task_soon(add, number, 1) for number in range(50)]
        assert [future.result(TIMEOUT) for future in futures] == list(range(1, 51))


def test_worker_processes(run: Run) -> None:
    async def main() -> None:
        assert await anyio.to_process.run_sync(sum, range(1000)) == 499_500

    run(main)


def test_files(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        path = anyio.Path(tmp_path / "file")
        await path.write_bytes(pattern(1_000_000))
        async with await anyio.open_file(path, "rb") as file:
            assert await file.read() == pattern(1_000_000)

    run(main)
