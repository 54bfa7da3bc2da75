"""Slots, turns and episodes, without a socket."""

import pytest

from bridge.errors import Refusal
from bridge.jobs import Job
from bridge.messages import Act, ErrorCode, Goodbye, ImageHeader, Limits, Reset, Stamp
from bridge.sessions import SessionTable

IMAGE = ImageHeader("raw", (16, 16, 3), 768)


def act(session: str, sequence: int = 1, episode: int = 0, now: float = 0.0) -> Job:
    stamp = Stamp(session, episode, sequence, 0.0)
    return Job(session.encode(), Act(stamp=stamp, instruction="go", image=IMAGE), now)


def reset(session: str, episode: int) -> Job:
    return Job(session.encode(), Reset(stamp=Stamp(session, episode, 1, 0.0)), 0.0)


def goodbye(session: str) -> Job:
    return Job(session.encode(), Goodbye(stamp=Stamp(session, 0, 1, 0.0)), 0.0)


def table(*sessions: str, **limits) -> SessionTable:
    made = SessionTable(Limits(**limits))
    for session in sessions:
        made.open(Stamp(session, 0, 1, 0.0), now=0.0)
    return made


def names(jobs: list[Job]) -> list[str]:
    return [f"{job.request.stamp.session}{job.request.stamp.sequence}" for job in jobs]


def code(call, *arguments) -> ErrorCode:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.code


def test_newer_observation_takes_the_slot_and_keeps_its_turn():
    sessions = table("a", "b")
    assert sessions.submit(act("a", 1)) == []
    sessions.submit(act("b", 1))
    assert names(sessions.submit(act("a", 2))) == ["a1"]
    assert names(sessions.take()) == ["a2", "b1"]


def test_a_flooding_client_does_not_starve_the_others():
    sessions = table("flood", "b", "c", max_batch=1)
    served = []
    for step in range(30):
        for burst in range(5):
            sessions.submit(act("flood", 10 * step + burst))
        sessions.submit(act("b", step))
        sessions.submit(act("c", step))
        served += [job.request.stamp.session for job in sessions.take()]
    assert served == ["flood", "b", "c"] * 10


def test_batch_takes_the_longest_waiting_up_to_its_limit():
    sessions = table("a", "b", "c", max_batch=2)
    for name in "cab":
        sessions.submit(act(name))
    assert names(sessions.take()) == ["c1", "a1"]
    assert names(sessions.take()) == ["b1"]
    assert sessions.take() == []


def test_reset_goes_first_and_drops_the_waiting_observation():
    sessions = table("a", "b")
    sessions.submit(act("b"))
    sessions.submit(act("a"))
    assert names(sessions.submit(reset("a", 1))) == ["a1"]
    sessions.submit(act("a", 9, episode=1))
    assert [type(job.request) for job in sessions.take()] == [Reset, Act, Act]


def test_many_resets_of_a_session_stay_one_job():
    sessions = table("a")
    sessions.submit(reset("a", 1))
    assert [job.request.stamp.episode for job in sessions.submit(reset("a", 2))] == [1]
    assert sessions.pending == 1


def test_episodes_only_grow():
    sessions = table("a")
    sessions.submit(reset("a", 2))
    assert code(sessions.submit, act("a", episode=1)) == ErrorCode.STALE_EPISODE
    assert code(sessions.submit, act("a", episode=3)) == ErrorCode.UNKNOWN_EPISODE
    assert code(sessions.submit, reset("a", 2)) == ErrorCode.STALE_EPISODE
    assert not sessions.is_current(Stamp("a", 1, 1, 0.0))
    assert sessions.is_current(Stamp("a", 2, 1, 0.0))


def test_unknown_sessions_are_told():
    assert code(table("a").submit, act("b")) == ErrorCode.UNKNOWN_SESSION


def test_hello_is_harmless_when_repeated_and_refused_when_full():
    sessions = table("a", max_sessions=1)
    sessions.submit(reset("a", 5))
    sessions.open(Stamp("a", 0, 2, 0.0), now=1.0)
    assert sessions.is_current(Stamp("a", 5, 3, 0.0))
    assert code(sessions.open, Stamp("b", 0, 1, 0.0), 1.0) == ErrorCode.SERVER_FULL


def test_goodbye_frees_the_place_and_has_the_policy_forget():
    sessions = table("a", max_sessions=1)
    sessions.submit(act("a"))
    assert names(sessions.close(goodbye("a"))) == ["a1"]
    assert sessions.close(goodbye("a")) == []
    assert [type(job.request) for job in sessions.take()] == [Goodbye]
    sessions.open(Stamp("b", 0, 1, 0.0), now=0.0)


def test_where_all_places_are_taken_the_longest_silent_makes_room():
    sessions = table("a", "b", "c", max_sessions=3, evict_after_s=10)
    sessions.open(Stamp("a", 0, 2, 0.0), now=2.0)
    sessions.open(Stamp("c", 0, 2, 0.0), now=1.0)
    assert code(sessions.open, Stamp("d", 0, 1, 0.0), 10.0) == ErrorCode.SERVER_FULL
    assert sessions.open(Stamp("d", 0, 1, 0.0), 10.5) == "b"
    assert [(type(job.request), job.request.stamp.session) for job in sessions.take()] == [(Goodbye, "b")]
    assert code(sessions.submit, act("b")) == ErrorCode.UNKNOWN_SESSION
    assert sessions.open(Stamp("e", 0, 1, 0.0), 12.5) == "c"
    assert len(sessions) == 3


def test_nobody_makes_room_who_waits_for_an_answer():
    sessions = table("waits", "starts", "runs", max_sessions=3, evict_after_s=10)
    sessions.submit(act("waits"))
    sessions.submit(reset("starts", 1))
    assert code(sessions.open, Stamp("new", 0, 1, 0.0), 60.0, {"runs"}) == ErrorCode.SERVER_FULL
    assert sessions.open(Stamp("new", 0, 1, 0.0), 60.0) == "runs"


def test_idle_sessions_are_found_but_not_while_they_wait_for_an_answer():
    sessions = table("a", "b", "c", session_idle_s=10)
    sessions.submit(act("a", now=5.0))
    sessions.take()
    sessions.submit(act("b", now=1.0))
    assert [stamp.session for stamp in sessions.idle(now=12.0)] == ["c"]
    assert [stamp.session for stamp in sessions.idle(now=16.0)] == ["a", "c"]
