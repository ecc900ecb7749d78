"""The control socket of a real mount as any language has it: by a Varlink client that is not ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import exclfs

if TYPE_CHECKING:
    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


def refused(path: Path) -> None:
    with pytest.raises(OSError, match="busy"):
        path.rmdir()


def test_a_varlink_client_that_is_not_ours(mounted: Mounted) -> None:
    varlink: Any = pytest.importorskip("varlink")
    path = mounted.setup("directory")
    address = "unix:" + os.getxattr(path, "user.exclfs.socket").decode()
    relative = str(path.relative_to(mounted.root))
    with varlink.Client(address) as client:
        assert "org.exclfs" in client.get_interfaces()
        with client.open("org.varlink.service") as service:
            assert service.GetInfo()["product"] == "exclfs"
            assert "method Hold" in service.GetInterfaceDescription("org.exclfs")["description"]
        with client.open("org.exclfs") as ours:
            assert ours.Status()["status"]["mountpoint"] == str(mounted.root)
            (told,) = ours.Hold(objects=[{"path": relative}], flags=["NO_REMOVE"], holder="them", reason="")["holds"]
            assert told["path"] == str(path)
            mounted.expect("refused")
            refused(path)
            assert ours.Why(object={"path": relative})["blocked"]
            with pytest.raises(varlink.VarlinkError, match="NoSuchHold"):
                ours.Release(ids=["h999999"])
            (renewable,) = ours.Hold(
                objects=[{"path": relative}], flags=["PIN_PATH"], holder="them", reason="", lifetime={"ttl": 60}, wait=1
            )["holds"]
            (renewed,) = ours.Renew(ids=[renewable["id"]], ttl=3600)["holds"]
            assert renewed["ends"][0]["kind"] == "time"
            assert renewed["ends"][0]["at"] > renewable["ends"][0]["at"]
            assert ours.Mode()["mode"] == "enforce"
            ours.Release(ids=[told["id"], renewed["id"]])
            told_of = ours.Events(object={"path": relative}, _more=True)
            assert next(told_of).get("event") is None
            with exclfs.hold(path) as hold:
                assert next(told_of)["event"]["hold"]["id"] == hold.id
    mounted.expect("unlock_bad")
    path.rmdir()
