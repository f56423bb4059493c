"""kloop in interpreters with their own GIL, beside and after one another."""

import subprocess
import sys

import pytest

PROGRAM = """
import os
import sys
import threading

import _interpreters

# On 3.13 the types of these are shared by all interpreters: main initialises them.
import asyncio, datetime, decimal, socket, ssl

SCRIPT = '''
import asyncio

import kloop


async def echo(reader, writer):
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


async def main():
    loop = asyncio.get_running_loop()
    assert type(loop) is kloop.Loop
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        for _ in range(ROUNDS):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.0001)
            assert await asyncio.to_thread(int, "5") == 5


kloop.run(main())
'''


def run(interpreter, rounds):
    failure = _interpreters.exec(interpreter, SCRIPT.replace("ROUNDS", str(rounds)))
    if failure is not None:
        print(failure.errdisplay)
        sys.stdout.flush()
        os._exit(1)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""

AT_ONCE = """
interpreters = [_interpreters.create("isolated") for _ in range(4)]
for _ in range(3):
    threads = [threading.Thread(target=run, args=(one, 50)) for one in interpreters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
if sys.version_info >= (3, 14):
    for one in interpreters:
        _interpreters.destroy(one)
else:
    sys.stdout.flush()
    os._exit(0)  # ending them can crash 3.13 (python/cpython#136423)
"""

CYCLES = """
for cycle in range(60):
    if cycle == 10:
        before = resident_bytes()
    interpreter = _interpreters.create("isolated")
    run(interpreter, 2)
    _interpreters.destroy(interpreter)
print(resident_bytes() - before, len(os.listdir("/proc/self/fd")))
"""

GROWTH = 5 * 1024 * 1024


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM + script],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_four_interpreters_at_once() -> None:
    assert run(AT_ONCE) == ""


@pytest.mark.skipif(
    sys.version_info < (3, 14),
    reason="CPython 3.13 leaks interpreters, and can crash ending them (python/cpython#136423)",
)
def test_interpreters_come_and_go() -> None:
    growth, fds = map(int, run(CYCLES).split())
    assert growth < GROWTH
    assert fds < 10
