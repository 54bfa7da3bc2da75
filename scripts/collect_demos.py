"""Record demonstrations of the scripted expert: `python scripts/collect_demos.py --output demos --workers 8`.

Records random resets only, never the official initial states; what is there already is skipped.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from sim.collection import CollectionConfig, ProgressLines, collect
from sim.recording_worker import CollectionError
from sim.suites import parse_numbers


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--output", type=str, default="demos", help="folder for the demonstrations, one file each")
    parser.add_argument("--suites", nargs="+", type=str, default=["libero_object", "libero_spatial"])
    parser.add_argument("--tasks", type=str, default="0-9", help="numbers in each suite, e.g. 0-9 or 0,3,5-7")
    parser.add_argument("--episodes", type=int, default=60, help="attempts per task")
    parser.add_argument("--first-seed", type=int, default=1000, help="seed of the first attempt, at least 1000")
    parser.add_argument("--noise", type=float, default=0.25, help="sigma of the bursts on executed actions (1 is 5 cm)")
    parser.add_argument("--noisy-fraction", type=float, default=0.75, help="share of the episodes that get noise")
    parser.add_argument("--frames", type=bool, default=True, help="false: leave the rendering to render_demos.py")
    parser.add_argument("--stride", type=int, default=1, help="keep one step in so many where the expert drives alone")
    parser.add_argument(
        "--driver-endpoint", type=str, default="", help="policy server that takes turns with the expert"
    )
    parser.add_argument("--driver-alone", type=bool, default=False, help="it drives whole episodes, undisturbed")
    parser.add_argument("--stretch", type=float, default=30.0, help="steps that it drives before the expert helps")
    parser.add_argument("--expert-share", type=float, default=0.0, help="of those, episodes the expert drives alone")
    parser.add_argument("--emphasis", type=float, default=0.0, help="missed tasks get up to 1 + this as many")
    parser.add_argument("--workers", type=int, default=2, help="processes, one per core")
    parser.add_argument("--render-devices", nargs="*", type=int, default=[], help="EGL devices, taken in turn")
    parser.add_argument("--time-limit", type=float, default=0.0, help="seconds after which no episode starts, 0: none")
    return parser


def main() -> None:
    parser = make_parser()
    chosen = parser.parse_args()
    try:
        config = CollectionConfig(
            output=Path(chosen.output),
            suites=tuple(chosen.suites),
            tasks=parse_numbers(chosen.tasks),
            episodes=chosen.episodes,
            first_seed=chosen.first_seed,
            noise=chosen.noise,
            noisy_fraction=chosen.noisy_fraction,
            driver_endpoint=chosen.driver_endpoint,
            driver_alone=chosen.driver_alone,
            stretch=chosen.stretch,
            expert_share=chosen.expert_share,
            emphasis=chosen.emphasis,
            frames=chosen.frames,
            stride=chosen.stride,
            workers=chosen.workers,
            render_devices=tuple(chosen.render_devices),
            time_limit=chosen.time_limit,
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        print(collect(config, ProgressLines()), flush=True)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; run the same command again to go on in {config.output}") from None
    except CollectionError as error:
        raise SystemExit(f"cannot collect: {error}") from None


if __name__ == "__main__":
    main()
