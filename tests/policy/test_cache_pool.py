"""What a pool lends keeps its place, and what it takes stays in proportion to what was asked for."""

import torch

from policy.decoding.cache import CachePool
from policy.openvla.model import OpenVLA


def test_a_cache_is_lent_again_at_the_same_place(small_model: OpenVLA):
    pool = CachePool(small_model)
    first = pool.get(2, 300)
    address = first.keys.data_ptr()
    pool.get(8, 900)  # more of both
    assert pool.get(2, 300) is first
    assert first.keys.data_ptr() == address
    assert (first.batch, first.length) == (2, 300)
    assert first.keys.shape[1] == 2
    assert first.keys.shape[3] == 300


def test_smaller_requests_share_what_is_there(small_model: OpenVLA):
    pool = CachePool(small_model)
    large = pool.get(4, 384)
    assert pool.allocated == 4 * 384
    assert pool.get(1, 310).keys.data_ptr() == large.keys.data_ptr()
    assert pool.get(3, 200).keys.data_ptr() == large.keys.data_ptr()
    assert pool.allocated == 4 * 384


def test_a_long_prompt_of_one_client_makes_no_room_for_a_batch_of_them(small_model: OpenVLA):
    pool = CachePool(small_model)
    for batch in (1, 2, 4, 8, 16, 32):
        pool.get(batch, 350)
    assert pool.allocated == 63 * 384
    for length in range(400, 1500, 50):
        pool.get(1, length)
    assert pool.allocated == 63 * 384 + 768 + 1536


def test_parts_do_not_reach_beyond_their_allocation(small_model: OpenVLA):
    pool = CachePool(small_model)
    for batch, length in ((1, 1), (3, 384), (5, 385), (6, 768), (7, 769)):
        cache = pool.get(batch, length)
        assert cache.keys.shape[1:4:2] == (batch, length)
        assert torch.equal(cache.slots, torch.arange(length))
