"""Child processes of workers: of threads with interpreters of their own, and of processes."""

import pytest
from server_process import Client, Serve, Server

WORKERS = ("threads", "processes")


@pytest.fixture(params=WORKERS)
def server(serve: Serve, request: pytest.FixtureRequest) -> Server:
    return serve("'handlers:calls'", f"workers={request.param!r}")


def test_many_at_once_on_all_cores(server: Server) -> None:
    with server.one_client_per_core(2) as clients:
        for client in clients:
            client.start("many_subprocesses", 10)
        for client in clients:
            assert client.result() == list(range(10))


def test_children_can_be_ended(server: Server) -> None:
    with Client(server.connect()) as client:
        assert client.call("killed_subprocess") == -15


def test_where_there_are_no_pidfds_a_thread_waits(server: Server) -> None:
    with Client(server.connect()) as client:
        assert client.call("subprocess_without_pidfd") == [1, 0]


def test_children_leave_no_descriptors(serve: Serve) -> None:
    server = serve("'handlers:calls'")
    with Client(server.connect()) as client:
        client.call("subprocesses")
        before = server.open_fds()
        for _ in range(10):
            client.call("subprocesses")
        assert server.open_fds() == before


@pytest.mark.parametrize("workers", WORKERS)
def test_preexec_fn_needs_processes(serve: Serve, workers: str) -> None:
    server = serve("'handlers:calls'", f"{workers=}")
    with Client(server.connect()) as client:
        answer = client.call("preexec_fn")
    if workers == "processes":
        assert answer == "0"
        assert server.next_line() == ""  # what the child printed
    else:
        assert answer.startswith("a worker of serve_per_core() cannot run preexec_fn")
        assert 'workers="processes"' in answer
