"""The mean of a network's weights over training: right by hand, short in short runs, kept across a restart."""

import copy

import pytest
import torch
from torch import nn

from policy.training.running_average import decay_after, running_average


def _with_weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize(("decay", "steps"), [(0.999, 60), (0.6, 60), (0.001, 5)])
def test_the_mean_is_that_of_the_formula(decay: float, steps: int):
    layer = _with_weight(3.0)
    mean = running_average(layer, decay)
    mean.update_parameters(layer)
    expected = 3.0
    for step in range(1, steps):
        nn.init.constant_(layer.weight, float(step % 7))
        mean.update_parameters(layer)
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * (step % 7)
    assert mean.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_a_short_run_is_not_remembered_from_its_start():
    layer = _with_weight(0.0)
    mean = running_average(layer, 0.999)
    for step in range(2400):
        nn.init.constant_(layer.weight, float(step >= 1600))
        mean.update_parameters(layer)
    assert mean.module.weight.item() > 0.97  # a fixed memory of 1,000 steps has 0.55 here


def test_in_the_long_run_memory_is_as_long_as_asked_for():
    assert decay_after(100, 0.999) < decay_after(8000, 0.999) < decay_after(9000, 0.999) == decay_after(10**6, 0.999)


def test_a_saved_mean_goes_on_where_it_stopped():
    layer = _with_weight(1.0)
    mean = running_average(layer, 0.999)
    for _ in range(30):
        mean.update_parameters(layer)
    restored = running_average(_with_weight(5.0), 0.999)
    restored.load_state_dict(copy.deepcopy(mean.state_dict()))
    nn.init.constant_(layer.weight, 2.0)
    for each in (mean, restored):
        each.update_parameters(layer)
    assert torch.equal(mean.module.weight, restored.module.weight)
    assert restored.module.weight.item() == pytest.approx(1 + 9 / 40)
