"""TLS (asyncio's own, on the loop's transports) and sendfile over TCP."""

import asyncio
import pathlib
import socket
import ssl
import sys
from typing import Any

import pytest

from support import (
    LOCALHOST,
    Echo,
    ErrorLog,
    Factory,
    Recorder,
    address_of,
    client_context,
    connected_sockets,
    linked,
    pattern,
    server_context,
    settle,
)

Loop = asyncio.AbstractEventLoop
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter

SIZE = 3_000_000


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def test_tls_there_and_back(loop: Loop) -> None:
    data = pattern(SIZE)
    server = await asyncio.start_server(echo, LOCALHOST, 0, ssl=server_context())
    async with server:
        reader, writer = await asyncio.open_connection(
            *address_of(server), ssl=client_context(), server_hostname="localhost"
        )
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert writer.get_extra_info("peername") == address_of(server)
        assert writer.get_extra_info("peercert")["subject"] == ((("commonName", "localhost"),),)

        async def send() -> None:
            for start in range(0, SIZE, 100_000):
                writer.write(data[start : start + 100_000])
                await writer.drain()

        sending = loop.create_task(send())
        assert await reader.readexactly(SIZE) == data
        await sending
        writer.close()
        await writer.wait_closed()


async def test_the_contexts_of_tls_are_where_libraries_look_for_them(loop: Loop) -> None:
    served, used = server_context(), client_context()
    transports: list[Any] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transports.append(writer.transport)
        await echo(reader, writer)

    server = await asyncio.start_server(note, LOCALHOST, 0, ssl=served)
    async with server:
        assert server._ssl_context is served  # type: ignore[attr-defined]
        reader, writer = await asyncio.open_connection(
            *address_of(server), ssl=used, server_hostname="localhost"
        )
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        transports.append(writer.transport)
        for transport, context in zip(transports, (served, used), strict=True):
            assert isinstance(transport, asyncio.Transport)
            assert transport.get_extra_info("sslcontext") is context
            assert transport._ssl_protocol._sslcontext is context
        writer.close()
        await writer.wait_closed()


async def test_tls_with_protocols(loop: Loop) -> None:
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, LOCALHOST, 0, ssl=server_context())
    async with server:
        transport, client = await loop.create_connection(
            Recorder, *address_of(server), ssl=client_context(), server_hostname="localhost"
        )
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.close()
        assert await client.lost is None
        assert await protocols.made[0].lost is None


async def test_a_certificate_that_is_not_trusted(loop: Loop) -> None:
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, LOCALHOST, 0, ssl=server_context())
    async with server:
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(
                Recorder,
                *address_of(server),
                ssl=ssl.create_default_context(),
                server_hostname="localhost",
            )
        await settle(10)
    assert [protocol.calls for protocol in protocols.made] in ([], [[]])


async def test_a_client_that_does_not_speak_tls(loop: Loop) -> None:
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, LOCALHOST, 0, ssl=server_context())
    async with server:
        reader, writer = await asyncio.open_connection(*address_of(server))
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()
        await writer.wait_closed()
    assert [protocol.calls for protocol in protocols.made] == [[]]


async def test_streams_upgrade_to_tls(loop: Loop) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"OK\n")
        await writer.drain()
        await writer.start_tls(server_context())
        await echo(reader, writer)

    server = await asyncio.start_server(handle, LOCALHOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*address_of(server))
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"OK\n"
        await writer.start_tls(client_context(), server_hostname="localhost")
        assert writer.get_extra_info("ssl_object") is not None
        data = pattern(100_000)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()
    await server.wait_closed()


async def test_protocols_upgrade_to_tls(loop: Loop) -> None:
    protocols = Factory(Recorder)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    async with server:
        plain, client = await loop.create_connection(Recorder, *address_of(server))
        accepted = await protocols.next()
        await accepted.made
        server_side, client_side = await asyncio.gather(
            loop.start_tls(accepted.transport, accepted, server_context(), server_side=True),
            loop.start_tls(plain, client, client_context(), server_hostname="localhost"),
        )
        assert isinstance(server_side, asyncio.Transport)
        assert isinstance(client_side, asyncio.Transport)
        client_side.write(b"question")
        assert await accepted.received(8) == b"question"
        server_side.write(b"answer")
        assert await client.received(6) == b"answer"
        client_side.close()
        assert await client.lost is None
        assert await accepted.lost is None


async def test_start_tls_wants_a_context(loop: Loop) -> None:
    async with linked(Recorder) as link:
        with pytest.raises(TypeError, match="sslcontext is expected to be an instance"):
            await loop.start_tls(link.transport, link.protocol, None)  # type: ignore[arg-type]
        link.transport.write(b"still works")
        assert await link.receive(11) == b"still works"


async def test_a_handshake_that_takes_too_long(loop: Loop) -> None:
    async with linked(Recorder) as link:
        with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
            await loop.start_tls(
                link.transport,
                link.protocol,
                client_context(),
                server_hostname="localhost",
                ssl_handshake_timeout=0.05,
            )
        await link.receive_all()
        link.protocol.lost.set_result(None)


@pytest.fixture
def content(tmp_path: pathlib.Path) -> tuple[pathlib.Path, bytes]:
    path = tmp_path / "content"
    data = pattern(SIZE)
    path.write_bytes(data)
    return path, data


Content = tuple[pathlib.Path, bytes]


@pytest.mark.parametrize("small", [False, True], ids=["large buffers", "small buffers"])
async def test_sendfile_sends_the_file(loop: Loop, content: Content, small: bool) -> None:
    path, data = content
    async with linked(Recorder, small=small) as link:
        receiving = loop.create_task(link.receive(len(data) + 12))
        with path.open("rb") as file:
            link.transport.write(b"before")
            assert await loop.sendfile(link.transport, file) == len(data)
            link.transport.write(b"behind")
            assert file.tell() == len(data)
        assert await receiving == b"before" + data + b"behind"


async def test_sendfile_sends_a_part(loop: Loop, content: Content) -> None:
    path, data = content
    async with linked(Recorder) as link:
        receiving = loop.create_task(link.receive(1_000_000))
        with path.open("rb") as file:
            sent = await loop.sendfile(link.transport, file, offset=123_456, count=1_000_000)
            assert sent == 1_000_000
            assert file.tell() == 1_123_456
        assert await receiving == data[123_456:1_123_456]


async def test_sendfile_waits_for_what_is_buffered(loop: Loop, content: Content) -> None:
    path, data = content
    async with linked(Recorder, small=True) as link:
        link.transport.write(b"b" * 500_000)
        assert link.transport.get_write_buffer_size() > 0
        receiving = loop.create_task(link.receive(len(data) + 500_000))
        with path.open("rb") as file:
            assert await loop.sendfile(link.transport, file) == len(data)
        assert await receiving == b"b" * 500_000 + data


async def test_received_data_is_kept_while_a_file_is_sent(loop: Loop, content: Content) -> None:
    path, data = content
    async with linked(Recorder, small=True) as link:
        with path.open("rb") as file:
            sending = loop.create_task(loop.sendfile(link.transport, file))
            await settle()
            assert not sending.done()
            link.send(b"meanwhile")
            assert await link.receive(len(data)) == data
            assert await sending == len(data)
        assert await link.protocol.received(9) == b"meanwhile"


async def test_writing_while_a_file_is_sent_is_an_error(loop: Loop, content: Content) -> None:
    path, data = content
    async with linked(Recorder, small=True) as link:
        with path.open("rb") as file:
            sending = loop.create_task(loop.sendfile(link.transport, file))
            await settle()
            assert not sending.done()
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                link.transport.write(b"x")
            assert await link.receive(len(data)) == data
            await sending
        link.transport.write(b"works again")
        assert await link.receive(11) == b"works again"


async def test_sendfile_refuses_what_it_cannot_do(loop: Loop, content: Content) -> None:
    path, _ = content
    async with linked(Recorder) as link:
        with path.open() as text, pytest.raises(ValueError, match="binary mode"):
            await loop.sendfile(link.transport, text)  # type: ignore[arg-type]
        link.transport.close()
        with path.open("rb") as file, pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(link.transport, file)


async def test_sendfile_to_a_peer_that_resets(
    loop: Loop, content: Content, errors: ErrorLog
) -> None:
    path, _ = content
    async with linked(Recorder, small=True) as link:
        with path.open("rb") as file:
            sending = loop.create_task(loop.sendfile(link.transport, file))
            await settle()
            link.reset()
            with pytest.raises((ConnectionError, BrokenPipeError)):
                await sending


async def test_sock_sendfile(loop: Loop, content: Content) -> None:
    path, data = content
    async with linked(Recorder) as link:
        with path.open("rb") as file:
            sending = loop.create_task(loop.sock_sendfile(link.peer, file))
            assert await link.protocol.received(len(data)) == data
            assert await sending == len(data)


@pytest.mark.parametrize(("offset", "count"), [(0, None), (1000, None), (0, 5000), (77, 5000)])
async def test_sock_sendfile_leaves_the_file_where_it_stopped(
    loop: Loop, content: Content, offset: int, count: int | None
) -> None:
    path, data = content
    expected = data[offset : None if count is None else offset + count]
    async with linked(Recorder) as link:
        with path.open("rb") as file:
            sending = loop.create_task(loop.sock_sendfile(link.peer, file, offset, count))
            assert await link.protocol.received(len(expected)) == expected
            assert await sending == len(expected)
            assert file.tell() == offset + len(expected)


async def test_sock_sendfile_from_the_end_leaves_the_file_there(
    loop: Loop, loop_name: str, content: Content
) -> None:
    if loop_name == "asyncio" and sys.version_info < (3, 14):
        pytest.skip("asyncio moves the file only if there was something to send on 3.13.0")
    path, data = content
    async with linked(Recorder) as link:
        with path.open("rb") as file:
            file.seek(123)
            assert await loop.sock_sendfile(link.peer, file, len(data)) == 0
            assert file.tell() == len(data)


async def test_a_cancelled_sock_sendfile_stops(
    loop: Loop, loop_name: str, content: Content
) -> None:
    path, data = content
    ours, theirs = connected_sockets(small=True)
    with ours, theirs, path.open("rb") as file:
        sending = loop.create_task(loop.sock_sendfile(ours, file))
        await settle()
        assert not sending.done()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        ours.shutdown(socket.SHUT_WR)
        got = bytearray()
        while chunk := await loop.sock_recv(theirs, 100_000):
            got += chunk
        assert 0 < len(got) < len(data)
        assert got == data[: len(got)]
        if loop_name != "asyncio":
            assert file.tell() == len(got)  # the stock loop forgets it
