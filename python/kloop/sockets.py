"""The loop's sock_ methods: try the call, and wait in the ring only if the socket is not ready.

Data is taken from a socket only by the coroutine that returns it, so one that is cancelled loses
no byte and leaks no connection. The semantics are those of asyncio.SelectorEventLoop.
"""

import asyncio
import errno
import io
import os
import select
import socket
from asyncio import base_events
from asyncio.exceptions import SendfileNotAvailableError
from typing import IO, TYPE_CHECKING, Any

__all__ = ["SocketCalls"]

_NOT_READY = (BlockingIOError, InterruptedError)

if TYPE_CHECKING:
    from kloop import _kloop

    class _Base(_kloop.Loop, asyncio.SelectorEventLoop):
        pass
else:
    _Base = object


class SocketCalls(_Base):
    """What a Loop inherits of its sock_ methods."""

    async def _until(self, sock: socket.socket, events: int) -> None:
        """Return once poll(2) would report one of the events."""
        fd = sock.fileno()
        self._ensure_fd_no_transport(fd)
        poll = self._poll(fd, events)
        try:
            await poll.future
        finally:
            poll.cancel()

    def _check_socket(self, sock: socket.socket) -> None:
        base_events._check_ssl_socket(sock)  # type: ignore[attr-defined]
        if self.get_debug() and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        """See asyncio.loop.sock_recv."""
        self._check_socket(sock)
        while True:
            try:
                return sock.recv(n)
            except _NOT_READY:
                pass
            await self._until(sock, select.POLLIN)

    async def sock_recv_into(self, sock: socket.socket, buf: Any) -> int:
        """See asyncio.loop.sock_recv_into."""
        self._check_socket(sock)
        while True:
            try:
                return sock.recv_into(buf)
            except _NOT_READY:
                pass
            await self._until(sock, select.POLLIN)

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        """See asyncio.loop.sock_recvfrom."""
        self._check_socket(sock)
        while True:
            try:
                return sock.recvfrom(bufsize)
            except _NOT_READY:
                pass
            await self._until(sock, select.POLLIN)

    async def sock_recvfrom_into(
        self, sock: socket.socket, buf: Any, nbytes: int = 0
    ) -> tuple[int, Any]:
        """See asyncio.loop.sock_recvfrom_into."""
        self._check_socket(sock)
        nbytes = nbytes or len(buf)
        while True:
            try:
                return sock.recvfrom_into(buf, nbytes)
            except _NOT_READY:
                pass
            await self._until(sock, select.POLLIN)

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        """See asyncio.loop.sock_sendall."""
        self._check_socket(sock)
        try:
            sent = sock.send(data)
        except _NOT_READY:
            sent = 0
        if isinstance(data, (bytes, bytearray)) and sent == len(data):
            return
        with memoryview(data) as view, view.cast("B") as rest:
            while sent < len(rest):
                await self._until(sock, select.POLLOUT)
                try:
                    sent += sock.send(rest[sent:])
                except _NOT_READY:
                    pass

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        """See asyncio.loop.sock_sendto."""
        self._check_socket(sock)
        while True:
            try:
                return sock.sendto(data, address)
            except _NOT_READY:
                pass
            await self._until(sock, select.POLLOUT)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """See asyncio.loop.sock_connect."""
        self._check_socket(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            resolved = await self._ensure_resolved(  # type: ignore[attr-defined]
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        try:
            sock.connect(address)
        except _NOT_READY as error:
            if error.errno == errno.EAGAIN and sock.family == socket.AF_UNIX:
                raise  # The backlog is full, and no event tells when it is not.
        else:
            return
        await self._until(sock, select.POLLOUT)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, f"Connect call failed {address}")

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """See asyncio.loop.sock_accept."""
        self._check_socket(sock)
        while True:
            try:
                conn, address = sock.accept()
            except _NOT_READY:
                await self._until(sock, select.POLLIN)
            else:
                conn.setblocking(False)
                return conn, address

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: IO[bytes], offset: int, count: int | None
    ) -> int:
        try:
            source = file.fileno()
            size = os.fstat(source).st_size
        except (AttributeError, io.UnsupportedOperation, OSError):
            raise SendfileNotAvailableError("not a regular file") from None
        if not (count or size):
            return 0
        total = 0
        try:
            while not count or total < count:
                block = count - total if count else size
                try:
                    sent = os.sendfile(sock.fileno(), source, offset + total, block)
                except _NOT_READY:
                    pass
                else:
                    if sent == 0:
                        break
                    total += sent
                # Also after progress, to let others run.
                await self._until(sock, select.POLLOUT)
        except OSError as error:
            if total == 0:
                raise SendfileNotAvailableError("os.sendfile call failed") from error
            if error.errno == errno.ENOTCONN and type(error) is not ConnectionError:
                raise ConnectionError("socket is not connected", errno.ENOTCONN) from error
            raise
        finally:
            try:
                os.lseek(source, offset + total, os.SEEK_SET)
            except OSError:
                if total:
                    raise
        return total
