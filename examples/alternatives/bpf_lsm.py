"""BPF-LSM as a guard against removal: one program on inode_rmdir, one inode number in it.

Run it as root, on a kernel that has "bpf" in /sys/kernel/security/lsm::

    sudo python3 examples/alternatives/bpf_lsm.py

It needs neither clang nor libbpf: the program is assembled here, and the offsets come from the kernel's own BTF. It
guards one directory that it makes itself, and ends with this process.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[os.uname().machine]
BPF_PROG_LOAD = 5
BPF_LINK_CREATE = 28
BPF_PROG_TYPE_LSM = 29
BPF_LSM_MAC = 27
BTF_KIND_STRUCT = 4
BTF_KIND_FUNC = 12

libc = ctypes.CDLL(None, use_errno=True)


class Btf:
    """The types of the running kernel, as far as this program asks (Documentation/bpf/btf.rst)."""

    # Bytes after the common part: of INT, VAR, DECL_TAG; and for each member of STRUCT, UNION, ENUM, FUNC_PROTO,
    # DATASEC, ENUM64. ARRAY (kind 3) has 12. All other kinds have none.
    TRAILING: ClassVar = {1: 4, 14: 4, 17: 4}
    PER_MEMBER: ClassVar = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}

    def __init__(self, data: bytes) -> None:
        """Index what /sys/kernel/btf/vmlinux holds."""
        header, types_at, types_length, strings_at, _ = struct.unpack_from("=IIIII", data, 4)
        self.data, self.strings = data, header + strings_at
        self.found: dict[tuple[int, str], tuple[int, int]] = {}
        offset = header + types_at
        end = offset + types_length
        for number in itertools.count(1):
            if offset >= end:
                break
            name, info, _ = struct.unpack_from("=III", data, offset)
            kind, members = info >> 24 & 0x1F, info & 0xFFFF
            self.found.setdefault((kind, self.string(name)), (number, offset))
            offset += 12 + (12 if kind == 3 else self.TRAILING.get(kind, 0) + self.PER_MEMBER.get(kind, 0) * members)

    def string(self, at: int) -> str:
        """The name at this offset of the string section."""
        start = self.strings + at
        return self.data[start : self.data.index(b"\0", start)].decode()

    def function(self, name: str) -> int:
        """The type id of a function."""
        return self.found[BTF_KIND_FUNC, name][0]

    def member(self, structure: str, name: str) -> int:
        """The offset in bytes of a member of a structure."""
        _, at = self.found[BTF_KIND_STRUCT, structure]
        (info,) = struct.unpack_from("=I", self.data, at + 4)
        for index in range(info & 0xFFFF):
            member, _, bits = struct.unpack_from("=III", self.data, at + 12 + 12 * index)
            if self.string(member) == name:
                return int(bits & 0xFFFFFF if info >> 31 else bits) // 8
        raise KeyError(name)


def instruction(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One BPF instruction."""
    return struct.pack("=BBhI", code, of << 4 | to, offset, value & 0xFFFFFFFF)


def program(btf: Btf, inode: int, answer: int) -> bytes:
    """BPF for: return dentry->d_inode->i_ino == inode ? answer : 0."""
    load_u64, load_constant, jump_if_unequal, move, leave = 0x79, 0x18, 0x5D, 0xB7, 0x95
    return b"".join(
        [
            instruction(load_u64, to=2, of=1, offset=8),  # the second argument: the victim's dentry
            instruction(load_u64, to=2, of=2, offset=btf.member("dentry", "d_inode")),
            instruction(load_u64, to=2, of=2, offset=btf.member("inode", "i_ino")),
            instruction(load_constant, to=3, value=inode),
            instruction(0, value=inode >> 32),
            instruction(move, to=0, value=0),
            instruction(jump_if_unequal, to=2, of=3, offset=1),
            instruction(move, to=0, value=answer),
            instruction(leave),
        ]
    )


def bpf(command: int, attributes: bytes) -> int:
    """The system call; raises OSError."""
    result: int = libc.syscall(SYS_BPF, command, ctypes.create_string_buffer(attributes), len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def attach(btf: Btf, hook: str, instructions: bytes) -> int:
    """Load the program and attach it to an LSM hook; the descriptor that keeps it there."""
    code = ctypes.create_string_buffer(instructions)
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(65536)
    attributes = struct.pack(
        "=IIQQIIQII16sIIIIQIIQII",
        BPF_PROG_TYPE_LSM, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence),
        1, len(log), ctypes.addressof(log), 0, 0, b"no_remove", 0, BPF_LSM_MAC,
        0, 0, 0, 0, 0, 0, 0, btf.function(f"bpf_lsm_{hook}"),
    )  # fmt: skip
    try:
        loaded = bpf(BPF_PROG_LOAD, attributes)
    except OSError as error:
        raise SystemExit(f"the program was not loaded: {error}\n{log.value.decode()}") from error
    link = bpf(BPF_LINK_CREATE, struct.pack("=IIII", loaded, 0, BPF_LSM_MAC, 0))
    os.close(loaded)
    return link


def run(*command: str) -> None:
    """Run a command, and show what it says."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (result.stderr or result.stdout).strip() or "(nothing)"
    print(f"$ {' '.join(command)}\n  {said} [exit {result.returncode}]")


def main() -> None:
    """Guard one directory, and try to remove it."""
    btf = Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
    with tempfile.TemporaryDirectory() as name:
        held, free = Path(name, "held"), Path(name, "free")
        held.mkdir()
        free.mkdir()
        try:
            link = attach(btf, "inode_rmdir", program(btf, held.stat().st_ino, -errno.EBUSY))
        except OSError as error:
            raise SystemExit(f"not attached ({error}): is bpf in /sys/kernel/security/lsm?") from error
        run("rmdir", str(held))
        run("rmdir", str(free))
        print("the program is detached: its process has ended, or closed the link")
        os.close(link)
        run("rmdir", str(held))


if __name__ == "__main__":
    main()
