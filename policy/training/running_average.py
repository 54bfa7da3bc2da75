"""The mean of a network's weights over the last part of its training, which is what drives. Knows nothing of losses.

Its memory grows with training, as TensorFlow's ExponentialMovingAverage does with `num_updates`: of a run of any length
it is at most the last ninth, in which the learning rate has gone down. A fixed memory of 1,000 steps would be most of a
short run, and keep what was learnt while steps were large.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


def decay_after(steps: int, decay: float) -> float:
    """Share of the mean that the step after so many steps leaves: `decay` at most, less while there are few."""
    return min(decay, (1 + steps) / (10 + steps))


def running_average(model: nn.Module, decay: float) -> AveragedModel:
    """The mean of `model`'s weights, moved on by `update_parameters(model)`.

    decay: share of the mean that a step leaves in the long run, between 0 and 1; 1 / (1 - decay) steps are remembered.
    """

    def update(means: Tensors, weights: Tensors, count: Tensor | int) -> None:
        get_ema_multi_avg_fn(decay_after(int(count), decay))(means, weights, count)

    return AveragedModel(model, multi_avg_fn=update)
