import lzma
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest

from policy.decoding.config import DecodingConfig
from policy.results import REPOSITORY
from policy.types import PolicySpec
from sim.archives import under_present_name, write_archive
from sim.newest_records import by_settings, newest_by_key, newest_of, of_other_settings
from sim.records import EndReason, EpisodeLog, EpisodeRecord, Latency, Outcome, read_records

RECORD = EpisodeRecord(
    suite="libero_object",
    task=3,
    init_state=7,
    instruction="pick up the milk",
    seed=0,
    policy_id="policy",
    checkpoint_hash="abc",
    unnorm_key="libero_object",
    decoder="autoregressive",
    device="cpu",
    dtype="float32",
    privileged=False,
    clock="lock-step",
    protocol_deviations=("settle_steps=0 (official: 10)",),
    renderer="llvmpipe",
    versions={"mujoco": "3.3.2"},
    commit="",
    outcome=Outcome.SUCCESS,
    end_reason=EndReason.SOLVED,
    error="",
    steps=97,
    latency=Latency.of([1.0, 2.0, 3.0]),
    target_passes=7.0,
    seconds=9.5,
    finished_at="2026-01-01T00:00:00+00:00",
)
ERROR = replace(RECORD, outcome=Outcome.ERROR, end_reason=EndReason.EXCEPTION, error="boom", latency=None)


def test_records_come_back_as_they_were(tmp_path):
    log = EpisodeLog(tmp_path / "runs" / "x.jsonl")
    for record in (RECORD, ERROR):
        log.append(record)
    assert read_records(log.path) == [RECORD, ERROR]
    assert EpisodeLog(log.path).records == [RECORD, ERROR]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    EpisodeLog(path).append(RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    EpisodeLog(path).append(ERROR)
    assert read_records(path) == [RECORD, ERROR]


@pytest.mark.parametrize(
    "line", [b"{}", b"not JSON", msgspec.json.encode(RECORD).replace(b'"steps":97', b'"steps":"97"')]
)
def test_a_file_of_something_else_is_refused_by_line_and_left_alone(tmp_path, line):
    path = tmp_path / "x.jsonl"
    content = msgspec.json.encode(RECORD) + b"\n" + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="line 2"):
        EpisodeLog(path)
    assert path.read_bytes() == content


def test_the_newest_record_of_an_episode_counts():
    other_weights = replace(RECORD, checkpoint_hash="def")
    newest = newest_by_key([ERROR, RECORD, other_weights])
    assert list(newest.values()) == [RECORD, other_weights]


def test_outcome_and_end_reason_must_agree():
    with pytest.raises(ValueError, match="step_limit"):
        replace(RECORD, end_reason=EndReason.STEP_LIMIT)


def test_latency_statistics():
    latency = Latency.of([float(n) for n in range(101)])
    assert (latency.mean_ms, latency.p50_ms, latency.p95_ms, latency.p99_ms) == (50.0, 50.0, 95.0, 99.0)


def test_records_of_before_there_were_clocks_can_be_read(tmp_path):
    new = {"timing", "control", "decision_ms", "hardware", "command"}
    line = {name: value for name, value in msgspec.json.decode(msgspec.json.encode(RECORD)).items() if name not in new}
    path = tmp_path / "old.jsonl"
    path.write_bytes(msgspec.json.encode(line) + b"\n")
    assert read_records(path) == [RECORD]
    assert read_records(path)[0].key.timing == ()


def test_other_conditions_are_other_episodes():
    charged = [replace(RECORD, clock="charged", timing=(f"latency {ms} ms",)) for ms in (100, 200)]
    assert len(newest_by_key([RECORD, *charged])) == 3


NEW = replace(RECORD, decoding_digest="aaa", image_path="libero", prompt_template="do {instruction}")
OTHER_SETTINGS = [
    {"dtype": "float32, fp8 layers"},
    {"decoding_digest": ""},
    {"image_path": "processor"},
    {"prompt_template": "please {instruction}"},
]


@pytest.mark.parametrize("changed", OTHER_SETTINGS)
def test_other_settings_are_other_episodes(changed):
    other = replace(NEW, **changed)
    assert list(newest_by_key([NEW, other]).values()) == [NEW, other]
    assert newest_of([other.key], [NEW]) == {}
    assert newest_of([NEW.key], [NEW, other]) == {NEW.key: NEW}
    assert of_other_settings([NEW], [NEW, other, replace(other, init_state=8), RECORD]) == {other.key: other}
    assert by_settings([NEW, other, replace(NEW, init_state=8)]) == [[NEW, replace(NEW, init_state=8)], [other]]


def test_a_setting_that_a_record_does_not_tell_goes_with_any():
    assert newest_of([NEW.key], [RECORD]) == {NEW.key: RECORD}
    assert list(newest_by_key([RECORD, NEW, RECORD]).values()) == [NEW]
    other = replace(NEW, decoding_digest="bbb")
    assert list(newest_by_key([NEW, other, RECORD]).values()) == [NEW, other]
    assert by_settings([RECORD, other]) == [[other, RECORD]]
    assert newest_of([NEW.key], [replace(RECORD, dtype="bfloat16")]) == {}  # which it does tell


def test_an_error_gives_way_although_it_tells_less_of_its_settings():
    unborn = replace(ERROR, dtype="", device="", decoding_digest="aaa")
    assert list(newest_by_key([unborn, NEW]).values()) == [NEW]
    half = replace(NEW, dtype="float16")
    assert list(newest_by_key([NEW, half, unborn]).values()) == [NEW, half]
    assert newest_of([unborn.key], [NEW, unborn]) == {unborn.key: NEW}


def test_a_record_is_of_a_policy_as_far_as_both_tell():
    spec = PolicySpec("policy", "abc", "libero_object", dtype="float32", decoding_digest="aaa", device="cuda:3")
    assert RECORD.is_of(spec)
    assert NEW.is_of(replace(spec, image_path="libero", prompt_template="do {instruction}"))
    for changed in ({"decoder": "exact"}, {"unnorm_key": "libero_goal"}, {"policy_id": "x"}, {"dtype": "bfloat16"}):
        assert not RECORD.is_of(replace(spec, **changed))
    assert not NEW.is_of(replace(spec, decoding_digest="bbb"))


def test_statistics_of_another_suite_are_a_deviation_of_any_record():
    assert RECORD.deviations == RECORD.protocol_deviations
    foreign = replace(RECORD, unnorm_key="libero_spatial_no_noops")
    assert foreign.deviations[1:] == ("actions scaled by statistics of libero_spatial (official: the suite's)",)
    assert foreign.key.protocol_deviations == RECORD.key.protocol_deviations  # or it could not be gone on with


def test_an_archive_holds_every_episode_once_without_its_decisions(tmp_path):
    slow = replace(RECORD, seconds=1 / 3, decision_ms=(10.0, 20.0))
    archive = tmp_path / "new" / "episodes.jsonl.xz"
    assert write_archive(archive, [ERROR, slow, replace(slow, init_state=8)]) == 2
    kept = read_records(archive)
    assert kept == [replace(slow, seconds=0.333, decision_ms=(), init_state=state) for state in (7, 8)]
    (tmp_path / "on.jsonl").write_bytes(lzma.decompress(archive.read_bytes()))
    assert EpisodeLog(tmp_path / "on.jsonl").records == kept  # an evaluation goes on from it


@pytest.mark.parametrize("clock", ["charged", "real-time"])
def test_an_archive_holds_the_latencies_that_episodes_were_about(tmp_path, clock):
    charged = replace(NEW, clock=clock, seconds=0.5, latency=None, decision_ms=(10.0, 20.125))
    write_archive(tmp_path / "x.jsonl.xz", [charged])
    assert read_records(tmp_path / "x.jsonl.xz") == [charged]


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"call it episodes\.jsonl\.xz"):
        write_archive(tmp_path / "episodes.jsonl", [RECORD])
    (tmp_path / "text.xz").write_text("nothing compressed")
    with pytest.raises(ValueError, match="no archive of episode records"):
        read_records(tmp_path / "text.xz")


def test_the_script_archives_several_files(tmp_path):
    files = [tmp_path / f"{state}.jsonl" for state in range(2)]
    for state, file in enumerate(files):
        EpisodeLog(file).append(replace(RECORD, init_state=state))
    archive = tmp_path / "all.jsonl.xz"
    command = [sys.executable, "scripts/archive_records.py", *map(str, files), str(archive)]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("2 episodes, ")
    assert [record.init_state for record in read_records(archive)] == [0, 1]
    refused = subprocess.run([*command, "more.jsonl"], cwd=REPOSITORY, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("cannot archive: ")


def test_archived_episodes_get_the_present_name_of_their_decoding_only() -> None:
    config = DecodingConfig.load("default")
    old = replace(RECORD, decoder="corrected", decoding_digest=config.digest)
    assert under_present_name([old], config) == [replace(old, decoder="default")]
    with pytest.raises(ValueError, match=f"default has the digest {config.digest}, these episodes 0123"):
        under_present_name([old, replace(old, decoding_digest="0123")], config)
