"""What a control loop can rely on: bounded waits, replies that belong to their observation, one error per remedy."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zmq
from raw_client import FREE_PORT, observe

from bridge.client import PolicyClient
from bridge.codec import pack, unpack_request
from bridge.errors import (
    IncompatibleServerError,
    NoReplyError,
    PolicyFailedError,
    RequestRefusedError,
    ServerNotReadyError,
    SessionLostError,
)
from bridge.latency import split, summarize, time_actions
from bridge.messages import (
    PROTOCOL_VERSION,
    Act,
    ActionReply,
    Hello,
    Limits,
    Reset,
    ResetDone,
    ServerState,
    ServerTiming,
    Welcome,
)
from bridge.server import PolicyServer
from policy.fake import FakePolicy
from policy.types import ACTION_NAMES, ActionPolicy, DecodeTrace, PolicySpec


@pytest.fixture
def client_of():
    clients = []

    def make(server, **settings) -> PolicyClient:
        endpoint = server if isinstance(server, str) else server.endpoint
        clients.append(PolicyClient(endpoint, **{"connect_timeout_s": 5.0} | settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


class ScriptedServer(threading.Thread):
    """Answers each request with what `script(request)` returns, which may be late, foreign or nothing."""

    def __init__(self, script) -> None:
        super().__init__(daemon=True)
        self.script = script
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(FREE_PORT)
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.stopping = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.stopping.is_set():
            if self.socket.poll(20):
                address, *frames = self.socket.recv_multipart()
                for reply in self.script(unpack_request(frames, 2**24)[0]):
                    self.socket.send_multipart([address, pack(reply)])
        self.socket.close()


@pytest.fixture
def scripted():
    servers = []

    def make(script) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield make
    for server in servers:
        server.stopping.set()
        server.join()


def welcome(hello: Hello, **changes) -> Welcome:
    fields = {"instance": "i", "state": ServerState.READY, "limits": Limits(), "spec": PolicySpec("p")}
    return Welcome(stamp=hello.stamp, **fields | changes)


def action(stamp, first_value: float) -> ActionReply:
    timing = ServerTiming(0, 0, 0, 0, 1)
    return ActionReply(stamp=stamp, values=(first_value,) + (0.0,) * 6, tokens=(), trace=DecodeTrace(0), timing=timing)


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


def test_dead_server_hangs_nobody(scripted, client_of):
    client = client_of(
        scripted(lambda request: [welcome(request)] if isinstance(request, Hello) else []), timeout_s=0.2
    )
    started = time.monotonic()
    with pytest.raises(NoReplyError):
        client.act(observe())
    with pytest.raises(NoReplyError, match="state ready"):
        client.status()
    assert time.monotonic() - started < 0.6


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


def test_another_action_space_is_always_refused(scripted, client_of):
    spec = PolicySpec("p", action_names=ACTION_NAMES[:-1])
    with pytest.raises(IncompatibleServerError, match="action_names"):
        client_of(scripted(lambda request: [welcome(request, spec=spec)]).endpoint)


def test_another_protocol_version_is_refused(scripted, client_of):
    with pytest.raises(IncompatibleServerError, match=f"version {PROTOCOL_VERSION + 1}"):
        client_of(scripted(lambda request: [welcome(request, version=PROTOCOL_VERSION + 1)]).endpoint)


def test_restart_loses_the_session_once_and_never_repeats_an_observation(serve, client_of):
    first = serve(FakePolicy())
    client = client_of(first, timeout_s=2.0)
    client.act(observe())
    first.close()
    second = serve(FakePolicy(), first.endpoint)
    with pytest.raises(SessionLostError) as caught:
        client.act(observe())
    assert caught.value.retryable
    assert second.counters.actions == 0
    assert client.act(observe()).values[3] == 0  # a new history
    assert client.reconnects == 1


def test_restart_while_waiting_is_noticed_before_the_timeout(serve, client_of, gated):
    first = serve(gated, drain_s=0.05)
    client = client_of(first, timeout_s=8.0)

    def restart() -> PolicyServer:
        assert gated.started.wait(5)
        first.close()
        return serve(FakePolicy(), first.endpoint)

    with ThreadPoolExecutor() as pool:
        restarted = pool.submit(restart)
        started = time.monotonic()
        with pytest.raises(SessionLostError, match="restarted"):
            client.act(observe())
        assert time.monotonic() - started < 4
        restarted.result(5)


def test_reset_after_a_restart_needs_no_help(serve, client_of):
    first = serve(FakePolicy())
    client = client_of(first)
    first.close()
    serve(FakePolicy(), first.endpoint)
    client.reset()
    assert client.act(observe()).values[3] == 0


def test_restart_with_another_policy_is_refused(serve, client_of):
    first = serve(FakePolicy(policy_id="before"))
    client = client_of(first)
    first.close()
    serve(FakePolicy(policy_id="after"), first.endpoint)
    with pytest.raises(IncompatibleServerError, match="expected 'before', server has 'after'"):
        client.reset()


def test_gone_server_is_named_and_the_wait_bounded(serve, client_of):
    server = serve(FakePolicy())
    client = client_of(server, timeout_s=0.3)
    server.close()
    started = time.monotonic()
    with pytest.raises((ServerNotReadyError, NoReplyError), match="server last seen"):
        client.act(observe())
    assert time.monotonic() - started < 0.6


def test_an_observation_does_not_wait_for_the_next_server(serve, client_of):
    first = serve(FakePolicy())
    client = client_of(first, timeout_s=0.2)
    first.close()
    with pytest.raises((ServerNotReadyError, NoReplyError)):
        client.act(observe())
    second = serve(FakePolicy(), first.endpoint)
    time.sleep(0.5)  # longer than it takes the client's socket to connect again
    assert second.counters.requests == 0


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


def test_a_network_name_cannot_be_bound_without_keys(serve):
    for endpoint in ("tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://[::]:5555", "tcp://eth0:5555", "tcp://10.0.0.4:*"):
        with pytest.raises(ValueError, match="--insecure-bind"):
            PolicyServer(FakePolicy(), endpoint)
    assert serve(FakePolicy(), "tcp://*:*", insecure_bind=True).endpoint.startswith("tcp://0.0.0.0:")
    for endpoint in ("tcp://127.0.0.1:*", "tcp://localhost:*", "ipc:///tmp/x", "tcp://[::1]:*"):
        PolicyServer(FakePolicy(), endpoint)


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
