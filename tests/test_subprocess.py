"""Child processes: asyncio.subprocess, loop.subprocess_exec() and subprocess_shell()."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from pipes import make_pipe, operations_of
from support import in_thread, pattern, settle

Loop = asyncio.AbstractEventLoop

WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"
"""A child that says when it runs, and ends with its standard input."""

needs_prompt_wait = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="wait() waits for the pipes too (gh-119710, seen on 3.13.0)"
)


def python(code: str, *arguments: str, **options: Any) -> Any:
    """Start a Python process; a coroutine."""
    return asyncio.create_subprocess_exec(sys.executable, "-c", code, *arguments, **options)


def shell(command: str, **options: Any) -> Any:
    return asyncio.create_subprocess_shell(command, **options)


@contextlib.asynccontextmanager
async def waiting(code: str = WAITS) -> AsyncIterator[Process]:
    """A child that runs until its standard input ends."""
    process = await python(code, stdin=PIPE, stdout=PIPE)
    assert await process.stdout.readline() == b"ready\n"
    try:
        yield process
    finally:
        process.stdin.close()
        await process.communicate()


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def children() -> str:
    """The processes that this thread has started and not waited for."""
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


# How children end


@pytest.mark.parametrize("status", [0, 1, 3, 255])
async def test_the_status_is_returned(loop: Loop, status: int) -> None:
    process = await shell(f"exit {status}")
    assert await process.wait() == status
    assert process.returncode == status
    assert not exists(process.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
async def test_a_signal_is_a_negative_status(loop: Loop, number: int) -> None:
    async with waiting() as process:
        process.send_signal(number)
        assert await process.wait() == -number


@pytest.mark.parametrize(("method", "number"), [("terminate", 15), ("kill", 9)])
async def test_children_can_be_ended(loop: Loop, method: str, number: int) -> None:
    async with waiting() as process:
        getattr(process, method)()
        assert await process.wait() == -number
        with contextlib.suppress(ProcessLookupError):
            getattr(process, method)()
    assert not exists(process.pid)


async def test_a_signal_that_the_child_handles(loop: Loop) -> None:
    code = """if True:
        import signal, sys
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        print("ready", flush=True)
        signal.sigwait([signal.SIGUSR1])
        print("signal", flush=True)
        sys.stdin.read()
    """
    async with waiting(code) as process:
        process.send_signal(signal.SIGUSR1)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"signal\n"
        assert process.returncode is None


async def test_a_stopped_child_has_not_ended(loop: Loop) -> None:
    async with waiting() as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        await settle()
        assert process.returncode is None
        process.send_signal(signal.SIGCONT)
    assert process.returncode == 0


async def test_several_tasks_wait(loop: Loop) -> None:
    async with waiting() as process:
        waiters = [asyncio.create_task(process.wait()) for _ in range(5)]
        await settle()
        waiters[0].cancel()
        process.kill()
        assert await asyncio.gather(*waiters[1:]) == [-9] * 4
        assert waiters[0].cancelled()
        assert await process.wait() == -9


async def test_a_child_that_ends_before_anybody_waits(loop: Loop) -> None:
    process = await shell("exit 7")
    while process.returncode is None:
        await asyncio.sleep(0.001)
    assert not exists(process.pid)
    assert await process.wait() == 7


async def test_a_timeout_while_waiting(loop: Loop) -> None:
    async with waiting() as process:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.01)
        assert process.returncode is None
    assert process.returncode == 0


async def test_a_status_that_somebody_else_has_taken(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async with waiting() as process:
        process.kill()
        os.waitpid(process.pid, 0)
        assert await process.wait() == 255
    [message] = caplog.messages
    assert f"child process pid {process.pid} exit status already read" in message


async def test_a_status_that_the_popen_object_has_taken(loop: Loop, loop_name: str) -> None:
    if loop_name == "asyncio":
        pytest.skip("asyncio does not ask the Popen object")
    transport, _ = await loop.subprocess_shell(asyncio.SubprocessProtocol, "exit 3", stdin=None)
    popen = transport.get_extra_info("subprocess")
    assert popen.wait() == 3
    while transport.get_returncode() is None:
        await asyncio.sleep(0)
    assert transport.get_returncode() == 3
    transport.close()
    await settle()


# Standard streams


async def test_communicate(loop: Loop) -> None:
    process = await shell("cat; echo done >&2", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert await process.communicate(b"hello") == (b"hello", b"done\n")
    assert process.returncode == 0


async def test_communicate_with_ten_megabytes(loop: Loop) -> None:
    data = pattern(10 << 20)
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    output, _ = await process.communicate(data)
    assert output == data


@pytest.mark.parametrize("target", [None, DEVNULL, PIPE])
async def test_streams_that_are_not_piped_are_none(loop: Loop, target: int | None) -> None:
    process = await shell("true", stdin=target, stdout=target, stderr=target)
    for stream in (process.stdin, process.stdout, process.stderr):
        assert (stream is not None) == (target == PIPE)
    await process.communicate()


async def test_both_outputs_in_one_stream(loop: Loop) -> None:
    process = await shell("echo out; echo err >&2; echo out", stdout=PIPE, stderr=STDOUT)
    assert await process.communicate() == (b"out\nerr\nout\n", None)


async def test_only_standard_error(loop: Loop) -> None:
    process = await shell("echo out; echo err >&2", stdout=DEVNULL, stderr=PIPE)
    assert await process.communicate() == (None, b"err\n")


async def test_files_and_descriptors_as_streams(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as target:
        process = await asyncio.create_subprocess_exec("cat", stdin=source, stdout=target.fileno())
        assert await process.wait() == 0
    assert (tmp_path / "out").read_bytes() == b"from a file"


async def test_a_child_reads_nothing_from_devnull(loop: Loop) -> None:
    process = await asyncio.create_subprocess_exec("cat", stdin=DEVNULL, stdout=PIPE)
    assert await process.communicate() == (b"", None)


async def test_a_conversation(loop: Loop) -> None:
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(100):
        line = b"line %d\n" % number
        process.stdin.write(line)
        await process.stdin.drain()
        assert await process.stdout.readline() == line
    process.stdin.close()
    await process.stdin.wait_closed()
    assert await process.stdout.read() == b""
    assert await process.wait() == 0


async def test_drain_waits_for_a_child_that_does_not_read(loop: Loop) -> None:
    async with waiting() as sleeper:
        sleeper.send_signal(signal.SIGSTOP)
        assert sleeper.stdin is not None
        sleeper.stdin.write(bytes(1 << 20))
        draining = asyncio.create_task(sleeper.stdin.drain())
        await settle()
        assert not draining.done()
        sleeper.send_signal(signal.SIGCONT)
        await draining


async def test_a_child_that_closes_its_input_early(loop: Loop) -> None:
    process = await shell("exec <&-; echo closed; exit 4", stdin=PIPE, stdout=PIPE)
    assert await process.communicate(bytes(1 << 20)) == (b"closed\n", None)
    assert process.returncode == 4


async def test_writing_to_a_child_that_has_ended(loop: Loop) -> None:
    process = await shell("exit 0", stdin=PIPE)
    await process.wait()

    async def write() -> None:
        while True:
            process.stdin.write(b"late")
            await process.stdin.drain()
            await asyncio.sleep(0)

    with pytest.raises(ConnectionError):
        await write()


async def test_a_child_that_closes_its_output_and_goes_on(loop: Loop) -> None:
    process = await python(
        "import os, sys; os.close(1); sys.stdin.read(); os._exit(5)", stdin=PIPE, stdout=PIPE
    )
    assert await process.stdout.read() == b""
    assert process.returncode is None
    process.stdin.close()
    assert await process.wait() == 5


@needs_prompt_wait
async def test_a_grandchild_that_keeps_the_pipe_open(loop: Loop) -> None:
    code = """if True:
        import subprocess, sys
        subprocess.Popen(["cat"], stdin=int(sys.argv[1]))
    """
    reader, writer = make_pipe()
    with reader, writer:
        fd = reader.fileno()
        process = await python(code, str(fd), stdout=PIPE, pass_fds=[fd])
        assert await process.wait() == 0
        writer.write(b"still there")
        assert await process.stdout.readexactly(11) == b"still there"
        writer.close()
        assert await process.stdout.read() == b""


async def test_cancelling_communicate(loop: Loop) -> None:
    process = await python("import time; time.sleep(100)", stdin=PIPE, stdout=PIPE)
    talking = asyncio.create_task(process.communicate(bytes(1 << 20)))
    await settle()
    talking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await talking
    process.kill()
    assert await process.wait() == -9


async def test_a_limit_for_lines(loop: Loop) -> None:
    process = await python("print('x' * 1000)", stdout=PIPE, limit=100)
    with pytest.raises(ValueError, match="limit"):
        await process.stdout.readline()
    await process.communicate()


# Starting


async def test_a_program_that_does_not_exist(loop: Loop) -> None:
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/nonexistent", stdin=PIPE, stdout=PIPE)


async def test_a_folder_that_does_not_exist(loop: Loop) -> None:
    with pytest.raises(FileNotFoundError):
        await shell("true", cwd="/nonexistent")


async def test_options_reach_the_child(loop: Loop, tmp_path: Path) -> None:
    process = await shell(
        "echo $WORD; pwd; umask; ps -o sid= -p $$",
        stdout=PIPE,
        cwd=tmp_path,
        env={**os.environ, "WORD": "given"},
        umask=0o027,
        start_new_session=True,
    )
    output, _ = await process.communicate()
    assert output.split() == [b"given", bytes(tmp_path), b"0027", b"%d" % process.pid]


async def test_preexec_fn_runs_in_the_child(loop: Loop) -> None:
    reader, writer = make_pipe()
    with reader, writer:
        process = await shell("true", preexec_fn=lambda: writer.write(b"%d" % os.getpid()))
        await process.wait()
        assert reader.read(100) == b"%d" % process.pid


@pytest.mark.parametrize("wrong", [{"universal_newlines": True}, {"bufsize": 1}, {"text": True}])
async def test_what_asyncio_refuses_is_refused(loop: Loop, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        await shell("true", **wrong)


async def test_cancelling_the_start_kills_the_child(loop: Loop) -> None:
    before = len(os.listdir("/proc/self/fd"))
    others = children()
    starting = asyncio.create_task(python("import time; time.sleep(100)", stdin=PIPE, stdout=PIPE))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert children() == others
    while len(os.listdir("/proc/self/fd")) > before:
        await asyncio.sleep(0.001)


async def test_fifty_children_at_once(loop: Loop) -> None:
    async def run(number: int) -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        data = b"%d" % number * 30_000
        assert await process.communicate(data) == (data, b"")
        assert process.returncode == 0

    before = operations_of(loop)
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(run(number))
    await settle()
    assert operations_of(loop) == before


async def test_children_leave_nothing_behind(loop: Loop) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    operations = operations_of(loop)
    for _ in range(20):
        process = await shell("cat", stdin=PIPE, stdout=PIPE)
        await process.communicate(b"x")
    await settle()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert operations_of(loop) == operations


# The transport


class Calls(asyncio.SubprocessProtocol):
    """Records what a subprocess transport calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append(("connection_made",))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.calls.append(("data", fd, data))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.calls.append(("pipe_lost", fd, exc))

    def process_exited(self) -> None:
        self.calls.append(("exited",))

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append(("connection_lost", exc))
        self.lost.set_result(None)


async def test_the_calls_of_a_transport(loop: Loop) -> None:
    transport, protocol = await loop.subprocess_exec(
        Calls, "cat", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    assert isinstance(transport, asyncio.SubprocessTransport)
    stdin = transport.get_pipe_transport(0)
    assert isinstance(stdin, asyncio.WriteTransport)
    assert isinstance(transport.get_pipe_transport(1), asyncio.ReadTransport)
    assert transport.get_pipe_transport(3) is None
    assert transport.get_returncode() is None
    stdin.write(b"hello")
    stdin.write_eof()
    await protocol.lost
    assert transport.get_returncode() == 0
    calls = protocol.calls
    assert calls[0] == ("connection_made",)
    assert calls[-1] == ("connection_lost", None)
    others = {("data", 1, b"hello"), ("exited",), *(("pipe_lost", fd, None) for fd in range(3))}
    assert set(calls[1:-1]) == others
    assert len(calls) == 7
    assert calls.index(("data", 1, b"hello")) < calls.index(("pipe_lost", 1, None))
    transport.close()
    with pytest.raises(ProcessLookupError):
        transport.send_signal(0)


async def test_closing_the_transport_kills_the_child(loop: Loop) -> None:
    transport, protocol = await loop.subprocess_exec(Calls, "cat", stdin=PIPE)
    transport.close()
    assert transport.is_closing()
    await protocol.lost
    assert transport.get_returncode() == -9


async def test_debug_mode_logs_children(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    with caplog.at_level(logging.DEBUG, "asyncio"):
        process = await shell("exit 3", stdout=PIPE)
        await process.communicate()
    assert any("exited with return code 3" in line for line in caplog.messages)


# Waiting


def run_in_thread(new_loop: Callable[[], Loop], main: Callable[[], Any]) -> None:
    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())

    with in_thread(run):
        pass


@pytest.mark.usefixtures("no_fd_left")
def test_children_of_a_loop_in_another_thread(new_loop: Callable[[], Loop]) -> None:
    async def main() -> None:
        process = await shell("cat; exit 3", stdin=PIPE, stdout=PIPE)
        assert await process.communicate(b"hello") == (b"hello", None)
        assert process.returncode == 3

    run_in_thread(new_loop, main)


async def test_no_thread_waits(loop: Loop) -> None:
    before = threading.enumerate()
    async with waiting():
        assert threading.enumerate() == before


@pytest.mark.usefixtures("no_fd_left")
@pytest.mark.parametrize("where", ["main thread", "other thread"])
def test_where_there_are_no_pidfds_a_thread_waits(
    new_loop: Callable[[], Loop], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise PermissionError(1, "Operation not permitted")

    async def main() -> None:
        async with waiting() as process:
            assert any("wait" in thread.name for thread in threading.enumerate())
            process.terminate()
            assert await process.wait() == -15
        processes = [await shell(f"exit {number}") for number in range(10)]
        assert [await process.wait() for process in processes] == list(range(10))
        assert not any(exists(process.pid) for process in processes)

    if sys.version_info < (3, 14) and new_loop is asyncio.new_event_loop:
        pytest.skip("asyncio's loop has chosen how to wait before")
    monkeypatch.setattr(os, "pidfd_open", refuse)
    if where == "other thread":
        run_in_thread(new_loop, main)
    else:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())


def test_the_child_watcher_of_a_policy_is_not_asked(
    loop: Loop, loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loop_name == "asyncio":
        pytest.skip("until CPython 3.14 asyncio does ask it")

    def fail() -> None:
        raise AssertionError("asked for a child watcher")

    monkeypatch.setattr(asyncio.events, "get_child_watcher", fail, raising=False)

    async def main() -> None:
        assert await (await shell("exit 3")).wait() == 3

    loop.run_until_complete(main())


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_loop_that_is_closed_before_its_child_ends(loop: Loop, loop_name: str) -> None:
    if loop_name == "asyncio":
        pytest.skip("asyncio leaves the pidfd open")

    async def start() -> Process:
        return cast(Process, await asyncio.create_subprocess_exec("sleep", "100"))

    process = loop.run_until_complete(start())
    pid = process.pid
    loop.close()
    popen = process._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
    process._transport.close()  # type: ignore[attr-defined]
    assert popen.wait() == -9
    assert not exists(pid)


def test_children_survive_the_loop_going_to_another_thread(new_loop: Callable[[], Loop]) -> None:
    loop = new_loop()

    async def start() -> Process:
        process = await python(WAITS, stdin=PIPE, stdout=PIPE)
        assert await process.stdout.readline() == b"ready\n"
        return cast(Process, process)

    async def finish() -> None:
        output, _ = await process.communicate(b"")
        assert output == b""
        assert process.returncode == 0

    process = loop.run_until_complete(start())
    with in_thread(lambda: loop.run_until_complete(finish())):
        pass
    loop.close()


@pytest.mark.parametrize("lack", ["of room to poll", "of threads"])
async def test_a_child_that_cannot_be_watched_is_killed(
    loop: Loop, loop_name: str, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    if loop_name == "asyncio":
        pytest.skip("the stock loop leaves it running")
    pids: list[int] = []
    pidfd_open = os.pidfd_open

    def note(pid: int, flags: int = 0) -> int:
        pids.append(pid)
        if lack == "of threads":
            raise PermissionError(1, "pidfd_open")
        return pidfd_open(pid, flags)

    def fail(*_: object) -> None:
        raise RuntimeError("nothing left")

    monkeypatch.setattr(os, "pidfd_open", note)
    if lack == "of threads":
        monkeypatch.setattr(threading.Thread, "start", fail)
    else:
        monkeypatch.setattr(loop, "_add_reader", fail, raising=False)
    with pytest.raises(RuntimeError, match="nothing left"):
        await python(WAITS, stdin=PIPE, stdout=PIPE)
    monkeypatch.undo()
    await settle()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
