"""Frames in, messages out: nothing but well-formed messages of this version gets through."""

import io
import pickle

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from raw_client import act_frames, claiming

from bridge.codec import UNREADABLE, decode_image, encode_image, pack, unpack_reply, unpack_request
from bridge.errors import Refusal
from bridge.messages import (
    PROTOCOL_VERSION,
    Act,
    ActionReply,
    ErrorCode,
    Hello,
    ImageHeader,
    Limits,
    ResetDone,
    ServerState,
    ServerTiming,
    Stamp,
    Welcome,
)
from policy.types import DecodeTrace, PolicySpec

STAMP = Stamp("s", 3, 7, 12.5)
LIMIT = 2**20


def act_with(image, encoding="raw", **changes) -> tuple[Act, bytes]:
    header, payload = encode_image(image, encoding)
    return Act(stamp=STAMP, instruction="go", image=msgspec.structs.replace(header, **changes)), bytes(payload)


def refused(code: ErrorCode, *frames: bytes, limit: int = LIMIT) -> Refusal:
    with pytest.raises(Refusal) as caught:
        unpack_request(frames, limit)
    assert caught.value.code == code, caught.value
    return caught.value


def rewritten(header: bytes, **changes) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.decode(header) | changes)


@pytest.fixture
def picture() -> np.ndarray:
    ramp = np.linspace(0, 255, 48, dtype=np.uint8)
    return np.stack(np.broadcast_arrays(ramp[:32, None], ramp[None, :], np.uint8(90)), axis=-1)  # [32, 48, 3]


def test_raw_image_arrives_bit_equal_and_read_only(picture):
    act, payload = act_with(picture)
    request, received = unpack_request([pack(act), payload], LIMIT)
    assert request == act
    image = decode_image(request, received)
    assert np.array_equal(image, picture)
    assert not image.flags.writeable
    assert np.shares_memory(image, np.frombuffer(received, np.uint8))


def test_a_flipped_view_arrives_bit_equal(picture):
    act, payload = act_with(picture[::-1, ::-1])
    assert np.array_equal(decode_image(act, payload), picture[::-1, ::-1])


def test_jpeg_image_arrives_nearly_equal_and_smaller(picture):
    act, payload = act_with(picture, "jpeg")
    assert len(payload) < picture.nbytes / 2
    assert np.abs(decode_image(act, payload).astype(int) - picture).max() <= 6


def test_replies_survive_the_wire():
    spec = PolicySpec("p", unnorm_key="k", versions={"torch": "2"})
    welcome = Welcome(stamp=STAMP, instance="i", state=ServerState.READY, limits=Limits(), spec=spec)
    trace = DecodeTrace(2, (1, 6), ("", "motion"), (0,) * 7, {"vision": np.float64(3.5)})
    timing = ServerTiming(0.1, 0.2, 0.3, 0.6, 1)
    action = ActionReply(stamp=STAMP, values=(0.1,) * 7, tokens=(31999,) * 7, trace=trace, timing=timing)
    assert unpack_reply([pack(welcome)], LIMIT) == welcome
    assert unpack_reply([pack(action)], LIMIT) == action


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_garbage_is_refused_and_nothing_else_happens(frames):
    assert refused(ErrorCode.MALFORMED, *frames).stamp.sequence == 0


def test_a_pickle_is_garbage_like_any_other():
    refused(ErrorCode.MALFORMED, pickle.dumps({"kind": "act"}))


def test_deeply_nested_header_is_refused():
    refused(ErrorCode.MALFORMED, b"\x91" * 60_000)


def test_other_version_is_named_and_its_stamp_echoed():
    hello = pack(Hello(stamp=STAMP, client="c"))
    for changes in ({}, {"kind": "from the future"}):
        refusal = refused(ErrorCode.WRONG_VERSION, rewritten(hello, version=PROTOCOL_VERSION + 1, **changes))
        assert (refusal.stamp.session, refusal.stamp.sequence) == ("s", 7)
        assert str(PROTOCOL_VERSION) in str(refusal)
        assert str(PROTOCOL_VERSION + 1) in str(refusal)


def test_malformed_request_with_a_readable_stamp_is_answered_with_it():
    header = rewritten(act_frames(STAMP)[0], instruction=5)
    assert refused(ErrorCode.MALFORMED, header, b"x").stamp == STAMP


def test_a_reply_is_no_request():
    refused(ErrorCode.MALFORMED, pack(ResetDone(stamp=STAMP)))


def test_unknown_fields_are_refused():
    refused(ErrorCode.MALFORMED, rewritten(pack(Hello(stamp=STAMP, client="c")), checkpoint="/etc/passwd"))


@pytest.mark.parametrize(
    "image",
    [
        {"encoding": "raw", "shape": [16, 16, 4], "size": 1024, "dtype": "uint8"},
        {"encoding": "raw", "shape": [16, 16, 3], "size": 768, "dtype": "float32"},
        {"encoding": "raw", "shape": [16, 16, 3], "size": 767, "dtype": "uint8"},
        {"encoding": "raw", "shape": [-16, -16, 3], "size": 768, "dtype": "uint8"},
        {"encoding": "raw", "shape": [5000, 16, 3], "size": 240_000, "dtype": "uint8"},
        {"encoding": "bmp", "shape": [16, 16, 3], "size": 768, "dtype": "uint8"},
        {"encoding": "jpeg", "shape": [16, 16, 3], "size": 0, "dtype": "uint8"},
    ],
)
def test_impossible_image_headers_are_refused(image):
    header = rewritten(act_frames(STAMP)[0], image=image)
    assert refused(ErrorCode.MALFORMED, header, bytes(image["size"])).stamp == STAMP


def test_payload_must_be_there_and_as_long_as_the_header_says():
    header, payload = act_frames(STAMP)
    refused(ErrorCode.MALFORMED, header)
    refused(ErrorCode.MALFORMED, header, payload[:-1])
    refused(ErrorCode.MALFORMED, header, payload, b"")
    refused(ErrorCode.MALFORMED, pack(Hello(stamp=STAMP, client="c")), payload)


def test_size_is_checked_before_anything_is_decoded():
    header, payload = act_frames(STAMP, side=64)
    refusal = refused(ErrorCode.TOO_LARGE, header, payload, limit=8192)
    assert refusal.stamp == STAMP
    assert "8192" in str(refusal)
    assert refused(ErrorCode.TOO_LARGE, bytes(70_000)).stamp == UNREADABLE


def test_broken_or_lying_jpeg_is_refused(picture):
    act, payload = act_with(picture, "jpeg")
    truncated, random = payload[: len(payload) // 2], np.random.default_rng(0).bytes(500)
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    grey = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(grey, "JPEG")
    larger = encode_image(np.zeros((64, 48, 3), np.uint8), "jpeg")[1]
    for bad in (truncated, random, png.getvalue(), grey.getvalue(), bytes(larger), claiming(payload, 65_535)):
        with pytest.raises(Refusal) as caught:
            decode_image(act, bad)
        assert caught.value.code == ErrorCode.BAD_IMAGE
        assert caught.value.stamp == STAMP


def test_an_action_has_seven_values():
    with pytest.raises(ValueError, match="7 values"):
        ActionReply(stamp=STAMP, values=(0.0,) * 6, tokens=(), trace=DecodeTrace(0), timing=ServerTiming(0, 0, 0, 0, 1))


def test_image_header_names_both_sizes():
    with pytest.raises(ValueError, match="768 bytes, its header says 5"):
        ImageHeader("raw", (16, 16, 3), 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_batch": 0},
        {"max_sessions": 0},
        {"max_message_bytes": 100},
        {"session_idle_s": float("inf")},
        {"evict_after_s": 0},
    ],
)
def test_impossible_limits_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Limits(**changes)
