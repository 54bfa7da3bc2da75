import csv
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from test_cells import FAST, MOVING, SLOW

from sim.cells import cells_of
from sim.decoding_statistics import DecodingStatistics
from sim.report.figures import drawings
from sim.report.films import film_rows
from sim.report.tables import control_table, speedup_table, success_table
from sim.video import write_video

SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"
DECODED = DecodingStatistics(passes=(3, 1, 0, 0, 0, 0, 0), gained=(27, 1, 0, 0, 0, 0, 0), drafted=(4, 3, 3, 3, 4, 4, 4))


class Page(HTMLParser):
    """Counts elements and collects what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.sources += [value for name, value in attrs if name in ("src", "href", "data") and value]


def test_a_report_is_one_page_that_needs_nothing_else(tmp_path):
    for name, records in {"fast": FAST, "slow": SLOW}.items():
        lines = [msgspec.json.encode(replace(record, decoding=DECODED)) for record in records]
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        for state in (0, 5):
            film = tmp_path / name / f"libero_object-03-{state:02d}.mp4"
            write_video(film, [np.zeros((64, 64, 3), np.uint8)] * 2, "pick up the milk")
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, capture_output=True)
    text = (tmp_path / "report" / "index.html").read_text()
    page = Page(text)
    assert page.tags["video"] == 2
    assert page.tags["table"] == 4
    assert page.tags["svg"] == len(list((tmp_path / "report").glob("*.png"))) == 6
    # The state that only the fast policy solves says more than the one that both solve.
    assert "initial state 5" in text
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert not re.findall(r"url\((?!#)|@import", text)
    rows = list(csv.DictReader((tmp_path / "report" / "cells.csv").open()))
    assert [row["successes"] for row in rows] == ["8", "2"]


def test_nothing_to_report_is_said(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no episodes in" in done.stderr


def test_figures_need_their_numbers():
    plain = [drawing.name for drawing in drawings(cells_of([*FAST, *MOVING]))]
    assert plain == [
        "success-latency-libero_object",
        "success-rate-libero_object",
        "success-latency-libero_object-drift_mm_s-20",
        "success-rate-libero_object-drift_mm_s-20",
        "latency-distribution",
    ]


def test_tables_tell_solved_from_all():
    cells = cells_of([*FAST, *SLOW])
    success = dict(zip(success_table(cells).headings, success_table(cells).rows[1], strict=True))
    assert (success["solved"], success["points"], success["p"]) == ("2/8", "-75.0", "0.031")
    assert control_table(cells).rows[0][3:6] == ("5.00", "5.0", "80.0%")
    fast = speedup_table(cells).rows[0]
    assert fast[3:5] == ("42.86x", "42.86x")  # 300 ms over 7 ms
    assert fast[5:] == ("0.85x", "1.00x")  # failures are made shorter here


def test_unknown_latencies_are_left_out_of_figures_and_empty_in_tables():
    untold = [replace(record, decision_ms=()) for record in SLOW]
    names = [drawing.name for drawing in drawings(cells_of(untold))]
    assert names == ["success-rate-libero_object"]
    assert success_table(cells_of(untold)).rows[0][3:5] == ("", "")
    known = [replace(record, timing=("latency 100 ms",)) for record in SLOW]
    assert len(list(drawings(cells_of([*untold, *known])))) == 2
    assert speedup_table(cells_of([*untold, *known])).rows == ()


def test_speedups_compare_the_same_episodes():
    some = [replace(record, decision_ms=(600.0,)) if record.init_state else record for record in SLOW]
    gone_on_with = [replace(record, decision_ms=()) if record.init_state else record for record in FAST]
    slow = next(row for row in speedup_table(cells_of([*gone_on_with, *some])).rows if row[2] == "lock-step")
    assert slow[3] == "42.86x"  # of the only episode that both tell: 300 ms over 7 ms


def test_films_of_one_condition_are_not_compared(tmp_path):
    assert film_rows({tmp_path / "x.jsonl": FAST}) == []


@pytest.mark.parametrize("records", [FAST, SLOW])
def test_a_single_cell_has_no_speedup(records):
    assert speedup_table(cells_of(records)).rows == ()
