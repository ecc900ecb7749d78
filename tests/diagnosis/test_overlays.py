"""Overlays: whose layer something is, and whether another overlay can have it: said, and tried."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import exclfs
from estate import open_directory
from exclfs.diagnosis.asking import why
from exclfs.host import overlays
from exclfs.host.mounts import parse
from exclfs.host.view import Host
from harness import start
from mounting import (
    agrees,
    asked,
    bind,
    errno_of,
    in_another_namespace,
    kinds,
    of_kind,
    overlay,
    privately,
    tmpfs,
    umount,
)
from predicted import become, in_a_child
from twins import ALICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.diagnosis.findings import Diagnosis

pytestmark = [pytest.mark.root]

REMOVALS: Final = {"rmdir", "unlink", "rename"}


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that everybody can enter."""
    with open_directory() as path:
        yield path


@pytest.fixture(params=["on", "off"])
def index(request: pytest.FixtureRequest) -> str:
    """Whether overlays have the feature index by default."""
    return str(request.param)


def layers(directory: Path, *names: str) -> str:
    """Makes these directories; the options of an overlay of them: upper, work, lower."""
    for name in names:
        (directory / name).mkdir(parents=True, exist_ok=True)
    upper, work, lower = (directory / name for name in names)
    return f"lowerdir={lower},upperdir={upper},workdir={work}"


def told(thing: Path, directory: Path, index: str) -> Diagnosis:
    """What is said of an overlay mount with this as its upper directory, where that is the modules' default."""
    parameters = directory / "sys/module/overlay/parameters"
    parameters.mkdir(parents=True, exist_ok=True)
    (parameters / "index").write_text("Y\n" if index == "on" else "N\n")
    return asked(thing, "overlay-mount", sys=str(directory / "sys"))


def said_and_tried(thing: Path, directory: Path, index: str, role: str = "upper") -> Diagnosis:
    """Asks, then mounts another overlay that has this as its upper or work directory."""
    said = told(thing, directory, index)
    other = directory / "other"
    names = ("upper", "work", "lower")
    options = layers(other, *names).replace(str(other / role), str(thing)) + f",index={index}"
    real = errno_of(lambda: overlay(directory / "another", options))
    agrees(said, real)
    if real is None:
        umount(directory / "another")
    return said


@privately
def test_an_upper_directory_that_is_in_use(directory: Path, index: str) -> None:
    overlay(directory / "merged", layers(directory, "upper", "work", "lower"))
    said = said_and_tried(directory / "upper", directory, index)
    cause = of_kind(said, "overlay upper")
    assert cause.blocks == (("overlay-mount",) if index == "on" else ())
    assert f'is the upper directory of the overlay on "{directory}/merged"' in cause.text
    assert ("index=on" in cause.text) == (index == "off")


@privately
def test_a_work_directory_that_is_in_use(directory: Path, index: str) -> None:
    overlay(directory / "merged", layers(directory, "upper", "work", "lower"))
    said = said_and_tried(directory / "work", directory, index, "work")
    assert "is the work directory of" in of_kind(said, "overlay work").text
    said = told(directory / "work/work", directory, index)
    assert "lies in the work directory" in of_kind(said, "overlay work").text


@privately
def test_below_an_upper_directory_that_is_in_use(directory: Path, index: str) -> None:
    overlay(directory / "merged", layers(directory, "upper", "work", "lower"))
    (directory / "upper/below").mkdir()
    said = said_and_tried(directory / "upper/below", directory, index)
    assert f'lies in the upper directory "{directory}/upper"' in of_kind(said, "overlay upper").text


@privately
def test_above_an_upper_directory_that_is_in_use(directory: Path, index: str) -> None:
    overlay(directory / "merged", layers(directory, "above/upper", "above/work", "lower"))
    said = said_and_tried(directory / "above", directory, index)
    cause = of_kind(said, "overlay upper")
    assert f'has 1 upper directory of overlays in it: "{directory}/above/upper" of the overlay on' in cause.text
    assert cause.blocks == ()


@privately
def test_a_lower_directory_that_is_in_use(directory: Path, index: str) -> None:
    overlay(directory / "merged", layers(directory, "upper", "work", "lower"))
    said = said_and_tried(directory / "lower", directory, index)
    cause = of_kind(said, "overlay lower")
    assert "is the lower directory of" in cause.text
    assert cause.blocks == ()


@privately
def test_a_leaked_overlay(directory: Path, index: str) -> None:
    merged = overlay(directory / "merged", layers(directory, "upper", "work", "lower"))
    with in_another_namespace(lambda: None) as pid:
        umount(merged)
        said = said_and_tried(directory / "upper", directory, index)
        cause = of_kind(said, "overlay upper")
        number = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        assert "a leaked overlay" in cause.text
        assert f"in mount namespace {number} (kept alive by pid {pid}, " in cause.text
        assert f"`nsenter -t {pid} -m umount {merged}`" in cause.text
        assert cause.namespace == number
        assert [each.pid for each in cause.processes] == [pid]
        subprocess.run(["nsenter", "-t", str(pid), "-m", "umount", merged], check=True)
        assert "overlay upper" not in kinds(why(directory / "upper"))


@privately
def test_a_layer_has_the_name_that_it_has_where_the_overlay_is(directory: Path) -> None:
    (directory / "elsewhere").mkdir()
    for name in ("upper", "work", "lower"):
        (directory / "true" / name).mkdir(parents=True)

    def mount_there() -> None:
        bind(directory / "true", directory / "elsewhere")
        overlay(directory / "merged", layers(directory / "elsewhere", "upper", "work", "lower"))

    with in_another_namespace(mount_there):
        cause = of_kind(why(directory / "true/upper"), "overlay upper")
        assert "is the upper directory of a leaked overlay" in cause.text


@privately
def test_who_may_not_mount(directory: Path) -> None:
    (directory / "upper").mkdir()

    def ask() -> dict[str, object]:
        become(ALICE)
        said = why(directory / "upper", attempt="overlay-mount")
        of_kind(said, "privilege")
        agrees(said, errno_of(lambda: overlay(directory, layers(directory, "upper", "upper", "upper"))))
        assert "privilege" not in kinds(why(directory / "upper"))
        return {}

    in_a_child(ask)


@privately
def test_layers_are_not_protected_from_removal(directory: Path) -> None:
    overlay(directory / "merged", layers(directory, "upper", "work", "lower"))
    for name in ("upper", "lower"):
        said = why(directory / name, attempt="rmdir")
        assert not REMOVALS & set(of_kind(said, f"overlay {name}").blocks)
        agrees(said, errno_of((directory / name).rmdir))
    agrees(why(directory / "work", attempt="rename"), errno_of(lambda: (directory / "work").rename(directory / "gone")))


@privately
def test_layers_keep_no_mount_from_being_unmounted(directory: Path) -> None:
    disk = tmpfs(directory / "disk")
    overlay(directory / "merged", layers(disk, "upper", "work", "lower"))
    said = why(disk, attempt="umount")
    assert {"overlay upper", "overlay work", "overlay lower"} <= kinds(said)
    agrees(said, errno_of(lambda: umount(disk)))
    (directory / "merged/file").touch()


@privately
def test_layers_with_odd_names(directory: Path) -> None:
    names = ("a:b", "c,d", "e\\f", "g h", "i\nj")
    for name in (*names, "upper", "work"):
        (directory / name).mkdir()
    escaped = [f"{directory}/{name}".replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for name in names]
    merged = overlay(
        directory / "merged", f"lowerdir={':'.join(escaped)},upperdir={directory}/upper,workdir={directory}/work"
    )
    for name in names:
        assert f'the overlay on "{merged}"' in of_kind(why(directory / name), "overlay lower").text


@privately
def test_layers_by_symlinks_and_bind_mounts(directory: Path) -> None:
    (directory / "true").mkdir()
    (directory / "link").symlink_to("true")
    overlay(directory / "merged", layers(directory, "link/upper", "link/work", "true/lower"))
    assert "is the upper directory" in of_kind(why(directory / "true/upper"), "overlay upper").text
    (directory / "bound").mkdir()
    subprocess.run(["mount", "--bind", directory / "true", directory / "bound"], check=True)
    assert "is the upper directory" in of_kind(why(directory / "bound/upper"), "overlay upper").text


@privately
def test_relative_layers_as_docker_writes_them(directory: Path) -> None:
    """It mounts in its directory, with lower directories by short symlinks."""
    docker = directory / "overlay2"
    for name in ("l", "one/diff", "two/diff", "two/work", "two/merged"):
        (docker / name).mkdir(parents=True)
    (docker / "l/ABC").symlink_to("../one/diff")
    os.chdir(docker)
    overlay(docker / "two/merged", f"lowerdir=l/ABC,upperdir={docker}/two/diff,workdir={docker}/two/work")
    cause = of_kind(why(docker / "one/diff"), "overlay lower")
    assert '"one/diff" is the lower directory' in cause.text.replace(f"{docker}/", "")
    assert not [gap for gap in why(docker / "one").unread if gap.kind == "overlays"]


@privately
def test_what_cannot_be_located_is_told(directory: Path) -> None:
    for name in ("hidden/upper", "hidden/work", "hidden/lower"):
        (directory / name).mkdir(parents=True)
    os.chdir(directory / "hidden")
    overlay(directory / "merged", "lowerdir=lower,upperdir=upper,workdir=work")
    (gap,) = [gap for gap in told(directory, directory, "on").unread if gap.kind == "overlays"]
    assert gap.text.startswith("3 layers of overlays cannot be located: ")
    assert gap.may_block == ("overlay-mount",)
    (gap,) = [gap for gap in told(directory, directory, "off").unread if gap.kind == "overlays"]
    assert gap.may_block == ()


def test_layers_are_read_from_every_spelling_of_options() -> None:
    options = rb"rw,lowerdir=/a\134:b:c::/d,upperdir=/e\054f,workdir=/g,lowerdir+=/h:i,datadir+=/j"
    (mount,) = parse(b"9 8 0:7 / /m rw - overlay o " + options)
    assert [(layer.role, layer.text) for layer in overlays.layers_of(mount)] == [
        ("lower", b"/a:b"),
        ("lower", b"c"),
        ("lower", b"/d"),
        ("upper", b"/e,f"),
        ("work", b"/g"),
        ("lower", b"/h:i"),
        ("lower", b"/j"),
    ]


# --- What an overlay's upper directory refuses -----------------------------------------------------------------------


@pytest.mark.mount
def test_holds_below_the_upper_directory_refuse_in_the_overlay(directory: Path) -> None:
    """The same for what is in the upper layer alone and for what is in both; what is only in the lower one is free."""
    with start(directory) as mounted:
        mounted.expect("refused")
        options = layers(mounted.path, "upper", "work", "lower")
        for name in ("upper/held", "upper/both", "lower/both", "lower/free"):
            (mounted.path / name).touch()

        def inside() -> dict[str, object]:
            merged = overlay(directory / "merged", options)
            try:
                for name in ("held", "both", "free"):
                    said = why(merged / name, attempt="unlink")
                    agrees(said, errno_of((merged / name).unlink))
                    if name == "free":
                        assert "hold" not in kinds(said)
                    else:
                        cause = of_kind(said, "hold")
                        assert f'By the overlay\'s upper directory "{mounted.path}/upper": ' in cause.text
                        assert "because I say so" in cause.text
            finally:
                umount(merged)
            return {}

        upper = mounted.path / "upper"
        with (
            exclfs.hold(upper / "held", reason="because I say so"),
            exclfs.hold(upper / "both", reason="because I say so"),
        ):
            in_a_child(inside)


# --- cachefiles ------------------------------------------------------------------------------------------------------


def test_what_the_kernel_itself_may_use(directory: Path) -> None:
    """There is no cache here to be had: its line in /proc/fs/fscache/caches is made up, as that of Linux 5.17."""
    for name in ("proc/fs/fscache", "fscache/cache/Infs,3.0", "elsewhere"):
        (directory / name).mkdir(parents=True)
    (directory / "proc/fs/fscache/caches").write_text(
        "CACHE    REF   VOLS  OBJS  ACCES S NAME\n"
        "======== ===== ===== ===== ===== = ===============\n"
        "00000001     2     1  2123     1 A my cache\n"
    )
    from exclfs.diagnosis import overlays as finder
    from exclfs.diagnosis.subject import looked_up

    def gaps(path: Path, proc: Path) -> list[str]:
        host = Host()
        with looked_up(str(path), host) as subject:
            host.proc = str(proc)
            return [gap.text for gap in finder._kernel_files(subject, host)]

    (text,) = gaps(directory / "fscache/cache/Infs,3.0", directory / "proc")
    assert '"my cache"' in text
    assert gaps(directory / "elsewhere", directory / "proc") == []
    assert gaps(directory / "fscache/cache", Path("/proc")) == []
