"""What the small random OpenVLA of these tests was made for: its instructions and its data set."""

from __future__ import annotations

from typing import Any

import numpy as np

INSTRUCTIONS = ["pick up the milk and place it in the basket", "open the drawer"]


def statistics_json(dataset: str = "libero_test") -> dict[str, Any]:
    """Contents of a `dataset_statistics.json` with one data set."""
    spread = np.linspace(0.5, 1.0, 7)
    action = {"q01": -spread, "q99": spread, "min": -spread, "max": spread, "mean": 0 * spread, "std": spread}
    entry = {name: values.tolist() for name, values in action.items()} | {"mask": [True] * 6 + [False]}
    return {dataset: {"action": entry, "num_transitions": 10, "num_trajectories": 1}}
