from __future__ import annotations

import json
import os
import tempfile
from typing import TYPE_CHECKING

import attrs
import cattrs
import pytest

from exclfs import options
from exclfs.host import idle, mounts
from exclfs.options import (
    AlreadyMounted,
    BadOption,
    MountOptions,
    MountpointUnusable,
    Nested,
    NotAllowed,
    SourceUnusable,
    UnknownOption,
    check,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def read(*texts: str, superuser: bool = True) -> MountOptions:
    return parse("/src", "/mnt", texts, superuser=superuser)


# --- -o ---------------------------------------------------------------------------------------------------------------


def test_without_options_root_shares_the_mount_and_others_do_not() -> None:
    assert read() == MountOptions("/src", "/mnt", allow_other=True)
    assert read(superuser=False) == MountOptions("/src", "/mnt", allow_other=False, kernel_flags=("nodev", "nosuid"))


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("noallow_other", "allow_other", False),
        ("noallow_other,allow_other", "allow_other", True),
        ("entry_timeout=0", "entry_timeout", 0.0),
        ("attr_timeout=2.5", "attr_timeout", 2.5),
        ("negative_timeout=0.5", "negative_timeout", 0.5),
        ("decision_timeout=0.2", "decision_timeout", 0.2),
        ("ask_always", "ask_always", True),
        ("nopassthrough", "passthrough", False),
        ("nopassthrough,passthrough", "passthrough", True),
        ("idle_poll", "idle_poll", True),
        ("idle_poll,noidle_poll", "idle_poll", False),
        ("threads=4", "threads", 4),
        ("fsname=my cache", "fsname", "my cache"),
        (r"fsname=a\,b,ro", "fsname", "a,b"),
        ("log=/var/log/x=y.log", "log", "/var/log/x=y.log"),
        ("log_format=json", "log_format", "json"),
        ("log_format=json,log_format=text", "log_format", "text"),
        ("ro", "kernel_flags", ("ro",)),
        ("ro,nosuid,noatime", "kernel_flags", ("noatime", "nosuid", "ro")),
        ("ro,rw", "kernel_flags", ()),
        ("rw,ro", "kernel_flags", ("ro",)),
        ("nosuid,nodev,suid,dev", "kernel_flags", ()),
        ("noexec,exec", "kernel_flags", ()),
        ("", "kernel_flags", ()),
        (",ro,,", "kernel_flags", ("ro",)),
    ],
)
def test_reads_an_option(text: str, field: str, value: object) -> None:
    assert getattr(read(text), field) == value


def test_of_several_values_the_later_wins() -> None:
    assert read("ro,threads=2", "rw,threads=3") == MountOptions("/src", "/mnt", allow_other=True, threads=3)


@pytest.mark.parametrize(
    "text",
    [
        "defaults,rw,dev,suid,exec,async,relatime,norelatime",
        "_netdev,nofail,noauto,auto,user,users,nouser,owner,group",
        "x-systemd.automount,x-gvfs-show,X-mount.mkdir=0755",
        "user=alice,comment=a=b,subtype=exclfs,uhelper=x,helper=y",
        "default_permissions",
    ],
)
def test_what_concerns_mount_8_and_fstab_is_dropped(text: str) -> None:
    assert read(text) == read()


def test_an_ordinary_user_cannot_have_devices_and_setuid() -> None:
    assert read("dev,suid", superuser=False).kernel_flags == ("nodev", "nosuid")


@pytest.mark.parametrize(("text", "suggestion"), [("ask_allways", "ask_always"), ("qqq", None), ("allow_root", None)])
def test_an_unknown_option_is_named_with_the_nearest(text: str, suggestion: str | None) -> None:
    with pytest.raises(UnknownOption) as caught:
        read(f"ro,{text},rw")
    assert caught.value.name == text
    assert caught.value.suggestion in {suggestion, "allow_other"}


@pytest.mark.parametrize(
    "text",
    [
        "threads=0",
        "threads=65",
        "threads=x",
        "threads",
        "entry_timeout=-1",
        "attr_timeout=nan",
        "attr_timeout=inf",
        "negative_timeout=-1",
        "entry_timeout=",
        "decision_timeout=0",
        "ask_always=1",
        "ro=1",
        "fsname=",
        "log",
        "log_format",
        "log_format=xml",
        "log_format=JSON",
        "remount",
        "bind",
    ],
)
def test_a_bad_value_is_an_error_that_names_the_option(text: str) -> None:
    with pytest.raises(BadOption) as caught:
        read(text)
    assert caught.value.option.partition("=")[0] == text.partition("=")[0]
    assert caught.value.why


def test_crosses_to_the_server_as_json_whatever_the_names_are() -> None:
    strange = os.fsdecode(b"/caf\xc3\xa9/\xff\n")
    sent = parse(strange, strange, ["ro,noexec,threads=2,log=stderr"], superuser=True)
    assert cattrs.structure(json.loads(json.dumps(attrs.asdict(sent))), MountOptions) == sent


# --- SRC and MNT ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fuse_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking paths needs no FUSE on the machine."""
    monkeypatch.setattr(options, "FUSE_DEVICE", "/dev/null")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    made = tmp_path / "mountpoint"
    made.mkdir()
    return made


def look(source: Path, mountpoint: Path) -> MountOptions:
    return check(MountOptions(str(source), str(mountpoint)))


def test_paths_become_absolute_and_real(
    source: Path, mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(mountpoint)
    monkeypatch.chdir(tmp_path)
    settled = check(MountOptions("source/../source", "link/"))
    assert (settled.source, settled.mountpoint) == (str(source), str(mountpoint))
    assert not settled.in_place


def test_a_missing_source(tmp_path: Path, mountpoint: Path) -> None:
    with pytest.raises(SourceUnusable, match="does not exist"):
        look(tmp_path / "none", mountpoint)


def test_a_source_that_is_a_file(tmp_path: Path, mountpoint: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceUnusable, match="is not a directory"):
        look(tmp_path / "file", mountpoint)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root reads everything; so somebody else looks."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_an_unreadable_source(ordinary_user: None, mode: int) -> None:
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as mountpoint:
        os.chmod(source, mode)
        with pytest.raises(SourceUnusable, match="you cannot read it"):
            check(MountOptions(source, mountpoint))
        os.chmod(source, 0o755)


def test_a_source_that_cannot_be_reached(ordinary_user: None) -> None:
    with tempfile.TemporaryDirectory() as outer, tempfile.TemporaryDirectory() as mountpoint:
        os.mkdir(os.path.join(outer, "source"))
        os.chmod(outer, 0)
        with pytest.raises(SourceUnusable, match="you cannot enter it"):
            check(MountOptions(os.path.join(outer, "source"), mountpoint))
        os.chmod(outer, 0o755)


def test_a_missing_mountpoint(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MountpointUnusable, match="does not exist"):
        look(source, tmp_path / "none")


def test_a_mountpoint_that_is_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountpointUnusable, match="is not a directory"):
        look(source, tmp_path / "file")


def test_a_mountpoint_inside_the_source(source: Path) -> None:
    inner = source / "a" / "b"
    inner.mkdir(parents=True)
    with pytest.raises(Nested) as caught:
        look(source, inner)
    assert (caught.value.inner, caught.value.outer) == (str(inner), str(source))


def test_a_source_inside_the_mountpoint_also_through_a_symlink(mountpoint: Path, tmp_path: Path) -> None:
    inner = mountpoint / "a"
    inner.mkdir()
    (tmp_path / "link").symlink_to(inner)
    with pytest.raises(Nested) as caught:
        look(tmp_path / "link", mountpoint)
    assert (caught.value.inner, caught.value.outer) == (str(inner), str(mountpoint))


def test_a_name_that_only_begins_the_same_is_not_inside(source: Path, tmp_path: Path) -> None:
    beside = tmp_path / "source2"
    beside.mkdir()
    assert look(source, beside).mountpoint == str(beside)


@pytest.mark.parametrize(
    ("below", "taken_over"),
    [
        ({"options": ("rw", "relatime"), "super_options": ("rw",)}, ("noatime",)),
        ({"options": ("ro", "nosuid"), "super_options": ("rw",)}, ("noatime", "nosuid", "ro")),
        ({"options": ("rw", "nodev", "noexec"), "super_options": ("ro",)}, ("noatime", "nodev", "noexec", "ro")),
    ],
)
def test_in_place_takes_over_the_flags_from_below(
    source: Path, monkeypatch: pytest.MonkeyPatch, below: dict[str, tuple[str, ...]], taken_over: tuple[str, ...]
) -> None:
    mount = attrs.evolve(mounts.mount_of(source), **below)
    monkeypatch.setattr(mounts, "mount_of", lambda path: mount)
    settled = check(MountOptions(str(source), str(source), kernel_flags=("noatime",)))
    assert settled.in_place
    assert settled.kernel_flags == taken_over


def test_a_mount_below_the_mountpoint_is_not_hidden(
    source: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = attrs.evolve(mounts.mounts()[0], mountpoint=os.fsencode(mountpoint / "a"))
    monkeypatch.setattr(mounts, "mounts", lambda: (below,))
    with pytest.raises(MountpointUnusable, match="is mounted below it"):
        look(source, mountpoint)


def test_in_place_mounts_below_stay_in_sight(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = attrs.evolve(mounts.mounts()[0], mountpoint=os.fsencode(source / "a"))
    everything = (*mounts.mounts(), below)
    monkeypatch.setattr(mounts, "mounts", lambda: everything)
    assert look(source, source).in_place


def test_an_exclfs_mount_is_not_covered(source: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = attrs.evolve(mounts.mounts()[0], fstype="fuse.exclfs", source=b"/srv/tree")
    monkeypatch.setattr(mounts, "at", lambda path: there)
    with pytest.raises(AlreadyMounted, match="/srv/tree"):
        look(source, mountpoint)


@pytest.mark.parametrize(
    ("line", "allowed"),
    [("user_allow_other\n", True), ("  user_allow_other # yes\n", True), ("#user_allow_other\n", False), ("", False)],
)
def test_allow_other_needs_leave(
    source: Path, mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, allowed: bool
) -> None:
    configuration = tmp_path / "fuse.conf"
    configuration.write_text("# text\n" + line)
    monkeypatch.setattr(options, "FUSE_CONF", str(configuration))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    asked = MountOptions(str(source), str(mountpoint), allow_other=True)
    if allowed:
        assert check(asked).allow_other
    else:
        with pytest.raises(NotAllowed, match="user_allow_other"):
            check(asked)


def test_who_cannot_keep_processors_from_halting_is_told(
    source: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "LATENCY_DEVICE", "/dev/no-such-device")
    assert check(MountOptions(str(source), str(mountpoint))).idle_poll is None
    with pytest.raises(NotAllowed, match="/dev/no-such-device"):
        check(MountOptions(str(source), str(mountpoint), idle_poll=True))


def test_without_fuse_it_says_so(source: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "FUSE_DEVICE", "/dev/no-such-device")
    with pytest.raises(NotAllowed, match="/dev/no-such-device"):
        look(source, mountpoint)
