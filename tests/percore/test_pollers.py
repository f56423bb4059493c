"""serve_per_core with sqpoll: which CPU polls, and that the workers share the poller."""

import os

import pytest
from server_process import CPUS, Serve, echo

each_kind = pytest.mark.parametrize("workers", ["threads", "processes"])

SPARE = CPUS[-1]


@pytest.fixture(autouse=True)
def a_spare_cpu() -> None:
    if os.environ.get("KLOOP_DRIVER") == "epoll":
        pytest.skip("sqpoll needs io_uring")
    if len(CPUS) < 2 and "CI" not in os.environ:
        pytest.skip("there is one CPU only")


@pytest.mark.parametrize("sqpoll", ["'auto'", "True", "9"])
def test_threads_share_a_poller_on_a_spare_cpu(serve: Serve, sqpoll: str) -> None:
    server = serve("'handlers:calls'", f"cores=[{CPUS[0]}] * 2, sqpoll={sqpoll}")
    with server.one_client_per_core(2) as clients:
        for client in clients:
            (active, cpu, idle_ms, reason), found = client.call("sqpoll")
            assert active
            assert cpu == SPARE
            assert idle_ms == (9 if sqpoll == "9" else 4)
            assert "spare" in reason
            assert list(found.values()) == [[SPARE]]


def test_each_process_has_a_poller(serve: Serve) -> None:
    arguments = f"cores=[{CPUS[0]}] * 2, sqpoll='auto', workers='processes'"
    server = serve("'handlers:calls'", arguments)
    with server.one_client_per_core(2) as clients:
        pollers = set()
        for client in clients:
            (active, cpu, _, _), found = client.call("sqpoll")
            assert (active, cpu) == (True, SPARE)
            assert list(found.values()) == [[SPARE]]
            pollers |= found.keys()
        assert len(pollers) == 2


@each_kind
@pytest.mark.parametrize(
    ("sqpoll", "reason"),
    [
        ("'auto'", "auto: every CPU of the affinity mask has a worker"),
        ("False", "not asked for"),
    ],
)
def test_no_poller(serve: Serve, workers: str, sqpoll: str, reason: str) -> None:
    server = serve("'handlers:calls'", f"cores=None, sqpoll={sqpoll}, workers='{workers}'")
    with server.one_client_per_core(len(CPUS)) as clients:
        for client in clients:
            assert client.call("sqpoll") == [[False, None, None, reason], {}]


@each_kind
def test_connections_are_served(serve: Serve, workers: str) -> None:
    arguments = f"cores=[{CPUS[0]}] * 2, sqpoll=True, workers='{workers}'"
    server = serve("'handlers:Echo'", arguments)
    for _ in range(50):
        with server.connect() as sock:
            echo(sock, b"x" * 100_000)
    end = server.stop()
    assert (end.status, end.errors) == (0, "")


def test_epoll_cannot(script: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLOOP_DRIVER", "epoll")
    end = script(
        "import kloop\nkloop.serve_per_core('handlers:Echo', port=0, cores=1, sqpoll=True)\n"
    ).end()
    assert end.status == 1
    assert end.last_line == "RuntimeError: sqpoll needs io_uring, and this loop runs on epoll"
