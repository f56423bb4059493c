"""serve_per_core with workers="processes": the same contract, a process per core."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from server_process import Client, Serve, Server, echo, is_closed, program, wait_until

PROCESSES = "workers='processes'"


def children(server: Server) -> list[int]:
    tasks = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    return [int(pid) for pid in tasks.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("flags", ["", "-X dev"])
@pytest.mark.parametrize("name", ["echo", "Echo", "BufferedEcho"])
def test_handlers_of_all_kinds(serve: Serve, name: str, flags: str) -> None:
    server = serve(f"'handlers:{name}'", PROCESSES, flags=flags)
    for _ in range(6):
        with server.connect() as sock:
            echo(sock, b"hello")


def test_each_core_has_a_pinned_process(serve: Serve) -> None:
    server = serve("'handlers:calls'", PROCESSES)
    assert len(children(server)) == 2
    with server.one_client_per_core(2) as clients:
        cores = [client.call("core") for client in clients]
    assert [core["index"] for core in cores] == [0, 1]
    assert {core["interpreter_id"] for core in cores} == {0}
    for core, pid in zip(cores, children(server), strict=True):
        assert os.sched_getaffinity(pid) == {core["cpu"]}


def test_connections_are_spread_evenly(serve: Serve) -> None:
    server = serve("'handlers:calls'", PROCESSES)
    spread = [0, 0]
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(Client(server.connect()))
            spread[client.call("core")["index"]] += 1
            assert abs(spread[0] - spread[1]) <= 1


def test_connections_leave_nothing_behind(serve: Serve) -> None:
    server = serve("'handlers:Echo'", PROCESSES)

    def open_fds() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (server.pid, *children(server))]

    with server.connect() as sock:
        echo(sock, b"hello")
    before = open_fds()
    for _ in range(500):
        with server.connect() as sock:
            echo(sock, b"hello")
    wait_until(lambda: open_fds() <= before)


def test_extensions_that_refuse_interpreters_of_their_own(serve: Serve) -> None:
    before = "from pathlib import Path\nPath('refusing.py').write_text(SOURCE)\n"
    source = "import readline\nfrom handlers import Echo\n"
    server = serve(
        "'refusing:Echo'",
        PROCESSES,
        before=f"import os, sys, tempfile\nSOURCE = {source!r}\n"
        "os.chdir(tempfile.mkdtemp())\nsys.path.insert(0, os.getcwd())\n" + before,
    )
    with server.connect() as sock:
        echo(sock, b"hello")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_finishes_what_is_in_flight(serve: Serve, number: int) -> None:
    server = serve("'handlers:calls'", PROCESSES)
    with Client(server.connect()) as client:
        client.call("core")
        server.send_signal(number)
        wait_until(server.refuses)
        assert client.call("core")["index"] == 0
        client.close()
        end = server.end()
    assert (end.status, end.errors) == (0, "")


def test_signals_to_the_whole_process_group_are_the_main_processes_business(serve: Serve) -> None:
    server = serve("'handlers:calls'", PROCESSES)
    with Client(server.connect()) as client:
        client.call("core")
        for pid in children(server):
            os.kill(pid, signal.SIGINT)
        assert client.call("core")["index"] == 0


def test_the_drain_timeout_ends_what_is_stuck(serve: Serve) -> None:
    server = serve("'handlers:calls'", PROCESSES + ", drain_timeout=0.2")
    with Client(server.connect()) as client:
        client.call("core")
        client.start("block")
        end = server.stop()
    assert end.errors == ""


def test_a_second_signal_ends_at_once(serve: Serve) -> None:
    server = serve("'handlers:calls'", PROCESSES + ", drain_timeout=1000")
    with Client(server.connect()) as client:
        client.call("core")
        client.start("block")
        start = time.monotonic()
        server.send_signal(signal.SIGTERM)
        wait_until(server.refuses)
        server.send_signal(signal.SIGTERM)
        assert is_closed(client.sock)
        assert server.end().status == 0
        assert time.monotonic() - start < 5


def test_a_worker_that_cannot_start_ends_the_call() -> None:
    with Server(["-c", program("'no_such_module:x'", PROCESSES)]) as server:
        end = server.end()
    assert end.status == 1
    assert end.last_line == "ModuleNotFoundError: No module named 'no_such_module'"
    assert "core 0 failed" in end.errors or "core 1 failed" in end.errors


def test_a_process_that_is_killed_ends_the_call(serve: Serve) -> None:
    server = serve("'handlers:Echo'", PROCESSES)
    os.kill(children(server)[1], signal.SIGKILL)
    end = server.end()
    assert end.status == 1
    assert end.last_line == "RuntimeError: the worker process ended with status -9"


def test_processes_end_with_the_main_process(serve: Serve) -> None:
    server = serve("'handlers:calls'", PROCESSES)
    pids = children(server)
    with Client(server.connect()) as client:
        client.call("core")
        server.send_signal(signal.SIGKILL)
        assert is_closed(client.sock)
        wait_until(lambda: not any(is_running(pid) for pid in pids))
        assert server.end().status == -signal.SIGKILL


def test_another_kind_of_worker_is_refused() -> None:
    with Server(["-c", program("'handlers:Echo'", "workers='fibers'")]) as server:
        end = server.end()
    assert end.last_line == 'ValueError: workers must be "threads" or "processes", not \'fibers\''
