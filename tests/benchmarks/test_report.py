"""The report: tables and plots of a made-up document."""

from __future__ import annotations

from xml.etree import ElementTree

import plot
import pytest
import report
from attrs import evolve
from document import SECONDS, VERSION, Document, Series, together

UNLINK = Series(
    "metadata",
    "tmpfs",
    "unlink",
    1,
    SECONDS,
    {"backing tree": [5e-6], "exclfs": [60e-6], "bindfs": [120e-6], "passthrough_ll": [50e-6]},
    {"exclfs": [20e-6], "bindfs": [10e-6]},
    {"passthrough_hp": "[Errno 24] Too many open files"},
)
LATENCY = Series("latency", "tmpfs", "unlink", 1, "99th percentile / median", {"backing tree": [2.0], "exclfs": [3.5]})
DOCUMENT = Document(VERSION, "2026-11-27", False, {"kernel": "6.18"}, [UNLINK, LATENCY])


def test_a_line_has_each_ratio_under_its_heading_and_what_failed_is_said() -> None:
    (title, heading, (line,)), (_, _, (latency,)) = report.grids(DOCUMENT)
    assert title == "Metadata, on tmpfs"
    told = dict(zip(heading, line, strict=True))
    assert told["operation"] == "unlink"
    assert told["backing tree, µs"] == "5.0"
    assert told["/ bindfs"].startswith("0.50 ")
    assert told["/ passthrough_ll"].startswith("1.20 ")
    assert told["/ passthrough_hp"] == "fails"
    assert told["CPU of exclfs"] == "20.0"
    assert latency == ["unlink", "2.0", "3.5"]


def test_parts_of_a_run_are_one() -> None:
    one = Document(VERSION, "2026-11-27", False, {"kernel": "6.18", "load after": "0.1", "minutes": "20"}, [UNLINK])
    other = Document(VERSION, "2026-11-27", False, {"kernel": "6.18", "load after": "2.0", "minutes": "30"}, [LATENCY])
    whole = together([one, other])
    assert whole.series == [UNLINK, LATENCY]
    assert whole.machine == {"kernel": "6.18", "load after": "2.0", "minutes": "50"}


def test_a_row_that_was_measured_again_is_as_it_was_the_last_time() -> None:
    machine = {"kernel": "6.18", "load after": "0.1"}
    again = evolve(UNLINK, wall={name: [seconds[0] / 2] for name, seconds in UNLINK.wall.items()})
    elsewhere = evolve(again, backing="ext4")
    one, other = (
        Document(VERSION, "2026-11-27", False, machine, rows) for rows in ([UNLINK, LATENCY], [elsewhere, again])
    )
    assert together([one, other]).series == [again, LATENCY, elsewhere]


def test_only_what_is_between_the_marks_is_written() -> None:
    page = f"# Ours\n{report.BEGIN}\nold\n{report.END}\nours, too\n"
    made = report.between_marks(page, "new")
    assert made == f"# Ours\n{report.BEGIN}\nnew\n{report.END}\nours, too\n"
    with pytest.raises(ValueError, match="no <!--"):
        report.between_marks("# A page without marks", "new")


def test_the_page_has_the_marks() -> None:
    with open(report.PAGE, encoding="utf-8") as file:
        report.between_marks(file.read(), "")


def test_a_plot_is_well_formed_and_faster_is_further_left() -> None:
    drawn = plot.ratios("Metadata & more", [UNLINK])
    tree = ElementTree.fromstring(drawn)
    found = {}
    for circle in tree.iter("{http://www.w3.org/2000/svg}circle"):
        title = circle.find("{http://www.w3.org/2000/svg}title")
        if title is not None and title.text:
            found[title.text.partition(":")[0]] = float(circle.attrib["cx"])
    assert found["backing tree"] < found["passthrough_ll"] < found["exclfs"] < found["bindfs"]
