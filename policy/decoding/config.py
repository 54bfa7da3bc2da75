"""How actions are decoded, as configured: one frozen dataclass, one YAML file each in `configs/decoding/`.

Knows names and limits, and puts a decoder together. Knows nothing of how any part works.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from policy.decoding.acceptance import make_rule, rule_settings
from policy.decoding.acceptance.stall import StallGuard, check_stall_actions
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.physical import ControllerScale
from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.decoding.speculative import SpeculativeDecoder, Tail
from policy.decoding.stopwatch import Stopwatch
from policy.decoding.verification import PathChoice
from policy.drafting.placement import Placement
from policy.drafting.registry import DRAFTERS, HEADS, SEEING_DRAFTERS, DrafterMaterial, check_drafters, check_head
from policy.openvla.model import OpenVLA
from policy.results import REPOSITORY
from policy.types import DecodeTrace

FOLDER = REPOSITORY / "configs" / "decoding"
MOST_NODES = 128
EXACT = "exact"
PHYSICAL = "physical"


class ActionDecoder(Protocol):
    """What a policy needs of a decoder; the plain and the speculative one have it in common."""

    name: str
    model: OpenVLA

    def decode(
        self, prompts: PromptBatch, sessions: Sequence[str], stopwatch: Stopwatch
    ) -> tuple[Tensor, list[DecodeTrace]]:
        """Action token ids, int64 `[sessions, 7]` on the host, and a trace for each.

        Prompts beyond those of the sessions fill a batch up to a usual size and belong to nobody.
        """

    def forget(self, session: str) -> None:
        """A new episode of this session begins."""

    def rehearse(self, prompts: PromptBatch) -> None:
        """Run every pass that an action of prompts of these shapes may need, so that none is recorded later on."""

    def look(self, sight: Sight) -> None:
        """Drafters that look for themselves may begin, while the target looks, too. May be left out before `decode`."""

    def study(self) -> None:
        """Learn from the last actions, now that nobody waits; left out, the next `decode` does it first."""


@dataclass(frozen=True, slots=True)
class DecodingConfig:
    """One way to decode.

    name: what results call it. decoder: "autoregressive" (the plain reference; nothing below applies) or "speculative".
    drafters: who proposes tokens, see `policy.drafting.registry`; none leaves the first pass without a draft.
    head: who drafts the rest from the target's features, for the tails "tree" and "head"; None for nobody.
    weights: folders of trained drafters, by name, where they are not beside the target's weights.
    nodes: most nodes of the token tree behind the prompt. tail_nodes: of those in further passes, which stay cheap only
    as long as they are short; as many as `nodes` unless given. confidence: nodes less probable to stand are left out.
    tail: how the rest is drafted after the first pass, see `SpeculativeDecoder`.
    acceptance, tolerance: the rule and its options, see `docs/acceptance.md`.
    path: which of several accepted drafts are followed, see `policy.decoding.verification`.
    stall_actions: after so many actions that repeat each other on an unchanged picture, decoding is exact until one of
    the two changes; None never checks. Neither this nor the path matters to "exact".
    controller: what the robot makes of an action of 1, for tolerances in millimetres and milliradians; known for LIBERO
    and BridgeData V2 unless given.
    """

    name: str
    decoder: Literal["autoregressive", "speculative"] = "speculative"
    drafters: tuple[str, ...] = ("previous", "retrieval", "dataset")
    head: str | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    nodes: int = 32
    tail_nodes: int | None = None
    confidence: float = 0.005
    tail: Tail = "tree"
    acceptance: str = "exact"
    tolerance: Mapping[str, Any] = field(default_factory=dict)
    path: PathChoice = "nearest"
    stall_actions: int | None = 4
    controller: ControllerScale | None = None

    def __post_init__(self) -> None:
        if isinstance(self.controller, Mapping):  # as a YAML file has it
            object.__setattr__(self, "controller", ControllerScale(**self.controller))
        if not self.name:
            raise ValueError("a decoding configuration needs a name, by which results tell it from others")
        for option, choices in (
            ("decoder", ("autoregressive", "speculative")),
            ("tail", get_args(Tail)),
            ("path", get_args(PathChoice)),
        ):
            if getattr(self, option) not in choices:
                raise ValueError(f"{option} is {getattr(self, option)!r}; it must be one of {', '.join(choices)}")
        for option in ("nodes", "tail_nodes"):
            nodes = getattr(self, option)
            if nodes is not None and not 1 <= nodes <= MOST_NODES:
                raise ValueError(f"{option} is {nodes}; a tree has 1 to {MOST_NODES}")
        if not 0 <= self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must be a probability from 0 to below 1")
        check_drafters(self.drafters)
        if self.head is not None:
            check_head(self.head)
        if (self.head is not None and self.tail not in ("tree", "head")) or (self.head is None and self.tail == "head"):
            raise ValueError(
                f'head is {self.head!r} and tail {self.tail!r}; a head needs the tail "tree" or "head", and the tail '
                f'"head" one of {", ".join(HEADS)}'
            )
        trained = {name for name in (*self.drafters, self.head) if name in SEEING_DRAFTERS or name in HEADS}
        if strangers := sorted(set(self.weights) - trained):
            raise ValueError(f"weights are given for {', '.join(strangers)}, which nobody here uses or trains")
        rule_settings(self.acceptance, self.tolerance)
        if self.stall_actions is not None:
            check_stall_actions(self.stall_actions)

    @classmethod
    def load(cls, name_or_file: str | Path) -> DecodingConfig:
        """A file in `configs/decoding/` by its name without ending, or any other YAML file.

        Raises ValueError for a name that is not there and for a file that does not hold such a configuration.
        """
        path = Path(name_or_file)
        if path.suffix not in (".yaml", ".yml"):
            path = FOLDER / f"{name_or_file}.yaml"
        if path.parent == FOLDER and not FOLDER.is_dir():
            raise ValueError(
                f"the configurations are missing: {FOLDER} is not there, as specact was installed without its "
                'repository; install it from the clone with `pip install -e ".[policy]"`, or name a YAML file'
            )
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
            raise ValueError(
                f"there is no decoding configuration {str(name_or_file)!r}; name a YAML file or one of {known}"
            )
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        parser.set_defaults(name=path.stem)
        try:
            return cls(**parser.parse_path(path).as_dict())
        except (ArgumentError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def digest(self) -> str:
        """Tells configurations apart whose settings differ, whatever they are called: 12 hex digits, or "" for plain
        decoding, which has no settings. Where weights lie does not count.
        """
        if self.decoder == "autoregressive":
            return ""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        settings = {name: value for name, value in given.items() if name not in ("name", "weights")}
        if self.acceptance == EXACT:
            settings.pop("stall_actions", None)
        if self.acceptance == EXACT or self.path == "longest":
            del settings["path"]  # as it was before there was a choice: older records tell the same
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def controller_or(self, known: ControllerScale | None) -> ControllerScale | None:
        """The controller of this configuration, else the one that is known of the data set.

        Raises ValueError for a rule in physical units and neither.
        """
        if self.controller is None and known is None and self.acceptance == PHYSICAL:
            raise ValueError(
                f"decoding {self.name!r} has tolerances in mm and mrad, and what this robot's controller makes of an "
                "action of 1 is not known; give it in the configuration, for actions in metres and radians as "
                "controller: {millimetres: 1000, milliradians: 1000}"
            )
        return self.controller or known

    def build(self, material: DrafterMaterial) -> ActionDecoder:
        """The decoder for a loaded checkpoint. Raises ValueError for a rule in physical units on an unknown robot."""
        if self.decoder == "autoregressive":
            return AutoregressiveDecoder(material.model, material.record())
        material = replace(material, weights=dict(material.weights) | dict(self.weights))
        controller = self.controller_or(material.controller)
        rule = make_rule(self.acceptance, self.tolerance, material.statistics, controller, material.model.device)
        if self.acceptance != EXACT and self.stall_actions is not None:
            rule = StallGuard(rule, self.stall_actions)
        return SpeculativeDecoder(
            material.model,
            rule,
            [DRAFTERS[drafter](material) for drafter in self.drafters if drafter in DRAFTERS],
            Placement(self.nodes, self.confidence, rule.reach, self.tail_nodes),
            self.tail,
            self.name,
            [SEEING_DRAFTERS[drafter](material) for drafter in self.drafters if drafter in SEEING_DRAFTERS],
            None if self.head is None else HEADS[self.head](material),
            self.path,
            material.record(),
        )
