"""The training targets agree with the tokenizer that inference decodes with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from policy.openvla.action_tokens import ActionTokenizer
from policy.training.objective import (
    BINS,
    ObjectiveConfig,
    bin_of,
    jitter_bins,
    losses,
    own_choice,
    position_of,
    soft_targets,
)


def test_bins_are_those_of_the_action_tokenizer():
    values = np.concatenate([np.linspace(-1.2, 1.2, 997), [-1, 0, 1], np.linspace(-1, 1, 256)])
    tokenizer = ActionTokenizer(32000)
    expected = 32000 - tokenizer.encode(values)
    assert (bin_of(torch.from_numpy(values)).numpy() == expected).all()


def test_soft_targets_peak_at_the_bin_and_average_to_the_value():
    values = torch.tensor([[-0.9, -0.3, 0.0, 0.123, 0.5, 0.9]])
    target = soft_targets(position_of(values), sigma_bins=2.0)
    assert torch.allclose(target.sum(-1), torch.ones(1, 6))
    assert (target.argmax(-1) + 1 - bin_of(values)).abs().max() <= 1
    centers = (torch.arange(1, BINS + 1) - 0.5) / (BINS - 1) * 2 - 1
    assert torch.allclose((target * centers).sum(-1), values, atol=1e-4)


def test_extreme_values_have_one_best_bin():
    target = soft_targets(position_of(torch.tensor([[-1.0, 1.0, 3.0, -3.0, 1.0, -1.0]])), sigma_bins=2.0)
    assert (target.argmax(-1) + 1).tolist() == [[1, 255, 255, 1, 255, 1]]


def test_jitter_stays_in_range_and_moves_by_at_most_the_amount():
    torch.manual_seed(0)
    bins = torch.tensor([[1, 256, 128, 2, 255, 60]]).repeat(500, 1)
    moved = jitter_bins(bins, 2)
    assert moved.min() >= 1
    assert moved.max() <= 256
    assert (moved - bins).abs().max() == 2
    assert torch.equal(jitter_bins(bins, 0), bins)


def test_loss_falls_to_its_floor_for_the_right_logits_and_words_must_lose():
    torch.manual_seed(0)
    config = ObjectiveConfig(sigma_bins=2.0, auxiliary_weight=0.0)
    normalized = torch.cat([torch.rand(8, 6) * 1.8 - 0.9, torch.tensor([[0.0], [1.0]] * 4)], 1)
    base, vocabulary = 448, 512
    reading = torch.zeros(8, 10)
    right = torch.full((8, 7, vocabulary), -30.0)
    target = soft_targets(position_of(normalized[:, :6]), 2.0)
    right[:, :6, base - BINS : base] = target.clamp_min(1e-12).log().flip(-1)
    right[torch.arange(8), 6, base - bin_of(normalized)[:, 6]] = 0.0
    best = losses(right, reading, normalized, reading, base, config, progress=0.0)
    entropy = -(target * target.clamp_min(1e-12).log()).sum(-1)
    assert best.pose.item() == pytest.approx(entropy.mean().item(), abs=1e-3)
    assert best.gripper.item() < 1e-3
    assert best.near.min() == 1
    wordy = right.clone()
    wordy[..., 5] = 5.0
    assert losses(wordy, reading, normalized, reading, base, config, progress=0.0).total > best.total + 1


def test_targets_narrow_late():
    config = ObjectiveConfig(sigma_bins=2.0, final_sigma_bins=0.5)
    widths = [config.sigma_at(progress) for progress in (0.0, 0.5, 0.7, 0.9, 1.0)]
    assert widths == pytest.approx([2.0, 2.0, 1.0, 0.5, 0.5])
    assert ObjectiveConfig().sigma_at(1.0) == ObjectiveConfig().sigma_at(0.0)


def test_a_policys_own_choice_is_the_middle_of_its_likeliest_intention():
    one = soft_targets(torch.tensor([[100.3]]), 3.0)
    torch.testing.assert_close(own_choice(one.log()), torch.tensor([[100.3]]), atol=0.05, rtol=0)
    two = (0.6 * one + 0.4 * soft_targets(torch.tensor([[160.0]]), 1.0)).log()
    assert two.argmax() + 1 == 160, "a narrow peak is the best bin, but not the likeliest intention"
    torch.testing.assert_close(own_choice(two), torch.tensor([[100.3]]), atol=0.1, rtol=0)
    edge = own_choice(soft_targets(torch.tensor([[1.0, 255.0]]), 0.7).log())
    assert ((edge >= 1) & (edge <= BINS)).all()


def test_poses_can_be_taught_another_choice_and_the_gripper_stays_the_experts():
    torch.manual_seed(0)
    config = ObjectiveConfig(sigma_bins=0.7, final_sigma_bins=0.7, auxiliary_weight=0.0)
    normalized = torch.cat([torch.zeros(4, 6), torch.ones(4, 1)], 1)
    choice = torch.full((4, 6), 40.0)
    logits, reading = torch.full((4, 7, 512), -30.0), torch.zeros(4, 10)
    logits[:, :6, 448 - 40] = logits[:, 6, 448 - bin_of(normalized)[0, 6]] = 30.0
    wrong = losses(logits, reading, normalized, reading, 448, config, progress=0.0)
    right = losses(logits, reading, normalized, reading, 448, config, progress=0.0, choice=choice)
    assert right.pose < wrong.pose
    assert right.gripper == wrong.gripper < 1e-3
    narrow = replace(config, own_choice_sigma_bins=0.3)
    surer = losses(logits, reading, normalized, reading, 448, narrow, progress=0.0, choice=choice)
    assert surer.pose < right.pose, "all on one bin is the better answer, the narrower the target"


def test_the_share_of_the_run_is_checked():
    with pytest.raises(ValueError, match=r"own_choice_from is a share of the run, 0..1, got 1.2"):
        ObjectiveConfig(own_choice_from=1.2)
