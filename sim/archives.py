"""Episode records that are kept for good: compressed, and without what nobody asks for later.

Knows what can be left out. Reading them is reading any records (`sim.records.read_records`).
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sim.newest_records import newest_by_key
from sim.records import ARCHIVED, LOCK_STEP, EpisodeRecord

if TYPE_CHECKING:
    from policy.decoding.config import DecodingConfig


def write_archive(path: Path, records: Iterable[EpisodeRecord]) -> int:
    """Keep episodes for good in a fiftieth of the space: every episode's last record, fractions to three places,
    compressed. The latency of each single decision is left out where the world waited for it; elsewhere it is what the
    episode was about. Returns how many. Raises ValueError for a name not ending in .xz.
    """
    if path.suffix != ARCHIVED:
        raise ValueError(f"an archive's name ends in {ARCHIVED}, {path.name} does not; call it {path.name}{ARCHIVED}")
    newest = newest_by_key(records).values()
    kept = [replace(record, decision_ms=()) if record.clock == LOCK_STEP else record for record in newest]
    lines = b"".join(msgspec.json.encode(_rounded(msgspec.to_builtins(record))) + b"\n" for record in kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(lzma.compress(lines, preset=9))
    unfinished.replace(path)
    return len(kept)


def under_present_name(records: Iterable[EpisodeRecord], config: DecodingConfig) -> list[EpisodeRecord]:
    """The same episodes, of a decoding that has been given another name since: its settings, which their digest tells,
    must be this configuration's. Raises ValueError for episodes of other settings, or that do not tell theirs.
    """
    own = list(records)
    if strangers := sorted({str(record.decoding_digest) for record in own} - {config.digest}):
        raise ValueError(f"{config.name} has the digest {config.digest}, these episodes {', '.join(strangers)}")
    return [replace(record, decoder=config.name) for record in own]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return round(value, 3) if isinstance(value, float) else value
