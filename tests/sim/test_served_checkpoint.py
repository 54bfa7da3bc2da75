from dataclasses import replace

from policy.decoding.config import DecodingConfig
from policy.openvla.checkpoint import checkpoint_hash
from policy.results import REPOSITORY
from policy.runtime import Policy
from sim.decoding_catalogue import decoding_groups, write_decoding
from sim.served_checkpoint import ServedCheckpoint

BOX = REPOSITORY / "policy" / "pretrained" / "libero"


def test_servers_of_one_decoding_are_the_same_policy_with_files_of_their_own(tmp_path):
    served = ServedCheckpoint.locate(str(BOX), None, ("cpu",))
    assert (served.spec.policy_id, served.spec.checkpoint_hash) == (str(BOX), checkpoint_hash(BOX))
    decoding = DecodingConfig.load("exact")
    first, second = served.hosts(2, decoding, tmp_path / "runs" / "box.v2-exact")
    assert first.spec() == second.spec()
    assert (first.spec().decoder, first.spec().unnorm_key) == ("exact", "libero")
    written = sorted((tmp_path / "runs").iterdir())
    assert [file.name for file in written] == ["box.v2-exact-2.yaml", "box.v2-exact.yaml"]
    assert [DecodingConfig.load(file) for file in written] == [decoding] * 2


def test_servers_will_be_what_is_expected_of_them():
    policy = Policy.load(str(BOX), device="cpu", decoding=DecodingConfig.load("exact"))
    expected = ServedCheckpoint.locate(str(BOX), None, ("cpu",)).spec_of(DecodingConfig.load("exact"))
    names = ("policy_id", "unnorm_key", "decoder", "dtype", "decoding_digest", "image_path", "prompt_template")
    assert {name: getattr(expected, name) for name in names} == {name: getattr(policy.spec, name) for name in names}
    assert expected.checkpoint_hash == policy.spec.checkpoint_hash


def test_the_number_format_is_known_as_far_as_devices_agree():
    def dtype(acceleration: str = "", **given) -> str:
        served = ServedCheckpoint.locate(str(BOX), None, given.pop("devices", ("cuda:0", "cuda:1")), **given)
        return served.spec_of(DecodingConfig.load("exact"), acceleration).dtype

    assert dtype() == dtype(devices=("cpu",), dtype="bfloat16") == dtype(acceleration="skinny") == "bfloat16"
    assert dtype(dtype="float32") == dtype(dtype="float32", acceleration="auto") == "float32"
    assert dtype(acceleration="fp8") == "bfloat16, fp8 layers"
    assert dtype(devices=("cuda:0", "cpu")) in ("", "bfloat16")  # which a CPU may choose, too
    assert dtype(devices=("no device",)) == ""


def test_settings_tell_decodings_apart_and_survive_the_way_to_the_server(tmp_path):
    served = ServedCheckpoint.locate(str(BOX), None, ("cpu",))
    configs = {config.name: config for group in decoding_groups().values() for config in group}
    for name, config in configs.items():
        file = write_decoding(config, tmp_path / f"{name}.yaml")
        assert DecodingConfig.load(file).digest == served.spec_of(config).decoding_digest
    radius = configs["spec-vla, r=5"]
    edited = replace(radius, tolerance={"radius": 8})
    assert served.spec_of(edited).decoder == served.spec_of(radius).decoder
    assert served.spec_of(edited).decoding_digest != served.spec_of(radius).decoding_digest
