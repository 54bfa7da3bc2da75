"""Recording demonstrations: what a row holds, that frames can be rendered again, and what must never be recorded."""

import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from policy.openvla.images import decode_frame, encode_frame
from policy.training.demonstrations import PRIVILEGED_NAMES, Demonstration, DemonstrationError
from sim.demonstrations import privileged, record_episode, render_frames
from sim.expert import make_expert
from sim.libero import LiberoEnv
from sim.noise import BurstNoise
from sim.protocol import Protocol
from sim.recording_worker import Recording, record_item
from sim.schedule import Item, TaskKey

STEPS = 5
ALWAYS_NOISY = BurstNoise(0.3, start_probability=1.0)


def test_noise_comes_in_bursts_and_repeats_with_its_seed():
    noise = BurstNoise(0.25)
    rows = np.stack(list(islice(noise.stream(np.random.default_rng(3)), 20_000)))
    again = np.stack(list(islice(noise.stream(np.random.default_rng(3)), 20_000)))
    np.testing.assert_array_equal(rows, again)
    noisy = rows.any(1)
    # A burst of 8 steps on average after 1 / 0.06 quiet ones: about a third of all steps.
    assert 0.27 < noisy.mean() < 0.37
    assert rows[noisy].std() == pytest.approx(0.25 * np.hypot(1.0, 0.7), rel=0.05)
    assert np.count_nonzero(np.diff(noisy)) < 0.15 * len(rows)


@pytest.mark.parametrize(
    "settings", [{"sigma": 1.5}, {"sigma": 0.2, "start_probability": 2}, {"sigma": 0.2, "mean_length": 0}]
)
def test_noise_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must be"):
        BurstNoise(**settings)


@pytest.fixture(scope="module")
def env():
    world = LiberoEnv("libero_spatial", 0, protocol=Protocol(step_limit=STEPS))
    yield world
    world.close()


@pytest.fixture(scope="module")
def recorded(env) -> Demonstration:
    return record_episode(env, 1001, noise=ALWAYS_NOISY)


@pytest.mark.libero
def test_a_recording_has_a_row_per_step(recorded, env):
    assert len(recorded) == STEPS
    assert not recorded.meta.success
    assert (recorded.meta.suite, recorded.meta.task, recorded.meta.seed) == ("libero_spatial", 0, 1001)
    assert recorded.meta.instruction == env.instruction
    assert recorded.meta.versions["mujoco"] == "3.3.2"
    assert decode_frame(recorded.frame_jpeg(STEPS - 1)).shape == (224, 224, 3)


@pytest.mark.libero
def test_a_driven_episode_may_end_early(env, tmp_path):
    class Expert:
        name = "as the expert does"

        def reset(self, seed: int) -> None:
            pass

        def __call__(self, observation, label):
            return label

    item = Item(TaskKey("libero_spatial", 0), 1001)
    recording = Recording(tmp_path, noise=0.0, noisy_fraction=0.0, driven_limit=0.6)
    outcome = record_item(env, item, recording, Expert())
    assert (outcome.result, outcome.solved, outcome.steps) == ("stored", False, 3)
    assert STEPS == 5


@pytest.mark.libero
def test_a_stride_keeps_the_same_rows_one_in_so_many(recorded, env):
    sparse = record_episode(env, 1001, noise=ALWAYS_NOISY, stride=2)
    offset = 1001 % 2
    assert (sparse.meta.stride, len(sparse)) == (2, len(range(offset, STEPS, 2)))
    for name in ("actions", "executed", "privileged", "states", "pictured"):
        np.testing.assert_array_equal(getattr(sparse, name), getattr(recorded, name)[offset::2])
    assert [sparse.frame_jpeg(row) for row in range(len(sparse))] == [
        recorded.frame_jpeg(step) for step in range(offset, STEPS, 2)
    ]
    with pytest.raises(DemonstrationError, match="one row in 2 control steps"):
        render_frames(env, sparse)
    with pytest.raises(ValueError, match="stride must be 1, or more with the expert"):
        record_episode(env, 1001, driver=lambda observation, label: label, driver_name="someone", stride=2)


@pytest.mark.libero
def test_labels_are_clean_and_executed_actions_are_not(recorded):
    assert (recorded.actions[:, 6] == 1.0).all(), "the expert approaches with an open gripper, which is 1 here"
    np.testing.assert_array_equal(recorded.executed[:, 6], recorded.actions[:, 6])
    assert np.abs(recorded.executed[:, :6] - recorded.actions[:, :6]).min(1).max() > 0.0
    assert np.abs(recorded.executed[:, :6]).max() <= 1.0


@pytest.mark.libero
def test_privileged_values_are_where_the_things_are(recorded, env):
    env.reset(seed=1001)
    state = make_expert(env).state
    row = dict(zip(PRIVILEGED_NAMES, recorded.privileged[0], strict=True))
    moved = np.array([row[f"hand_{a}"] + row[f"object_from_hand_{a}"] for a in "xyz"])
    np.testing.assert_allclose(moved, state.position("akita_black_bowl_1"), atol=1e-6)
    goal = moved + [row[f"goal_from_object_{a}"] for a in "xyz"]
    np.testing.assert_allclose(goal, state.position("plate_1"), atol=1e-6)
    assert 0.07 < row["finger_gap"] <= 0.081


@pytest.mark.libero
def test_a_frame_can_be_rendered_again_from_what_is_stored(recorded, env):
    env.reset(seed=1234)  # another scene: cabinet, stove and everything on the table stand elsewhere
    model = env.simulator.sim.model._model
    model.body_pos[:], model.body_quat[:] = recorded.body_positions, recorded.body_quaternions
    env.simulator.set_state(recorded.states[2])
    env.simulator.sim.forward()
    # MuJoCo's derived positions are one substep of 2 ms older than the state that a step leaves behind.
    np.testing.assert_allclose(privileged(make_expert(env)), recorded.privileged[2], atol=1e-3)
    executed = recorded.executed[2].astype(np.float64)
    executed[6] = 1.0 - 2.0 * executed[6]
    observed = env.step(executed)[0]
    assert encode_frame(observed["image"]) == recorded.frame_jpeg(3)


@pytest.fixture(scope="module")
def bare() -> Demonstration:
    """The same episode as `recorded`, without frames."""
    blind = LiberoEnv("libero_spatial", 0, render=False, protocol=Protocol(step_limit=STEPS))
    demonstration = record_episode(blind, 1001, noise=ALWAYS_NOISY)
    blind.close()
    return demonstration


@pytest.mark.libero
def test_frames_rendered_later_are_those_of_a_recording_with_frames(recorded, bare, env):
    with pytest.raises(DemonstrationError, match="without frames"):
        bare.frame_jpeg(0)
    np.testing.assert_array_equal(bare.actions, recorded.actions)
    np.testing.assert_array_equal(bare.pictured, recorded.pictured)
    rendered = render_frames(env, bare)
    assert rendered.meta == recorded.meta
    assert [rendered.frame_jpeg(t) for t in range(STEPS)] == [recorded.frame_jpeg(t) for t in range(STEPS)]


@pytest.mark.libero
def test_a_stove_glows_in_frames_rendered_later_as_it_did_when_it_was_switched_on():
    kitchen = LiberoEnv("libero_10", 2, protocol=Protocol(step_limit=STEPS))

    def turn_the_knob(observation, label):
        simulation = kitchen.simulator.sim
        (knob,) = simulation.model._model.joint("flat_stove_1_button").dofadr
        simulation.data._data.qfrc_applied[knob] = 100.0  # newton metres: on within three steps
        return label

    try:
        recorded = record_episode(kitchen, 1000, driver=turn_the_knob, driver_name="knob")
        kitchen.reset(seed=1001)
        rendered = render_frames(kitchen, recorded)
        fixed = recorded.body_positions, recorded.body_quaternions
        lit, dark = (kitchen.picture(recorded.pictured[-1], recorded.pictured[t], *fixed) for t in (-1, 0))
    finally:
        kitchen.close()
    assert (lit != dark).any(), "the stove was not switched on"
    assert [rendered.frame_jpeg(t) for t in range(STEPS)] == [recorded.frame_jpeg(t) for t in range(STEPS)]


@pytest.mark.libero
def test_the_rendering_script_does_what_is_missing(recorded, bare, tmp_path):
    raw, output = tmp_path / "raw", tmp_path / "rendered"
    bare.save(raw / bare.file_name)
    bare.save(raw / "libero_spatial_task00_seed1002.npz")
    output.mkdir()
    (output / "libero_spatial_task00_seed1002.npz").write_text("there already")
    script = Path(__file__).parents[2] / "scripts" / "render_demos.py"
    run = [sys.executable, str(script), str(raw), str(output), "--workers", "1"]
    assert "1 episodes, 5 frames" in subprocess.run(run, capture_output=True, text=True, check=True).stdout
    np.testing.assert_array_equal(Demonstration.load(output / bare.file_name).jpeg, recorded.jpeg)
    assert (output / "libero_spatial_task00_seed1002.npz").read_text() == "there already"
    empty = subprocess.run([*run[:2], str(tmp_path), str(output)], capture_output=True, text=True)
    assert empty.returncode == 2
    assert "no demonstrations in" in empty.stderr


@pytest.mark.libero
def test_a_driver_decides_what_is_executed_and_the_label_stays_the_experts(env):
    stand_still = np.array([0, 0, 0, 0, 0, 0, 0.9], np.float32)
    recorded = record_episode(env, 1002, driver=lambda observation, label: stand_still, driver_name="still")
    assert recorded.meta.driver == "still"
    np.testing.assert_array_equal(recorded.executed, np.tile([0, 0, 0, 0, 0, 0, 1.0], (STEPS, 1)))
    assert np.abs(recorded.actions[:, :3]).max() > 0.5


@pytest.mark.libero
def test_evaluation_scenes_are_never_recorded(env):
    with pytest.raises(ValueError, match="seed 0 is kept for evaluation; demonstrations use 1000 and above"):
        record_episode(env, 0)


def test_a_driver_without_a_camera_is_refused():
    with pytest.raises(ValueError, match="driver 'blind' needs to see; make the environment with render=True"):
        record_episode(SimpleNamespace(rendered=False), 1000, driver=lambda seen, label: label, driver_name="blind")
