from dataclasses import replace
from pathlib import Path

from policy.decoding.config import DecodingConfig
from sim.decoding_catalogue import decoding_groups, write_decoding


def test_every_decoding_has_a_name_of_its_own_and_survives_its_file(tmp_path):
    members = [config for group in decoding_groups().values() for config in group]
    assert len({config.name for config in members}) == len({repr(config) for config in members})
    weighted = DecodingConfig("weighted", drafters=("draft-vla",), weights={"draft-vla": Path("runs/draft")})
    for number, config in enumerate([*members, weighted]):
        assert DecodingConfig.load(write_decoding(config, tmp_path / "new" / f"{number}.yaml")) == config


def test_what_differs_in_its_name_only_is_measured_once():
    groups = decoding_groups()
    members = [config for group in groups.values() for config in group]
    assert len({repr(replace(config, name="any")) for config in members}) == len({config.name for config in members})
    radii = [config.tolerance.get("radius", 0) for config in groups["corrected"]]
    assert radii == sorted(radii)
    assert groups["corrected"][0] is groups["rules"][0]  # a radius of zero is exact acceptance
    assert "default" in {config.name for config in groups["corrected"]}
