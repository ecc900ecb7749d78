"""The tables of the flags, spelled out: what each refuses and where, and which keep each other out."""

from __future__ import annotations

import itertools

import pytest

from exclfs.holds.errors import UnknownFlag
from exclfs.holds.flags import (
    CLAIMS,
    DEFAULT,
    NOTHING,
    OF_DIRECTORIES,
    PINNED,
    REFUSES,
    Flags,
    Operation,
    Place,
    conflicts,
    parse,
    refuses,
)

EVERYTHING = {"rmdir", "unlink", "rename", "replace", "exchange", "whiteout"}
MOVES = {"rename", "exchange", "whiteout"}
COMBINATIONS = [
    Flags(sum(flag.value for flag in chosen))
    for size in range(len(Flags) + 1)
    for chosen in itertools.combinations(Flags, size)
]
NAMES = ("EXCL_INUSE", "NO_REMOVE", "KERNEL_FILE", "EXCL_SUBTREE", "NO_REMOVE_BELOW", "PIN_PATH")
INVERSE = {Place.HERE: Place.HERE, Place.BELOW: Place.ABOVE, Place.ABOVE: Place.BELOW}


# --- what they refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize(
    ("flag", "here", "below", "above"),
    [
        ("EXCL_INUSE", set(), set(), set()),
        ("NO_REMOVE", EVERYTHING, set(), set()),
        ("KERNEL_FILE", {"rmdir"}, set(), set()),
        ("EXCL_SUBTREE", set(), set(), set()),
        ("NO_REMOVE_BELOW", EVERYTHING, EVERYTHING, set()),
        ("PIN_PATH", EVERYTHING, set(), MOVES),
    ],
)
def test_a_flag_refuses_exactly_these_operations_at_each_place(
    flag: str, here: set[str], below: set[str], above: set[str], operation: Operation
) -> None:
    for place, refused in ((Place.HERE, here), (Place.BELOW, below), (Place.ABOVE, above)):
        assert refuses(Flags[flag], operation, place) == (operation.value in refused)


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("place", Place)
def test_flags_together_refuse_what_any_of_them_refuses(operation: Operation, place: Place) -> None:
    for flags in COMBINATIONS:
        assert refuses(flags, operation, place) == any(refuses(flag, operation, place) for flag in flags)


def test_without_a_place_it_is_the_inode_itself() -> None:
    for flags, operation in itertools.product(COMBINATIONS, Operation):
        assert refuses(flags, operation) == refuses(flags, operation, Place.HERE)
    for held, wanted in itertools.product(COMBINATIONS, repeat=2):
        assert conflicts(held, wanted) == conflicts(held, wanted, Place.HERE)


def test_every_place_and_every_operation_has_its_test() -> None:
    assert set(REFUSES) == set(Place)
    assert {operation.value for operation in Operation} == EVERYTHING
    assert tuple(Flags.__members__) == NAMES


@pytest.mark.parametrize("flag", ["NO_REMOVE_BELOW", "PIN_PATH"])
def test_what_reaches_further_refuses_here_what_no_remove_refuses(flag: str) -> None:
    for operation in Operation:
        assert refuses(Flags[flag], operation) == refuses(Flags.NO_REMOVE, operation)


def test_the_default_claims_and_refuses_everything() -> None:
    assert DEFAULT == Flags.EXCL_INUSE | Flags.NO_REMOVE
    assert all(refuses(DEFAULT, operation) for operation in Operation)
    assert conflicts(DEFAULT, DEFAULT)


# --- what they keep out -----------------------------------------------------------------------------------------------

ALWAYS, HERE, NEVER = set(Place), {Place.HERE}, set[Place]()


@pytest.mark.parametrize(
    ("held", "wanted", "places"),
    [
        ("EXCL_INUSE", "EXCL_INUSE", HERE),
        ("EXCL_INUSE", "NO_REMOVE", NEVER),
        ("EXCL_INUSE", "KERNEL_FILE", HERE),
        ("EXCL_INUSE", "EXCL_SUBTREE", ALWAYS),
        ("EXCL_INUSE", "NO_REMOVE_BELOW", NEVER),
        ("EXCL_INUSE", "PIN_PATH", NEVER),
        ("NO_REMOVE", "EXCL_INUSE", NEVER),
        ("NO_REMOVE", "NO_REMOVE", NEVER),
        ("NO_REMOVE", "KERNEL_FILE", NEVER),
        ("NO_REMOVE", "EXCL_SUBTREE", NEVER),
        ("NO_REMOVE", "NO_REMOVE_BELOW", NEVER),
        ("NO_REMOVE", "PIN_PATH", NEVER),
        ("KERNEL_FILE", "EXCL_INUSE", HERE),
        ("KERNEL_FILE", "NO_REMOVE", NEVER),
        ("KERNEL_FILE", "KERNEL_FILE", HERE),
        ("KERNEL_FILE", "EXCL_SUBTREE", ALWAYS),
        ("KERNEL_FILE", "NO_REMOVE_BELOW", NEVER),
        ("KERNEL_FILE", "PIN_PATH", NEVER),
        ("EXCL_SUBTREE", "EXCL_INUSE", ALWAYS),
        ("EXCL_SUBTREE", "NO_REMOVE", NEVER),
        ("EXCL_SUBTREE", "KERNEL_FILE", ALWAYS),
        ("EXCL_SUBTREE", "EXCL_SUBTREE", ALWAYS),
        ("EXCL_SUBTREE", "NO_REMOVE_BELOW", NEVER),
        ("EXCL_SUBTREE", "PIN_PATH", NEVER),
        ("NO_REMOVE_BELOW", "EXCL_INUSE", NEVER),
        ("NO_REMOVE_BELOW", "NO_REMOVE", NEVER),
        ("NO_REMOVE_BELOW", "KERNEL_FILE", NEVER),
        ("NO_REMOVE_BELOW", "EXCL_SUBTREE", NEVER),
        ("NO_REMOVE_BELOW", "NO_REMOVE_BELOW", NEVER),
        ("NO_REMOVE_BELOW", "PIN_PATH", NEVER),
        ("PIN_PATH", "EXCL_INUSE", NEVER),
        ("PIN_PATH", "NO_REMOVE", NEVER),
        ("PIN_PATH", "KERNEL_FILE", NEVER),
        ("PIN_PATH", "EXCL_SUBTREE", NEVER),
        ("PIN_PATH", "NO_REMOVE_BELOW", NEVER),
        ("PIN_PATH", "PIN_PATH", NEVER),
    ],
)
def test_the_table_of_all_pairs(held: str, wanted: str, places: set[Place]) -> None:
    assert {place for place in Place if conflicts(Flags[held], Flags[wanted], place)} == places


@pytest.mark.parametrize("held", COMBINATIONS)
def test_a_conflict_is_mutual_and_needs_a_claim_on_both_sides(held: Flags) -> None:
    for wanted, place in itertools.product(COMBINATIONS, Place):
        assert conflicts(held, wanted, place) == conflicts(wanted, held, INVERSE[place])
        assert conflicts(held, wanted, place) == any(
            conflicts(one, other, place) for one in held & CLAIMS for other in wanted & CLAIMS
        )
        if not (held & CLAIMS and wanted & CLAIMS):
            assert not conflicts(held, wanted, place)


# --- their names and bits ---------------------------------------------------------------------------------------------


def test_the_bits_are_those_of_the_mirror_and_a_pin_is_none_of_them() -> None:
    assert [flag.value for flag in Flags] == [1, 2, 4, 8, 16, 32]
    assert PINNED == 64


def test_only_directories_have_what_reaches_below() -> None:
    assert OF_DIRECTORIES == Flags.EXCL_SUBTREE | Flags.NO_REMOVE_BELOW


def test_names_and_parse_are_inverse() -> None:
    for flags in COMBINATIONS:
        assert parse(flags.names) == flags
        assert parse(name.lower() for name in flags.names) == flags
        assert list(flags.names) == [name for name in NAMES if Flags[name] in flags]
    assert parse([]) == NOTHING


@pytest.mark.parametrize("name", ["NOREMOVE", "", "__class__", "no_remove ", "7", "PINNED", "NOTHING", "DEFAULT"])
def test_an_unknown_flag_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(UnknownFlag, match=", ".join(NAMES)) as caught:
        parse(["NO_REMOVE", name])
    assert caught.value.name == name
    assert caught.value.known == NAMES
