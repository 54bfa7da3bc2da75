"""Policies of several hosts in one pool: each comes up when it is due, goes when it is done, and dies for itself."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from policy.fake import FakePolicy
from policy.types import Action, ActionPolicy, Observation, PolicySpec
from sim.environments import World
from sim.evaluation import EvaluationConfig, evaluate_all
from sim.policy_hosts import Devices, PolicyUnavailableError, ServerHost, StandingPolicy
from sim.records import EndReason, Outcome, read_records


@dataclass(frozen=True)
class ForwardSource:
    """Pushes forward; is at home on the device that its process draws with.

    mark: is made by the first step, which then takes a minute.
    """

    name: str
    mark: Path | None = None

    def spec(self) -> PolicySpec:
        return PolicySpec(self.name)

    def open(self, env: World) -> ActionPolicy:
        device = os.environ.get("MUJOCO_EGL_DEVICE_ID", "none")
        return Forward(replace(self.spec(), device=device), self.mark)


class Forward(FakePolicy):
    def __init__(self, spec: PolicySpec, mark: Path | None) -> None:
        super().__init__()
        self.spec, self._mark = spec, mark

    def act(self, observation: Observation, session: str = "") -> Action:
        if self._mark:
            self._mark.touch()
            time.sleep(60)
        action = super().act(observation, session)
        action.values[0] = 1.0
        return action


class Moody(StandingPolicy):
    """Notes in `diary` when it comes and goes; comes up after `patience` questions, is gone once `gone` exists."""

    def __init__(self, source: ForwardSource, diary: list[str], patience: int = 0, gone: Path | None = None) -> None:
        super().__init__(source)
        self._name, self._diary, self._patience, self._gone = source.name, diary, patience, gone

    def start(self) -> None:
        self._diary.append(f"{self._name} starts")

    def source(self):
        if self._gone and self._gone.exists():
            raise PolicyUnavailableError("it fell off the table")
        self._patience -= 1
        return super().source() if self._patience < 0 else None

    def stop(self) -> None:
        if f"{self._name} starts" in self._diary and f"{self._name} stops" not in self._diary:
            self._diary.append(f"{self._name} stops")


def config(tmp_path: Path, name: str, **changes) -> EvaluationConfig:
    given = {"tasks": (0,), "init_states": (0, 1, 2), "workers": 2} | changes
    return EvaluationConfig(output=tmp_path / f"{name}.jsonl", suites=("fake",), **given)


def outcomes(path: Path) -> list[Outcome]:
    return [record.outcome for record in read_records(path)]


def test_two_policies_share_a_pool_and_each_has_its_own_records(tmp_path):
    diary: list[str] = []
    evaluations = [
        (config(tmp_path, name), Moody(ForwardSource(name), diary, patience=number))
        for number, name in enumerate(("one", "two"))
    ]
    found = evaluate_all(evaluations, live=2, progress=False)
    assert [{record.policy_id for record in records} for records in found] == [{"one"}, {"two"}]
    assert [outcomes(tmp_path / f"{name}.jsonl") for name in ("one", "two")] == [[Outcome.SUCCESS] * 3] * 2
    assert sorted(diary) == ["one starts", "one stops", "two starts", "two stops"]


def test_few_are_up_at_a_time_and_none_for_what_is_on_disk(tmp_path):
    def run() -> list[str]:
        diary: list[str] = []
        names = ("a", "b", "c", "d")
        hosts = [Moody(ForwardSource(name), diary) for name in names]
        evaluations = [(config(tmp_path, name), host) for name, host in zip(names, hosts, strict=True)]
        assert [len(records) for records in evaluate_all(evaluations, progress=False)] == [3] * 4
        return diary

    diary = run()
    up = [sum(1 if "starts" in entry else -1 for entry in diary[:end]) for end in range(len(diary) + 1)]
    assert (len(diary), max(up), up[-1]) == (8, 2, 0)
    assert [entry for entry in diary if "starts" in entry] == [f"{name} starts" for name in "abcd"]
    assert run() == []
    lines = (tmp_path / "c.jsonl").read_text().splitlines()
    (tmp_path / "c.jsonl").write_text(lines[0] + "\n")
    assert run() == ["c starts", "c stops"]


def test_a_policy_that_dies_fails_its_episodes_at_once_and_no_others(tmp_path):
    mark = tmp_path / "mark"
    dying = config(tmp_path, "dying", init_states=tuple(range(50)))
    started = time.monotonic()
    lost, kept = evaluate_all(
        [
            (dying, Moody(ForwardSource("dying", mark), [], gone=mark)),
            (config(tmp_path, "well"), StandingPolicy(ForwardSource("well"))),
        ],
        live=2,
        progress=False,
    )
    assert time.monotonic() - started < 30
    assert [record.outcome for record in kept] == [Outcome.SUCCESS] * 3
    assert {(record.outcome, record.end_reason, record.error) for record in lost} == {
        (Outcome.ERROR, EndReason.PROCESS_DIED, "it fell off the table")
    }
    assert len(lost) == 50
    (again,) = evaluate_all([(dying, StandingPolicy(ForwardSource("dying")))], progress=False)
    assert {record.outcome for record in again} == {Outcome.SUCCESS}


def test_the_time_limit_holds_while_a_policy_comes_up(tmp_path):
    late = Moody(ForwardSource("late"), diary := [], patience=10**9)
    started = time.monotonic()
    assert evaluate_all([(config(tmp_path, "late", time_limit=0.5), late)], progress=False) == [[]]
    assert time.monotonic() - started < 20
    assert diary == ["late starts", "late stops"]


def test_workers_take_turns_on_the_devices_to_draw_with(tmp_path):
    evaluation = config(tmp_path, "drawn", init_states=tuple(range(8)), render_devices=(3, 5))
    (records,) = evaluate_all([(evaluation, StandingPolicy(ForwardSource("drawn")))], progress=False)
    assert {record.device for record in records} == {"3", "5"}
    with pytest.raises(ValueError, match=r"EGL devices count from 0, got \(-1,\)"):
        config(tmp_path, "drawn", render_devices=(-1,))


def test_a_policy_other_than_planned_is_not_recorded(tmp_path):
    class Liar(StandingPolicy):
        def spec(self) -> PolicySpec:
            return replace(super().spec(), decoder="fast")

    with pytest.raises(ValueError, match=r"the policy is .*autoregressive.*was to be .*fast"):
        evaluate_all([(config(tmp_path, "x"), Liar(ForwardSource("x")))], progress=False)
    assert not (tmp_path / "x.jsonl").exists()


def test_servers_in_processes_of_their_own(tmp_path):
    spec, devices = FakePolicy().spec, Devices(("cpu",))
    broken = replace(spec, decoder="broken")
    hosts = [
        ServerHost(broken, ("--checkpoint", "nowhere"), devices, tmp_path / "broken.log"),
        ServerHost(spec, ("--fake",), devices, tmp_path / "served.log"),
    ]
    evaluations = [(config(tmp_path, name), host) for name, host in zip(("broken", "served"), hosts, strict=True)]
    lost, served = evaluate_all(evaluations, live=2, progress=False)
    assert [(record.policy_id, record.outcome) for record in served] == [("fake", Outcome.FAILURE)] * 3
    assert {record.decoder for record in lost} == {"broken"}
    for record in lost:
        assert "a policy server ended with exit code 1: the policy cannot be served: nowhere" in record.error
        assert f"{tmp_path}/broken.log" in record.error


def test_servers_go_where_the_fewest_are():
    devices = Devices(("cuda:0", "cuda:1"))
    assert [devices.take() for _ in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    devices.give_back("cuda:0")
    devices.give_back("cuda:0")
    assert devices.take() == "cuda:0"
    with pytest.raises(ValueError, match="name at least one device"):
        Devices(())
