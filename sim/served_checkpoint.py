"""A checkpoint and everything about serving it that is the same for all of its decodings.

Knows checkpoints, decodings, and the options of `scripts/serve_policy.py`. Knows nothing of episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from policy.openvla.action_tokens import load_statistics, resolve_unnorm_key
from policy.types import PolicySpec
from sim.policy_hosts import Devices, ServerHost

if TYPE_CHECKING:  # importing it takes torch, which simulator processes, who import the same scripts, can do without
    from policy.decoding.config import DecodingConfig

_MOST_CLIENTS = 64  # answered in one forward pass; as many simulators as one rendering GPU keeps busy


@dataclass(frozen=True, slots=True)
class ServedCheckpoint:
    """spec: what all its servers have in common, as far as records are found by it; its dtype is that of a server
    without acceleration, "" where servers on different devices would choose differently. directory: of the weights.

    dtype, capture, acceleration: options of the servers. devices: where they run.
    """

    spec: PolicySpec
    directory: Path
    devices: Devices
    dtype: str
    capture: bool
    acceleration: str

    @classmethod
    def locate(
        cls,
        checkpoint: str,
        unnorm_key: str | None,
        devices: Sequence[str],
        *,
        dtype: str = "auto",
        capture: bool = True,
        acceleration: str = "none",
    ) -> ServedCheckpoint:
        """A directory or a hub id, and whose statistics scale the actions. Raises ValueError where there is none."""
        from policy.openvla.checkpoint import checkpoint_hash, locate_checkpoint
        from policy.openvla.images import resolve_image_path
        from policy.openvla.prompt import Prompter

        directory = locate_checkpoint(checkpoint)
        key = resolve_unnorm_key(load_statistics(directory), unnorm_key)
        spec = PolicySpec(
            checkpoint,
            checkpoint_hash(directory),
            key,
            image_path=resolve_image_path("auto", key),
            prompt_template=Prompter(directory).template,
            device="",
            dtype=_dtype(dtype, devices),
        )
        return cls(spec, directory, Devices(devices), dtype, capture, acceleration)

    def spec_of(self, decoding: DecodingConfig, acceleration: str = "") -> PolicySpec:
        """What a server of one decoding will be, all but its device. acceleration: instead of that of all servers."""
        from policy.acceleration.plan import preset

        name, dtype = acceleration or self.acceleration, self.spec.dtype
        precision = "full" if name == "auto" else preset(name).precision
        if dtype and precision != "full":
            dtype = f"{dtype}, {precision} layers"
        return replace(self.spec, decoder=decoding.name, decoding_digest=decoding.digest, dtype=dtype)

    def host(self, decoding: DecodingConfig, file: Path, acceleration: str = "") -> ServerHost:
        """A server of one decoding.

        file: without its ending; the decoding is written down in FILE.yaml, and what the server says in FILE.log.
        acceleration: instead of that of all servers.
        """
        from sim.decoding_catalogue import write_decoding

        options = {
            "checkpoint": self.spec.policy_id,
            "unnorm-key": self.spec.unnorm_key,
            "dtype": self.dtype,
            "capture": str(self.capture).lower(),
            "acceleration": acceleration or self.acceleration,
            "max-batch": _MOST_CLIENTS,
            "decoding": write_decoding(decoding, Path(f"{file}.yaml")),
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return ServerHost(self.spec_of(decoding, acceleration), arguments, self.devices, Path(f"{file}.log"))

    def hosts(self, count: int, decoding: DecodingConfig, file: Path, acceleration: str = "") -> list[ServerHost]:
        """Several servers of one decoding, which share what is to be done; the files of others than the first have
        the server's number in their names.
        """
        names = [str(file), *(f"{file}-{number}" for number in range(2, count + 1))]
        return [self.host(decoding, Path(name), acceleration) for name in names]


def _dtype(name: str, devices: Sequence[str]) -> str:
    """The number format that servers on these devices will choose; "" where that is not one. The devices themselves are
    left alone, which a process that only makes a report of episodes may not even have.
    """
    import torch

    from policy.hardware import choose_device, choose_dtype

    try:
        places = [choose_device() if device == "auto" else torch.device(device) for device in devices]
    except RuntimeError:  # no device at all, which the server will say
        return ""
    chosen = {str(choose_dtype(name, place)).removeprefix("torch.") for place in places}
    return chosen.pop() if len(chosen) == 1 else ""
