"""Every shipped configuration becomes a decoder, and what cannot be one is refused in words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.config import FOLDER, DecodingConfig
from policy.decoding.physical import controller_of
from policy.decoding.speculative import SpeculativeDecoder
from policy.drafting.registry import DrafterMaterial
from policy.openvla.action_tokens import ActionStatistics
from policy.openvla.model import OpenVLA

SHIPPED = {"autoregressive", "exact", "default", "spec-vla", "corrected", "physical", "typical"}
# These need a drafter that was trained for the target.
TRAINED = {"draft-vla", "eagle", "parallel", "draft-vla-eagle", "spec-vla-paper", "spec-vla-paper-strict"}


def test_all_shipped_configurations(small_model: OpenVLA) -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == SHIPPED | TRAINED
    statistics = ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))
    for name in SHIPPED:
        decoder = DecodingConfig.load(name).build(DrafterMaterial(small_model, statistics, Path()))
        assert decoder.name == name
        kind = AutoregressiveDecoder if name == "autoregressive" else SpeculativeDecoder
        assert isinstance(decoder, kind)
    for name in TRAINED:
        with pytest.raises(ValueError, match=r"no trained drafter .*; train one with scripts/train_drafter\.py"):
            DecodingConfig.load(name).build(DrafterMaterial(small_model, statistics, Path()))


def test_millimetres_need_a_robot(small_model: OpenVLA, tmp_path: Path) -> None:
    """Taken for LIBERO's, a robot whose actions are metres would be let off its path by twenty times the tolerance."""
    statistics = ActionStatistics(-np.full(7, 0.03), np.full(7, 0.03), np.array([True] * 6 + [False]))
    known = {"libero_goal_no_noops": (50.0, 500.0), "bridge_orig": (1000.0, 1000.0)}
    for dataset, scales in known.items():
        controller = controller_of(dataset)
        assert controller is not None
        assert (controller.millimetres, controller.milliradians) == scales
    assert controller_of("fractal20220817_data") is None

    physical, reach = DecodingConfig.load("physical"), {}
    for dataset in known:
        material = DrafterMaterial(small_model, statistics, Path(), controller=controller_of(dataset))
        reach[dataset] = physical.build(material)._rule.reach[0]
    assert reach["bridge_orig"] < reach["libero_goal_no_noops"]

    stranger = DrafterMaterial(small_model, statistics, Path(), controller=None)
    with pytest.raises(ValueError, match=r"'physical' has tolerances in mm .* controller: \{millimetres: 1000"):
        physical.build(stranger)
    DecodingConfig.load("spec-vla").build(stranger)  # counts bins

    path = tmp_path / "mine.yaml"
    path.write_text("acceptance: physical\ncontroller: {millimetres: 1000, milliradians: 1000}\n")
    mine = DecodingConfig.load(path)
    assert mine.controller == controller_of("bridge_orig")
    assert mine.build(stranger)._rule.reach[0] == reach["bridge_orig"]
    path.write_text("acceptance: physical\ncontroller: {millimetres: 0, milliradians: 1000}\n")
    with pytest.raises(ValueError, match="millimetres"):
        DecodingConfig.load(path)


def test_configurations_are_told_apart_by_their_settings() -> None:
    base = DecodingConfig.load("spec-vla")
    assert replace(base, name="other").digest == base.digest
    assert replace(base, tolerance={"radius": 5}).digest != base.digest
    assert replace(base, path="nearest").digest != base.digest
    assert replace(base, stall_actions=4).digest != base.digest
    assert DecodingConfig.load("autoregressive").digest == ""
    exact = DecodingConfig.load("exact")  # to which neither matters
    assert replace(exact, path="longest", stall_actions=None).digest == exact.digest


def test_an_installation_without_its_repository_says_what_is_missing(tmp_path: Path) -> None:
    """As `pip install .` leaves it, where packages are copied and `configs/` is not."""
    repository = Path(__file__).parents[2]
    for package in ("policy", "bridge"):
        shutil.copytree(repository / package, tmp_path / package, ignore=shutil.ignore_patterns("pretrained", "*.pyc"))
    code = "from policy.decoding.config import DecodingConfig; DecodingConfig.load('exact')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert 'install it from the clone with `pip install -e ".[policy]"`' in ended.stderr


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "careful.yaml"
    path.write_text("drafters: [previous]\nacceptance: corrected\ntolerance: {radius: 2}\n")
    config = DecodingConfig.load(path)
    assert (config.name, config.drafters, config.acceptance) == ("careful", ("previous",), "corrected")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nodes: many\n", "nodes"),
        ("nods: 3\n", "nods"),
        ("nodes: 0\n", "nodes is 0; a tree has 1 to 128"),
        ("tail_nodes: 200\n", "tail_nodes is 200; a tree has 1 to 128"),
        ("drafters: [clairvoyant]\n", "no drafter clairvoyant; choose some of previous"),
        ("drafters: [motion, motion]\n", "each drafter can be named once"),
        ("tail: fluffy\n", "tail"),
        ("confidence: 1.0\n", "confidence is 1.0"),
        ("path: scenic\n", "path"),
        ("stall_actions: 0\n", "stall_actions is 0; it must be at least 1 repetition, or null"),
        ("acceptance: friendly\n", "no acceptance rule 'friendly'"),
        ("acceptance: corrected\ntolerance: {radius: 999}\n", "radius is 999"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        DecodingConfig.load(path)


def test_an_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'fast'; name a YAML file or one of autoregressive, corrected, default, draft-vla"
    ):
        DecodingConfig.load("fast")
