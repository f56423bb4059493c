"""Where datagrams go and come from: every form of address that the socket module knows."""

import asyncio
import socket
from typing import Any

import pytest

from datagrams import check_refusal, endpoint, name, refusal, udp_socket
from support import LOCALHOST, ErrorLog, has_ipv6

Loop = asyncio.AbstractEventLoop


class Text(str):
    """A str that is not exactly a str."""


class Index:
    """A number that is no int."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize("host", [LOCALHOST, "localhost", Text(LOCALHOST), b"127.0.0.1", ""])
async def test_hosts(loop: Loop, host: Any) -> None:
    """The empty host is any address of this machine."""
    with udp_socket() as peer:
        async with endpoint() as udp:
            address = (host, peer.getsockname()[1])
            for _ in range(2):
                udp.transport.sendto(b"same object", address)
                assert await loop.sock_recvfrom(peer, 100) == (b"same object", name(udp))
            udp.transport.sendto(b"equal object", (host, peer.getsockname()[1]))
            assert await loop.sock_recvfrom(peer, 100) == (b"equal object", name(udp))
            assert not udp.transport.is_closing()


async def test_several_destinations_by_turns(loop: Loop) -> None:
    with udp_socket() as first, udp_socket() as second:
        async with endpoint() as udp:
            addresses = [first.getsockname(), second.getsockname()]
            for _ in range(3):
                for sock, address in zip((first, second), addresses, strict=True):
                    udp.transport.sendto(b"%d" % address[1], address)
                    assert await loop.sock_recv(sock, 100) == b"%d" % address[1]


async def test_the_sender_is_what_recvfrom_says(loop: Loop) -> None:
    with udp_socket() as peer, udp_socket() as plain:
        async with endpoint() as udp:
            for _ in range(2):
                peer.sendto(b"x", name(udp))
                peer.sendto(b"x", plain.getsockname())
                _, address = await loop.sock_recvfrom(plain, 100)
                _, sender = await udp.received.get()
                assert sender == address
                assert [type(part) for part in sender] == [str, int]


@pytest.mark.parametrize(
    "address",
    [
        (LOCALHOST, 0),
        ("255.255.255.255", 9),
        ("<broadcast>", 9),
        ("::1", 9),
        None,
        [LOCALHOST, 9],
        (LOCALHOST,),
        (LOCALHOST, 9, 0),
        (LOCALHOST, "9"),
        (LOCALHOST, 9.0),
        (LOCALHOST, -1),
        (LOCALHOST, 65536),
        (LOCALHOST, 1 << 70),
        (9, LOCALHOST),
        ("\ud800", 9),
        "/a/path",
    ],
    ids=ascii,
)
async def test_refused_addresses(loop: Loop, errors: ErrorLog, address: Any) -> None:
    expected = refusal(socket.AF_INET, address)
    async with endpoint() as udp:
        await check_refusal(udp, errors, expected, address)


async def test_numbers_need_not_be_ints(loop: Loop) -> None:
    async with endpoint() as udp:
        address: Any = (LOCALHOST, Index())
        udp.transport.sendto(b"data", address)
        udp.transport.sendto(b"next", name(udp))
        assert (await udp.received.get())[0] == b"next"


# An endpoint with a remote address


async def test_the_remote_address_may_be_given_again(loop: Loop) -> None:
    with udp_socket() as peer:
        remote = peer.getsockname()
        async with endpoint(remote_addr=remote) as udp:
            for address in (None, remote, (LOCALHOST, remote[1])):
                udp.transport.sendto(b"data", address)
                assert await loop.sock_recv(peer, 100) == b"data"


@pytest.mark.parametrize("broadcast", [False, True])
async def test_other_addresses_than_the_remote_one_are_refused(loop: Loop, broadcast: bool) -> None:
    with udp_socket() as peer:
        remote = peer.getsockname()
        async with endpoint(remote_addr=remote, allow_broadcast=broadcast) as udp:
            for other in ((LOCALHOST, 9), (LOCALHOST, remote[1], 0), LOCALHOST, ()):
                with pytest.raises(ValueError, match="Invalid address: must be None or") as info:
                    udp.transport.sendto(b"data", other)  # type: ignore[arg-type]
                assert str(remote) in str(info.value)
            udp.transport.sendto(b"data")
            assert await loop.sock_recv(peer, 100) == b"data"


async def test_a_comparison_that_fails(loop: Loop) -> None:
    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise LookupError("in __eq__")

        __hash__ = None  # type: ignore[assignment]

    with udp_socket() as peer:
        async with endpoint(remote_addr=peer.getsockname()) as udp:
            with pytest.raises(LookupError, match="in __eq__"):
                udp.transport.sendto(b"data", Incomparable())  # type: ignore[arg-type]
            assert not udp.transport.is_closing()


# IPv6


@pytest.fixture
def ipv6() -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("rest", [(), (0,), (0, 0), (0x12345,), (0, 1), (0x12345, 1)], ids=repr)
@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1", ""])
async def test_ipv6_addresses(loop: Loop, host: str, rest: tuple[int, ...]) -> None:
    with udp_socket(socket.AF_INET6, "::1") as peer:
        async with endpoint(local_addr=("::1", 0)) as udp:
            address: Any = (host, peer.getsockname()[1], *rest)
            udp.transport.sendto(b"data", address)
            assert udp.errors.empty()
            assert await loop.sock_recvfrom(peer, 100) == (b"data", name(udp))
            peer.sendto(b"answer", name(udp))
            assert await udp.received.get() == (b"answer", peer.getsockname())


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize(
    "address",
    [
        ("::1", 0),
        ("::1%lo", 9),
        (LOCALHOST, 9),
        ("::1", 9, 1 << 20),
        ("::1", 9, 0, 0, 0),
        ("::1", 9, "0"),
        ("::1", 1 << 16),
        ("fe80::1", 9, 0, 1 << 31),
        "::1",
    ],
    ids=repr,
)
async def test_refused_ipv6_addresses(loop: Loop, errors: ErrorLog, address: Any) -> None:
    expected = refusal(socket.AF_INET6, address)
    async with endpoint(local_addr=("::1", 0)) as udp:
        await check_refusal(udp, errors, expected, address)


@pytest.mark.usefixtures("ipv6")
async def test_mapped_ipv4_addresses(loop: Loop) -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    with udp_socket() as peer:
        async with endpoint(sock=sock) as udp:
            port = peer.getsockname()[1]
            udp.transport.sendto(b"data", ("::ffff:127.0.0.1", port))
            assert await loop.sock_recv(peer, 100) == b"data"
            peer.sendto(b"answer", (LOCALHOST, name(udp)[1]))
            assert await udp.received.get() == (b"answer", ("::ffff:127.0.0.1", port, 0, 0))


# Other families


async def test_netlink(loop: Loop) -> None:
    """The kernel's list of network interfaces, asked for with a request of rtnetlink(7)."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except OSError:
        pytest.skip("no netlink here")
    sock.bind((0, 0))
    length, get_link, request_and_dump = 20, 18, 0x301
    message = length.to_bytes(4, "little") + get_link.to_bytes(2, "little")
    message += request_and_dump.to_bytes(2, "little") + bytes(12)
    async with endpoint(sock=sock) as netlink:
        assert name(netlink) == sock.getsockname()
        netlink.transport.sendto(message, (0, 0))
        data, address = await netlink.received.get()
        assert address == (0, 0)
        assert b"lo\0" in data


async def test_what_the_protocol_gets_can_be_sent_back_to(loop: Loop) -> None:
    async with endpoint() as first, endpoint() as second:
        first.transport.sendto(b"ping", name(second))
        data, address = await second.received.get()
        second.transport.sendto(data, address)
        second.transport.sendto(data, tuple(address))
        assert await first.received.get() == (b"ping", name(second))
        assert await first.received.get() == (b"ping", name(second))
