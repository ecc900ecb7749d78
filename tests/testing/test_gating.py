"""Which operations a gate means: globs, processes, the nth."""

from __future__ import annotations

import pytest

from exclfs.gating import BadSelection, Occurrences, Operation, Selection, When, operations, path_matches


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("objects/*", ["objects/a", "objects/.hidden", "objects/é\n"], ["objects", "objects/a/b", "a", "xobjects/a"]),
        ("*", ["a", "a b"], ["a/b"]),
        ("**", ["", "a", "a/b/c"], []),
        ("a/**", ["a", "a/b", "a/b/c"], ["ab", "b/a"]),
        ("**/x", ["x", "a/x", "a/b/x"], ["ax", "a/x/b"]),
        ("a/**/x", ["a/x", "a/b/x", "a/b/c/x"], ["x", "ax", "a/bx"]),
        ("a?c", ["abc"], ["a/c", "ac", "abbc"]),
        ("[ab]x[!0-9]", ["axz", "bx-"], ["cxz", "ax1", "ax/"]),
        ("[]]", ["]"], ["["]),
        ("[", ["["], ["]"]),
        ("a.b", ["a.b"], ["axb"]),
        ("/a/", ["a"], ["/a"]),
        ("", [""], ["a"]),
        ("\udcff*", ["\udcffx"], ["x"]),
    ],
)
def test_globs(pattern: str, matching: list[str], others: list[str]) -> None:
    assert [path for path in matching if not path_matches(pattern, path)] == []
    assert [path for path in others if path_matches(pattern, path)] == []


def test_operations_are_named_one_by_one_and_in_groups() -> None:
    assert operations("unlink") == {Operation.UNLINK}
    assert operations(("unlink", "rmdir")) == {Operation.UNLINK, Operation.RMDIR}
    assert Operation.SETXATTR in operations("xattr")
    for wrong in ("remove", [], ["unlink", "x"]):
        with pytest.raises(BadSelection):
            operations(wrong)


def test_a_selection_is_of_kind_side_path_and_process() -> None:
    selection = Selection(operations="rename", pattern="old/*", when="after", pids=[7])

    def lineage() -> set[int]:
        return {30, 7, 1}

    assert selection.matches(Operation.RENAME, When.AFTER, ["new/a", "old/a"], lineage)
    assert not selection.matches(Operation.UNLINK, When.AFTER, ["old/a"], lineage)
    assert not selection.matches(Operation.RENAME, When.BEFORE, ["old/a"], lineage)
    assert not selection.matches(Operation.RENAME, When.AFTER, ["new/a", None], lineage)
    assert not selection.matches(Operation.RENAME, When.AFTER, ["old/a"], lambda: {30, 1})


def test_who_it_was_is_asked_only_where_that_matters() -> None:
    def lineage() -> set[int]:
        raise AssertionError("asked")

    assert Selection(operations="unlink").matches(Operation.UNLINK, When.BEFORE, ["a"], lineage)
    assert not Selection(operations="unlink", pids={1}).matches(Operation.RMDIR, When.BEFORE, ["a"], lineage)


def test_the_nth_is_the_nth_of_what_matches() -> None:
    counted = Occurrences(Selection(operations="unlink", nth=2))
    assert [counted.next_is_meant() for _ in range(4)] == [False, True, False, False]
    every = Occurrences(Selection(operations="unlink"))
    assert [every.next_is_meant() for _ in range(2)] == [True, True]
    with pytest.raises(BadSelection):
        Selection(operations="unlink", nth=0)
