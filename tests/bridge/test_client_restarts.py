"""What a client does when its server goes, and when another comes."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from raw_client import observe, specified
from scripted_server import welcome

from bridge.errors import (
    IncompatibleServerError,
    NoReplyError,
    ServerNotReadyError,
    SessionLostError,
)
from bridge.messages import (
    Hello,
)
from bridge.server import PolicyServer
from policy.fake import FakePolicy


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


def test_a_monitor_is_told_of_a_restart_once(serve, client_of):
    first = serve(FakePolicy())
    monitor = client_of(first)
    first.close()
    serve(FakePolicy(), first.endpoint)
    with pytest.raises(SessionLostError, match="restarted"):
        monitor.status()
    assert monitor.status().sessions == 0
    assert monitor.act(observe()) is not None  # opens a session without a second complaint
    assert (monitor.status().sessions, monitor.reconnects) == (1, 1)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16, fp8 layers"}, "quantised layers: expected '', server has 'fp8 la"),
        ({"dtype": "bfloat16, int8 layers"}, {"dtype": "bfloat16"}, "expected 'int8 layers', server has ''"),
        ({}, {"decoding_digest": "ab12"}, "decoding_digest: expected '', server has 'ab12'"),
        ({"decoding_digest": "ab12"}, {}, "decoding_digest: expected 'ab12', server has ''"),
        ({"dtype": "bfloat16", "device": "cuda"}, {"versions": {"torch": "3"}}, ""),
    ],
)
def test_a_restarted_server_must_answer_as_before(serve, client_of, before, after, told):
    first = serve(specified(**before))
    client = client_of(first)
    first.close()
    serve(specified(**after), first.endpoint)
    if told:
        with pytest.raises(IncompatibleServerError, match=told):
            client.reset()
    else:
        client.reset()


def test_restart_with_another_policy_is_refused(serve, client_of):
    first = serve(FakePolicy(policy_id="before"))
    client = client_of(first)
    first.close()
    serve(FakePolicy(policy_id="after"), first.endpoint)
    with pytest.raises(IncompatibleServerError, match="expected 'before', server has 'after'"):
        client.reset()


def test_a_session_that_is_given_up_leaves_its_place(serve, client_of):
    server = serve(FakePolicy(), max_sessions=1)
    client = client_of(server, connect_timeout_s=1.0)
    client._connection.episode += 1  # as after a reset that never arrived
    with pytest.raises(SessionLostError, match="was started"):
        client.act(observe())
    assert client.act(observe()).values[3] == 0
    assert server.counters.actions == 1


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
