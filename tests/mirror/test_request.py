"""The request parser: what the kernel sends is taken apart rightly, and nothing else gets past it.

`_mirror.parse` copies a message into memory of exactly its size, so under AddressSanitizer (make sanitize) a read
beyond the end is seen. tests/fuzz/request.c goes on where this ends.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel import HEADER, Op, message

from exclfs.mirror import _mirror

if TYPE_CHECKING:
    from collections.abc import Callable

Parsed = tuple[bytes | None, bytes | None, bytes | None]

FIXED = {  # sizes of the kernel's own structures, include/uapi/linux/fuse.h
    Op.LOOKUP: 0,
    Op.FORGET: 8,
    Op.GETATTR: 16,
    Op.SETATTR: 88,
    Op.READLINK: 0,
    Op.SYMLINK: 0,
    Op.MKNOD: 16,
    Op.MKDIR: 8,
    Op.UNLINK: 0,
    Op.RMDIR: 0,
    Op.RENAME: 8,
    Op.LINK: 8,
    Op.OPEN: 8,
    Op.READ: 40,
    Op.WRITE: 40,
    Op.STATFS: 0,
    Op.RELEASE: 24,
    Op.FSYNC: 16,
    Op.SETXATTR: 16,
    Op.GETXATTR: 8,
    Op.LISTXATTR: 8,
    Op.REMOVEXATTR: 0,
    Op.FLUSH: 24,
    Op.INIT: 16,
    Op.OPENDIR: 8,
    Op.READDIR: 40,
    Op.RELEASEDIR: 24,
    Op.FSYNCDIR: 16,
    Op.ACCESS: 8,
    Op.CREATE: 16,
    Op.INTERRUPT: 8,
    Op.DESTROY: 0,
    Op.BATCH_FORGET: 8,
    Op.FALLOCATE: 32,
    Op.READDIRPLUS: 40,
    Op.RENAME2: 16,
    Op.LSEEK: 24,
    Op.COPY_FILE_RANGE: 56,
    Op.TMPFILE: 16,
    Op.STATX: 24,
}
ONE_NAME = {Op.LOOKUP, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.LINK, Op.CREATE, Op.TMPFILE}
XATTR_NAME = {Op.GETXATTR, Op.REMOVEXATTR}
RENAMES = {Op.RENAME, Op.RENAME2}
WITHOUT_TAIL = set(FIXED) - ONE_NAME - XATTR_NAME - RENAMES - {Op.SYMLINK, Op.WRITE, Op.SETXATTR, Op.BATCH_FORGET}
REMOVALS = {Op.UNLINK, Op.RMDIR} | RENAMES

texts = st.binary(min_size=1, max_size=300).map(lambda raw: raw.replace(b"\0", b"n"))
names = texts.map(lambda raw: raw.replace(b"/", b"s")).filter(lambda name: name not in (b".", b".."))


def parse(packet: bytes) -> Parsed | None:
    """None for what the parser refuses, which it may do with two errnos only."""
    try:
        return _mirror.parse(packet)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        return None


@st.composite
def requests(draw: Callable[..., Any]) -> tuple[bytes, Parsed]:
    """A request as the kernel makes it, and what it says."""
    op = draw(st.sampled_from(sorted(FIXED)))
    fixed = draw(st.binary(min_size=FIXED[op], max_size=FIXED[op]))
    tail, said = b"", (None, None, None)
    if op in ONE_NAME:
        name = draw(names)
        tail, said = name + b"\0", (name, None, None)
    elif op in XATTR_NAME:
        name = draw(texts)
        tail, said = name + b"\0", (name, None, None)
    elif op in RENAMES or op == Op.SYMLINK:
        name, second = draw(names), draw(texts if op == Op.SYMLINK else names)
        tail, said = name + b"\0" + second + b"\0", (name, second, None)
    elif op == Op.WRITE:
        data = draw(st.binary(max_size=300))
        fixed = fixed[:16] + struct.pack("=I", len(data)) + fixed[20:]
        tail, said = data, (None, None, data)
    elif op == Op.SETXATTR:
        name, data = draw(texts), draw(st.binary(max_size=300))
        fixed = struct.pack("=I", len(data)) + fixed[4:]
        tail, said = name + b"\0" + data, (name, None, data)
    elif op == Op.BATCH_FORGET:
        count = draw(st.integers(0, 20))
        tail = draw(st.binary(min_size=16 * count, max_size=16 * count))
        fixed = struct.pack("=I", count) + fixed[4:]
        said = (None, None, tail)
    extensions = draw(st.integers(0, 3))
    body = fixed + tail + draw(st.binary(min_size=8 * extensions, max_size=8 * extensions))
    return message(op, draw(st.integers(0, 2**64 - 1)), body, extensions=extensions), said


def with_length(packet: bytes, length: int) -> bytes:
    return struct.pack("=I", length) + packet[4:]


@given(requests())
def test_what_the_kernel_sends_is_taken_apart_rightly(request_and_meaning: tuple[bytes, Parsed]) -> None:
    packet, said = request_and_meaning
    assert parse(packet) == tuple(b"" if part == b"" and i == 2 else part for i, part in enumerate(said))


@given(requests(), st.data())
def test_half_a_request_is_refused_whatever_length_it_claims(
    request_and_meaning: tuple[bytes, Parsed], data: st.DataObject
) -> None:
    packet, _ = request_and_meaning
    for size in range(len(packet)):
        assert parse(packet[:size]) is None
    # One that is shorter, and says so, may still be whole; then it says less than before and nothing from outside.
    size = data.draw(st.integers(HEADER.size, len(packet)))
    for part in parse(with_length(packet[:size], size)) or ():
        assert part is None or part in packet[:size]


@given(requests(), st.data())
def test_a_request_with_other_bytes_in_it_is_refused_or_says_what_it_holds(
    request_and_meaning: tuple[bytes, Parsed], data: st.DataObject
) -> None:
    packet = bytearray(request_and_meaning[0])
    for _ in range(data.draw(st.integers(1, 8))):
        packet[data.draw(st.integers(4, len(packet) - 1))] = data.draw(st.integers(0, 255))
    for part in parse(bytes(packet)) or ():
        assert part is None or part in packet


@given(st.sampled_from(sorted(Op)), st.binary(max_size=200), st.integers(0, 2**16 - 1))
def test_any_bytes_are_refused_or_parsed(op: Op, body: bytes, extensions: int) -> None:
    parse(message(op, 1, body, extensions=extensions))


@given(st.binary(max_size=100))
@example(b"")
def test_what_is_no_request_at_all_is_refused(raw: bytes) -> None:
    parse(raw)
    parse(with_length(raw, len(raw)) if len(raw) >= 4 else raw)


@given(st.integers(0, 2**32 - 1).filter(lambda op: op not in FIXED))
def test_an_opcode_that_nobody_knows_is_enosys(op: int) -> None:
    with pytest.raises(OSError, match="not implemented"):
        _mirror.parse(message(op, 1, bytes(200)))


@pytest.mark.parametrize("op", sorted(REMOVALS))
@pytest.mark.parametrize("name", [b".", b"..", b"/", b"a/b", b"../a", b"/etc", b""])
def test_no_name_leads_out_of_its_directory(op: Op, name: bytes) -> None:
    second = b"fine\0" if op in RENAMES else b""
    assert parse(message(op, 1, bytes(FIXED[op]) + name + b"\0" + second)) is None
    if second:
        assert parse(message(op, 1, bytes(FIXED[op]) + second + name + b"\0")) is None


@pytest.mark.parametrize(
    ("op", "fixed", "tail"),
    [
        (Op.WRITE, bytes(16) + struct.pack("=I", 2**32 - 1) + bytes(20), b"data"),
        (Op.SETXATTR, struct.pack("=I", 2**32 - 1) + bytes(12), b"name\0value"),
        (Op.BATCH_FORGET, struct.pack("=I", 2**32 - 1) + bytes(4), bytes(16)),
        (Op.BATCH_FORGET, struct.pack("=I", 2**28) + bytes(4), bytes(16)),
    ],
)
def test_a_count_that_the_message_does_not_bear_out_is_refused(op: Op, fixed: bytes, tail: bytes) -> None:
    assert parse(message(op, 1, fixed + tail)) is None


def test_extensions_belong_to_no_name() -> None:
    body = b"name" + b"\0" * 8
    assert parse(message(Op.UNLINK, 1, body)) == (b"name", None, None)
    assert parse(message(Op.UNLINK, 1, b"names8..", extensions=1)) is None
    assert parse(message(Op.UNLINK, 1, b"x\0" + b"\0" * 8, extensions=1)) == (b"x", None, None)
    assert parse(message(Op.UNLINK, 1, b"x\0", extensions=2)) is None
