"""Which of several records of an episode counts, and which records belong together.

Knows keys and outcomes. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable

from sim.episode_key import EpisodeKey, Settings
from sim.records import EpisodeRecord, Outcome


def newest_by_key(records: Iterable[EpisodeRecord]) -> dict[EpisodeKey, EpisodeRecord]:
    """The last record of every episode. Of records whose keys match, an error gives way to what the episode came to,
    and one that tells less of its settings to one that tells more.
    """
    found: dict[EpisodeKey, list[EpisodeRecord]] = {}
    for record in records:
        others = found.setdefault(record.key.place, [])
        same = [other for other in others if other.key.settings.agrees(record.key.settings)]
        if all(_weight(other) <= _weight(record) for other in same):
            others[:] = [*(other for other in others if other not in same), record]
    return {record.key: record for own in found.values() for record in own}


def newest_of(keys: Iterable[EpisodeKey], records: Iterable[EpisodeRecord]) -> dict[EpisodeKey, EpisodeRecord]:
    """The last record of each of these episodes that has one; errors only where there is nothing else."""
    found: dict[EpisodeKey, list[EpisodeRecord]] = {}
    for record in newest_by_key(records).values():
        found.setdefault(record.key.place, []).append(record)
    matching = {key: [own for own in found.get(key.place, ()) if own.key.matches(key)] for key in keys}
    return {key: sorted(own, key=_is_valid)[-1] for key, own in matching.items() if own}


def of_other_settings(
    records: Iterable[EpisodeRecord], everything: Iterable[EpisodeRecord]
) -> dict[EpisodeKey, EpisodeRecord]:
    """What of everything differs from these records in the settings alone, and so does not count with them."""
    known = {record.key for record in records}
    places = {key.place for key in known}
    newest = newest_by_key(everything)
    return {key: record for key, record in newest.items() if key not in known and key.place in places}


def by_settings(records: Iterable[EpisodeRecord]) -> list[list[EpisodeRecord]]:
    """Records apart by their settings. Those that do not tell theirs go to the first ones that they agree with."""
    groups: list[tuple[Settings, list[EpisodeRecord]]] = []
    for record in sorted(records, key=lambda record: -record.key.settings.told):
        own = record.key.settings
        for number, (settings, group) in enumerate(groups):
            if settings.agrees(own):
                groups[number] = settings.joined(own), [*group, record]
                break
        else:
            groups.append((own, [record]))
    return [group for _, group in groups]


def _is_valid(record: EpisodeRecord) -> bool:
    return record.outcome is not Outcome.ERROR


def _weight(record: EpisodeRecord) -> tuple[bool, int]:
    return _is_valid(record), record.key.settings.told
