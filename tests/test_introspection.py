"""What `python -m asyncio ps` and `pstree` show of a process that runs a loop."""

import os
import subprocess
import sys

import pytest

from support import StartChild

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="the commands are new in CPython 3.14"
)

PROGRAM = """
async def leaf():
    await asyncio.get_running_loop().create_future()

async def branch():
    await leaf()

async def main():
    async with asyncio.TaskGroup() as group:
        group.create_task(branch(), name="child")
        asyncio.get_running_loop().call_soon(lambda: print("ready", flush=True))

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


def inspect(command: str, pid: int) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", "asyncio", command, str(pid)], capture_output=True, text=True
    )
    if shown.returncode != 0 and "ermission" in shown.stderr and "CI" not in os.environ:
        pytest.skip(f"this process may not look into others: {shown.stderr.strip()}")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_ps_lists_the_tasks(start_child: StartChild) -> None:
    child = start_child(PROGRAM)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    _, _, *lines = inspect("ps", child.pid).splitlines()
    assert {line.split()[0] for line in lines} == {str(child.pid)}
    shown = sorted(" ".join(line.split()[2:]) for line in lines)
    assert [line.partition(" 0x")[0] for line in shown] == [
        "Task-1 TaskGroup._aexit -> TaskGroup.__aexit__ -> main",
        "child leaf -> branch TaskGroup._aexit -> TaskGroup.__aexit__ -> main Task-1",
    ]


def test_pstree_shows_who_awaits_whom(start_child: StartChild) -> None:
    child = start_child(PROGRAM)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    lines = [line.strip(" │└├─").split(" ") for line in inspect("pstree", child.pid).splitlines()]
    assert [line[-1] if line[0] == "(T)" else line[0] for line in lines if line[0]] == [
        *("Task-1", "main", "TaskGroup.__aexit__", "TaskGroup._aexit"),
        *("child", "branch", "leaf"),
    ]
