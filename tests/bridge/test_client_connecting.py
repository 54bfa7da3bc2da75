"""What a client refuses or waits for before there is a connection."""

import time
from dataclasses import replace

import pytest
from raw_client import specified
from scripted_server import welcome

from bridge.client import PolicyClient
from bridge.errors import (
    IncompatibleServerError,
    PolicyFailedError,
    ServerNotReadyError,
)
from bridge.messages import (
    PROTOCOL_VERSION,
)
from bridge.server import PolicyServer
from policy.fake import FakePolicy
from policy.types import ACTION_NAMES, PolicySpec


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["timeout_s", "connect_timeout_s"])
def test_timeouts_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        PolicyClient("tcp://127.0.0.1:1", **{name: value})


@pytest.mark.parametrize(
    "settings",
    [{"encoding": "png"}, {"jpeg_quality": 0}, {"expect": {"colour": "red"}}, {"endpoint": "localhost:5555"}],
)
def test_impossible_settings_are_refused_at_once(settings):
    with pytest.raises(ValueError, match=str(next(iter(settings.values()))).strip("{}").split(":")[0].strip("'")):
        PolicyClient(**settings)


def test_no_server_is_reported_within_the_connect_timeout():
    heard = []
    started = time.monotonic()
    with pytest.raises(
        ServerNotReadyError, match=r"no ready policy at tcp://127.0.0.1:9 in 0.3 s \(server never seen\)"
    ):
        PolicyClient("tcp://127.0.0.1:9", connect_timeout_s=0.3, on_progress=heard.append)
    assert time.monotonic() - started < 0.6
    assert heard


def test_a_loading_server_is_waited_for_with_progress(serve, client_of):
    def load(report):
        report("warming")
        time.sleep(0.5)
        return FakePolicy(policy_id="slow")

    heard = []
    client = client_of(serve(load), on_progress=heard.append)
    assert client.spec.policy_id == "slow"
    assert any("is warming" in text for text in heard)
    with pytest.raises(ServerNotReadyError, match="state loading"):
        client_of(serve(lambda _: time.sleep(1) or FakePolicy()), connect_timeout_s=0.3)


def test_a_failed_load_is_not_waited_for(serve, client_of):
    def load(report):
        raise FileNotFoundError("no weights in there")

    started = time.monotonic()
    with pytest.raises(PolicyFailedError, match="no weights in there"):
        client_of(serve(load))
    assert time.monotonic() - started < 2


def test_another_policy_than_expected_is_refused_with_both_values(serve, client_of):
    server = serve(FakePolicy(policy_id="theirs"))
    with pytest.raises(IncompatibleServerError, match="policy_id: expected 'mine', server has 'theirs'"):
        client_of(server, expect={"policy_id": "mine"})
    with pytest.raises(IncompatibleServerError, match="unnorm_key: expected 'libero_goal'"):
        client_of(server, expect=PolicySpec("theirs", unnorm_key="libero_goal", image_path="processor"))
    assert client_of(server, expect={"control_hz": 20.0}).spec.policy_id == "theirs"


BY_HAND = PolicySpec("fake", prompt_template="{instruction}", image_path="processor")


@pytest.mark.parametrize(
    ("expect", "found", "told"),
    [
        (BY_HAND, {"dtype": "bfloat16", "device": "cuda", "decoding_digest": "ab12"}, ""),
        (BY_HAND, {"dtype": "bfloat16, fp8 layers"}, "quantised layers: expected '', server has 'fp8 layers'"),
        (replace(BY_HAND, dtype="bfloat16, fp8 layers"), {"dtype": "bfloat16, fp8 layers"}, ""),
        (replace(BY_HAND, dtype="bfloat16, fp8 layers"), {"dtype": "bfloat16, int8 layers"}, "quantised layers"),
        (replace(BY_HAND, decoding_digest="cd34"), {"decoding_digest": "ab12"}, "decoding_digest: expected 'cd34'"),
        (replace(BY_HAND, decoding_digest="cd34"), {}, "decoding_digest: expected 'cd34', server has ''"),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}, "dtype: expected 'float32', server has 'bfloat16'"),
        ({"decoding_digest": ""}, {"decoding_digest": "ab12"}, "decoding_digest: expected ''"),
    ],
)
def test_what_a_spec_made_by_hand_asks_for(serve, client_of, expect, found, told):
    server = serve(specified(**found))
    if told:
        with pytest.raises(IncompatibleServerError, match=told):
            client_of(server, expect=expect)
    else:
        client_of(server, expect=expect)


def test_another_action_space_is_always_refused(scripted, client_of):
    spec = PolicySpec("p", action_names=ACTION_NAMES[:-1])
    with pytest.raises(IncompatibleServerError, match="action_names"):
        client_of(scripted(lambda request: [welcome(request, spec=spec)]).endpoint)


def test_another_protocol_version_is_refused(scripted, client_of):
    with pytest.raises(IncompatibleServerError, match=f"version {PROTOCOL_VERSION + 1}"):
        client_of(scripted(lambda request: [welcome(request, version=PROTOCOL_VERSION + 1)]).endpoint)


def test_a_network_name_cannot_be_bound_without_keys(serve):
    for endpoint in ("tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://[::]:5555", "tcp://eth0:5555", "tcp://10.0.0.4:*"):
        with pytest.raises(ValueError, match="--insecure-bind"):
            PolicyServer(FakePolicy(), endpoint)
    assert serve(FakePolicy(), "tcp://*:*", insecure_bind=True).endpoint.startswith("tcp://0.0.0.0:")
    for endpoint in ("tcp://127.0.0.1:*", "tcp://localhost:*", "ipc:///tmp/x", "tcp://[::1]:*"):
        PolicyServer(FakePolicy(), endpoint)
