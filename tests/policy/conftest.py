"""A small random OpenVLA and its checkpoint, and a golden set of the original's outputs."""

from __future__ import annotations

import copy
import gzip
import lzma
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_openvla import INSTRUCTIONS, statistics_json

from policy.openvla.checkpoint import save_checkpoint
from policy.openvla.config import ACTION_BINS, LanguageConfig, OpenVLAConfig, TowerConfig
from policy.openvla.images import encode_frame
from policy.openvla.model import OpenVLA
from policy.openvla.word_tokenizer import build_word_tokenizer
from policy.training.demonstrations import PRIVILEGED_NAMES, Demonstration, DemonstrationMeta

DATA = Path(__file__).resolve().parents[1] / "data"
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "golden" / "openvla-tiny"


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    build_word_tokenizer(INSTRUCTIONS, directory)
    return directory


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAConfig:
    """Every dimension differs from every other, so that a mix-up cannot fit by accident."""
    vocabulary = build_word_tokenizer(INSTRUCTIONS, tmp_path_factory.mktemp("sizes"))
    return OpenVLAConfig(
        dinov2=TowerConfig("dinov2", width=128, blocks=3, mlp=192),
        siglip=TowerConfig("siglip", width=72, blocks=2, mlp=90),
        language=LanguageConfig(
            vocabulary=vocabulary.model_vocab_size,
            width=96,
            mlp=160,
            layers=2,
            heads=4,
            key_value_heads=2,
            head_size=32,
        ),
        pad_token_id=vocabulary.vocab_size,
    )


@pytest.fixture(scope="session")
def small_model(small_config: OpenVLAConfig) -> OpenVLA:
    """Random float32 weights, the same in every run, drawn so that no part is idle and tokens depend on all inputs."""
    torch.manual_seed(0)
    model = OpenVLA.from_config(small_config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name and "patch_embed" not in name:
                parameter.normal_()
            elif parameter.ndim > 1:
                parameter.mul_(3)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def small_checkpoint(small_model: OpenVLA, tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model on disk in bfloat16. Read only."""
    directory = tmp_path_factory.mktemp("checkpoints") / "small"
    save_checkpoint(small_model, directory, tokenizer_directory=tokenizer_directory, statistics=statistics_json())
    return directory


@pytest.fixture(scope="session")
def acting_model(small_model: OpenVLA) -> OpenVLA:
    """The small model, speaking action tokens only, as trained ones do."""
    model = copy.deepcopy(small_model)
    end = model.config.action_vocabulary
    with torch.no_grad():
        model.language_model.lm_head.weight[: end - ACTION_BINS] = 0.0
        model.language_model.lm_head.weight[end:] = 0.0
    return model


@pytest.fixture(scope="session")
def acting_checkpoint(
    acting_model: OpenVLA, tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The acting model on disk in bfloat16. Read only."""
    directory = tmp_path_factory.mktemp("checkpoints") / "acting"
    save_checkpoint(acting_model, directory, tokenizer_directory=tokenizer_directory, statistics=statistics_json())
    return directory


@pytest.fixture(scope="session")
def golden_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden set: what SPECACT_GOLDEN names, a complete one beside the repository, or that of `tests/data`."""
    if named := os.environ.get("SPECACT_GOLDEN"):
        return Path(named)
    if (BESIDE / "golden.json").is_file():
        return BESIDE
    directory = tmp_path_factory.mktemp("golden")
    inputs, network = DATA / "golden-inputs", DATA / "golden-network"
    checkpoint = Path(shutil.copytree(inputs / "checkpoint", directory / "checkpoint"))
    (checkpoint / "tokenizer.json").write_bytes(gzip.decompress((checkpoint / "tokenizer.json.gz").read_bytes()))
    weights = lzma.decompress((network / "model.safetensors.xz").read_bytes())
    (checkpoint / "model.safetensors").write_bytes(weights)
    shutil.copy(inputs / "golden.json", directory)
    for folder, files in (
        ("images", inputs.glob("image_*.png")),
        ("arrays", (inputs / "action_tokenizer.npz", *network.glob("*.npz"))),
    ):
        (directory / folder).mkdir()
        for file in files:
            shutil.copy(file, directory / folder)
    shutil.copy(inputs / "libero_frames.npz", directory / "arrays" / "libero_path.npz")
    return directory


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    """Two short episodes of frames that wander."""
    random = np.random.default_rng(0)
    for seed in (0, 1):
        frames = [random.integers(0, 256, (64, 64, 3), np.uint8)] * 3
        streams = [np.frombuffer(encode_frame(frame), np.uint8) for frame in frames]
        count = len(streams)
        Demonstration(
            DemonstrationMeta("libero_object", 0, INSTRUCTIONS[seed], seed, success=True),
            np.concatenate(streams),
            np.cumsum([0, *map(len, streams)]),
            *(np.zeros((count, width), np.float32) for width in (7, 7, len(PRIVILEGED_NAMES))),
            *(np.zeros((count, width)) for width in (5, 4)),
            np.zeros((1, 3)),
            np.zeros((1, 4)),
        ).save(tmp_path / "demos" / f"libero_object_task00_seed{seed}.npz")
    return tmp_path / "demos"
