import subprocess
import sys

import pytest

from sim.suites import STEP_LIMITS, UnknownSuiteError, find_task, parse_numbers, suite_names, suite_tasks


@pytest.mark.parametrize(("suite", "tasks"), [("libero_spatial", 10), ("libero_goal", 10), ("libero_90", 90)])
def test_official_suites_have_their_tasks_and_states(suite, tasks):
    assert len(suite_tasks(suite)) == tasks
    states = find_task(suite, tasks - 1).initial_states()
    assert states.ndim == 2
    assert states.shape[0] == 50


def test_tasks_are_in_the_official_order_with_instructions_from_file_names():
    task = find_task("libero_spatial", 0)
    assert task.instruction == "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert find_task("libero_10", 0).instruction.startswith("put both the alphabet soup")  # scene prefix stripped


@pytest.mark.parametrize(
    ("suite", "limit"),
    [("libero_spatial", 220), ("libero_object_swap", 280), ("libero_10_lan", 520), ("libero_90", 400)],
)
def test_variants_have_the_step_limit_of_their_suite(suite, limit):
    assert find_task(suite, 0).step_limit == limit


def test_variants_that_reword_the_task_take_the_words_from_the_scene_file():
    official, reworded = find_task("libero_spatial", 0), find_task("libero_spatial_lan", 0)
    assert reworded.instruction != official.instruction
    assert find_task("libero_spatial_swap", 0).instruction == official.instruction


def test_suites_without_files_are_not_offered():
    assert "libero_goal_env" not in suite_names()  # named by the package, but its scenes are not in it
    assert suite_names()[:5] == tuple(STEP_LIMITS)


def test_unknown_names_list_the_choices():
    with pytest.raises(UnknownSuiteError, match="libero_goal_swap"):
        suite_tasks("libero_gaol")
    with pytest.raises(UnknownSuiteError, match="0 to 9"):
        find_task("libero_object", 10)


def test_suites_are_listed_without_the_simulator():
    code = "import sys; from sim.suites import suite_names; suite_names(); assert 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numbers_and_ranges():
    assert parse_numbers("0,3,5-7,3") == (0, 3, 5, 6, 7)
    with pytest.raises(ValueError, match="3-"):
        parse_numbers("3-")
