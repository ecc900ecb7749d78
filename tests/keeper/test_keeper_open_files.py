"""Open files (--hold-open): held against other processes while they are open, by whoever opened them and lives."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from scene import ALICE, ALICE_AGAIN, BOB, ROOT, Scene

from exclfs.holds.errors import NotPermitted
from exclfs.holds.flags import Flags, Operation
from exclfs.holds.holder import Process
from exclfs.holds.lifetime import Close, Connection
from exclfs.holds.mode import Mode, OpenFiles

SINCE = datetime(2025, 12, 31, tzinfo=UTC)
LATER = datetime(2025, 12, 31, 12, tzinfo=UTC)


@pytest.fixture(params=[OpenFiles.OWN, OpenFiles.ALL])
def scene(request: pytest.FixtureRequest) -> Scene:
    """A scene where open files count."""
    return Scene(open_files=request.param)


def refusing(scene: Scene, requester: Process, operation: Operation = Operation.UNLINK) -> list[str]:
    return [hold.holder.name for hold in scene.verdict(scene.one, operation, requester=requester)]


def test_an_open_file_is_a_hold_of_who_opened_it(scene: Scene) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    (hold,) = scene.keeper.on(scene.one)
    assert hold.id == f"open-10-{scene.one.ino}"
    assert (hold.inode, hold.path, hold.flags) == (scene.one, "/mnt/one", Flags.NO_REMOVE)
    assert (hold.holder.name, hold.holder.process) == ("alice-prog", ALICE)
    assert (hold.reason, hold.since, hold.ends) == ("opened by pid 10 (alice-prog)", SINCE, (Close(),))
    assert scene.keeper.covering(scene.one) == (hold,)
    assert scene.holds == (), "nobody has placed it"


@pytest.mark.parametrize("operation", Operation)
def test_others_cannot_remove_it_and_who_opened_it_can(scene: Scene, operation: Operation) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    assert refusing(scene, ALICE, operation) == []
    assert scene.told == []
    for other in (ALICE_AGAIN, BOB, ROOT, Process(None, 1000)):
        assert refusing(scene, other, operation) == ["alice-prog"]
    assert scene.keeper.refusals[0].holds[0].reason == "opened by pid 10 (alice-prog)"


def test_of_several_that_have_opened_it_each_is_refused_for_the_others(scene: Scene) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    scene.tree.open(scene.one, BOB, LATER)
    assert refusing(scene, ALICE) == ["bob-prog"]
    assert refusing(scene, BOB) == ["alice-prog"]
    assert refusing(scene, ROOT) == ["alice-prog", "bob-prog"]


def test_who_has_opened_it_several_times_holds_it_once_since_the_first(scene: Scene) -> None:
    for since in (SINCE, LATER):
        scene.tree.open(scene.one, ALICE, since)
    (hold,) = scene.keeper.on(scene.one)
    assert hold.since == SINCE


def test_what_is_closed_is_not_held(scene: Scene) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    scene.tree.openings.clear()
    assert refusing(scene, BOB) == []
    assert scene.keeper.on(scene.one) == ()


@pytest.mark.parametrize("how", ["waited for", "a zombie", "its number is another's now"])
def test_an_opener_that_is_dead_holds_nothing(scene: Scene, how: str) -> None:
    """A child may still have the descriptor; but there is nobody to name."""
    scene.tree.open(scene.one, ALICE, SINCE)
    scene.alive.discard(ALICE)
    if how == "waited for":
        del scene.processes[10]
    elif how != "a zombie":
        scene.processes[10] = Process(10, 1001, "another", start_time=99)
        scene.alive.add(scene.processes[10])
    assert scene.keeper.on(scene.one) == ()
    assert refusing(scene, BOB) == []


def test_one_that_has_become_another_program_is_the_same_process(scene: Scene) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    scene.processes[10] = Process(10, 1000, "sh\nell", start_time=ALICE.start_time)
    scene.alive.add(scene.processes[10])
    (hold,) = scene.keeper.on(scene.one)
    assert "\n" not in hold.holder.name + hold.reason
    assert hold.holder.name.startswith("sh")
    assert refusing(scene, ALICE) == []


def test_one_whose_name_cannot_be_read_is_a_number(scene: Scene) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    scene.processes[10] = Process(10, 1000, start_time=ALICE.start_time)
    scene.alive.add(scene.processes[10])
    assert refusing(scene, BOB) == ["pid 10"]


async def test_holds_that_were_placed_come_first(scene: Scene) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    placed = await scene.hold(scene.one, requester=ROOT)
    assert [hold.holder.name for hold in scene.keeper.on(scene.one)] == ["init", "alice-prog"]
    assert scene.verdict(scene.one, requester=ALICE) == (placed,), "what the opener opened does not open what is held"
    assert refusing(scene, BOB) == ["init", "alice-prog"]


async def test_the_dead_holder_of_an_open_file_is_not_named(scene: Scene) -> None:
    line = scene.there(Connection(1))
    scene.tree.open(scene.one, ALICE, SINCE)
    await scene.hold(scene.one, requester=ROOT, ends=(Connection(1),))
    line.alive = False
    assert refusing(scene, BOB) == ["alice-prog"]
    assert refusing(scene, ALICE) == []


async def test_an_open_file_is_in_no_claims_way(scene: Scene) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    await scene.trylock(scene.one, requester=ROOT)


@pytest.mark.parametrize("requester", [ALICE, ROOT], ids=lambda process: process.comm)
@pytest.mark.parametrize("break_it", [False, True])
async def test_it_cannot_be_released_but_by_closing_it(scene: Scene, requester: Process, break_it: bool) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    (hold,) = scene.keeper.on(scene.one)
    with pytest.raises(NotPermitted, match="closed"):
        await scene.unlock(hold, requester=requester, break_it=break_it)


def test_a_file_that_nobody_knows_any_more_is_open_to_nobody(scene: Scene) -> None:
    scene.tree.open(scene.one, ALICE, SINCE)
    scene.tree.forget(scene.one)
    assert scene.keeper.on(scene.one) == ()
    assert refusing(scene, BOB) == []


async def test_the_modes_count_for_open_files_too() -> None:
    scene = Scene(open_files=OpenFiles.ALL, mode=Mode.WARN)
    scene.tree.open(scene.one, ALICE, SINCE)
    assert refusing(scene, BOB) == []
    assert [refusal.enforced for refusal in scene.keeper.refusals] == [False]
    await scene.keeper.set_mode(Mode.OFF, requester=ROOT)
    assert refusing(scene, BOB) == []
    assert len(scene.keeper.refusals) == 1


def test_where_open_files_do_not_count_nobody_asks_for_them() -> None:
    scene = Scene()
    scene.tree.open(scene.one, ALICE, SINCE)
    assert scene.keeper.on(scene.one) == ()
    assert scene.keeper.covering(scene.one) == ()
    assert refusing(scene, BOB) == []
