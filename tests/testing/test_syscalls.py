"""The table of system calls, against the kernel's own headers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from exclfs.gating import Operation
from exclfs.testing import syscalls

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
NEWER = {"fchmodat2", "setxattrat", "getxattrat", "listxattrat", "removexattrat"}
"""Calls that Debian 12's headers do not have yet."""


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_the_kernels(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"there is no {header}")
    text = header.read_text()
    kernels = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    kernels |= {"newfstatat": kernels.get("fstatat", kernels.get("newfstatat", -1))}
    numbers = {call.name: getattr(call, machine) for call in syscalls.TABLE}
    assert not {name for name, number in numbers.items() if number is not None} - kernels.keys() - NEWER
    assert {name: number for name, number in numbers.items() if number is not None and name not in NEWER} == {
        name: kernels[name] for name, number in numbers.items() if number is not None and name not in NEWER
    }
    sleeps = syscalls.SLEEPS[machine]
    assert sleeps == {kernels[name]: name for name in sleeps.values()}
    assert syscalls.FORKS[machine] == {
        kernels[name] for name in ("clone", "clone3", "fork", "vfork") if name in kernels
    }


def test_an_operation_has_all_its_calls() -> None:
    calls = {call.name for call in syscalls.those_of(frozenset({Operation.RMDIR})).values()}
    assert "unlinkat" in calls
    assert ("rmdir" in calls) == (os.uname().machine == "x86_64")
    assert {"openat", "openat2"} <= {call.name for call in syscalls.those_of(frozenset({Operation.CREATE})).values()}


def test_what_has_no_call_cannot_be_stopped() -> None:
    assert set(Operation) - syscalls.STOPPABLE == {Operation.LOOKUP}
