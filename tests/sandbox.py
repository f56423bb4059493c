"""Forbids io_uring to a process, as container runtimes do. There is no way back: for children."""

import ctypes
import os
import platform
import resource
import struct
import subprocess
import sys

IO_URING = {"setup": 425, "enter": 426, "register": 427}
"""The numbers of the system calls, the same on every architecture."""

PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 22, 38, 47
PR_CAP_AMBIENT_RAISE = 2
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
ALLOW, FAIL_WITH = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_READ_SEARCH = 2

NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def deny_io_uring(errno: int, *calls: str) -> None:
    """Has io_uring's system calls, by default all of them, fail: seccomp(2).

    Docker's default profile fails them with EPERM.
    """
    architecture = AUDIT_ARCH[platform.machine()]
    numbers = [IO_URING[call] for call in calls or IO_URING]
    tests = [
        (JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)
    ]
    instructions = [
        (LOAD, 0, 0, 4),  # the architecture: another one's numbers mean other calls
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, 0),  # the call's number
        *tests,
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, FAIL_WITH | errno),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(buffer))
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    pointer = ctypes.create_string_buffer(program, len(program))
    _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointer, 0, 0))


def limit_locked_memory(size: int) -> None:
    """Sets RLIMIT_MEMLOCK, in bytes, and gives up root's privilege to ignore it.

    Files that only root may read can still be read, by programs started later too: Python's own
    may be such.
    """
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))
    if os.getuid() != 0:
        return
    _check(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    kept = 1 << CAP_DAC_READ_SEARCH
    data = struct.pack("6I", kept, kept, kept, 0, 0, 0)
    _check(_libc.capset(header, data))
    _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0))


def is_available() -> bool:
    """Whether processes may install seccomp filters here."""
    if "CI" in os.environ:
        return True  # there, its absence is a failure
    return subprocess.run([sys.executable, __file__], capture_output=True).returncode == 0


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    deny_io_uring(1)
