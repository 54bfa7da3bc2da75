"""The word tokenizer's files serve OpenVLA's prompts and leave room for the action ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from policy.openvla.action_tokens import ActionTokenizer
from policy.openvla.prompt import Prompter, build_prompt
from policy.openvla.word_tokenizer import build_word_tokenizer

INSTRUCTIONS = ["Open the top drawer", "put the bowl on the stove", "pick up the black bowl"]


def test_prompt_of_known_words(tmp_path: Path) -> None:
    build_word_tokenizer(INSTRUCTIONS, tmp_path)
    ids = Prompter(tmp_path).token_ids("open the top drawer")
    pieces = AutoTokenizer.from_pretrained(tmp_path).convert_ids_to_tokens(ids)
    assert "|".join(pieces) == "<s>|In|:|What|action|should|the|robot|take|to|open|the|top|drawer|?|\n|Out|:|▁"
    assert ids[0] == 1
    assert ids[-1] == 3


def test_unknown_words_and_marks_keep_their_place(tmp_path: Path) -> None:
    build_word_tokenizer(INSTRUCTIONS, tmp_path)
    prompter = Prompter(tmp_path)
    known, unknown = prompter.token_ids("open the top drawer"), prompter.token_ids("open  the\tpurple drawer")
    assert [ours for ours, theirs in zip(unknown, known, strict=True) if ours != theirs] == [0]
    assert prompter.token_ids("open the top-drawer").count(0) == 1


def test_transformers_reads_the_same_ids(tmp_path: Path) -> None:
    vocabulary = build_word_tokenizer(INSTRUCTIONS, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(build_prompt(INSTRUCTIONS[1])).input_ids == Prompter(tmp_path).token_ids(INSTRUCTIONS[1])[:-1]
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert special == (0, 1, 2, vocabulary.vocab_size)


def test_words_actions_and_padding_share_the_ids_without_overlap(tmp_path: Path) -> None:
    vocabulary = build_word_tokenizer(INSTRUCTIONS, tmp_path)
    longest = max(max(Prompter(tmp_path).token_ids(text)) for text in INSTRUCTIONS)
    assert longest < vocabulary.pieces <= ActionTokenizer(vocabulary.vocab_size).first_id
    assert vocabulary.vocab_size % 64 == 0
    assert vocabulary.vocab_size - vocabulary.pieces - 256 < 64
    assert vocabulary.model_vocab_size == vocabulary.vocab_size + 64


def test_reserved_ids_keep_the_action_ids_in_place(tmp_path: Path) -> None:
    spare = build_word_tokenizer(INSTRUCTIONS, tmp_path, reserved=100)
    grown = build_word_tokenizer([*INSTRUCTIONS, *(f"word{number}" for number in range(100))], tmp_path)
    assert grown.pieces == spare.pieces + 100
    assert grown.vocab_size == spare.vocab_size
    with pytest.raises(ValueError, match="reserved must not be negative, got -1"):
        build_word_tokenizer(INSTRUCTIONS, tmp_path, reserved=-1)


def test_files_depend_on_the_words_alone(tmp_path: Path) -> None:
    build_word_tokenizer(INSTRUCTIONS, tmp_path / "one")
    build_word_tokenizer([*reversed(INSTRUCTIONS), INSTRUCTIONS[0].upper()], tmp_path / "two")
    names = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_no_instructions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one instruction"):
        build_word_tokenizer([], tmp_path)
