"""serve_per_core: many connections leave nothing behind."""

import itertools
import socket

import pytest
from server_process import Serve, Server, echo, is_closed, wait_until

from support import reset

CONNECTIONS = 20_000
WARM_UP = 1_000
MESSAGE = b"x" * 200

GROWTH = 4 * 1024 * 1024
"""Bytes of resident memory that allocators may take their time with."""

# Many local addresses: the ports of one run out, since closed connections keep theirs a while.
sources = itertools.cycle(f"127.0.0.{number}" for number in range(2, 50))


def drop(server: Server, kind: int) -> None:
    """Open a connection and end it in one of several ways."""
    sock = server.connect(source_address=(next(sources), 0))
    with sock:
        if kind == 0:  # a whole conversation
            echo(sock, MESSAGE)
        elif kind == 1:  # reset with the echo under way
            sock.sendall(MESSAGE)
            reset(sock)
        elif kind == 2:  # half closed by the client, then closed by the server
            echo(sock, MESSAGE)
            sock.shutdown(socket.SHUT_WR)
            assert is_closed(sock)
        elif kind == 3:  # closed with the echo under way
            sock.sendall(MESSAGE[:100])
        elif kind == 4:  # reset at once
            reset(sock)
        else:  # closed after half of a conversation
            sock.sendall(MESSAGE)
            assert sock.recv(50)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("handler", ["MixedEcho", "mixed_echo"])
def test_connections_leave_nothing_behind(serve: Serve, handler: str) -> None:
    server = serve(f"'handlers:{handler}'", "cores=2")
    with server.one_client_per_core(2) as clients:

        def settled() -> bool:
            return all(client.call("loop_stats")["transports"] == 1 for client in clients)

        fds = server.open_fds()
        stats = [client.call("loop_stats") for client in clients]
        for number in range(WARM_UP):
            drop(server, number % 6)
        wait_until(settled)
        memory = server.resident_bytes()
        for number in range(CONNECTIONS - WARM_UP):
            drop(server, number % 6)
        wait_until(settled)
        wait_until(lambda: server.open_fds() == fds)
        assert [client.call("loop_stats") for client in clients] == stats
        assert server.resident_bytes() - memory < GROWTH
        served = [client.call("connections_served") for client in clients]
    assert sum(served) >= CONNECTIONS
    assert abs(served[0] - served[1]) < CONNECTIONS / 10
