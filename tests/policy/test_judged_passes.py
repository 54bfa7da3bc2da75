"""What a pass is told arrives on the device as it was on the host."""

from __future__ import annotations

import numpy as np
import torch

from policy.decoding.acceptance.base import AcceptanceState
from policy.decoding.judged_passes import Known


def test_what_rules_remember_arrives_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = 300 * torch.randn(3, 7, generator=generator)
    errors[0, :3] = torch.tensor([0.0, -0.0, 1e-30])
    state = AcceptanceState(errors, torch.randint(-1, 256, (3, 7), generator=generator), torch.tensor([0, 7, 99]))
    decided = np.arange(18).reshape(3, 6)
    packed = np.column_stack([Known.remembered([True, False, True], state), [2, 0, 6], decided])
    known = Known.unpack(torch.from_numpy(packed))
    assert known.seen.tolist() == [True, False, True]
    assert known.counts.tolist() == [2, 0, 6]
    assert known.decided.tolist() == decided.tolist()
    assert known.state.signed_error.view(torch.int32).equal(errors.view(torch.int32))
    assert known.state.previous.equal(state.previous)
    assert known.state.repeats.equal(state.repeats)
