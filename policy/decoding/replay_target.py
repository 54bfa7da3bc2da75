"""What replays of logged frames have in common: the options that name frames and network, and all they name.

Knows checkpoints and demonstrations. Does not know what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from policy.decoding.capture import Record
from policy.decoding.replay import LoggedEpisode
from policy.drafting.registry import DrafterMaterial
from policy.hardware import choose_device, choose_dtype
from policy.openvla.action_tokens import ActionStatistics, load_statistics, resolve_unnorm_key
from policy.openvla.checkpoint import load_checkpoint, locate_checkpoint
from policy.openvla.images import ImagePath, PreprocessorSettings, resolve_image_path
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.training.demonstrations import list_demonstrations
from policy.training.episode_reader import SizedEpisode, check_demonstrations_fit, is_data_set


def add_replay_options(parser: ArgumentParser) -> None:
    """Where the frames are, which network replays them, and where the result goes."""
    parser.add_argument("demonstrations", type=Path, help="folder of .npz files with frames, see collect_demos.py")
    parser.add_argument("--steps", type=int | None, default=None, help="first frames of each episode; all if left out")
    parser.add_argument("--checkpoint", type=str, default="policy/pretrained/libero", help="directory or hub id")
    parser.add_argument("--unnorm-key", type=str | None, default=None, help="dataset statistics")
    paths = "auto, libero or processor; demonstrations are stored for libero"
    parser.add_argument("--image-path", type=str, default="auto", help=paths)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--output", type=Path | None, default=None, help="JSON file for the result")


def replay_paths(chosen: Namespace, least: int = 1) -> list[Path]:
    """The demonstrations that the options name. Raises ValueError where there are fewer than `least`."""
    paths = list_demonstrations(chosen.demonstrations)
    if len(paths) < least:
        raise ValueError(
            f"{chosen.demonstrations} has {len(paths)} demonstrations, at least {least} are needed; record more with "
            "scripts/collect_demos.py"
        )
    return paths


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """A network and what turns logged frames into its prompts. steps: most frames of an episode, None for all.

    image_path: how the network sees what a camera gives.
    """

    directory: Path
    model: OpenVLA
    statistics: ActionStatistics
    prompter: Prompter
    settings: PreprocessorSettings
    steps: int | None
    image_path: ImagePath

    @classmethod
    def load(cls, chosen: Namespace) -> ReplayTarget:
        """As the options of `add_replay_options` say.

        Raises what loading a checkpoint raises, and ValueError where the network does not see the world as the
        demonstrations are stored.
        """
        directory = locate_checkpoint(chosen.checkpoint)
        datasets = load_statistics(directory)
        dataset = resolve_unnorm_key(datasets, chosen.unnorm_key)
        image_path = resolve_image_path(chosen.image_path, dataset)
        if not is_data_set(chosen.demonstrations):
            check_demonstrations_fit(image_path)
        device = choose_device(chosen.device)
        model = load_checkpoint(directory, device, choose_dtype(chosen.dtype, device))
        prompter = Prompter(directory, maximum_tokens=model.config.maximum_tokens)
        settings = PreprocessorSettings.load(directory)
        return cls(directory, model, datasets[dataset], prompter, settings, chosen.steps, image_path)

    @property
    def dtype(self) -> str:
        """The name of its dtype, e.g. "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    def episode(self, logged: Path | SizedEpisode) -> LoggedEpisode:
        """The frames of a demonstration, or of an episode that was read already, as the network sees them."""
        rest = (self.model, self.prompter, self.settings, self.steps)
        if isinstance(logged, SizedEpisode):
            return LoggedEpisode.of(logged, *rest)
        return LoggedEpisode.load(logged, *rest)

    def material(
        self, weights: Mapping[str, Path] | None = None, recorder: Callable[[], Record] | None = None
    ) -> DrafterMaterial:
        """What decoders are built from. weights: folders of trained drafters. recorder: of their passes."""
        return DrafterMaterial(self.model, self.statistics, self.directory, weights or {}, recorder)
