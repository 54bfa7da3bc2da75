"""Two processes train one policy: equal weights, other episodes, one of them logs and saves."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from policy.training.demonstrations import demonstration_name
from policy.training.episode_choice import is_held_out
from policy.training.replicas import Replicas

_EACH = """
import json, sys
from pathlib import Path
import torch
from policy.training.demonstrations import demonstration_name
from policy.training.episode_choice import is_held_out
from policy.training.replicas import Replicas
replicas = Replicas()
weight = torch.zeros(2, requires_grad=True)
(weight * torch.tensor([1.0, 3.0 + replicas.rank])).sum().backward()
unused = torch.zeros(1, requires_grad=True)
replicas.average_gradients([unused, weight])
names = [f"episode{i}" for i in range(40)]
found = {
    "gradient": weight.grad.tolist(),
    "told": replicas.from_first({"rank": replicas.rank}),
    "agreed": replicas.agree(0.5 + replicas.rank, replicas.rank == 1),
    "owned": [name for name in names if replicas.owns(Path(name))],
    "first": replicas.first,
}
Path(sys.argv[1], f"{replicas.rank}.json").write_text(json.dumps(found))
replicas.close()
"""


def test_processes_average_gradients_agree_with_the_first_and_share_the_episodes(tmp_path: Path):
    script = tmp_path / "each.py"
    script.write_text(_EACH)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *launcher, str(script), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["gradient"] == two["gradient"] == [1.0, 3.5]
    assert one["told"] == two["told"] == {"rank": 0}
    assert one["agreed"] == two["agreed"] == [0.5, 0.0]
    assert (one["first"], two["first"]) == (True, False)
    assert not set(one["owned"]) & set(two["owned"])
    assert len(one["owned"]) + len(two["owned"]) == 40
    assert min(len(one["owned"]), len(two["owned"])) > 8


def test_alone_nothing_is_shared():
    replicas = Replicas()
    weight = torch.ones(1, requires_grad=True)
    (2 * weight).backward()
    replicas.average_gradients([weight])
    assert weight.grad is not None
    assert weight.grad.item() == 2.0
    assert replicas.first
    assert replicas.owns(Path("any"))
    assert replicas.agree(0.25) == [0.25]
    assert replicas.device("cpu") == torch.device("cpu")


def test_shares_have_nothing_to_do_with_what_is_held_out():
    replicas = Replicas()
    replicas.count = 4
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10"):
        names = [demonstration_name(suite, task, seed) for task in range(10) for seed in range(1000, 1060)]
        for chosen in (names, [name for name in names if not is_held_out(name, 4)]):
            for replicas.rank in range(4):
                share = sum(replicas.owns(Path(name)) for name in chosen) / len(chosen)
                assert 0.19 < share < 0.31
