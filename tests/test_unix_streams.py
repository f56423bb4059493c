"""Unix stream sockets: names of all kinds, socket files, and descriptors in passing."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from support import Recorder, connected_sockets

Loop = asyncio.AbstractEventLoop
Names = list[object]


async def exchange(path: str | bytes | Path, listen_at: str | bytes | Path) -> tuple[Names, Names]:
    """Send something there and back. Returns the names that the client and the server saw."""
    seen: Names = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(writer.get_extra_info(name) for name in ("sockname", "peername"))
        writer.write(await reader.readexactly(5))
        writer.close()

    async with await asyncio.start_unix_server(echo, listen_at):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        names = [writer.get_extra_info(name) for name in ("sockname", "peername")]
        writer.close()
        await writer.wait_closed()
    return names, seen


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
async def test_socket_files(loop: Loop, tmp_path: Path, kind: type) -> None:
    path = str(tmp_path / "socket")
    client, server = await exchange(kind(path), kind(path))
    assert client == ["", path]
    assert server == [path, ""]


@pytest.mark.parametrize("kind", [str, os.fsencode])
async def test_abstract_names(loop: Loop, kind: type) -> None:
    name = f"\0kloop-test-{os.getpid()}"
    client, server = await exchange(kind(name), kind(name))
    assert client == ["", name.encode()]
    assert server == [name.encode(), ""]


async def test_a_path_that_is_not_utf8(loop: Loop, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    client, server = await exchange(path, path)
    assert client == ["", os.fsdecode(path)]
    assert server == [os.fsdecode(path), ""]


async def test_a_stale_socket_file_is_replaced(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    old = path.stat().st_ino, path.stat().st_ctime_ns
    server = await loop.create_unix_server(Recorder, path)
    assert (path.stat().st_ino, path.stat().st_ctime_ns) != old
    server.close()
    await server.wait_closed()


async def test_a_file_that_is_no_socket_is_left_alone(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    with pytest.raises(OSError, match="is already in use"):
        await loop.create_unix_server(Recorder, path)
    assert path.read_text() == "content"


@pytest.mark.parametrize("cleanup", [True, False])
async def test_the_socket_file_of_a_closed_server(
    loop: Loop, tmp_path: Path, cleanup: bool
) -> None:
    path = tmp_path / "socket"
    server = await loop.create_unix_server(Recorder, path, cleanup_socket=cleanup)
    assert stat.S_ISSOCK(path.stat().st_mode)
    server.close()
    await server.wait_closed()
    assert path.exists() is not cleanup


async def test_the_file_of_another_server_is_not_cleaned_up(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = await loop.create_unix_server(Recorder, path)
    path.unlink()
    second = await loop.create_unix_server(Recorder, path)
    first.close()
    assert path.exists()
    second.close()
    await first.wait_closed()
    await second.wait_closed()


async def test_nobody_listens(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_connection(Recorder, str(tmp_path / "missing"))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    with pytest.raises(ConnectionRefusedError):
        await loop.create_unix_connection(Recorder, str(tmp_path / "stale"))


async def test_sockets_of_other_kinds_are_refused(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    with ours, theirs:
        with pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected"):
            await loop.create_unix_connection(Recorder, sock=ours)
        with pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected"):
            await loop.create_unix_server(Recorder, sock=ours)
        with pytest.raises(ValueError, match="no path and sock were specified"):
            await loop.create_unix_connection(Recorder)


async def test_messages_that_carry_descriptors_arrive_one_by_one(loop: Loop) -> None:
    """The kernel cuts a read before such a message, whatever room there is."""
    ours, theirs = socket.socketpair()
    with theirs:
        transport, protocol = await loop.create_connection(Recorder, sock=ours)
        for data in (b"one", b"two", b"three"):
            socket.send_fds(theirs, [data], [0])
        assert await protocol.received(11) == b"onetwothree"
        transport.close()
        await protocol.lost
