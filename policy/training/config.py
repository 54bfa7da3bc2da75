"""What a training run is made of; one YAML in `configs/policy/` fills it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from policy.openvla.config import LanguageConfig, OpenVLAConfig, TowerConfig
from policy.openvla.prompt import Prompter
from policy.openvla.word_tokenizer import build_word_tokenizer
from policy.training.augmentation import AugmentationConfig
from policy.training.objective import ObjectiveConfig

HEAD_SIZE = 128  # of the language model, as in Llama


@dataclass(frozen=True)  # no slots: jsonargparse reads a nested default's __dict__
class NetworkSize:
    """Widths of the small policy: whole fractions of OpenVLA-7B's (1024, 1152, 4096) with its head sizes 64, 72 and
    128, so that repeating features widens it exactly to the published shape.

    dinov2_width, siglip_width, text_width: features of a token.
    dinov2_blocks, siglip_blocks, text_layers: how many are computed; the layout's one further block per tower is stored
        unused.
    dinov2_mlp, siglip_mlp, text_mlp: hidden features of the MLPs.
    """

    dinov2_width: int = 256
    dinov2_blocks: int = 6
    dinov2_mlp: int = 704
    siglip_width: int = 144
    siglip_blocks: int = 6
    siglip_mlp: int = 384
    text_width: int = 256
    text_layers: int = 6
    text_mlp: int = 688

    def __post_init__(self) -> None:
        for name, width, size, published in (
            ("dinov2_width", self.dinov2_width, 64, 1024),
            ("siglip_width", self.siglip_width, 72, 1152),
            ("text_width", self.text_width, 128, 4096),
        ):
            if width % size or published % width:
                raise ValueError(f"{name} must be a multiple of {size} that divides {published}, got {width}")
        if 11008 % self.text_mlp:
            raise ValueError(f"text_mlp must divide 11008, got {self.text_mlp}")

    def openvla_config(self, vocabulary: int) -> OpenVLAConfig:
        """The network's configuration. vocabulary: rows of the embedding: words, 256 action ids, padding rows."""
        heads = self.text_width // HEAD_SIZE
        language = LanguageConfig(
            vocabulary=vocabulary,
            width=self.text_width,
            mlp=self.text_mlp,
            layers=self.text_layers,
            heads=heads,
            key_value_heads=heads,
            head_size=HEAD_SIZE,
        )
        padding = OpenVLAConfig().pad_to_multiple_of
        return OpenVLAConfig(
            dinov2=TowerConfig("dinov2", self.dinov2_width, self.dinov2_blocks + 1, self.dinov2_mlp),
            siglip=TowerConfig("siglip", self.siglip_width, self.siglip_blocks + 1, self.siglip_mlp),
            language=language,
            pad_to_multiple_of=padding,
            pad_token_id=vocabulary - padding,
        )


class UnknownInstructionError(ValueError):
    """An episode cannot be trained on, since its instruction is not among those of the run."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """demonstrations: folders of recorded episodes, watched for new ones while training runs.
    output: the run's folder: `policy/` (the checkpoint), `metrics.jsonl`, `metrics.png`, `training_state.pt`.
    instructions_file: one instruction a line; the tokenizer's words come from here.
    minutes, max_steps: the schedule ends with whichever comes first.
    samples_per_frame: training waits for new frames when it has drawn each of those there so many times on average,
        so that it neither learns the first ones by heart nor takes the GPU from simulators and driver; None: never.
        Only for folders that still grow: in another one it would wait until its minutes are over.
    average_decay: what drives is the mean of the weights over the last 1 / (1 - average_decay) steps, or over the last
        ninth of those made so far, whichever is shorter.
    start_episodes, wait_seconds: training starts as soon as so many episodes are there.
    statistics_key: dataset name under which the action statistics are stored (`unnorm_key`); begins with "libero", by
        which a server tells that frames are to be prepared as demonstrations are.
    action_range: the 256 bins of pose component i cover ±action_range[i], so that standing still is the middle of a
        bin; None takes the first episodes' 1st and 99th percentiles, too narrow where other tasks follow later.
    initialize_from: checkpoint whose weights and action statistics to start from. resume: go on with a run cut short.
    batch_size: frames a step, in each process. learning_rate, final_rate, warmup_steps: it rises to the first over so
        many steps and falls to this share of it.
    weight_decay: of AdamW, on matrices. gradient_clip: largest norm of a step's gradient.
    capacity, validation_capacity: frames for which memory is set aside, 150,528 bytes each.
    held_out_every: one episode in so many is for validation. refresh_seconds, log_seconds, save_seconds: how often it
        looks for new episodes, writes a line of metrics, and saves state and policy.
    decoders: processes that read episodes. seed: of weights and batches. device: auto, cpu, cuda or cuda:N.
    compile: compile the network's blocks, which takes a minute or two. network: the sizes of a fresh one.
    augmentation: how frames vary. objective: what is learnt.
    """

    demonstrations: list[Path]
    output: Path
    instructions_file: Path = Path("configs/policy/instructions.txt")
    statistics_key: str = "libero"
    action_range: list[float] | None = None
    minutes: float = 10.0
    max_steps: int = 1_000_000
    samples_per_frame: float | None = None
    batch_size: int = 512
    learning_rate: float = 1e-3
    final_rate: float = 0.01
    warmup_steps: int = 300
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    average_decay: float = 0.999
    capacity: int = 300_000
    validation_capacity: int = 8_000
    held_out_every: int = 40
    start_episodes: int = 1
    wait_seconds: float = 60.0
    refresh_seconds: float = 10.0
    log_seconds: float = 15.0
    save_seconds: float = 60.0
    decoders: int = 2
    seed: int = 0
    device: str = "auto"
    compile: bool = True
    resume: bool = True
    initialize_from: Path | None = None
    network: NetworkSize = field(default_factory=NetworkSize)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        for name in ("minutes", "max_steps", "batch_size", "learning_rate", "warmup_steps", "capacity", "decoders"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.samples_per_frame is not None and self.samples_per_frame <= 0:
            raise ValueError(f"samples_per_frame must be positive or null, got {self.samples_per_frame}")
        if not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay must lie between 0 and 1, got {self.average_decay}")
        if not self.statistics_key.startswith("libero"):
            raise ValueError(
                f"statistics_key must begin with 'libero', got {self.statistics_key!r}: by this name a server decides "
                "how to prepare camera frames, and under others they are not turned as those of demonstrations are; "
                f"call it 'libero_{self.statistics_key}'"
            )
        reach = self.action_range
        if reach is not None and (len(reach) != 6 or min(reach) <= 0):
            raise ValueError(f"action_range must be six positive numbers (x y z roll pitch yaw), got {reach}")
        if not self.instructions_file.is_file():
            raise ValueError(f"instructions_file {self.instructions_file} does not exist; give one instruction a line")

    def instructions(self) -> list[str]:
        return [line.strip() for line in self.instructions_file.read_text().splitlines() if line.strip()]

    def require_instruction(self, instruction: str, path: Path) -> None:
        """Raises UnknownInstructionError where the episode of this path has an instruction that is not given."""
        if instruction not in self.instructions():
            raise UnknownInstructionError(
                f"{path} has the instruction {instruction!r}, which is not a line of {self.instructions_file}; add it "
                "there and train with a new output, as words may change their ids, or take such episodes away"
            )

    def build_tokenizer(self) -> tuple[Prompter, int]:
        """Writes the word tokenizer of these instructions; returns its prompter and the rows of the vocabulary."""
        vocabulary = build_word_tokenizer(self.instructions(), self.tokenizer_directory)
        return Prompter(self.tokenizer_directory), vocabulary.model_vocab_size

    @property
    def tokenizer_directory(self) -> Path:
        return self.output / "tokenizer"
