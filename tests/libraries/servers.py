"""Real PostgreSQL and Redis servers, each a child process with a data directory of its own."""

import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certificate
from support import LOCALHOST, unused_port

PATIENCE = 30.0
"""Seconds for a server to start or to end."""

TRIES = 5
"""How often a server is started: somebody else may take a free port before it does."""

Command = Sequence[str | Path]
Settings = dict[str, str | int | Path]


class ServerAbsent(Exception):
    """The server is not installed."""


class ServerEnded(Exception):
    """The server has ended while it was starting."""


@dataclass(frozen=True)
class PostgreSQL:
    """Where a server listens. Over TCP its user needs the password, over the Unix socket none."""

    port: int
    socket_folder: str
    host: str = LOCALHOST
    user: str = "kloop"
    password: str = "sesame"
    database: str = "postgres"

    def credentials(self) -> dict[str, Any]:
        """The arguments of a client that connects over TCP."""
        names = ("host", "port", "user", "password", "database")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Redis:
    """Where a server listens."""

    port: int
    tls_port: int
    socket_path: str
    host: str = LOCALHOST


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Run a PostgreSQL server. ServerAbsent where there is none."""
    initdb, postgres = postgresql_program("initdb"), postgresql_program("postgres")
    with private_folder() as folder:
        password = folder / "password"
        password.write_text(PostgreSQL.password)
        data = folder / "data"
        options = ["--username", PostgreSQL.user, "--pwfile", password, "--encoding=UTF8"]
        options += ["--auth-local=trust", "--auth-host=scram-sha-256", "--no-locale", "--no-sync"]
        subprocess.run(
            unprivileged([initdb, "--pgdata", data, *options]),
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )
        settings: Settings = {
            "listen_addresses": PostgreSQL.host,
            "unix_socket_directories": folder,
            "fsync": "off",
            "max_connections": 60,
            "ssl": "on",
            "ssl_cert_file": folder / "certificate.pem",
            "ssl_key_file": folder / "key.pem",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]

        def prepare() -> tuple[Command, PostgreSQL]:
            where = PostgreSQL(unused_port(), str(folder))
            return [postgres, "-D", data, f"--port={where.port}", *options], where

        ready = "database system is ready to accept connections"
        with started(prepare, folder, ready, signal.SIGINT) as where:
            yield where


@contextlib.contextmanager
def redis() -> Iterator[Redis]:
    """Run a Redis server. ServerAbsent where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        raise ServerAbsent("no redis-server is installed")
    with private_folder() as folder:
        settings: Settings = {
            "bind": Redis.host,
            "dir": folder,
            "save": "",
            "unixsocket": folder / "redis.sock",
            "tls-cert-file": folder / "certificate.pem",
            "tls-key-file": folder / "key.pem",
            "tls-ca-cert-file": folder / "certificate.pem",
            "tls-auth-clients": "no",
        }
        options = [text for name, value in settings.items() for text in (f"--{name}", value)]

        def prepare() -> tuple[Command, Redis]:
            where = Redis(unused_port(), unused_port(), str(folder / "redis.sock"))
            ports = ["--port", str(where.port), "--tls-port", str(where.tls_port)]
            return [program, *ports, *options], where

        with started(prepare, folder, "Ready to accept connections", signal.SIGTERM) as where:
            yield where


def postgresql_program(name: str) -> str:
    """The path of one of the server's programs, which Debian keeps out of PATH."""
    found = shutil.which(name) or max(
        map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default=None
    )
    if found is None:
        raise ServerAbsent("no PostgreSQL server is installed")
    return found


@functools.cache
def server_user() -> pwd.struct_passwd | None:
    """Whom root runs the servers as, since PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def unprivileged(command: Command) -> list[str | Path]:
    """The command, as it is run by a user who is not root. It ends when its parent does."""
    user = server_user()
    prefix = ["setpriv", "--pdeathsig=SIGINT"]
    if user is not None:
        prefix += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*prefix, *command]


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of the servers' user, with the certificate and its key, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="kloop-") as name:
        folder = Path(name)
        (folder / "certificate.pem").write_text(certificate.CERTIFICATE)
        (folder / "key.pem").write_text(certificate.KEY)
        (folder / "key.pem").chmod(0o600)
        user = server_user()
        if user is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
        yield folder


@contextlib.contextmanager
def started[Where](
    prepare: Callable[[], tuple[Command, Where]], folder: Path, ready: str, stop: signal.Signals
) -> Iterator[Where]:
    """Run a server, from the moment its log says that it is ready until the signal to stop."""
    log = folder / "log"
    for tries_left in reversed(range(TRIES)):
        command, where = prepare()
        with log.open("w") as output:
            server = subprocess.Popen(
                unprivileged(command),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=folder,
            )
        with server:
            try:
                wait_for_log(server, log, ready)
                yield where
                server.send_signal(stop)
                server.wait(PATIENCE)
                return
            except ServerEnded:
                if not tries_left:
                    raise
            finally:
                server.kill()


def wait_for_log(server: subprocess.Popen[bytes], log: Path, text: str) -> None:
    limit = time.monotonic() + PATIENCE
    while text not in (written := log.read_text()):
        if server.poll() is not None:
            raise ServerEnded(f"{server.args!r} ended with {server.returncode}:\n{written}")
        if time.monotonic() > limit:
            raise TimeoutError(f"{server.args!r} does not start:\n{written}")
        time.sleep(0.01)
