#!/usr/bin/env python3
"""Train a policy while demonstrations are recorded for it: first by the expert, then by policy and expert in turn.

scripts/train_with_aggregation.py --training configs/policy/box.yaml --run runs/box --minutes 12 --workers 30

Training, simulators and policy servers run side by side. As soon as there is a checkpoint, its newest version drives
and the expert says what it would have done (dataset aggregation, DAgger). May be stopped, and ends by itself after
`--time-limit` seconds; the same command goes on from there. With several GPUs `--gpus` trains on the first ones and
`--render-devices` keeps the simulators' rendering off them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from sim.collection import CollectionConfig, ProgressLines, collect
from sim.newest_policy import NewestPolicy
from sim.recording_worker import CollectionError
from sim.suites import parse_numbers

_ROOT = Path(__file__).resolve().parent.parent
# Of simulators and servers: training compiles its network while they start, and would wait long for a core.
_NICENESS = 10
_PLENTY = 5000  # episodes a task; the end of training ends the recording


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--training", type=Path, default=Path("configs/policy/box.yaml"), help="of train_policy.py")
    parser.add_argument("--run", type=Path, default=Path("runs/box"), help="folder for everything that comes of it")
    parser.add_argument("--minutes", type=float, default=12.0, help="of training, in all")
    parser.add_argument("--initialize-from", type=str, default="", help="checkpoint to start from")
    parser.add_argument("--training-options", nargs="*", type=str, default=[], help="more, as NAME=VALUE")
    parser.add_argument(
        "--samples-per-frame",
        type=float,
        default=12.0,
        help="how often training may draw a frame on average; it waits for new ones and leaves a shared GPU to them",
    )
    parser.add_argument("--suites", nargs="+", type=str, default=["libero_object", "libero_spatial"])
    parser.add_argument("--tasks", type=str, default="0-9", help="numbers in each suite")
    parser.add_argument("--first-seed", type=int, default=10_000, help="of the episodes that are recorded")
    parser.add_argument("--expert-share", type=float, default=0.3, help="episodes that the expert drives alone")
    parser.add_argument("--noisy-fraction", type=float, default=0.75, help="share of the episodes that get noise")
    parser.add_argument(
        "--stretch", type=float, default=30.0, help="steps that the policy drives before the expert helps"
    )
    parser.add_argument("--stride", type=int, default=3, help="steps from one frame of theirs to the next")
    parser.add_argument(
        "--emphasis", type=float, default=3.0, help="missed tasks get up to 1 + this times the episodes"
    )
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--renew-seconds", type=float, default=30.0, help="how often newer weights take over")
    parser.add_argument("--device", type=str, default="auto", help="of training")
    parser.add_argument(
        "--driver-devices", nargs="+", type=str, default=["auto"], help="of the policy that drives, e.g. cuda:2"
    )
    parser.add_argument(
        "--driver-share",
        type=float,
        default=1.0,
        help="of the time, in which it decides: less leaves more of a shared GPU to training",
    )
    parser.add_argument("--gpus", type=int, default=1, help="training processes, a GPU each")
    parser.add_argument("--render-devices", nargs="*", type=int, default=[], help="EGL devices, taken in turn")
    parser.add_argument(
        "--mesh-cells", nargs="*", type=float, default=[], help="metres, taken in turn: how far meshes are simplified"
    )
    parser.add_argument("--time-limit", type=float, default=0.0, help="seconds after which to stop for now, 0: none")
    return parser


def train_command(chosen: Namespace) -> list[str]:
    run: Path = chosen.run
    command = [sys.executable]
    if chosen.gpus > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(chosen.gpus)]
    command += [str(_ROOT / "scripts" / "train_policy.py"), "--config", str(chosen.training)]
    command += ["--demonstrations", json.dumps([str(run / "demonstrations")]), "--output", str(run)]
    command += ["--minutes", str(chosen.minutes), "--device", chosen.device]
    command += ["--samples_per_frame", str(chosen.samples_per_frame)]
    if chosen.initialize_from:
        command += ["--initialize_from", chosen.initialize_from]
    return command + [f"--{option}" for option in chosen.training_options]


class Trainer:
    """Training in a session of its own: Ctrl-C at a terminal reaches this script alone, which stops it, and once."""

    def __init__(self, command: list[str], log: Path) -> None:
        with log.open("a") as stream:
            self._process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        self._asked = False

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self, again: bool = False) -> None:
        """Asks it to save its state and to end; asked `again`, it ends at once. Does nothing where it has ended."""
        if again or not self._asked:
            self._asked = True
            self._process.terminate()

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait()


def stop_with_this_script(trainer: Trainer) -> None:
    """Signals that end this script, as Ctrl-C or a closed terminal do, stop training right away, a second one at once:
    nobody else would, and whoever sends them may not wait until the simulators are gone.
    """

    def leave(number: int, _: object) -> None:
        trainer.stop(again=True)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, leave)


def main() -> int:
    parser = make_parser()
    chosen = parser.parse_args()
    run: Path = chosen.run
    try:
        collection = CollectionConfig(
            output=run / "demonstrations",
            suites=tuple(chosen.suites),
            tasks=parse_numbers(chosen.tasks),
            episodes=_PLENTY,
            first_seed=chosen.first_seed,
            noisy_fraction=chosen.noisy_fraction,
            stretch=chosen.stretch,
            expert_share=chosen.expert_share,
            emphasis=chosen.emphasis,
            stride=chosen.stride,
            workers=chosen.workers,
            render_devices=tuple(chosen.render_devices),
            mesh_cells=tuple(chosen.mesh_cells),
        )
        newest = NewestPolicy(
            run / "policy",
            run / "served",
            renew_seconds=chosen.renew_seconds,
            devices=tuple(chosen.driver_devices),
            arguments=("--decoding", "autoregressive", "--follow-share", str(chosen.driver_share)),
        )
    except ValueError as error:
        parser.error(str(error))
    collection.output.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + chosen.time_limit if chosen.time_limit else float("inf")
    trainer = Trainer(train_command(chosen), run / "train.log")
    stop_with_this_script(trainer)

    def finished() -> bool:
        return trainer.ended() or time.monotonic() > ends

    os.nice(_NICENESS)
    try:
        print(collect(collection, ProgressLines(), newest.endpoint, finished), flush=True)
    except (CollectionError, RuntimeError) as error:
        print(f"recording ended: {error}", file=sys.stderr)
        return 1
    finally:
        trainer.stop()
        newest.close()
        code = trainer.wait()
    print((run / "train.log").read_text()[-400:])
    return code


if __name__ == "__main__":
    sys.exit(main())
