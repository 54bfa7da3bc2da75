import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sim.libero import LiberoEnv
from sim.protocol import SETTLE_ACTION, Protocol

pytestmark = pytest.mark.libero
SUITE, TASK = "libero_goal", 2  # has fixtures (cabinet, stove, rack), whose poses the reset samples


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv(SUITE, TASK)
    yield env
    env.close()


@pytest.fixture(scope="module")
def blind():
    env = LiberoEnv(SUITE, TASK, render=False, protocol=Protocol(step_limit=3))
    yield env
    env.close()


def actions(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 7))


def test_states_and_pictures_equal_the_untouched_simulator(env):
    from libero.libero.envs import OffScreenRenderEnv

    original = OffScreenRenderEnv(bddl_file_name=str(env.task.bddl_file), camera_heights=256, camera_widths=256)
    original.seed(0)
    original.reset()
    original.set_init_state(env.task.initial_states()[3])
    for _ in range(10):
        theirs, *_ = original.step(SETTLE_ACTION.tolist())
    ours, info = env.reset(options={"init_state": 3})
    assert info == {"success": False, "steps": 0, "init_state": 3}
    np.testing.assert_array_equal(ours["image"], theirs["agentview_image"])
    for action in actions(4):
        theirs, *_ = original.step(action.tolist())
        ours, *_ = env.step(action)
        np.testing.assert_array_equal(env.state(), original.get_sim_state())
        np.testing.assert_array_equal(ours["image"], theirs["agentview_image"])
    # robosuite frees textures by number in whatever GL context is current, which would be those of `env`.
    original.sim._render_context_offscreen.gl_ctx.make_current()
    original.close()


def test_a_world_is_compiled_once(monkeypatch):
    import mujoco

    plain, compiled = mujoco.MjModel, []

    def from_xml_string(description, *rest):
        compiled.append(description)
        return plain.from_xml_string(description, *rest)

    monkeypatch.setattr(mujoco, "MjModel", SimpleNamespace(from_xml_string=from_xml_string))
    env = LiberoEnv(SUITE, TASK, render=False)
    for number in range(2):
        env.reset(options={"init_state": number})
    env.reset(seed=7)
    env.close()
    assert len(compiled) == 1


def test_the_same_initial_state_is_the_same_episode_whatever_came_before(env):
    first, _ = env.reset(options={"init_state": 5})
    poses, state = env.simulator.sim.model.body_pos.copy(), env.state()
    env.reset(seed=17)
    env.step(np.ones(7))
    second, _ = env.reset(options={"init_state": 5})
    np.testing.assert_array_equal(env.state(), state)
    np.testing.assert_array_equal(env.simulator.sim.model.body_pos, poses)
    np.testing.assert_array_equal(second["image"], first["image"])


def test_gymnasium_finds_nothing_to_complain_about(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")  # not registered with gymnasium.make
        check_env(env)


@pytest.mark.libero
def test_random_resets_vary_the_arm_as_official_states_do(blind):
    """A policy trained on resets without noise meets poses of the arm that it has never seen."""

    def spread(**how):
        poses = []
        for number in range(8):
            blind.reset(**{name: value(number) for name, value in how.items()})
            poses.append(blind.state()[1:8])
        return np.std(poses, axis=0)

    random, official = spread(seed=lambda number: 500 + number), spread(options=lambda number: {"init_state": number})
    assert (random > 0.4 * official).all()
    assert (random < 2.5 * official).all()


def test_random_resets_follow_their_seed(blind):
    def state_of(seed):
        blind.reset(seed=seed)
        return blind.state()

    np.random.seed(1)
    expected = np.random.default_rng(0).random(3), np.random.RandomState(1).rand()
    first = state_of(1000)
    np.testing.assert_array_equal(first, state_of(1000))
    assert not np.array_equal(first, state_of(1001))
    assert np.random.rand() == expected[1]  # the caller's own random numbers are left alone


def test_an_episode_is_truncated_at_the_step_limit(blind):
    observations, _ = blind.reset(options={"init_state": 0})
    assert observations == {}
    endings = [blind.step(SETTLE_ACTION)[2:] for _ in range(3)]
    assert [ending[:2] for ending in endings] == [(False, False), (False, False), (False, True)]
    assert endings[-1][2] == {"success": False, "steps": 3}


def test_bad_calls_are_refused(blind):
    blind.reset(options={"init_state": 0})
    with pytest.raises(ValueError, match="7 finite numbers"):
        blind.step(np.full(7, np.nan))
    with pytest.raises(ValueError, match="choose 0 to 49"):
        blind.reset(options={"init_state": 50})
    with pytest.raises(ValueError, match="initial_state"):
        blind.reset(options={"initial_state": 0})
    fresh = object.__new__(LiberoEnv)
    fresh._ready = False
    with pytest.raises(gymnasium.error.ResetNeeded):
        fresh.step(SETTLE_ACTION)


def test_a_process_leaves_nothing_behind_and_says_nothing(tmp_path):
    code = (
        "from sim.libero import LiberoEnv\n"
        f"env = LiberoEnv({SUITE!r}, {TASK})\n"
        "env.reset(options={'init_state': 0})\n"
        "env.reset(seed=1)\n"  # and no close: the end of the process has to be clean too
    )
    environment = os.environ | {"HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "3"}
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MUJOCO_EGL_DEVICE_ID"):
        environment.pop(name, None)
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_log_file_of_another_user_is_in_nobodys_way():
    code = (
        "import logging\n"
        "from sim.rendering import load_control_environment\n"
        "load_control_environment()\n"
        "kinds = [type(handler) for handler in logging.getLogger('robosuite_logs').handlers]\n"
        "assert kinds == [logging.StreamHandler], kinds\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_missing_library_says_what_to_install(monkeypatch):
    from sim import rendering

    monkeypatch.setattr(rendering, "_loads", lambda library: library != "libEGL.so.1")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(rendering.RenderingUnavailableError, match="apt-get install libegl1"):
        rendering.load_control_environment()
    monkeypatch.setenv("MUJOCO_GL", "metal")
    with pytest.raises(rendering.RenderingUnavailableError, match="'metal'"):
        rendering.load_control_environment()
