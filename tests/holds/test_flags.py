"""The table flag × operation, spelled out, and which flags keep each other out."""

from __future__ import annotations

import itertools

import pytest

from exclfs.holds.errors import UnknownFlag
from exclfs.holds.flags import CLAIMS, DEFAULT, NOTHING, REFUSES, Flags, Operation, conflicts, parse, refuses

EVERYTHING = {"rmdir", "unlink", "rename", "replace", "exchange", "whiteout"}
COMBINATIONS = [
    Flags(sum(flag.value for flag in chosen))
    for size in range(len(Flags) + 1)
    for chosen in itertools.combinations(Flags, size)
]


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize(
    ("flag", "refused"),
    [
        (Flags.EXCL_INUSE, set()),
        (Flags.NO_REMOVE, EVERYTHING),
        (Flags.KERNEL_FILE, {"rmdir"}),
        (DEFAULT, EVERYTHING),
        (Flags.EXCL_INUSE | Flags.KERNEL_FILE, {"rmdir"}),
        (NOTHING, set()),
    ],
)
def test_a_flag_refuses_exactly_these_operations(flag: Flags, refused: set[str], operation: Operation) -> None:
    assert refuses(flag, operation) == (operation.value in refused)


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("flags", COMBINATIONS)
def test_flags_together_refuse_what_any_of_them_refuses(flags: Flags, operation: Operation) -> None:
    assert refuses(flags, operation) == any(refuses(flag, operation) for flag in flags)


def test_every_flag_has_its_row_and_every_operation_its_test() -> None:
    assert set(REFUSES) == set(Flags)
    assert {operation.value for operation in Operation} == EVERYTHING


@pytest.mark.parametrize(
    ("held", "wanted", "kept_out"),
    [
        ("EXCL_INUSE", "EXCL_INUSE", True),
        ("EXCL_INUSE", "KERNEL_FILE", True),
        ("EXCL_INUSE", "NO_REMOVE", False),
        ("NO_REMOVE", "EXCL_INUSE", False),
        ("NO_REMOVE", "NO_REMOVE", False),
        ("NO_REMOVE", "KERNEL_FILE", False),
        ("KERNEL_FILE", "EXCL_INUSE", True),
        ("KERNEL_FILE", "NO_REMOVE", False),
        ("KERNEL_FILE", "KERNEL_FILE", True),
    ],
)
def test_only_claims_keep_claims_out(held: str, wanted: str, kept_out: bool) -> None:
    assert conflicts(Flags[held], Flags[wanted]) is kept_out


@pytest.mark.parametrize("held", COMBINATIONS)
@pytest.mark.parametrize("wanted", COMBINATIONS)
def test_conflict_is_mutual_and_needs_a_claim_on_both_sides(held: Flags, wanted: Flags) -> None:
    assert conflicts(held, wanted) == conflicts(wanted, held)
    assert conflicts(held, wanted) == (bool(held & CLAIMS) and bool(wanted & CLAIMS))


def test_the_bits_are_those_of_the_mirror() -> None:
    assert (Flags.EXCL_INUSE.value, Flags.NO_REMOVE.value, Flags.KERNEL_FILE.value) == (1, 2, 4)


@pytest.mark.parametrize("flags", COMBINATIONS)
def test_names_and_parse_are_inverse(flags: Flags) -> None:
    assert parse(flags.names) == flags
    assert parse(name.lower() for name in flags.names) == flags


@pytest.mark.parametrize("name", ["NOREMOVE", "", "__class__", "no_remove ", "7"])
def test_an_unknown_flag_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(UnknownFlag, match="EXCL_INUSE, NO_REMOVE, KERNEL_FILE") as caught:
        parse(["NO_REMOVE", name])
    assert caught.value.name == name
    assert caught.value.known == ("EXCL_INUSE", "NO_REMOVE", "KERNEL_FILE")
