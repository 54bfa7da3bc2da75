"""Fit the coefficients of the motion drafter to recorded demonstrations and store them beside a checkpoint's weights.

    python scripts/fit_motion_drafter.py demos --checkpoint policy/pretrained/libero

Frames are not needed: actions are turned into the checkpoint's bins, and repetitions among them are left aside.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from policy.drafting.motion import fit_motion
from policy.openvla.action_tokens import ActionTokenizer, load_statistics, select_statistics
from policy.training.demonstrations import Demonstration, list_demonstrations


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demonstrations", type=Path, help="folder of .npz files, see collect_demos.py")
    parser.add_argument("--checkpoint", type=Path, default=Path("policy/pretrained/libero"), help="directory")
    parser.add_argument("--unnorm-key", type=str | None, default=None, help="dataset statistics")
    return parser


def main() -> None:
    chosen = make_parser().parse_args()
    tokenizer = ActionTokenizer()
    try:
        statistics = select_statistics(load_statistics(chosen.checkpoint), chosen.unnorm_key)
        actions = [Demonstration.load(path).actions for path in list_demonstrations(chosen.demonstrations)]
        bins = [tokenizer.vocab_size - 1 - tokenizer.encode(statistics.normalize(episode)) for episode in actions]
        coefficients = fit_motion(bins)
    except ValueError as error:
        raise SystemExit(f"cannot fit: {error}") from None
    print(f"{coefficients} from {sum(map(len, actions))} actions of {len(actions)} episodes")
    print(f"written to {coefficients.save(chosen.checkpoint)}")


if __name__ == "__main__":
    main()
