"""Which driver a loop gets: KLOOP_DRIVER, and what happens where io_uring is forbidden."""

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kloop
import sandbox

HERE = Path(__file__).parent

LIMIT = 20.0
"""Seconds that a child process may take."""

PRELUDE = """
import asyncio
import sandbox
from kloop import Loop, new_event_loop, run

async def echo(reader, writer):
    writer.write(await reader.readline())
    writer.close()

async def converse():
    "A server and a client; returns the driver's name."
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n")
        assert await reader.read() == b"hello\\n"
        writer.close()
        await writer.wait_closed()
    return asyncio.get_running_loop().driver
"""

ALLOWED = "KLOOP_DRIVER must be one of 'auto', 'uring', 'epoll', not "

Outcome = subprocess.CompletedProcess[str]
RunChild = Callable[..., Outcome]


@pytest.fixture
def run_child(tmp_path: Path) -> RunChild:
    """Runs a program after the prelude, with KLOOP_DRIVER set or not."""

    def run(program: str, *flags: str, driver: str | None = None) -> Outcome:
        environment = {name: value for name, value in os.environ.items() if name != "KLOOP_DRIVER"}
        if driver is not None:
            environment["KLOOP_DRIVER"] = driver
        environment["PYTHONPATH"] = str(HERE)
        file = tmp_path / "program.py"
        file.write_text(PRELUDE + program)
        return subprocess.run(
            [sys.executable, "-X", "faulthandler", *flags, str(file)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    return run


@pytest.fixture
def sandboxed(run_child: RunChild) -> RunChild:
    """As run_child, where seccomp filters can be installed."""
    if not sandbox.is_available():
        pytest.skip("seccomp filters cannot be installed")
    return run_child


def driver_of_a_new_loop() -> str:
    loop = kloop.new_event_loop()
    loop.close()
    return loop.driver


# KLOOP_DRIVER


@pytest.mark.parametrize("value", [None, "", "auto", "uring"])
def test_io_uring_is_preferred(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("KLOOP_DRIVER", raising=False)
    else:
        monkeypatch.setenv("KLOOP_DRIVER", value)
    assert driver_of_a_new_loop() == "uring"


def test_each_loop_asks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in "epoll", "uring", "epoll":
        monkeypatch.setenv("KLOOP_DRIVER", value)
        assert driver_of_a_new_loop() == value


@pytest.mark.parametrize("value", ["poll", "Epoll", " uring", "auto,epoll"])
def test_other_values_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KLOOP_DRIVER", value)
    for make in (
        kloop.new_event_loop,
        lambda: kloop.serve_per_core(asyncio.Protocol, port=0),  # type: ignore[arg-type]
        lambda: kloop.serve_per_core(asyncio.Protocol, port=0, workers="processes"),
    ):
        with pytest.raises(ValueError, match="KLOOP_DRIVER") as caught:
            make()
        assert str(caught.value) == ALLOWED + repr(value)


# io_uring forbidden

CAUSES = {
    "EPERM": (f"sandbox.deny_io_uring({errno.EPERM})", ["io_uring_setup: ", "seccomp profile"]),
    "ENOSYS": (f"sandbox.deny_io_uring({errno.ENOSYS})", ["io_uring_setup: ", "gVisor"]),
    "ENOMEM": (f"sandbox.deny_io_uring({errno.ENOMEM})", ["io_uring_setup: ", "ulimit -l"]),
    "enter": (f"sandbox.deny_io_uring({errno.EPERM}, 'enter')", ["io_uring_enter: ", "seccomp"]),
    "register": (f"sandbox.deny_io_uring({errno.EPERM}, 'register')", ["io_uring_register("]),
}

each_cause = pytest.mark.parametrize(("deny", "words"), CAUSES.values(), ids=CAUSES)


def warnings_of(outcome: Outcome) -> list[str]:
    """The lines of warnings, which must be all that the child wrote but for the source lines."""
    assert outcome.returncode == 0, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert all("Warning: " in line or line.startswith("  ") for line in lines), lines
    return [line for line in lines if "Warning: " in line]


@each_cause
def test_epoll_takes_over_with_one_warning(
    sandboxed: RunChild, deny: str, words: list[str]
) -> None:
    outcome = sandboxed(f"""
{deny}
for _ in range(3):
    print(run(converse()))
    loop = Loop()
    print(loop.driver)
    loop.close()
""")
    assert outcome.stdout.split() == ["epoll"] * 6
    [warning] = warnings_of(outcome)
    assert "program.py:" in warning  # the caller's line, not asyncio's
    assert "RuntimeWarning: kloop runs on epoll" in warning
    for word in (*words, "allow io_uring_setup" if "EPERM" in deny else "", "KLOOP_DRIVER=epoll"):
        assert word in warning


def test_epoll_that_was_chosen_gives_no_warning(sandboxed: RunChild) -> None:
    program = f"sandbox.deny_io_uring({errno.EPERM})\nprint(run(converse()))"
    outcome = sandboxed(program, "-W", "error", driver="epoll")
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "epoll\n", "")


@each_cause
def test_io_uring_that_was_chosen_is_an_error(
    sandboxed: RunChild, deny: str, words: list[str]
) -> None:
    outcome = sandboxed(f"{deny}\nLoop()", driver="uring")
    assert outcome.returncode == 1
    error = outcome.stderr.splitlines()[-1]
    assert error.startswith(("OSError: ", "PermissionError: "))
    for word in words:
        assert word in error


def test_the_warning_may_be_an_exception(sandboxed: RunChild) -> None:
    outcome = sandboxed(
        f"""
import os
sandbox.deny_io_uring({errno.EPERM})
before = os.listdir("/proc/self/fd")
for _ in range(2):
    try:
        Loop()
    except RuntimeWarning as warning:
        print(warning)
assert os.listdir("/proc/self/fd") == before
os.environ["KLOOP_DRIVER"] = "epoll"
print(run(converse()))
""",
        "-X",
        "dev",
        "-W",
        "error",
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    first, second, driver = outcome.stdout.splitlines()
    assert first == second
    assert first.startswith("kloop runs on epoll")
    assert driver == "epoll"


def test_interpreters_share_the_warning(sandboxed: RunChild) -> None:
    outcome = sandboxed(f"""
import _interpreters
sandbox.deny_io_uring({errno.EPERM})
for _ in range(2):
    interpreter = _interpreters.create()
    failure = _interpreters.exec(interpreter, "import kloop; kloop.Loop().close()")
    assert failure is None, failure
    _interpreters.destroy(interpreter)
Loop().close()
""")
    assert len(warnings_of(outcome)) == 1


def test_little_memory_that_may_be_locked(run_child: RunChild) -> None:
    outcome = run_child("""
sandbox.limit_locked_memory(64 * 1024)
print(run(converse()))
loops = [Loop() for _ in range(20)]
for loop in loops:
    loop.run_until_complete(converse())
    loop.close()
""")
    assert outcome.stdout.strip() in ("uring", "epoll")
    assert len(warnings_of(outcome)) <= 1
