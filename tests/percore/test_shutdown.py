"""serve_per_core: signals, draining, and what comes after it."""

import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from server_process import Client, Serve, echo, is_closed, wait_until

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT]

AT_ONCE = 5.0
"""Seconds within which an abort has to end the process; the drain would take far longer."""


@pytest.mark.parametrize("flags", ["", "-X dev"])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_an_idle_server_ends_at_once(serve: Serve, number: int, flags: str) -> None:
    server = serve(flags=flags, after="print('after')")
    start = time.monotonic()
    end = server.stop(number)
    assert time.monotonic() - start < AT_ONCE
    assert end.output == ["after"]
    assert end.errors == ""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_drain_finishes_what_is_in_flight(serve: Serve, number: int) -> None:
    server = serve("'handlers:calls'", "cores=1")
    with Client(server.connect()) as waiting, Client(server.connect()) as opening:
        waiting.call("core")
        opening.call("core")
        waiting.start("wait_at_gate", "a")
        server.send_signal(number)
        wait_until(server.refuses)
        assert server.process.poll() is None
        opening.call("open_gate", "a")
        assert waiting.result() == "through"
        opening.close()
        assert waiting.call("core")["index"] == 0  # an open connection is served on
        assert server.process.poll() is None
        waiting.close()
        end = server.end()
    assert end.status == 0
    assert end.errors == ""


def test_drain_waits_for_protocols(serve: Serve) -> None:
    server = serve("'handlers:Echo'")
    with ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(10)]
        for sock in socks:
            echo(sock, b"before")
        server.send_signal(signal.SIGTERM)
        wait_until(server.refuses)
        for sock in socks:
            echo(sock, b"meanwhile")
            sock.close()
        end = server.end()
    assert end.status == 0
    assert end.errors == ""


@pytest.mark.parametrize("handler", ["calls", "Echo"])
def test_the_drain_timeout_ends_what_is_stuck(serve: Serve, handler: str) -> None:
    server = serve(f"'handlers:{handler}'", "drain_timeout=0.3")
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(Client(server.connect()))
            if handler == "calls":
                client.call("core")
                client.start("block")
            else:
                echo(client.sock, b"hello")
        start = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert is_closed(client.sock)
        assert time.monotonic() - start >= 0.3
        end = server.end()
    assert end.status == 0
    assert end.errors == ""


def test_no_drain_time_at_all(serve: Serve) -> None:
    server = serve("'handlers:calls'", "drain_timeout=0")
    with Client(server.connect()) as client:
        client.call("core")
        client.start("block")
        end = server.stop()
    assert end.errors == ""


@pytest.mark.parametrize("flags", ["", "-X dev"])
@pytest.mark.parametrize("second", STOP_SIGNALS)
def test_a_second_signal_ends_at_once(serve: Serve, second: int, flags: str) -> None:
    server = serve("'handlers:calls'", "drain_timeout=1000", flags=flags)
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(Client(server.connect()))
            client.call("core")
            client.start("block")
        start = time.monotonic()
        server.send_signal(signal.SIGTERM)
        wait_until(server.refuses)
        server.send_signal(second)
        assert is_closed(client.sock)
        end = server.end()
        assert time.monotonic() - start < AT_ONCE
    assert end.status == 0
    assert end.errors == ""


@pytest.mark.parametrize("function", ["refuse_to_end", "block_thread"])
def test_a_worker_that_does_not_end_is_given_up(
    serve: Serve, tmp_path: Path, function: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    server = serve("'handlers:calls'", "drain_timeout=1000")
    with Client(server.connect()) as client:
        client.call("core")
        client.start(function, str(fifo))
        server.send_signal(signal.SIGTERM)
        wait_until(server.refuses)
        server.send_signal(signal.SIGTERM)
        end = server.end()
    assert end.status == 1
    assert end.last_line == "workers did not end in time: leaving without them"


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_drain_that_does_not_end_is_given_up(serve: Serve, tmp_path: Path, workers: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    server = serve("'handlers:calls'", f"drain_timeout=0, workers='{workers}'")
    with Client(server.connect()) as client:
        client.call("core")
        client.start("refuse_to_end", str(fifo))
        server.send_signal(signal.SIGTERM)
        end = server.end()
    assert end.status == 1


def test_sigterm_amid_busy_connections(serve: Serve) -> None:
    server = serve("'handlers:echo'", "drain_timeout=1")
    with ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(100)]
        for sock in socks:
            echo(sock, b"hello")
        for number, sock in enumerate(socks):
            sock.sendall(b"x" * 10_000)
            if number == 50:
                server.send_signal(signal.SIGTERM)
        for sock in socks:
            sock.shutdown(socket.SHUT_WR)
            data = bytearray()
            while chunk := sock.recv(65536):
                data += chunk
            assert data == b"x" * 10_000
        end = server.end()
    assert end.status == 0
    assert end.errors == ""


def test_sigterm_amid_connections_that_never_end(serve: Serve) -> None:
    server = serve("'handlers:Echo'", "drain_timeout=0.2")
    with ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(100)]
        for sock in socks:
            echo(sock, b"hello")
            sock.setblocking(False)
        server.send_signal(signal.SIGTERM)
        while server.process.poll() is None:
            for sock in socks:
                try:
                    sock.send(b"x" * 1000)
                    sock.recv(65536)
                except OSError:
                    pass
        end = server.end()
    assert end.status == 0
    assert end.errors == ""


def test_signals_as_soon_as_the_server_is_ready(serve: Serve) -> None:
    before = "import os, signal\nready = lambda addresses: os.kill(os.getpid(), signal.SIGTERM)"
    before += "\nprint('ready [[null, null]]', flush=True)"
    server = serve(before=before, after="print('after')")
    end = server.end()
    assert (end.status, end.output, end.errors) == (0, ["after"], "")


# What comes after


def test_the_signal_handlers_are_restored(serve: Serve) -> None:
    server = serve(
        before="import signal; mine = lambda *_: None; signal.signal(signal.SIGTERM, mine)",
        after=(
            "print(signal.getsignal(signal.SIGTERM) is mine,"
            " signal.getsignal(signal.SIGINT) is signal.default_int_handler,"
            " signal.set_wakeup_fd(-1))"
        ),
    )
    assert server.stop().output == ["True True -1"]


def test_no_thread_and_no_fd_is_left(serve: Serve) -> None:
    list_all = "[os.listdir('/proc/self/task'), sorted(os.listdir('/proc/self/fd'))]"
    server = serve(before=f"import os; before = {list_all}", after=f"print({list_all} == before)")
    with server.connect() as sock:
        echo(sock, b"hello")
    assert server.stop().output == ["True"]


@pytest.mark.skipif(
    sys.version_info < (3, 14), reason="3.13 leaves its interpreters alone (cpython #136423)"
)
def test_serving_again_and_again(serve: Serve) -> None:
    server = serve(after="for _ in range(4):\n    serve('handlers:Echo')\nprint('after')")
    for round in range(5):
        if round:
            server.wait_until_ready()
        for _ in range(4):
            with server.connect() as sock:
                echo(sock, b"hello")
        server.send_signal(signal.SIGTERM)
    end = server.end()
    assert (end.status, end.output, end.errors) == (0, ["after"], "")


def test_serving_twice(serve: Serve) -> None:
    server = serve(after="serve('handlers:Echo')\nprint('after')")
    server.send_signal(signal.SIGTERM)
    server.wait_until_ready()
    with server.connect() as sock:
        echo(sock, b"hello")
    end = server.stop()
    assert (end.output, end.errors) == (["after"], "")


BEFORE = """
import asyncio, atexit, sys, threading
atexit.register(print, "registered before")
"""

AFTER = """
atexit.register(print, "registered after")
print("after")
"""


def ends(serve: Serve, after: str = "") -> tuple[int, list[str], str]:
    """How the process ends, once served, with this at the end of the program."""
    server = serve(before=BEFORE, after=AFTER + after)
    server.send_signal(signal.SIGTERM)
    end = server.end()
    assert end.output == ["after", "registered after", "registered before"]
    return end.status, end.output, end.errors


def test_atexit_handlers_run(serve: Serve) -> None:
    status, _, errors = ends(serve)
    assert (status, errors) == (0, "")


def test_an_exception_later_is_an_exit_status_of_1(serve: Serve) -> None:
    status, _, errors = ends(serve, "raise LookupError('later')")
    assert status == 1
    assert errors.endswith("LookupError: later\n")


@pytest.mark.parametrize(
    ("leave", "status", "errors"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(0)", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise SystemExit(4)", 4, ""),
        ("sys.exit('a reason')", 1, "a reason\n"),
        ("def leave():\n    sys.exit(5)\nleave()", 5, ""),
        ("try:\n    sys.exit(6)\nexcept SystemExit:\n    pass", 0, ""),
        ("try:\n    sys.exit(6)\nexcept SystemExit:\n    sys.exit(7)", 7, ""),
        ("def main():\n    raise SystemExit(8)\nthreading.Thread(target=main).start()", 0, ""),
        ("async def main():\n    sys.exit(9)\nasyncio.run(main())", 9, ""),
        ("sys.exit(True)", 1, ""),
    ],
)
def test_exit_statuses(serve: Serve, leave: str, status: int, errors: str) -> None:
    assert ends(serve, leave)[::2] == (status, errors)


def test_an_interrupt_later_kills_the_process(serve: Serve) -> None:
    status, _, errors = ends(serve, "raise KeyboardInterrupt")
    assert status == -signal.SIGINT
    assert errors.endswith("KeyboardInterrupt\n")


def test_threads_of_the_program_are_waited_for(serve: Serve) -> None:
    after = (
        "gate = threading.Event()\n"
        "def late():\n    gate.wait()\n    print('late', flush=True)\n"
        "threading.Thread(target=late).start()\n"
        "threading.Timer(0.1, gate.set).start()"
    )
    server = serve(before=BEFORE, after=AFTER + after)
    end = server.stop()
    assert end.output == ["after", "late", "registered after", "registered before"]
