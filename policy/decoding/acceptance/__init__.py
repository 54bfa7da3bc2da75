"""Rules that decide which drafted tokens stand, by name. `docs/acceptance.md` compares them.

Adding a rule is one file and one line in `RULES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol

import torch

from policy.decoding.acceptance.base import AcceptanceRule
from policy.decoding.acceptance.distance import CorrectedSettings, SpecVLASettings
from policy.decoding.acceptance.exact import ExactSettings
from policy.decoding.acceptance.physical import PhysicalSettings
from policy.decoding.acceptance.typical import TypicalSettings
from policy.decoding.physical import ActionUnits, ControllerScale
from policy.openvla.action_tokens import ActionStatistics


class RuleSettings(Protocol):
    """What is configured of a rule: a frozen dataclass whose invariants hold once it is made."""

    def build(self, units: ActionUnits, device: torch.device | str) -> AcceptanceRule: ...


RULES: dict[str, type[RuleSettings]] = {
    "exact": ExactSettings,
    "spec-vla": SpecVLASettings,
    "corrected": CorrectedSettings,
    "physical": PhysicalSettings,
    "typical": TypicalSettings,
}


def rule_settings(name: str, options: Mapping[str, Any]) -> RuleSettings:
    """The settings of a rule, defaults where `options` say nothing; what can be checked without a policy is checked.

    Raises ValueError for an unknown rule, an option it does not have, or a value outside its limits.
    """
    if name not in RULES:
        raise ValueError(f"there is no acceptance rule {name!r}; choose one of {', '.join(RULES)}")
    settings = RULES[name]
    known = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"acceptance rule {name!r} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    return settings(**options)


def make_rule(
    name: str,
    options: Mapping[str, Any],
    statistics: ActionStatistics,
    controller: ControllerScale | None = None,
    device: torch.device | str = "cpu",
) -> AcceptanceRule:
    """A rule, ready to judge, for a policy with these statistics on a robot with this controller (None: LIBERO's).

    Raises ValueError as `rule_settings` does.
    """
    return rule_settings(name, options).build(ActionUnits.from_statistics(statistics, controller), device)
