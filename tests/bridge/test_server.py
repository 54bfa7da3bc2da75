"""The protocol as a server keeps it, seen through raw sockets."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zmq
from raw_client import GatedPolicy, act_frames, claiming, observe

from bridge import server as server_module
from bridge import worker
from bridge.codec import encode_image, pack
from bridge.messages import (
    PROTOCOL_VERSION,
    Act,
    ActionReply,
    Error,
    ErrorCode,
    Goodbye,
    Hello,
    ImageHeader,
    ResetDone,
    ServerState,
    StatusReply,
    Welcome,
)
from bridge.server import PolicyServer
from policy.fake import FakePolicy
from policy.types import DeviceLostError

SERVE_POLICY = Path(__file__).parents[2] / "scripts" / "serve_policy.py"


def expect_error(reply, code: ErrorCode, stamp=None) -> Error:
    assert isinstance(reply, Error), reply
    assert reply.code == code, reply
    if stamp is not None:
        assert reply.stamp == stamp
    return reply


def wait_until(condition, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


class RestingPolicy(FakePolicy):
    """Notes when it may rest, and fails at it if told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.rests, self._fails = 0, fails

    def rest(self) -> None:
        self.rests += 1
        if self._fails:
            raise RuntimeError("no rest")


@pytest.mark.parametrize("fails", [False, True])
def test_a_policy_rests_once_after_its_last_answer(serve, connect, fails: bool, caplog):
    policy = RestingPolicy(fails)
    client = connect(serve(policy))
    wait_until(lambda: policy.rests == 1)  # loading is over, too
    for answered in (1, 2):
        client.send_frames(*act_frames(client.stamp()))
        assert isinstance(client.receive(), ActionReply)
        wait_until(lambda answered=answered: policy.rests == 1 + answered)
    assert ("the policy could not rest" in caplog.text) == fails


def test_every_reply_echoes_its_request(serve, connect):
    client = connect(serve(FakePolicy()), greet=False)
    odd = {"captured_at": -1e9, "session": "odd"}  # a clock is opaque: any number comes back as it went
    for build in (lambda s: [pack(Hello(stamp=s, client="c"))], act_frames):
        stamp = client.stamp(**odd)
        client.send_frames(*build(stamp))
        assert client.receive().stamp == stamp


def test_act_before_hello_is_told_to_say_hello(serve, connect):
    client = connect(serve(FakePolicy()), greet=False)
    error = expect_error(client.receive() if client.send_act() else None, ErrorCode.UNKNOWN_SESSION)
    assert error.retryable
    assert "hello" in error.hint


def test_garbage_gets_an_error_and_the_server_goes_on(serve, connect):
    server = serve(FakePolicy())
    client = connect(server)
    for frames in ([b""], [b"\x00" * 50], [b"garbage", b"more"], [b"a", b"b", b"c"], [b"\xff" * 4096]):
        client.send_frames(*frames)
        assert expect_error(client.receive(), ErrorCode.MALFORMED).stamp.sequence == 0
    client.send_act()
    assert isinstance(client.receive(), ActionReply)
    assert server.counters.refused == 5


def test_other_version_is_refused_with_both_numbers(serve, connect):
    client = connect(serve(FakePolicy()), greet=False)
    stamp = client.stamp()
    client.send_frames(pack(Hello(stamp=stamp, client="c", version=PROTOCOL_VERSION + 1)))
    assert f"version {PROTOCOL_VERSION + 1}" in expect_error(client.receive(), ErrorCode.WRONG_VERSION, stamp).message


def test_oversized_and_truncated_images_are_refused(serve, connect):
    client = connect(serve(FakePolicy(), max_message_bytes=300_000))
    expect_error(client.receive() if client.send_act(side=400) else None, ErrorCode.TOO_LARGE)
    header, payload = act_frames(client.stamp())
    client.send_frames(header, payload[:-1])
    expect_error(client.receive(), ErrorCode.MALFORMED)


def test_broken_jpeg_is_refused_by_name(serve, connect):
    client = connect(serve(FakePolicy()))
    stamp = client.stamp()
    client.send_frames(
        pack(Act(stamp=stamp, instruction="go", image=ImageHeader("jpeg", (16, 16, 3), 9))), b"no jpeg.."
    )
    expect_error(client.receive(), ErrorCode.BAD_IMAGE, stamp)


def test_a_jpeg_that_claims_to_be_huge_harms_nobody(serve, connect):
    server = serve(FakePolicy())
    hostile, good = connect(server, "hostile"), connect(server, "good")
    payload = claiming(bytes(encode_image(observe().image, "jpeg")[1]), 65_535)
    stamp = hostile.stamp()
    image = ImageHeader("jpeg", (32, 32, 3), len(payload))
    hostile.send_frames(pack(Act(stamp=stamp, instruction="go", image=image)), payload)
    expect_error(hostile.receive(), ErrorCode.BAD_IMAGE, stamp)
    good.send_act()
    assert isinstance(good.receive(), ActionReply)


def test_whatever_goes_wrong_in_a_batch_is_told_and_the_next_is_answered(serve, connect, monkeypatch, caplog):
    client = connect(serve(FakePolicy()))
    with caplog.at_level(logging.CRITICAL, "bridge"):
        for step in ("decode_image", "_decide"):
            with monkeypatch.context() as patch:
                patch.setattr(worker, step, lambda *_: {}["no such thing"])
                stamp = client.send_act()
                expect_error(client.receive(), ErrorCode.POLICY_FAILED, stamp)
    client.send_act()
    assert isinstance(client.receive(), ActionReply)


class QuittingPolicy(GatedPolicy):
    """Ends its thread in the first decision, as a library does that calls sys.exit."""

    def act(self, observation, session=""):
        super().act(observation, session)
        raise SystemExit(0)


def test_a_policy_whose_thread_ends_is_told_to_all_and_ends_the_server(serve, connect, caplog, monkeypatch):
    monkeypatch.setattr(server_module, "FAILURE_NOTICE_S", 0.1)
    policy = QuittingPolicy()
    server = serve(policy)
    running, waiting = connect(server, "running"), connect(server, "waiting")
    stamps = [running.send_act()]
    assert policy.started.wait(5)
    stamps.append(waiting.send_act())
    waiting.status()  # answered after what was sent before it has arrived
    with caplog.at_level(logging.CRITICAL, "bridge"):
        policy.gate.set()
        for client, stamp in zip((running, waiting), stamps, strict=True):
            expect_error(client.receive(), ErrorCode.POLICY_FAILED, stamp)
        wait_until(lambda: server.state == ServerState.FAILED)
        late = connect(server, "late", greet=False)
        late.send_frames(pack(Hello(stamp=late.stamp(), client="c")))
        assert "failed for good" in expect_error(late.receive(), ErrorCode.POLICY_FAILED).message
        with pytest.raises(RuntimeError, match="SystemExit: 0"):
            server.serve_forever()


def test_a_lost_device_ends_the_server(serve, connect, monkeypatch):
    """Every later action would fail, too; whoever watches over the server starts a new process."""
    monkeypatch.setattr(server_module, "FAILURE_NOTICE_S", 0.1)
    policy = FakePolicy()
    monkeypatch.setattr(policy, "act", lambda *_: (_ for _ in ()).throw(DeviceLostError("cuda:0 has failed for good")))
    server = serve(policy)
    client = connect(server)
    stamp = client.send_act()
    expect_error(client.receive(), ErrorCode.POLICY_FAILED, stamp)
    wait_until(lambda: server.state == ServerState.FAILED)
    with pytest.raises(DeviceLostError, match="cuda:0 has failed for good"):
        server.serve_forever()


def test_status_is_answered_while_the_policy_is_busy(serve, connect, gated):
    client = connect(serve(gated))
    client.send_act()
    assert gated.started.wait(5)
    started = time.monotonic()
    status = client.status()
    assert time.monotonic() - started < 0.5
    assert isinstance(status, StatusReply)
    assert status.state == ServerState.BUSY
    assert status.busy_s > 0


def test_newer_observation_supersedes_the_waiting_one_and_says_so(serve, connect, gated):
    server = serve(gated)
    client = connect(server)
    running = client.send_act()
    assert gated.started.wait(5)
    waiting, newest = client.send_act(), client.send_act()
    expect_error(client.receive(), ErrorCode.SUPERSEDED, waiting)
    gated.gate.set()
    assert [client.receive().stamp for _ in range(2)] == [running, newest]
    assert server.counters.superseded == 1
    assert server.counters.actions == 2


def test_reset_is_acknowledged_and_older_observations_are_refused(serve, connect, gated):
    gated.gate.set()
    server = serve(gated)
    client = connect(server)
    assert isinstance(client.reset(1), ResetDone)
    assert gated.was_reset == ["s"]
    stamp = client.send_act(episode=0)
    expect_error(client.receive(), ErrorCode.STALE_EPISODE, stamp)
    expect_error(client.reset(1), ErrorCode.STALE_EPISODE)
    client.send_act(episode=2)
    expect_error(client.receive(), ErrorCode.UNKNOWN_EPISODE)
    assert server.counters.stale == 2


def test_an_action_that_outlives_its_episode_is_not_sent(serve, connect, gated):
    client = connect(serve(gated))
    running = client.send_act(episode=0)
    assert gated.started.wait(5)
    waiting = client.send_act(episode=0)
    threading.Timer(0.05, gated.gate.set).start()
    expect_error(client.reset(1), ErrorCode.STALE_EPISODE, waiting)
    expect_error(client.receive(), ErrorCode.STALE_EPISODE, running)
    assert isinstance(client.receive(), ResetDone)


def test_three_clients_are_served_in_turn(serve, connect, gated):
    server = serve(gated, max_batch=1)
    flood, second, third = (connect(server, name) for name in ("flood", "second", "third"))
    flood.send_act()
    assert gated.started.wait(5)
    for _ in range(20):
        flood.send_act()
    flood.status()  # each answer says that what was sent before it has arrived
    second.send_act()
    second.status()
    third.send_act()
    third.status()
    flood.send_act()
    flood.status()
    gated.gate.set()
    assert isinstance(third.receive(), ActionReply)
    assert gated.calls[:4] == [["flood"], ["flood"], ["second"], ["third"]]


def test_waiting_clients_are_answered_in_one_batch(serve, connect, gated):
    server = serve(gated, max_batch=4)
    clients = [connect(server, f"c{index}") for index in range(6)]
    clients[0].send_act()
    assert gated.started.wait(5)
    for client in clients:
        client.send_act()
        client.status()
    gated.gate.set()
    replies = [client.receive() for client in clients[1:]]
    assert [reply.timing.batch_size for reply in replies] == [4, 4, 4, 2, 2]
    assert [len(call) for call in gated.calls] == [1, 4, 2]
    assert server.counters.largest_batch == 4


def test_a_policy_that_cannot_batch_is_asked_one_by_one(serve, connect, gated):
    gated.act_batch = None
    gated.act = FakePolicy().act
    server = serve(gated)
    clients = [connect(server, name) for name in "ab"]
    for client in clients:
        client.send_act()
    assert all(isinstance(client.receive(), ActionReply) for client in clients)


def test_one_bad_observation_does_not_fail_its_batch(serve, connect, caplog):
    class Picky(FakePolicy):
        def act_batch(self, observations, sessions):
            raise RuntimeError("secret detail of the batch")

        def act(self, observation, session=""):
            if session == "bad":
                raise ValueError("instruction too long")
            if session == "worse":
                raise RuntimeError("CUDA fell over")
            return super().act(observation, session)

    server = serve(Picky(delay_s=0.02))
    clients = {name: connect(server, name) for name in ("first", "good", "bad", "worse")}
    with caplog.at_level(logging.CRITICAL, "bridge"):
        for client in clients.values():
            client.send_act()
        replies = {name: client.receive() for name, client in clients.items()}
    assert isinstance(replies["good"], ActionReply)
    assert "instruction too long" in expect_error(replies["bad"], ErrorCode.BAD_OBSERVATION).message
    error = expect_error(replies["worse"], ErrorCode.POLICY_FAILED)
    assert "CUDA fell over" in error.message
    assert "Traceback" not in error.message
    assert server.counters.policy_errors == 2


@pytest.mark.parametrize("answer", [None, "error", object()])
def test_what_is_no_action_never_leaves_as_one(serve, connect, answer):
    policy = FakePolicy()
    policy.act = lambda *_: answer
    client = connect(serve(policy))
    client.send_act()
    expect_error(client.receive(), ErrorCode.POLICY_FAILED)


def test_loading_is_told_and_work_refused_until_ready(serve, connect):
    may_finish = threading.Event()

    def load(report):
        report("warming")
        assert may_finish.wait(10)
        return FakePolicy(policy_id="loaded")

    server = serve(load)
    client = connect(server, greet=False)
    wait_until(lambda: server.state == ServerState.WARMING)
    welcome = client.hello()
    assert (welcome.state, welcome.spec) == (ServerState.WARMING, None)
    assert client.status().state == ServerState.WARMING
    client.send_act()
    expect_error(client.receive(), ErrorCode.NOT_READY)
    may_finish.set()
    server.wait_ready(5)
    assert client.hello().spec.policy_id == "loaded"
    client.send_act()
    assert isinstance(client.receive(), ActionReply)


def test_failed_load_is_told_without_traceback(serve, connect, caplog):
    def load(report):
        raise FileNotFoundError("no weights in there")

    with caplog.at_level(logging.CRITICAL, "bridge"):
        server = serve(load)
        with pytest.raises(FileNotFoundError):
            server.wait_ready(5)
        client = connect(server, greet=False)
        client.send_frames(pack(Hello(stamp=client.stamp(), client="c")))
        error = expect_error(client.receive(), ErrorCode.LOAD_FAILED)
    assert "no weights in there" in error.message
    assert "Traceback" not in error.message


def test_sessions_expire_leave_and_are_limited(serve, connect, gated):
    gated.gate.set()
    server = serve(gated, session_idle_s=0.05, max_sessions=2)
    idle = connect(server, "idle")
    wait_until(lambda: "idle" in gated.was_reset)
    idle.send_act()
    expect_error(idle.receive(), ErrorCode.UNKNOWN_SESSION)

    server = serve(gated, max_sessions=1)
    leaving, late = connect(server, "leaving"), connect(server, "late", greet=False)
    late.send_frames(pack(Hello(stamp=late.stamp(), client="c")))
    expect_error(late.receive(), ErrorCode.SERVER_FULL)
    leaving.send_frames(pack(Goodbye(stamp=leaving.stamp())))
    wait_until(lambda: "leaving" in gated.was_reset)
    assert isinstance(late.hello(), Welcome)


def test_a_full_server_forgets_who_crashed_but_nobody_whose_answer_it_owes(serve, connect, gated):
    server = serve(gated, max_sessions=2, evict_after_s=0.05)
    crashed, slow, late = connect(server, "crashed"), connect(server, "slow"), connect(server, "late", greet=False)
    slow.send_act()
    assert gated.started.wait(5)
    time.sleep(0.1)
    assert isinstance(late.hello(), Welcome)
    gated.gate.set()
    assert isinstance(slow.receive(), ActionReply)
    crashed.send_act()
    expect_error(crashed.receive(), ErrorCode.UNKNOWN_SESSION)
    wait_until(lambda: gated.was_reset == ["crashed"])


def test_closing_answers_what_was_accepted_and_refuses_the_rest(serve, connect, gated):
    server = serve(gated)
    client, late = connect(server, "a"), connect(server, "b")
    accepted = client.send_act()
    assert gated.started.wait(5)
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(server.close)
        wait_until(lambda: server.state == ServerState.CLOSING)
        late.send_act()
        expect_error(late.receive(), ErrorCode.CLOSING)
        gated.gate.set()
        reply = client.receive()
        closing.result(5)
    assert (type(reply), reply.stamp) == (ActionReply, accepted)


def test_closing_does_not_wait_for_ever(serve, connect, gated, caplog):
    server = serve(gated, drain_s=0.1)
    connect(server).send_act()
    assert gated.started.wait(5)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        server.close()
    assert time.monotonic() - started < 2
    assert "left behind" in caplog.text


def test_second_server_on_a_port_says_so(serve):
    first = serve(FakePolicy())
    with pytest.raises(OSError, match="another server is there"):
        serve(FakePolicy(), first.endpoint)


def test_curve_keys_keep_others_out(serve):
    public, secret = zmq.curve_keypair()

    class ServerKeys:
        def apply(self, socket):
            socket.curve_secretkey, socket.curve_publickey, socket.curve_server = secret, public, True

    server = serve(FakePolicy(), "tcp://*:*", security=ServerKeys())
    endpoint = server.endpoint.replace("0.0.0.0", "127.0.0.1")
    hello = msgspec.msgpack.encode({"kind": "hello"})
    for has_keys in (False, True):
        with zmq.Context.instance().socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            if has_keys:
                socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
                socket.curve_serverkey = public
            socket.connect(endpoint)
            socket.send(hello)
            assert bool(socket.poll(3000 if has_keys else 200)) == has_keys


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_announces_itself_and_stops_cleanly_on_a_signal(number):
    command = [sys.executable, str(SERVE_POLICY), "--fake", "--bind", "tcp://127.0.0.1:*"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("ready: fake (no weights")
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_a_server_that_was_never_started_can_be_closed():
    PolicyServer(FakePolicy()).close()
