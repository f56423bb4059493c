"""serve_per_core: handlers, workers and kernels that fail."""

import time
from contextlib import ExitStack, suppress

import pytest
from server_process import Client, End, Serve, Server, echo, is_closed, wait_until

from support import fill_socket, reset


def fail_one_of_two(server: Server) -> str:
    """One connection fails, others on both cores live: what was logged."""
    with ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(4)]
        for sock in socks:
            echo(sock, b"before")
        for sock in socks[:2]:
            sock.sendall(b"!")
            assert is_closed(sock)
        for sock in socks[2:]:
            echo(sock, b"after")
    with server.connect() as sock:
        echo(sock, b"new")
    return server.stop().errors


def test_a_streams_handler_that_raises(serve: Serve) -> None:
    errors = fail_one_of_two(serve("'handlers:Failing.streams'"))
    assert errors.count("Unhandled exception in client_connected_cb") == 2
    assert errors.count("LookupError: the handler fails") == 2


def test_a_protocol_that_raises(serve: Serve) -> None:
    errors = fail_one_of_two(serve("'handlers:Failing.Protocol'"))
    assert errors.count("Fatal error: protocol.data_received() call failed.") == 2
    assert errors.count("LookupError: the protocol fails") == 2


@pytest.mark.parametrize("debug", [False, True])
def test_a_protocol_factory_that_raises(serve: Serve, debug: bool) -> None:
    """asyncio's servers report it in debug mode only; and the core's count must not suffer."""
    server = serve("'handlers:every_other_fails'", f"cores=1, debug={debug}")
    for number in range(4):
        with server.connect() as first, server.connect() as second:
            assert is_closed(first)
            echo(second, b"hello")
            if number == 0:
                fds = server.open_fds()
    wait_until(lambda: server.open_fds() == fds - 1)
    errors = server.stop().errors
    assert errors.count("LookupError: the factory fails") == (4 if debug else 0)


def test_a_core_whose_factory_fails_keeps_its_share(serve: Serve) -> None:
    """Connections that never were are not counted as open."""
    server = serve("'handlers:fails_on_core_1'")
    with ExitStack() as stack:
        for _ in range(10):
            sock = stack.enter_context(server.connect())
            with suppress(ConnectionError):
                sock.sendall(b"hello")
                sock.recv(1)
        # Core 0 has more now, so all of these go to core 1.
        for _ in range(10):
            with server.connect() as sock:
                assert is_closed(sock)


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_factory_without_a_protocol(serve: Serve, workers: str) -> None:
    """The connection is closed and not counted: nothing keeps the drain waiting."""
    server = serve("'handlers:makes_no_protocol'", f"drain_timeout=1000, workers='{workers}'")
    for _ in range(4):
        with server.connect() as sock:
            assert is_closed(sock)
    assert server.stop().errors == ""


def end_after(serve: Serve, name: str, cores: int = 2) -> End:
    """A worker ends, by a function of handlers.py, while others have work to do."""
    server = serve("'handlers:calls'", f"cores={cores}, drain_timeout=1000")
    with server.one_client_per_core(cores) as clients:
        for client in clients[1:]:
            client.start("block")
        start = time.monotonic()
        clients[0].start(name)
        assert is_closed(clients[0].sock)
        end = server.end()
        assert time.monotonic() - start < 5
    return end


def test_a_worker_that_exits(serve: Serve) -> None:
    end = end_after(serve, "exit_worker")
    assert end.status == 1
    assert end.last_line == "kloop.percore.WorkerError: builtins.SystemExit: 3"
    assert "exit_worker" in end.errors


def test_a_worker_whose_loop_is_stopped(serve: Serve) -> None:
    end = end_after(serve, "stop_loop")
    assert end.status == 1
    assert end.last_line == "RuntimeError: Event loop stopped before Future completed."


# File descriptors

LIMITED = """
import os, resource, socket


def ready(addresses):
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    # As many descriptors as there are left may be had, whatever their numbers.
    limit = max(used) + 1
    free = 6
    held = [os.dup(0) for number in range(limit) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit + free, limit + free))
    print("ready", json.dumps(addresses), flush=True)
"""


def test_file_descriptors_run_out_at_accept(serve: Serve) -> None:
    server = serve("'handlers:Echo'", before=LIMITED)
    with ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(20)]
        for sock in socks:
            sock.sendall(b"hello")
        for sock in socks[:6]:
            assert sock.recv(100) == b"hello"
        server.wait_for_error("accept failed, trying again")
        for sock in socks[:6]:
            echo(sock, b"still served")
        for served, waiting in zip(socks[:14], socks[6:], strict=True):
            served.close()
            assert waiting.recv(100) == b"hello"
    with server.connect() as sock:
        echo(sock, b"hello")
    errors = server.stop().errors
    assert "[Errno 24] Too many open files" in errors
    assert all("accept failed, trying again" in line for line in errors.splitlines())


@pytest.mark.parametrize("free", [2, 4, 6, 8, 10, 20])
def test_too_few_file_descriptors_to_start(script: Serve, free: int) -> None:
    """Whatever they are missing for, the call raises, and no thread is left."""
    server = script(
        "import os, resource, kloop\n"
        "from kloop import percore\n"
        "import _strptime, sqlite3, decimal, hashlib, ssl\n"
        f"limit = max(map(int, os.listdir('/proc/self/fd'))) + {free}\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "try:\n"
        "    kloop.serve_per_core('handlers:Echo', port=0, cores=8)\n"
        "except (OSError, RuntimeError) as error:\n"
        "    print(error)\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    end = server.end()
    assert end.status == 0, end
    assert end.output[-1] == "1"
    assert len(end.output) == 2


def test_too_few_threads_to_start(script: Serve) -> None:
    """The workers that could be started end."""
    server = script(
        "import os, resource\n"
        # What is imported later may be out of reach for nobody.
        "import encodings.idna, sqlite3, decimal, hashlib, ssl, kloop\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (4, 4))\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try:\n"
        "    kloop.serve_per_core('handlers:Echo', port=0, cores=8)\n"
        "except BlockingIOError as error:\n"
        "    print(error)\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    end = server.end()
    assert end.output == ["[Errno 11] Resource temporarily unavailable", "1"], end


def test_clients_that_reset_before_they_are_accepted(serve: Serve) -> None:
    server = serve("'handlers:Echo'")
    for _ in range(300):
        reset(server.connect())
    with server.connect() as sock:
        echo(sock, b"hello")


def test_the_connection_is_closed_on_every_core_at_the_end(serve: Serve) -> None:
    server = serve("'handlers:calls'", "drain_timeout=0")
    with server.one_client_per_core(2) as clients:
        server.stop()
        for client in clients:
            assert is_closed(client.sock)


def test_a_client_that_never_reads(serve: Serve) -> None:
    server = serve("'handlers:Echo'", "drain_timeout=0")
    with server.connect() as sock, Client(server.connect()):
        sock.setblocking(False)
        fill_socket(sock)
        server.stop()
