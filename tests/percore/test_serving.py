"""serve_per_core: what it serves, where, and on which cores."""

import errno
import json
import os
import socket
import threading
from collections import Counter
from contextlib import ExitStack

import pytest
from server_process import CPUS, Client, Serve, echo, program, wait_until

import kloop
from support import has_ipv6, pattern

HANDLERS = [
    "'handlers:echo'",
    "'handlers:Echo'",
    "'handlers:BufferedEcho'",
    "'handlers:make_echo'",
    "'handlers:Nested.Inner'",
    "handlers.echo",
    "handlers.Echo",
    "handlers.BufferedEcho",
    "handlers.make_echo",
    "handlers.Nested.Inner",
    "handlers.Nested.alias",  # defined elsewhere, and found there
]


def check_echo(serve: Serve, handler: str, flags: str = "") -> None:
    server = serve(handler, before="import handlers", flags=flags)
    data = pattern(300_000)
    for _ in range(4):
        with server.connect() as sock:
            echo(sock, b"hello")
            writer = threading.Thread(target=sock.sendall, args=(data,))
            writer.start()
            received = bytearray()
            while len(received) < len(data):
                received += sock.recv(65536)
            writer.join()
            assert received == data
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


@pytest.mark.parametrize("handler", HANDLERS)
def test_handlers_of_all_kinds(serve: Serve, handler: str) -> None:
    check_echo(serve, handler)


@pytest.mark.parametrize("handler", ["handlers.echo", "handlers.Echo", "handlers.BufferedEcho"])
def test_development_mode_has_nothing_to_say(serve: Serve, handler: str) -> None:
    check_echo(serve, handler, flags="-X dev")


SCRIPT = """\
import argparse
import asyncio
import json

import kloop

GREETING = b"hello from "


async def greet(reader, writer):
    writer.write(GREETING + __name__.encode())
    writer.close()


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


def ready(addresses):
    print("ready", json.dumps(addresses), flush=True)


if __name__ == "__main__":
    kloop.serve_per_core({handler}, port=0, cores=2, on_ready=ready)
"""


@pytest.mark.parametrize("handler", ["greet", "'__main__:greet'"])
def test_a_handler_of_the_main_script(script: Serve, handler: str) -> None:
    server = script(SCRIPT.format(handler=handler))
    server.wait_until_ready()
    with server.connect() as sock, sock.makefile() as lines:
        assert lines.read() == "hello from __mp_main__"


def test_a_handler_of_a_module_run_by_name(script: Serve) -> None:
    # The script imports the package that lies beside it, and runs it as `python -m` does.
    server = script(
        "import pathlib, runpy, sys\n"
        "folder = pathlib.Path(__file__).parent / 'made'\n"
        "folder.mkdir()\n"
        "(folder / '__init__.py').touch()\n"
        "(folder / 'names.py').write_text('GREETING = b\"hello\"')\n"
        f"text = {SCRIPT.format(handler='greet')!r}\n"
        "text = text.replace('import kloop', 'import kloop\\nfrom .names import GREETING', 1)\n"
        "text = text.replace('GREETING = b\"hello from \"', '')\n"
        "(folder / '__main__.py').write_text(text)\n"
        "runpy.run_module('made', run_name='__main__', alter_sys=True)\n"
    )
    server.wait_until_ready()
    with server.connect() as sock, sock.makefile() as lines:
        assert lines.read() == "hello__mp_main__"


# Cores


@pytest.mark.parametrize("cores", [1, 2, 5, CPUS[-1:], CPUS[:2], None])
def test_cores_are_pinned_and_have_their_own_interpreters(
    serve: Serve, cores: int | list[int] | None
) -> None:
    server = serve("'handlers:calls'", f"cores={cores}")
    if isinstance(cores, int):
        expected = [CPUS[index % len(CPUS)] for index in range(cores)]
    else:
        expected = cores or CPUS
    with server.one_client_per_core(len(expected)) as clients:
        rows = [client.call("core") for client in clients]
        affinities = [client.call("affinity") for client in clients]
        assert {client.call("process")["pid"] for client in clients} == {server.pid}
    assert [row["index"] for row in rows] == list(range(len(expected)))
    assert [row["cpu"] for row in rows] == expected
    assert affinities == [[cpu] for cpu in expected]
    interpreters = {row["interpreter_id"] for row in rows}
    assert len(interpreters) == len(expected)
    assert 0 not in interpreters


def test_threads_have_names(serve: Serve) -> None:
    server = serve("'handlers:calls'", "cores=2")
    with Client(server.connect()) as client:
        assert {"kloop-core-0", "kloop-core-1"} <= set(client.call("thread_names"))


def test_there_is_no_current_core_outside() -> None:
    with pytest.raises(RuntimeError, match="outside a worker of serve_per_core"):
        kloop.current_core()


@pytest.mark.parametrize(
    ("cores", "error", "text"),
    [
        (0, ValueError, "cores must be at least 1, not 0"),
        (-1, ValueError, "cores must be at least 1, not -1"),
        ([], ValueError, "cores is empty"),
        ([9999], ValueError, r"CPUs \[9999\] are not in the affinity mask"),
        (["0"], ValueError, "are not in the affinity mask"),
        (1.5, TypeError, "float"),
    ],
)
def test_cores_that_there_cannot_be(cores: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        kloop.serve_per_core("handlers:Echo", port=0, cores=cores)  # type: ignore[arg-type]


def test_the_affinity_mask_is_the_default(serve: Serve) -> None:
    before = f"import os; os.sched_setaffinity(0, {CPUS[-1:]})"
    server = serve("'handlers:calls'", "cores=None", before=before)
    with server.one_client_per_core(1) as [client]:
        assert client.call("affinity") == CPUS[-1:]
        assert client.call("core")["index"] == 0


# Addresses


def test_several_hosts(serve: Serve) -> None:
    server = serve(arguments="['127.0.0.1', '127.0.0.2']")
    assert [host for host, _ in server.addresses] == ["127.0.0.1", "127.0.0.2"]
    for address in server.addresses:
        with server.connect(tuple(address)) as sock:
            echo(sock, b"hello")


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["'::1'", "None", "''", "['::1', '127.0.0.1']"])
def test_ipv6(serve: Serve, host: str) -> None:
    server = serve(arguments=host)
    [port] = [address[1] for address in server.addresses if len(address) == 4]
    with server.connect(("::1", port)) as sock:
        echo(sock, b"hello")


def test_a_socket_of_the_caller(serve: Serve) -> None:
    before = "import socket; sock = socket.create_server(('127.0.0.1', 0))"
    server = serve(arguments="sock=sock", before=before, after="print(sock.fileno())")
    with server.connect() as sock:
        echo(sock, b"hello")
    end = server.stop()
    assert end.output == ["-1"]  # closed, as asyncio's servers close theirs
    assert end.errors == ""


def test_a_socket_of_another_kind() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="A Stream Socket was expected"):
            kloop.serve_per_core("handlers:Echo", sock=sock)


def test_a_unix_socket(serve: Serve) -> None:
    before = (
        "import socket, tempfile; folder = tempfile.TemporaryDirectory()\n"
        "sock = socket.socket(socket.AF_UNIX); sock.bind(folder.name + '/socket')\n"
        "def ready(addresses): print('ready', json.dumps([[addresses[0], 0]]), flush=True)\n"
    )
    server = serve(arguments="sock=sock", before=before, after="folder.cleanup()")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(server.address[0])
        echo(sock, b"hello")


def test_a_port_in_use(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threads = threading.active_count()
        tasks = len(os.listdir("/proc/self/task"))
        fds = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            kloop.serve_per_core("handlers:Echo", ["127.0.0.2", "127.0.0.1"], port)
        assert caught.value.errno == errno.EADDRINUSE
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/task")) <= tasks  # one of another test may have ended
    assert len(os.listdir("/proc/self/fd")) <= fds - 1  # `other`


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(socket.gaierror):
        kloop.serve_per_core("handlers:Echo", "no.such.host.invalid")


def test_ready_is_called_when_every_core_serves(serve: Serve) -> None:
    server = serve("'handlers:calls'", "cores=4")
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.connect())) for _ in range(4)]
        assert sorted(client.call("core")["index"] for client in clients) == [0, 1, 2, 3]


def test_workers_have_the_arguments_and_the_path_of_the_program(script: Serve) -> None:
    text = program("'handlers:calls'", before="import sys; sys.path.append('/somewhere')")
    server = script(text, "--some", "argument")
    server.wait_until_ready()
    with Client(server.connect()) as client:
        process = client.call("process")
    assert process["argv"][1:] == ["--some", "argument"]
    assert process["path"][-1] == "/somewhere"


# Balance


def counts(clients: list[tuple[Client, int]], cores: int) -> list[int]:
    counter = Counter(core for _, core in clients)
    return [counter[core] for core in range(cores)]


@pytest.mark.parametrize("cores", [2, 3])
def test_connections_are_spread_evenly(serve: Serve, cores: int) -> None:
    server = serve("'handlers:calls'", f"cores={cores}")
    clients: list[tuple[Client, int]] = []
    with ExitStack() as stack:

        def open_some(number: int) -> None:
            for _ in range(number):
                client = stack.enter_context(Client(server.connect()))
                clients.append((client, client.call("core")["index"]))

        for _ in range(40):
            open_some(1)
            spread = counts(clients, cores)
            assert max(spread) - min(spread) <= 1, spread

        # All but two of one core go; the next ones must fill the gap.
        gone = [entry for entry in clients if entry[1] == 0][2:]
        for entry in gone:
            entry[0].close()
            clients.remove(entry)
        watcher = next(client for client, core in clients if core == 0)
        wait_until(lambda: watcher.call("open_connections") == 2)
        open_some(len(gone))
        spread = counts(clients, cores)
        assert max(spread) - min(spread) <= 1, spread
        open_some(10)
        spread = counts(clients, cores)
        assert max(spread) - min(spread) <= 1, spread


def test_connections_opened_at_once_are_spread_evenly(serve: Serve) -> None:
    server = serve("'handlers:calls'", "cores=2")
    with ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(200)]
        for sock in socks:
            sock.sendall(json.dumps(["core"]).encode() + b"\n")
        found = [stack.enter_context(sock.makefile()).readline() for sock in socks]
    assert Counter(json.loads(line)[1]["index"] for line in found) == {0: 100, 1: 100}
