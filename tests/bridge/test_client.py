"""What a control loop can rely on: bounded waits, replies that belong to their observation, one error per remedy."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from raw_client import observe
from scripted_server import action, welcome

from bridge.client import PolicyClient
from bridge.errors import (
    IncompatibleServerError,
    NoReplyError,
    PolicyFailedError,
    RequestRefusedError,
)
from bridge.latency import split, summarize, time_actions
from bridge.messages import (
    Act,
    Hello,
    Reset,
    ResetDone,
)
from policy.fake import FakePolicy
from policy.types import ActionPolicy, DecodeTrace


def test_a_client_is_a_policy_like_any_other(serve, client_of):
    local = FakePolicy()
    remote = client_of(serve(FakePolicy()))
    assert isinstance(remote, ActionPolicy)
    assert remote.spec == local.spec
    for _ in range(2):
        remote.reset()
        local.reset()
        for level in (0, 100, 255):
            ours, theirs = local.act(observe(level)), remote.act(observe(level))
            assert np.array_equal(ours.values, theirs.values)
            assert theirs.values.dtype == np.float32
            assert theirs.tokens.dtype == np.int64
            assert ours.trace == theirs.trace


def test_jpeg_changes_the_picture_only_a_little(serve, client_of):
    remote = client_of(serve(FakePolicy()), encoding="jpeg", jpeg_quality=90)
    assert np.allclose(remote.act(observe(100)).values, FakePolicy().act(observe(100)).values, atol=0.02)


def test_no_torch_is_imported_by_a_client():
    code = "import bridge.client, sys; print({'torch', 'mujoco', 'jsonargparse'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_two_clients_keep_their_episodes_apart(serve, client_of):
    server = serve(FakePolicy())
    first, second = client_of(server), client_of(server)
    assert [first.act(observe()).values[3] for _ in range(3)] == [0, 1, 2]
    second.reset()
    assert [second.act(observe()).values[3], first.act(observe()).values[3]] == [0, 3]


def test_many_clients_in_parallel_get_their_own_answers(serve):
    server = serve(FakePolicy(delay_s=0.001))

    def drive(level: int) -> list[float]:
        with PolicyClient(server.endpoint) as client:
            client.reset()
            return [float(client.act(observe(level)).values[0]) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(drive, range(0, 240, 30)))
    expected = [float(FakePolicy().act(observe(level)).values[0]) for level in range(0, 240, 30)]
    assert found == [[value] * 20 for value in expected]


def test_silence_ends_after_the_timeout_and_says_what_the_server_is_doing(serve, client_of, gated):
    client = client_of(serve(gated), timeout_s=0.8)
    started = time.monotonic()
    with pytest.raises(
        NoReplyError, match=r"no reply in 0.8 s from tcp://.*last seen 0\.\d s ago, state busy"
    ) as caught:
        client.act(observe())
    assert 0.7 < time.monotonic() - started < 1.1
    assert caught.value.retryable


def test_late_reply_is_dropped_and_counted(serve, client_of, gated):
    client = client_of(serve(gated), timeout_s=0.2)
    with pytest.raises(NoReplyError):
        client.act(observe(10))
    gated.gate.set()
    time.sleep(0.1)  # the reply to the first observation is now waiting in the socket
    assert client.act(observe(200)).values[0] == FakePolicy().act(observe(200)).values[0]
    assert client.late_replies == 1


def test_only_the_reply_with_the_newest_stamp_is_returned(scripted, client_of):
    sent = []

    def script(request):
        match request:
            case Hello():
                return [welcome(request)]
            case Act(stamp=stamp):
                sent.append(stamp)
                other = type(stamp)("other session", stamp.episode, stamp.sequence, stamp.captured_at)
                return [action(sent[0], -1), action(other, -2), action(stamp, len(sent)), action(stamp, -3)]
        return []

    client = client_of(scripted(script).endpoint)
    assert client.act(observe()).values[0] == -1  # the first stamp is the newest one
    assert client.act(observe()).values[0] == 2
    assert client.act(observe()).values[0] == 3


def test_errors_name_their_remedy(serve, client_of):
    class Picky(FakePolicy):
        def act(self, observation, session=""):
            raise (ValueError if observation.image[0, 0, 0] else RuntimeError)("no")

    client = client_of(serve(Picky(), max_message_bytes=300_000))
    for observation, expected in ((observe(1), RequestRefusedError), (observe(0), PolicyFailedError)):
        with pytest.raises(expected) as caught:
            client.act(observation)
        assert caught.value.hint
    with pytest.raises(RequestRefusedError, match="300000 bytes"):
        client.act(observe(side=400))


def test_unreadable_replies_are_ignored(scripted, client_of):
    server = scripted(
        lambda request: [welcome(request)] if isinstance(request, Hello) else [ResetDone(stamp=request.stamp)]
    )
    client = client_of(server.endpoint, timeout_s=0.3)
    with pytest.raises(IncompatibleServerError, match="answered Act with ResetDone"):
        client.act(observe())
    server.script = lambda request: [Reset(stamp=request.stamp)]  # a request is no reply
    with pytest.raises(NoReplyError):
        client.act(observe())


def test_a_client_belongs_to_its_thread(serve, client_of):
    client = client_of(serve(FakePolicy()))
    with ThreadPoolExecutor(1) as pool:
        for call in (client.reset, lambda: client.act(observe()), client.status, client.close):
            with pytest.raises(RuntimeError, match="belongs to the thread"):
                pool.submit(call).result()
    assert client.act(observe()) is not None


def test_closing_frees_the_session_and_is_final(serve, client_of):
    server = serve(FakePolicy(), max_sessions=1)
    client = client_of(server)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="is closed"):
        client.act(observe())
    assert client_of(server).status().sessions == 1


def test_ipc_works_like_tcp(serve, client_of, tmp_path):
    assert client_of(serve(FakePolicy(), f"ipc://{tmp_path}/policy")).act(observe()) is not None


def test_parts_of_a_round_trip_add_up(serve, client_of):
    class Staged(FakePolicy):
        def act(self, observation, session=""):
            base = super().act(observation, session)
            return type(base)(base.values, base.tokens, DecodeTrace(1, (7,), stage_ms={"vision": 1.0, "prefill": 0.5}))

    client = client_of(serve(Staged(delay_s=0.002)))
    timings = time_actions(client, observe(), actions=5, warmup=1)
    assert len(timings) == 5
    for timing in timings:
        parts = split(timing)
        assert sum(parts.values()) == pytest.approx(timing.round_trip_ms)
        assert timing.round_trip_ms > timing.server.total_ms >= timing.server.policy_ms >= 2.0
        assert parts["vision"] == 1.0
    rows = summarize(timings)
    assert rows[0].part == "round trip"
    assert rows[0].mean_ms == pytest.approx(sum(row.mean_ms for row in rows[1:]))
