#!/usr/bin/env python3
"""Keep the episodes behind a result in a fiftieth of the space, to publish them or to go on with them elsewhere.

    python scripts/archive_records.py runs/box.jsonl docs/results/episodes/box-policy.jsonl.xz
    python scripts/archive_records.py --decoding default runs/corrected.jsonl default.jsonl.xz    # renamed since
    xzcat docs/results/episodes/box-policy.jsonl.xz > runs/box.jsonl    # the same evaluation goes on from there

An archive holds the last record of every episode with fractions to three places, and without the latency of each single
decision where the world waited for it (lock-step). `pandas.read_json(FILE, lines=True)` reads it as it is.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from policy.decoding.config import DecodingConfig
from sim.archives import under_present_name, write_archive
from sim.records import read_records


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, help="JSONL files of episodes, then the archive to write")
    parser.add_argument(
        "--decoding", type=str, default=None, help="name, or YAML file, that their decoding, unchanged, goes by now"
    )
    return parser


def main() -> None:
    chosen = make_parser().parse_args()
    *sources, archive = chosen.records
    if not sources:
        raise SystemExit(f"give the episodes' files and then the archive, got only {archive}")
    try:
        records = [record for source in sources for record in read_records(source)]
        if chosen.decoding:
            records = under_present_name(records, DecodingConfig.load(chosen.decoding))
        count = write_archive(archive, records)
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot archive: {error}") from None
    print(f"{count} episodes, {archive.stat().st_size / 1e3:.0f} kB: {archive}")


if __name__ == "__main__":
    main()
