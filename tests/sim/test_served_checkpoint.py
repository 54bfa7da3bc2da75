from policy.decoding.config import DecodingConfig
from policy.openvla.checkpoint import checkpoint_hash
from policy.results import REPOSITORY
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
