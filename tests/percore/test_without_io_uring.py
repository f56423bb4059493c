"""serve_per_core where io_uring is forbidden: on epoll, with one warning by the main thread."""

import errno
from contextlib import ExitStack

import pytest
from server_process import Client, Serve, Server, echo

import sandbox

DENY = f"import sandbox; sandbox.deny_io_uring({errno.EPERM})"
LITTLE_MEMORY = "import sandbox; sandbox.limit_locked_memory(64 * 1024)"

each_kind = pytest.mark.parametrize("workers", ["threads", "processes"])


@pytest.fixture(autouse=True)
def nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLOOP_DRIVER", raising=False)
    if not sandbox.is_available():
        pytest.skip("seccomp filters cannot be installed")


def drivers(server: Server, cores: int) -> set[str]:
    """The drivers of the workers' loops."""
    with server.one_client_per_core(cores) as clients:
        return {client.call("driver") for client in clients}


@each_kind
def test_epoll_takes_over_with_one_warning(serve: Serve, workers: str) -> None:
    server = serve("'handlers:calls'", f"cores=3, workers='{workers}'", before=DENY)
    assert drivers(server, 3) == {"epoll"}
    errors = server.stop().errors
    assert errors.count("Warning") == 1, errors
    assert "RuntimeWarning: kloop runs on epoll" in errors
    assert "KLOOP_DRIVER=epoll" in errors


@each_kind
def test_epoll_that_was_chosen_gives_no_warning(
    serve: Serve, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLOOP_DRIVER", "epoll")
    server = serve("'handlers:calls'", f"workers='{workers}'", before=DENY, flags="-W error")
    assert drivers(server, 2) == {"epoll"}
    assert server.stop().errors == ""


@each_kind
def test_connections_come_and_go_on_epoll(serve: Serve, workers: str) -> None:
    server = serve("'handlers:Echo'", f"cores=3, workers='{workers}'", before=DENY)
    with ExitStack() as stack:
        for _ in range(10):
            echo(stack.enter_context(server.connect()), b"x" * 300_000)
    for _ in range(100):
        with server.connect() as sock:
            echo(sock, b"hello")
    assert server.stop().status == 0


@each_kind
def test_io_uring_that_was_chosen_is_an_error(
    script: Serve, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLOOP_DRIVER", "uring")
    call = f"import kloop\nkloop.serve_per_core('handlers:Echo', port=0, workers='{workers}')\n"
    end = script(f"{DENY}\n{call}").end()
    assert end.status == 1
    assert end.last_line.startswith("PermissionError: [Errno 1] io_uring_setup: ")


@each_kind
def test_the_warning_may_be_an_exception(script: Serve, workers: str) -> None:
    call = f"import kloop\nkloop.serve_per_core('handlers:Echo', port=0, workers='{workers}')\n"
    ignore = "import warnings\nwarnings.simplefilter('error')\n"
    end = script(f"{DENY}\n{ignore}{call}").end()
    assert end.status == 1
    assert end.last_line.startswith("RuntimeWarning: kloop runs on epoll")


@each_kind
def test_little_memory_that_may_be_locked(serve: Serve, workers: str) -> None:
    server = serve("'handlers:calls'", f"cores=3, workers='{workers}'", before=LITTLE_MEMORY)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.connect())) for _ in range(6)]
        for client in clients:
            assert client.call("driver") in ("uring", "epoll")
    assert server.stop().errors.count("Warning") <= 1
