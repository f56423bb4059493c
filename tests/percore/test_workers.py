"""Inside the workers of serve_per_core: asyncio works as it does elsewhere."""

import importlib.machinery
import socket
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from server_process import Client, Serve, Server

from kloop._worker import extension_is_loaded
from support import server_context


@pytest.fixture(params=["", "-X dev"], ids=["plain", "dev"])
def server(serve: Serve, request: pytest.FixtureRequest) -> Server:
    return serve("'handlers:calls'", flags=request.param)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.connect()) as client:
        yield client


@contextmanager
def tls_echo() -> Iterator[int]:
    """A TLS server for one connection: echoes a line. Its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with server_context().wrap_socket(plain, server_side=True) as tls:
                tls.sendall(tls.recv(100))
                tls.unwrap().close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_tasks_and_contexts(client: Client) -> None:
    assert client.call("task_groups_and_contexts") == ["outside, one", "outside, two", "outside"]


def test_connections_do_not_share_a_context(server: Server) -> None:
    with server.one_client_per_core(1) as [first]:
        for _ in range(2):
            assert first.call("task_groups_and_contexts")[2] == "outside"
    with Client(server.connect()) as second:
        assert second.call("context") == "nowhere"


def test_executors(client: Client) -> None:
    assert client.call("executors") == ["in a thread", 6, True]


def test_subprocesses(client: Client) -> None:
    assert client.call("subprocesses") == ["through a pipe", 7, "2\n", 0]


def test_tls_client(client: Client) -> None:
    with tls_echo() as port:
        assert client.call("tls_client", port) == ["over TLS\n", "TLSv1.3"]


def test_a_server_of_the_workers_own(client: Client) -> None:
    assert client.call("tcp_server_and_client") == "round\n"


def test_udp_endpoints_of_the_workers_own(client: Client) -> None:
    before = client.call("loop_stats")
    assert client.call("udp_endpoints") == "round"
    assert client.call("loop_stats")["transports"] == before["transports"]


def test_name_resolution(client: Client) -> None:
    assert client.call("resolve") == [["127.0.0.1", 80]]


def test_all_cores_at_once(server: Server) -> None:
    with server.one_client_per_core(2) as clients:
        for name in ("executors", "subprocesses", "tcp_server_and_client", "udp_endpoints") * 3:
            for client in clients:
                client.start(name)
            first, second = [client.result() for client in clients]
            assert first == second


def test_signal_handlers_are_refused(server: Server) -> None:
    with Client(server.connect()) as client:
        refused = client.call("add_signal_handlers")
        assert refused[1::2] == ["False"] * 3
        for text in refused[::2]:
            assert "only works in main thread" in text
            assert "SIGINT and SIGTERM make it drain the workers" in text
    assert server.stop().errors == ""  # by SIGTERM, which is as it was


def test_serving_from_a_worker_is_refused(client: Client) -> None:
    assert "was called in a worker" in client.call("serve_again")


@pytest.mark.parametrize("flag", [True, False])
def test_debug_mode(serve: Serve, flag: bool) -> None:
    with Client(serve("'handlers:calls'", f"debug={flag}").connect()) as client:
        assert client.call("debug") is flag


def test_modules_without_a_dictionary_or_a_name_do_not_disturb_the_imports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lazy:
        def __getattr__(self, name: str) -> str:
            sys.modules[f"made by {name}"] = types.ModuleType("made")
            raise ImportError(name)

    class Bare:
        __slots__ = ()

    monkeypatch.setattr(sys, "modules", {"lazy": Lazy(), "bare": Bare(), 5: Lazy(), "none": None})
    assert not extension_is_loaded()
    extension = types.ModuleType("extension")
    extension.__file__ = f"/somewhere/extension{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    sys.modules["extension"] = extension
    assert extension_is_loaded()
