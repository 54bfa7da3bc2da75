"""What is brought to a device stays as it was brought."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.transfer import Upload
from policy.openvla.model import OpenVLA

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_arrays_of_one_shape_use_one_place_and_do_not_touch_each_other(device: str) -> None:
    upload = Upload(torch.device(device))
    first = upload(np.full((2, 3), 7, np.uint8))
    assert first.tolist() == [[7] * 3] * 2
    second, other = upload(np.full((2, 3), 9, np.uint8)), upload(np.full((2, 3), 0.5, np.float32))
    assert (first.tolist(), second.tolist(), other.tolist()) == ([[7] * 3] * 2, [[9] * 3] * 2, [[0.5] * 3] * 2)
    assert {tensor.device.type for tensor in (first, second, other)} == {device}
    assert len(upload._places) == 2


def test_prompts_are_brought_once(small_model: OpenVLA) -> None:
    with torch.inference_mode():
        first, lengths = PromptBatch.ids(small_model, [[1, 4, 5], [1, 6]])
    again, _ = PromptBatch.ids(small_model, [[1, 4, 5], [1, 6]])
    assert again.data_ptr() == first.data_ptr()
    assert not first.is_inference(), "training reads prompts, too"
    assert (lengths - 256).tolist() == [3, 2]
    assert PromptBatch.ids(small_model, [[1, 4, 6], [1, 6]])[0][0, 2] == 6
