"""What the benchmark suite knows of the servers' processes."""

import os
import signal
import subprocess
import sys

import memory

MIB = 2**20
HOLDS_MEMORY = f"data = b'x' * {40 * MIB}; print('ready', flush=True); input()"


def test_the_memory_of_several_processes_counts_files_once():
    # input() ends with the pipe, should this test not get to its end.
    command = [sys.executable, "-c", HOLDS_MEMORY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        try:
            for process in (first, second):
                assert process.stdout.readline() == b"ready\n"
            one = memory.read([first.pid])
            both = memory.read([first.pid, second.pid])
        finally:
            for process in (first, second):
                process.stdin.close()
    assert one.together == one.rss > one.anonymous > 40 * MIB
    assert both.anonymous > one.anonymous + 40 * MIB
    files = one.rss - one.anonymous
    assert both.together < both.rss - files // 2
    assert both.rss > one.rss + 40 * MIB


def test_a_family_is_a_process_and_its_descendants():
    script = "sleep 60 & echo $!; wait"
    with subprocess.Popen(
        ["sh", "-c", f"sh -c '{script}' & echo $!; wait"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as top:
        try:
            below = sorted(int(top.stdout.readline()) for _ in range(2))
            family = memory.family(top.pid)
        finally:
            os.killpg(top.pid, signal.SIGKILL)
    assert family[0] == top.pid
    assert sorted(family[1:]) == below


def test_a_process_without_children_is_a_family():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert memory.family(process.pid) == [process.pid]
