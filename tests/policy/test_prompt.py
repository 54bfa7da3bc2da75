"""Instructions become the token ids that the original tokenizer gives."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from policy.openvla.prompt import V01_TEMPLATE, Prompter, build_prompt

GOLDEN = Path(__file__).parents[1] / "data" / "golden-inputs"
CASES = json.loads((GOLDEN / "golden.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    content = gzip.decompress((GOLDEN / "checkpoint" / "tokenizer.json.gz").read_bytes())
    (directory / "tokenizer.json").write_bytes(content)
    return directory


@pytest.mark.golden
def test_prompts_and_ids_equal_the_original(checkpoint: Path) -> None:
    prompter = Prompter(checkpoint)
    assert [build_prompt(instruction) for instruction in CASES["instructions"]] == CASES["prompts"]
    assert [prompter.token_ids(instruction) for instruction in CASES["instructions"]] == CASES["input_ids_with_29871"]
    assert prompter.space_id == 29871


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES["tokenizer_cases"], ids=lambda case: repr(case["text"][:20]))
def test_tokenizer_equals_the_original(checkpoint: Path, case: dict[str, object]) -> None:
    # A text that is all lower case passes through a bare template unchanged; others are tokenized as the file says.
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(case["text"]).ids
    assert ids == case["ids"]
    if case["text"] == str(case["text"]).lower():
        with_space = ids if ids[-1] == 29871 else [*ids, 29871]
        assert Prompter(checkpoint, template="{instruction}").token_ids(str(case["text"])) == with_space


@pytest.mark.golden
def test_v01_prompt(checkpoint: Path) -> None:
    text = build_prompt("Close it", V01_TEMPLATE)
    case = next(case for case in CASES["tokenizer_cases"] if case["text"].startswith("A chat"))
    assert text == case["text"]
    assert Prompter(checkpoint, template=V01_TEMPLATE).token_ids("close it") == [*case["ids"], 29871]


def test_space_piece_is_appended_once(checkpoint: Path) -> None:
    prompter = Prompter(checkpoint, template="do {instruction}")
    assert prompter.token_ids("it ") == prompter.token_ids("it")
    assert prompter.token_ids("it").count(29871) == 1


def test_ids_belong_to_the_caller(checkpoint: Path) -> None:
    prompter = Prompter(checkpoint)
    first = prompter.token_ids("close it")
    first.append(5)
    assert prompter.token_ids("close it") == first[:-1]


def test_too_long_instruction_names_both_lengths(checkpoint: Path) -> None:
    length = len(Prompter(checkpoint).token_ids("close it"))
    assert len(Prompter(checkpoint, maximum_tokens=length).token_ids("close it")) == length
    with pytest.raises(ValueError, match=rf"has {length} tokens.*at most {length - 1}.*'close it'"):
        Prompter(checkpoint, maximum_tokens=length - 1).token_ids("close it")


def test_padding_and_truncation_in_the_file_are_ignored(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(max_length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert Prompter(tmp_path).token_ids("close it") == Prompter(checkpoint).token_ids("close it")


@pytest.mark.parametrize("template", ["no place for it", "{instruction} {instruction}", "{task}"])
def test_template_without_one_place_is_refused(checkpoint: Path, template: str) -> None:
    with pytest.raises(ValueError, match="once"):
        Prompter(checkpoint, template=template)


def test_braces_in_an_instruction_are_text() -> None:
    assert build_prompt("stack {2} {instruction}", "do {instruction}!") == "do stack {2} {instruction}!"


def test_directories_without_a_usable_tokenizer_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.json is missing"):
        Prompter(tmp_path)

    (tmp_path / "tokenizer.json").write_text("version https://git-lfs")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer file \(.*\); copy it again"):
        Prompter(tmp_path)

    content = json.loads((checkpoint / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    with pytest.raises(ValueError, match="'<s>' in front"):
        Prompter(tmp_path)

    Tokenizer.from_str(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(ValueError, match="no piece '▁'"):
        Prompter(tmp_path)
