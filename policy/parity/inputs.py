"""Comparisons that need no network: images, prompts, action tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from policy.openvla.action_tokens import ActionTokenizer
from policy.openvla.images import (
    PreprocessorSettings,
    center_crop,
    decode_frame,
    libero_frame,
    processor_pixel_values,
)
from policy.openvla.prompt import Prompter, build_prompt
from policy.openvla.resampling import lanczos_taps
from policy.parity.golden import GoldenSet, Report

LIBERO_ARRAYS = "arrays/libero_path.npz"


def check_inputs(report: Report, golden: GoldenSet, checkpoint: Path, action_vocabulary: int) -> None:
    """Everything between a camera frame, an instruction or an action and the network's numbers."""
    check_processor(report, golden, PreprocessorSettings.load(checkpoint))
    check_libero_frames(report, golden)
    check_lanczos(report, golden)
    check_prompts(report, golden, checkpoint)
    check_action_tokenizer(report, golden, ActionTokenizer(action_vocabulary))


def check_processor(report: Report, golden: GoldenSet, settings: PreprocessorSettings) -> None:
    for number, image in golden.images().items():
        if (expected := golden.array("arrays/pixel_values.npz", f"image_{number}")) is not None:
            report.close("pixel values", processor_pixel_values(image, settings), expected, 0.0, f"image {number}")


def check_libero_frames(report: Report, golden: GoldenSet) -> None:
    """The stages of the LIBERO image path; also from the recorded JPEG stream, so that an encoder's error is told
    apart.
    """
    for number, image in golden.images().items():
        frame = libero_frame(image)
        if (expected := golden.array(LIBERO_ARRAYS, f"full_image_{number}")) is not None:
            report.almost_equal_pixels("LIBERO frame", frame, expected, f"image {number}")
            if (jpeg := golden.array(LIBERO_ARRAYS, f"jpeg_bytes_{number}")) is not None:
                decoded = decode_frame(jpeg.tobytes())
                report.almost_equal_pixels("LIBERO frame from recorded JPEG", decoded, expected, f"image {number}")
        if (expected := golden.array(LIBERO_ARRAYS, f"cropped_{number}")) is not None:
            report.almost_equal_pixels("LIBERO crop", center_crop(frame), expected, f"image {number}")


def check_lanczos(report: Report, golden: GoldenSet) -> None:
    """Resampling weights from 256 to 224, and what they make of the first recorded frame."""
    sources, weights = lanczos_taps(256, 224)
    if (expected := golden.array(LIBERO_ARRAYS, "lanczos_starts_256")) is not None:
        report.equal("Lanczos first sources", sources[:, 0], expected)
    if (expected := golden.array(LIBERO_ARRAYS, "lanczos_weights_256")) is not None:
        taps = max(weights.shape[1], expected.shape[1])  # both are padded with zeros, perhaps not equally far
        found, expected = (np.pad(w, ((0, 0), (0, taps - w.shape[1]))) for w in (weights, expected))
        report.close("Lanczos weights", found, expected, 1e-6)
    decoded = golden.array(LIBERO_ARRAYS, "decoded_0")
    expected = golden.array(LIBERO_ARRAYS, "lanczos_float_rows_0")
    if decoded is not None and expected is not None and decoded.shape[:2] == (256, 256):
        matrix = np.zeros((224, 256))
        np.add.at(matrix, (np.arange(224)[:, None], sources), weights)
        resampled = np.einsum("ia,abc,jb->ijc", matrix[: len(expected)], decoded.astype(float), matrix, optimize=True)
        report.close("Lanczos before rounding", resampled, expected, 1e-3)


def check_prompts(report: Report, golden: GoldenSet, checkpoint: Path) -> None:
    prompter = Prompter(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    description = golden.description
    for number, instruction in enumerate(golden.instructions):
        prompt = build_prompt(instruction)
        if "prompts" in description:
            report.equal("prompts", prompt, description["prompts"][number], f"instruction {number}")
        if "input_ids" in description:
            ids = tokenizer.encode(prompt).ids
            report.equal("prompt ids of the tokenizer", ids, description["input_ids"][number], f"instruction {number}")
        if "input_ids_with_29871" in description:
            expected = description["input_ids_with_29871"][number]
            report.equal("prompt ids", prompter.token_ids(instruction), expected, f"instruction {number}")
    for case in description.get("tokenizer_cases", ()):
        report.equal("tokenizer cases", tokenizer.encode(case["text"]).ids, case["ids"], repr(case["text"]))


def check_action_tokenizer(report: Report, golden: GoldenSet, tokenizer: ActionTokenizer) -> None:
    file = "arrays/action_tokenizer.npz"
    for name, found in (("bins", tokenizer.bins), ("bin_centers", tokenizer.bin_centers)):
        if (expected := golden.array(file, name)) is not None:
            report.close(f"action {name}".replace("_", " "), found, expected, 1e-9)
    values, token_ids = golden.array(file, "values"), golden.array(file, "token_ids")
    if values is not None and token_ids is not None:
        report.equal("action values to ids", tokenizer.encode(values), token_ids)
    for ids_name, decoded_name in (("token_ids", "decoded"), ("probe_ids", "probe_decoded")):
        ids, decoded = golden.array(file, ids_name), golden.array(file, decoded_name)
        if ids is not None and decoded is not None:
            report.close("action ids to values", tokenizer.decode(ids), decoded, 1e-9, decoded_name)
    if (expected := golden.array(file, "vocab_size")) is not None:
        report.equal("action vocabulary", tokenizer.vocab_size, expected)
    if (expected := golden.array(file, "action_token_begin_idx")) is not None:
        # The original names the id just below its action ids.
        report.equal("id below the action ids", tokenizer.first_id - 1, expected)
