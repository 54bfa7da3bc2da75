import re
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from policy.fake import FakePolicy
from policy.results import REPOSITORY
from policy.types import Action, ActionPolicy, Observation, PolicySpec
from sim import evaluation
from sim.environments import World
from sim.episode_worker import WorkerSetupError
from sim.evaluation import EvaluationConfig, dealt_out, evaluate_all
from sim.latency import parse_latencies, trace_of
from sim.policy_hosts import StandingPolicy
from sim.protocol import Protocol
from sim.records import EndReason, EpisodeLog, EpisodeRecord, Outcome, read_records
from sim.sources import PolicySource, RemotePolicy, ScriptedExpert
from sim.statistics import SuccessRate
from sim.suites import UnknownSuiteError
from sim.summary import conditions, headline, summarise
from sim.timing import Timing
from sim.workers import WorkerPool


class Forward(FakePolicy):
    def act(self, observation: Observation, session: str = "") -> Action:
        if (self.broken / "broken").exists():
            raise RuntimeError("broken")
        action = super().act(observation, session)
        action.values[0] = 1.0
        return action

    broken: Path


@dataclass(frozen=True)
class ForwardSource:
    """Pushes forward, unless a file "broken" lies in the folder."""

    folder: Path
    checkpoint_hash: str = "abc"
    decoding_digest: str = ""
    dtype: str = "float32"
    unnorm_key: str = ""
    prompt: str = "do {instruction}"

    def spec(self) -> PolicySpec:
        return PolicySpec(
            "forward",
            checkpoint_hash=self.checkpoint_hash,
            unnorm_key=self.unnorm_key,
            prompt_template=self.prompt,
            dtype=self.dtype,
            versions={"torch": "9"},
            decoding_digest=self.decoding_digest,
        )

    def open(self, env: World) -> ActionPolicy:
        policy = Forward()
        policy.spec, policy.broken = self.spec(), self.folder
        return policy


def evaluate_one(config: EvaluationConfig, source: PolicySource) -> list[EpisodeRecord]:
    (records,) = evaluate_all([(config, StandingPolicy(source))], progress=False)
    return records


def config(tmp_path: Path, **changes) -> EvaluationConfig:
    given = {"output": tmp_path / "x.jsonl", "tasks": (0, 1), "init_states": (0, 1)} | changes
    return EvaluationConfig(suites=("fake",), **given)


def test_an_evaluation_leaves_a_complete_record(tmp_path):
    records = evaluate_one(config(tmp_path, workers=2), ForwardSource(tmp_path))
    assert [(r.task, r.init_state, r.outcome) for r in records] == [
        (0, 0, Outcome.SUCCESS),
        (0, 1, Outcome.SUCCESS),
        (1, 0, Outcome.FAILURE),
        (1, 1, Outcome.FAILURE),
    ]
    solved, cut_off = records[0], records[2]
    assert (solved.end_reason, solved.steps) == (EndReason.SOLVED, 2)
    assert (cut_off.end_reason, cut_off.steps) == (EndReason.STEP_LIMIT, 30)
    assert solved.instruction == "reach the near target"
    assert solved.clock == "lock-step"
    assert solved.versions["policy:torch"] == "9"
    assert "numpy" in solved.versions
    assert solved.latency is not None
    assert (solved.decoding_digest, solved.image_path, solved.prompt_template) == ("", "libero", "do {instruction}")
    assert re.fullmatch(r".*:\d\d\.\d{3}\+00:00", solved.finished_at)
    assert sorted(read_records(tmp_path / "x.jsonl"), key=lambda r: r.key) == records


def test_what_is_there_is_not_run_again(tmp_path):
    evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path))
    evaluate_one(config(tmp_path), ForwardSource(tmp_path))
    assert len(read_records(tmp_path / "x.jsonl")) == 4
    evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path, "other weights"))
    assert len(read_records(tmp_path / "x.jsonl")) == 6


@pytest.mark.parametrize(
    "changed", [{"decoding_digest": "d1"}, {"dtype": "float32, fp8 layers"}, {"prompt": "please {instruction}"}]
)
def test_episodes_of_other_settings_do_not_count(tmp_path, changed):
    first = evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path))
    other = evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path, **changed))
    assert len(read_records(tmp_path / "x.jsonl")) == 4
    assert not {record.finished_at for record in first} & {record.finished_at for record in other}
    assert conditions(other)["dtype"] == changed.get("dtype", "float32")
    assert evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path)) == first
    assert len(read_records(tmp_path / "x.jsonl")) == 4


def without_settings(file: Path) -> None:
    """Leaves what records told before they told of settings."""
    new = ("decoding_digest", "image_path", "prompt_template")
    lines = [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]
    kept = [{name: value for name, value in line.items() if name not in new} for line in lines]
    file.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))


def test_records_of_before_there_were_settings_are_gone_on_with(tmp_path):
    tuned = ForwardSource(tmp_path, decoding_digest="d1")
    evaluate_one(config(tmp_path, tasks=(0,)), tuned)
    without_settings(tmp_path / "x.jsonl")
    old = read_records(tmp_path / "x.jsonl")
    assert [record.decoding_digest for record in old] == [None, None]
    found = evaluate_one(config(tmp_path), tuned)
    assert found[:2] == old
    assert [record.decoding_digest for record in found[2:]] == ["d1", "d1"]
    assert len(read_records(tmp_path / "x.jsonl")) == 4
    evaluate_one(config(tmp_path, tasks=(0,)), replace(tuned, dtype="bfloat16"))  # which old ones tell, too
    assert len(read_records(tmp_path / "x.jsonl")) == 6


def test_archived_episodes_are_taken_as_done(tmp_path):
    """`measure_speculation.py` goes on from them: hours of GPU time."""
    archive = REPOSITORY / "docs" / "results" / "episodes" / "speculation" / "exact.jsonl.xz"
    log = EpisodeLog(tmp_path / "exact.jsonl")
    for record in read_records(archive):
        if record.suite == "libero_10" and record.task < 2 and record.init_state < 3:
            log.append(replace(record, suite="fake"))
    first = log.records[0]

    class Source(ForwardSource):
        def spec(self) -> PolicySpec:
            told = {name: getattr(first, name) for name in ("policy_id", "checkpoint_hash", "unnorm_key", "decoder")}
            return PolicySpec(**told, dtype="bfloat16", decoding_digest="0123456789ab", prompt_template="x")

    chosen = config(tmp_path, output=log.path, init_states=(0, 1, 2))
    assert evaluate_one(chosen, Source(tmp_path)) == sorted(log.records, key=lambda record: record.key)
    assert len(read_records(log.path)) == 6


def test_a_policy_that_turns_out_to_be_another_is_not_recorded(tmp_path):
    class Changing(StandingPolicy):
        def spec(self) -> PolicySpec:
            return replace(super().spec(), dtype="bfloat16")

    with pytest.raises(ValueError, match=r"the policy is .*float32.* was to be .*bfloat16"):
        evaluate_all([(config(tmp_path), Changing(ForwardSource(tmp_path)))], progress=False)


def test_a_policy_may_tell_its_number_format_when_it_is_up(tmp_path):
    class Silent(StandingPolicy):
        def spec(self) -> PolicySpec:
            return replace(super().spec(), dtype="", device="", prompt_template="")

    for _ in range(2):
        (found,) = evaluate_all([(config(tmp_path, tasks=(0,)), Silent(ForwardSource(tmp_path)))], progress=False)
    assert [(record.dtype, record.prompt_template) for record in found] == [("float32", "do {instruction}")] * 2
    assert len(read_records(tmp_path / "x.jsonl")) == 2


def test_conditions_tell_all_there_was(tmp_path):
    first, second = evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path))
    unborn = replace(first, outcome=Outcome.ERROR, end_reason=EndReason.EXCEPTION, device="", dtype="")
    shared = conditions([unborn, replace(first, dtype="bfloat16, fp8 layers", device="cuda:0"), second])
    assert (shared["dtype"], shared["device"]) == ("bfloat16, fp8 layers; float32", "cpu; cuda:0")
    assert conditions([unborn, second])["dtype"] == "float32"
    spatial = replace(first, suite="libero_object", unnorm_key="libero_spatial")
    assert any("statistics of libero_spatial" in text for text in conditions([spatial])["protocol_deviations"])


def test_statistics_of_another_suite_are_warned_of(tmp_path, caplog):
    chosen = replace(config(tmp_path, time_limit=1e-9), suites=("libero_spatial", "libero_object"))
    evaluate_one(chosen, ForwardSource(tmp_path, unnorm_key="libero_spatial_no_noops"))
    assert "statistics of libero_spatial_no_noops, so that success in libero_object is not" in caplog.text
    caplog.clear()
    evaluate_one(chosen, ForwardSource(tmp_path, unnorm_key="libero"))
    assert caplog.text == ""


def test_errors_are_no_failures_and_are_repeated_by_the_next_run(tmp_path):
    (tmp_path / "broken").touch()
    summary = summarise(evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path)))[-1]
    assert (summary.rate, summary.errors) == (SuccessRate(0, 0), 2)
    assert headline([summary])["errors"] == 2
    (tmp_path / "broken").unlink()
    summary = summarise(evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path)))[-1]
    assert (summary.rate, summary.errors) == (SuccessRate(2, 2), 0)


def test_an_interrupt_leaves_a_file_to_go_on_from(tmp_path, monkeypatch):
    class Interrupted(WorkerPool):
        def run(self, items, deadline):
            yield next(super().run(items, deadline))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "WorkerPool", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_one(config(tmp_path), ForwardSource(tmp_path))
    assert len(read_records(tmp_path / "x.jsonl")) == 1
    assert len(evaluate_one(config(tmp_path), ForwardSource(tmp_path))) == 4
    assert len(read_records(tmp_path / "x.jsonl")) == 4


def test_films_of_the_first_episodes(tmp_path):
    evaluate_one(config(tmp_path, tasks=(0,), videos=tmp_path / "films"), ForwardSource(tmp_path))
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["fake-00-00.mp4"]


def test_workers_share_a_served_policy(tmp_path):
    from bridge.server import PolicyServer

    class Served(FakePolicy):
        def act(self, observation: Observation, session: str = "") -> Action:
            action = super().act(observation, session)
            action.values[0] = 1.0
            return action

    server = PolicyServer(Served(policy_id="served"), endpoint="tcp://127.0.0.1:*").start()
    try:
        server.wait_ready(10)
        records = evaluate_one(config(tmp_path, workers=2), RemotePolicy(server.endpoint))
    finally:
        server.close()
    assert {(r.policy_id, r.task, r.outcome) for r in records} == {
        ("served", 0, Outcome.SUCCESS),
        ("served", 1, Outcome.FAILURE),
    }


def test_summaries_by_task_and_suite(tmp_path):
    records = evaluate_one(config(tmp_path), ForwardSource(tmp_path))
    first, second, suite = summarise(records)
    assert (first.task, first.rate, first.steps) == (0, SuccessRate(2, 2), 2.5)
    assert (second.task, second.rate) == (1, SuccessRate(0, 2))
    assert (suite.task, suite.rate) == (None, SuccessRate(2, 4))
    assert suite.row()["wilson95_low"] == pytest.approx(0.15, abs=0.005)
    assert headline([first, second, suite]) == {"fake": 0.5, "episodes_per_suite": 4, "errors": 0}
    other = replace(suite, suite="other", rate=SuccessRate(1, 4))
    assert headline([suite, other])["mean"] == 0.375
    assert "mean" not in headline([suite, replace(other, rate=SuccessRate(0, 0))])
    shared = conditions(records)
    assert (shared["policy"], shared["checkpoint_hash"], shared["privileged"]) == ("forward", "abc", False)
    assert (shared["clock"], shared["renderer"]) == ("lock-step", "fake")
    assert "once per task" in shared["protocol_deviations"][0]


def test_the_expert_needs_a_simulator_to_read(tmp_path):
    with pytest.raises(WorkerSetupError, match="TypeError"):
        evaluate_one(config(tmp_path), ScriptedExpert())


def test_tasks_and_states_that_do_not_exist_are_refused_before_anything_is_recorded(tmp_path):
    with pytest.raises(UnknownSuiteError, match="not 2"):
        evaluate_one(config(tmp_path, tasks=(0, 2)), ForwardSource(tmp_path))
    with pytest.raises(ValueError, match="fake task 1 has no initial state 50; choose 0 to 49"):
        evaluate_one(config(tmp_path, tasks=(1,), init_states=(3, 50)), ForwardSource(tmp_path))
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("bad", [{"tasks": ()}, {"init_states": (-1,)}, {"workers": 0}, {"videos_per_task": 0}])
def test_impossible_evaluations_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=r"at least|from 0"):
        config(tmp_path, **bad)


def test_a_time_limit_leaves_the_rest_to_a_later_run(tmp_path):
    assert evaluate_one(config(tmp_path, time_limit=1e-9), ForwardSource(tmp_path)) == []
    assert len(evaluate_one(config(tmp_path), ForwardSource(tmp_path))) == 4
    assert len(read_records(tmp_path / "x.jsonl")) == 4
    with pytest.raises(ValueError, match="time_limit must be a positive number of seconds, got 0"):
        config(tmp_path, time_limit=0)


def test_time_that_passes_is_part_of_what_was_measured(tmp_path):
    in_time = evaluate_one(config(tmp_path, tasks=(0,)), ForwardSource(tmp_path))
    late = config(tmp_path, tasks=(0,), timing=Timing("charged", "200"), protocol=Protocol(step_limit=12))
    first = evaluate_one(late, ForwardSource(tmp_path))
    assert [record.outcome for record in in_time] == [Outcome.SUCCESS] * 2
    assert [(r.clock, r.timing, r.outcome) for r in first] == [
        ("charged", ("latency 200 ms",), Outcome.SUCCESS),  # two steps of motion, four of waiting each
        ("charged", ("latency 200 ms",), Outcome.FAILURE),
    ]
    assert first[0].control is not None
    assert (first[0].control.decisions, first[0].control.holds, first[0].steps) == (2, 8, 10)
    assert (first[0].decision_ms, first[0].latency.p95_ms) == ((200.0, 200.0), 200.0)
    assert evaluate_one(late, ForwardSource(tmp_path)) == first
    assert len(read_records(tmp_path / "x.jsonl")) == 4


def test_real_time_is_repeated_from_its_own_file(tmp_path):
    def run(timing: Timing, name: str):
        chosen = config(tmp_path, output=tmp_path / name, timing=timing)
        return evaluate_one(chosen, ForwardSource(tmp_path))

    lived = run(Timing("real-time", hold=0.5), "lived.jsonl")
    again = run(Timing("charged", f"trace:{tmp_path}/lived.jsonl", hold=0.5), "again.jsonl")
    assert [record.clock for record in lived] == ["real-time"] * 4
    for one, other in zip(lived, again, strict=True):
        assert one.control is not None
        assert other.control is not None
        assert (one.outcome, one.steps, one.decision_ms) == (other.outcome, other.steps, other.decision_ms)
        assert (one.control.holds, one.control.path_m) == (other.control.holds, other.control.path_m)
    assert trace_of(lived).milliseconds == tuple(ms for record in lived for ms in record.decision_ms)
    with pytest.raises(ValueError, match="were charged"):
        trace_of(again)
    with pytest.raises(ValueError, match="episodes of 2 runs"):
        trace_of([*lived, *again])
    with pytest.raises(ValueError, match="no latencies of fake task 0 initial state 9"):
        parse_latencies(f"trace:{tmp_path}/lived.jsonl").of_episode("fake", 0, 9, 0)


def test_several_evaluations_share_their_workers(tmp_path):
    source = ForwardSource(tmp_path)
    fast = config(tmp_path, tasks=(0,), workers=2)
    slow = config(tmp_path, tasks=(0,), output=tmp_path / "slow.jsonl", timing=Timing("charged", "100"))
    far = config(tmp_path, output=tmp_path / "far.jsonl", protocol=Protocol(step_limit=3))
    host = StandingPolicy(source)
    found = evaluate_all([(each, host) for each in (fast, slow, far)], progress=False)
    assert [[r.steps for r in records if r.task == 0] for records in found] == [[2, 3], [6, 9], [2, 3]]
    assert found == [evaluate_one(each, source) for each in (fast, slow, far)]
    with pytest.raises(ValueError, match="4 episodes are in two"):
        evaluate_all([(far, host), (far, StandingPolicy(source))], progress=False)


def test_tasks_are_dealt_out_to_hosts_of_the_same_policy(tmp_path):
    hosts = [StandingPolicy(ForwardSource(tmp_path)) for _ in range(3)]
    dealt = dealt_out(config(tmp_path), hosts)
    assert [(each.tasks, host) for each, host in dealt] == [((0,), hosts[0]), ((1,), hosts[1])]
    assert [len(records) for records in evaluate_all(dealt, live=2, progress=False)] == [2, 2]
    assert len(read_records(tmp_path / "x.jsonl")) == 4
