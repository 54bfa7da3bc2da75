"""Drafters propose what they say, and nodes go where drafts have been accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from policy.decoding.pictures import SKETCHED, Sketcher
from policy.decoding.tree import ROOT
from policy.drafting.base import DraftContext
from policy.drafting.dataset import DatasetMean
from policy.drafting.motion import MotionCoefficients, MotionDrafter, fit_motion
from policy.drafting.placement import Placement
from policy.drafting.previous import PreviousAction
from policy.drafting.retrieval import Retrieval
from policy.openvla.action_tokens import ActionStatistics, ActionTokenizer

EXACT = (0,) * 7
NOTHING = np.zeros((0, 7), np.int64)


def history(*rows: int) -> np.ndarray:
    return np.array([[row] * 7 for row in rows], np.int64)


def test_previous_action() -> None:
    drafter = PreviousAction()
    assert drafter.propose(DraftContext(0, NOTHING)) is None
    assert drafter.propose(DraftContext(0, history(3, 9))).tolist() == [9] * 7


def test_motion_goes_on_weakened_and_stays_within_the_bins() -> None:
    drafter = MotionDrafter(MotionCoefficients((0.5,) * 7, (0.25,) * 7))
    assert drafter.propose(DraftContext(0, NOTHING)) is None
    assert drafter.propose(DraftContext(0, history(100))).tolist() == [100] * 7
    assert drafter.propose(DraftContext(0, history(90, 100))).tolist() == [105] * 7
    assert drafter.propose(DraftContext(0, history(86, 90, 100))).tolist() == [106] * 7
    assert drafter.propose(DraftContext(0, history(100, 255))).tolist() == [255] * 7


def test_fit_finds_the_law_that_moves_the_logged_actions() -> None:
    random = np.random.default_rng(0)
    episodes = []
    for _ in range(20):
        path = [np.full(7, 128.0), 128 + random.normal(0, 20, 7)]
        while len(path) < 40:  # pushed now and then, which tells the last change from the one before
            pushed = random.random(7) < 0.3
            path.append(path[-1] + np.where(pushed, random.normal(0, 20, 7), 0.7 * (path[-1] - path[-2])))
        episodes.append(np.rint(path).astype(np.int64))
    fitted = fit_motion(episodes)
    assert np.allclose(fitted.last, 0.7, atol=0.11)
    assert np.abs(fitted.before).max() <= 0.11
    with pytest.raises(ValueError, match="none of 1 episodes has 4 actions"):
        fit_motion([history(1, 2, 3)])


def test_coefficients_are_kept_beside_the_weights(tmp_path: Path) -> None:
    assert MotionCoefficients.load(tmp_path) == MotionCoefficients()
    stored = MotionCoefficients((0.1,) * 7, (0.2,) * 7)
    path = stored.save(tmp_path)
    assert MotionCoefficients.load(tmp_path) == stored
    path.write_text('{"last": [1, 2]}')
    with pytest.raises(ValueError, match=r"motion_drafter\.json.*fit_motion_drafter"):
        MotionCoefficients.load(tmp_path)


def test_first_action_is_the_data_sets_mean() -> None:
    mean = np.array([0.2, -0.4, 0, 0.1, 0, 0, 0.7])
    spread = np.full(7, 0.5)
    statistics = ActionStatistics(-spread, spread, np.array([True] * 6 + [False]), mean=mean)
    drafted = DatasetMean(statistics).propose(DraftContext(0, NOTHING))
    assert drafted is not None
    tokenizer = ActionTokenizer()
    values = statistics.unnormalize(tokenizer.decode(tokenizer.vocab_size - 1 - drafted))
    np.testing.assert_allclose(values, mean, atol=1 / 255)
    assert DatasetMean(statistics).propose(DraftContext(0, history(1))) is None


def alike_pictures(random: np.random.Generator) -> np.ndarray:
    """Sketches of three frames and of one that is nearly the second."""
    pixels = np.tile(random.normal(size=(4, 3, 224, 224)), (1, 2, 1, 1)).astype(np.float32)
    pixels[3] = pixels[1] + 0.1 * pixels[3]
    return Sketcher(torch.device("cpu")).look(torch.from_numpy(pixels))()


def test_retrieval_finds_the_moment_that_looked_alike() -> None:
    random = np.random.default_rng(0)
    drafter, (*pictures, nearly) = Retrieval(capacity=8), alike_pictures(random)
    assert drafter.propose(DraftContext(1, NOTHING, features=pictures[0])) is None
    for number, picture in enumerate(pictures):
        drafter.observe(DraftContext(1, history(50), features=picture), np.full(7, 10 * number))
    assert drafter.propose(DraftContext(1, history(50), features=nearly)).tolist() == [10] * 7
    assert drafter.propose(DraftContext(1, history(50), known=(20, 20, 20), features=nearly)).tolist() == [20] * 7
    assert drafter.propose(DraftContext(2, history(50), features=nearly)) is None
    for _ in range(8):  # the oldest are forgotten
        drafter.observe(DraftContext(2, history(50), features=pictures[0]), np.full(7, 99))
    assert drafter.propose(DraftContext(1, history(50), features=nearly)) is None


def test_retrieval_measures_a_moment_once_and_heeds_what_is_known() -> None:
    drafter, picture = Retrieval(), np.ones(SKETCHED, np.float32)
    for action in (10, 20):
        drafter.observe(DraftContext(1, history(50), features=picture), np.full(7, action))
    moment, measured = DraftContext(1, history(50), features=picture), []
    measure = drafter._distances
    drafter._distances = lambda context: measured.append(context) or measure(context)
    assert drafter.propose(moment).tolist() == [10] * 7
    assert drafter.propose(moment.knowing([20])).tolist() == [20] * 7
    assert drafter.propose(moment.knowing([20, 11, 9])).tolist() == [10] * 7
    assert len(measured) == 1
    drafter.observe(moment, np.full(7, 10))
    drafter.propose(moment)
    assert len(measured) == 2, "there is one more to be near to"


def test_retrieval_tells_alike_pictures_apart_by_the_action_before() -> None:
    drafter, picture = Retrieval(), np.ones(SKETCHED, np.float32)
    for before, action in ((10, 1), (200, 2)):
        drafter.observe(DraftContext(1, history(before), features=picture), np.full(7, action))
    assert drafter.propose(DraftContext(1, history(190), features=picture)).tolist() == [2] * 7


def test_without_any_record_the_proposal_itself_comes_first() -> None:
    placement = Placement(nodes=16, confidence=0.0, reach=EXACT)
    draft = placement.plan(0, {"previous": np.full(7, 40)})
    assert len(draft.tokens) == 16
    assert (draft.tokens[0], draft.parents[0]) == (40, ROOT)
    assert {token for token, parent in zip(draft.tokens, draft.parents, strict=True) if parent == ROOT} >= {39, 40, 41}
    assert len({*zip(draft.parents, draft.tokens, strict=True)}) == 16  # no two siblings alike


def test_nodes_go_where_the_record_says() -> None:
    placement = Placement(nodes=6, confidence=0.0, reach=EXACT)
    shifted = {"late": np.full(7, 100), "lucky": np.full(7, 30)}
    for _ in range(50):  # "late" is always three bins behind, "lucky" always far off
        placement.learn(shifted, np.full(7, 103))
    draft = placement.plan(0, {"late": np.full(7, 200), "lucky": np.full(7, 60)})
    assert draft.tokens == (203,) * 6
    assert draft.depths == (0, 1, 2, 3, 4, 5)
    assert draft.drafters == ("late",) * 6
    assert placement.plan(4, {"late": np.full(7, 200)}).depths[:2] == (4, 5)


def test_a_record_after_hits_is_not_that_after_misses() -> None:
    placement = Placement(nodes=2, confidence=0.0, reach=EXACT)
    proposal = {"previous": np.full(7, 100)}
    for _ in range(40):  # either all stays, or the first two dimensions jump
        placement.learn(proposal, np.full(7, 100))
        placement.learn(proposal, np.array([107, 110, 100, 100, 100, 100, 100]))
        placement.learn(proposal, np.array([107, 110, 100, 100, 100, 100, 100]))
    assert placement.plan(0, proposal).tokens == (107, 110)


def test_trees_of_further_passes_may_be_smaller() -> None:
    placement = Placement(nodes=40, confidence=0.0, reach=EXACT, tail_nodes=9)
    proposal = {"previous": np.full(7, 40)}
    assert [len(placement.plan(start, proposal).tokens) for start in (0, 1, 4)] == [40, 9, 9]
    same = Placement(nodes=40, confidence=0.0, reach=EXACT)
    assert len(same.plan(1, proposal).tokens) == 40


def test_improbable_nodes_are_left_out() -> None:
    wide = Placement(nodes=64, confidence=0.0, reach=EXACT).plan(0, {"previous": np.full(7, 40)})
    narrow = Placement(nodes=64, confidence=0.1, reach=EXACT).plan(0, {"previous": np.full(7, 40)})
    assert 0 < len(narrow.tokens) < len(wide.tokens) == 64


def test_within_reach_of_a_tolerant_rule_one_node_is_enough() -> None:
    draft = Placement(nodes=32, confidence=0.0, reach=(5,) * 7).plan(0, {"previous": np.full(7, 40)})
    first = sorted(token for token, parent in zip(draft.tokens, draft.parents, strict=True) if parent == ROOT)
    assert min(np.diff(first), default=99) >= 5


def test_nothing_proposed_is_nothing_drafted() -> None:
    placement = Placement(nodes=8, confidence=0.0, reach=EXACT)
    assert placement.plan(0, {}).tokens == ()
    assert placement.plan(6, {"previous": np.full(7, 40)}).tokens == ()
    assert placement.plan(2, {"jacobi": np.full(7, -1)}).tokens == ()
    partly = np.array([-1, -1, 7, 8, -1, -1, -1])
    assert set(placement.plan(2, {"jacobi": partly}).depths) == {2, 3}
