"""What makes two episodes the same measurement: names of policy and conditions, and settings where they are told.

Knows what is compared. Knows nothing of how episodes ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from policy.types import PolicySpec

if TYPE_CHECKING:
    from sim.records import EpisodeRecord


class Settings(NamedTuple):
    """How a policy was run, beyond its names. None stands for what is not told, and goes with anything: a record of
    before there was such a field, or a policy that is not up yet.
    """

    dtype: str | None = None
    decoding_digest: str | None = None
    image_path: str | None = None
    prompt_template: str | None = None

    @classmethod
    def of(cls, told: PolicySpec | EpisodeRecord) -> Settings:
        """Empty text tells nothing, but for the digest, where it means plain decoding."""
        return cls(told.dtype or None, told.decoding_digest, told.image_path or None, told.prompt_template or None)

    @property
    def told(self) -> int:
        """How many of them are known."""
        return sum(value is not None for value in self)

    def agrees(self, other: Settings) -> bool:
        """Whether nothing that both tell differs."""
        return all(None in pair or pair[0] == pair[1] for pair in zip(self, other, strict=True))

    def joined(self, other: Settings) -> Settings:
        """What either tells; for settings that agree."""
        return Settings(*(theirs if own is None else own for own, theirs in zip(self, other, strict=True)))


class EpisodeKey(NamedTuple):
    """What makes two episodes the same measurement; see `matches`."""

    suite: str
    task: int
    init_state: int
    policy_id: str
    checkpoint_hash: str
    unnorm_key: str
    decoder: str
    clock: str
    protocol_deviations: tuple[str, ...]
    timing: tuple[str, ...] = ()
    settings: Settings = Settings()

    @property
    def place(self) -> EpisodeKey:
        """What every record tells: all but the settings."""
        return self._replace(settings=Settings())

    def matches(self, other: EpisodeKey) -> bool:
        """Whether these are the same measurement, as far as is told of both."""
        return self.place == other.place and self.settings.agrees(other.settings)
