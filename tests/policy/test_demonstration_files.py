"""The demonstration format: what is written is read, and what is not a demonstration is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest

from policy.results import REPOSITORY
from policy.training.demonstrations import (
    PRIVILEGED_NAMES,
    Demonstration,
    DemonstrationError,
    DemonstrationMeta,
    demonstration_name,
    list_demonstrations,
)

FRAMES = [b"first", b"the second", b"3"]
META = DemonstrationMeta("libero_spatial", 3, "pick up the bowl", 1004, True, noise=0.25, versions={"mujoco": "3.3.2"})


def demonstration(seed: int = 0) -> Demonstration:
    random, steps = np.random.default_rng(seed), len(FRAMES)
    return Demonstration(
        META,
        jpeg=np.frombuffer(b"".join(FRAMES), np.uint8),
        jpeg_offsets=np.cumsum([0, *map(len, FRAMES)]),
        actions=random.normal(size=(steps, 7)).astype(np.float32),
        executed=random.normal(size=(steps, 7)).astype(np.float32),
        privileged=random.normal(size=(steps, len(PRIVILEGED_NAMES))).astype(np.float32),
        states=random.normal(size=(steps, 20)),
        pictured=random.normal(size=(steps, 9)),
        body_positions=random.normal(size=(4, 3)),
        body_quaternions=random.normal(size=(4, 4)),
    )


def test_what_is_saved_is_loaded(tmp_path):
    saved = demonstration()
    saved.save(tmp_path / "new folder" / "one.npz")
    loaded = Demonstration.load(tmp_path / "new folder" / "one.npz")
    assert loaded.meta == META
    assert [loaded.frame_jpeg(step) for step in range(len(loaded))] == FRAMES
    for name in ("actions", "executed", "privileged", "states", "body_positions", "body_quaternions"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype


def test_a_step_outside_the_episode_is_refused():
    with pytest.raises(IndexError, match="step 3 of a demonstration with steps 0 to 2"):
        demonstration().frame_jpeg(3)
    with pytest.raises(IndexError):
        demonstration().frame_jpeg(-1)


def test_numpy_alone_reads_it(tmp_path):
    demonstration().save(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz", allow_pickle=False) as file:
        assert file["jpeg"][: file["jpeg_offsets"][1]].tobytes() == FRAMES[0]
        assert '"seed": 1004' in str(file["meta"])


def test_an_interrupted_save_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", lambda file, **_: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demonstration().save(tmp_path / "one.npz")
    assert list(tmp_path.iterdir()) == []


def test_only_complete_demonstrations_are_listed(tmp_path):
    assert list_demonstrations(tmp_path / "absent") == []
    for name in ("b.npz", "a.npz", ".a.npz.77.part", "failures.jsonl"):
        (tmp_path / name).touch()
    assert [path.name for path in list_demonstrations(tmp_path)] == ["a.npz", "b.npz"]


def test_names_follow_from_the_episode():
    assert demonstration_name("libero_goal", 3, 1004) == "libero_goal_task03_seed1004.npz"


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "one.npz"
    demonstration().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DemonstrationError, match=r"one\.npz"):
        Demonstration.load(path)
    np.savez(path, actions=np.zeros(3))
    with pytest.raises(DemonstrationError, match="meta"):
        Demonstration.load(path)


def test_another_format_version_is_refused(tmp_path):
    path = tmp_path / "one.npz"
    demonstration().save(path)
    with np.load(path) as file:
        entries = dict(file)
    np.savez(path, **{**entries, "meta": str(entries["meta"]).replace('"format_version": 1', '"format_version": 9')})
    with pytest.raises(DemonstrationError, match="format version is 9, this code reads 1"):
        Demonstration.load(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"executed": np.zeros((2, 7))}, r"executed must be \[3, 7\], got \[2, 7\]"),
        ({"states": np.zeros((4, 20))}, "states must have 3 rows"),
        ({"jpeg_offsets": np.array([0, 5, 5, 16])}, "jpeg_offsets must rise from 0 to 16"),
        ({"jpeg_offsets": np.array([0, 5, 15, 17])}, "jpeg_offsets must rise from 0 to 16"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(demonstration(), **change)


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_the_page_gives_the_figures_that_were_measured(suite):
    measured = json.loads((REPOSITORY / "docs" / "results" / "action-statistics.json").read_text())["rows"]
    rows = {row["noise"]: row for row in measured if (row["suite"], row["dimension"]) == (suite, "all seven")}
    repeats, within, median = (
        " / ".join(form.format(rows[noise][name]) for noise in (False, True))
        for name, form in (("repeats", "{:.1%}"), ("within_9", "{:.0%}"), ("median_bins", "{:.0f}"))
    )
    page = (REPOSITORY / "docs" / "demonstrations.md").read_text().replace(" %", "%")
    assert f"\n| {suite} | {repeats} | {within} | {median} |\n" in page
