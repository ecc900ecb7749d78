"""Where processors are worth keeping awake without anybody having asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from exclfs.host.idle import is_worth_polling, open_latency_device

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("driver", "processors", "worth_it"),
    [
        ("haltpoll", 2, True),
        ("haltpoll", 4, True),
        ("haltpoll", 5, False),  # all of them would poll for one
        ("intel_idle", 2, False),  # that takes power
        ("none", 2, False),
    ],
)
def test_in_a_virtual_machine_with_few_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, processors: int, worth_it: bool
) -> None:
    (tmp_path / "current_driver").write_text(f"{driver}\n")
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert is_worth_polling(str(tmp_path / "current_driver")) is worth_it


def test_not_where_the_kernel_knows_of_no_idling(tmp_path: Path) -> None:
    assert not is_worth_polling(str(tmp_path / "current_driver"))


def test_the_device_is_open_for_writing_and_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "device").write_bytes(b"")
    descriptor = open_latency_device(str(tmp_path / "device"))
    try:
        assert not os.get_inheritable(descriptor)
        assert os.write(descriptor, bytes(4)) == 4
    finally:
        os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        open_latency_device(str(tmp_path / "none"))
