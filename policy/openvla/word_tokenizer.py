"""A tokenizer of whole words, for models that only ever read robot instructions in OpenVLA's prompt.

It is saved in the files of a published checkpoint and used like any other tokenizer (`policy.openvla.prompt`). The ids:

    0 <unk>   1 <s>   2 </s>   3 "▁"   4 ... the words, in alphabetical order
    vocab_size - 256 ... vocab_size - 1     the action ids, as `ActionTokenizer(vocab_size)` counts them
    vocab_size ... model_vocab_size - 1     64 padding rows, the first of them <PAD>

Knows nothing of networks; `policy.openvla.action_tokens` gives the action ids their meaning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing

from policy.openvla.config import ACTION_BINS
from policy.openvla.prompt import BEGIN_PIECE, SPACE_PIECE, build_prompt

UNKNOWN_PIECE, END_PIECE, PAD_PIECE = "<unk>", "</s>", "<PAD>"
FIRST_PIECES = (UNKNOWN_PIECE, BEGIN_PIECE, END_PIECE, SPACE_PIECE)
PADDING_ROWS = 64  # pad_to_multiple_of of the published configuration; both counts below are multiples of it


@dataclass(frozen=True, slots=True)
class WordVocabulary:
    """How many ids a word tokenizer leaves a model with.

    pieces: special pieces and words. vocab_size: these and the 256 action ids, rounded up to a multiple of 64; it is
        the argument of `ActionTokenizer` and the id of `<PAD>`.
    """

    pieces: int
    vocab_size: int

    @property
    def model_vocab_size(self) -> int:
        """`text_config.vocab_size` of the model: rows of its embedding and of its head."""
        return self.vocab_size + PADDING_ROWS


def build_word_tokenizer(instructions: Iterable[str], directory: Path | str, reserved: int = 0) -> WordVocabulary:
    """Write a tokenizer that knows every word of `instructions` in the standard prompt to `directory`.

    reserved: ids to leave free behind the words, so that words can be added later without moving the action ids.

    Every punctuation mark and the line feed is a piece of its own; other white space only separates. Words not seen
    here become `<unk>`. The same instructions give the same files, in any order. Raises ValueError without any.
    """
    if reserved < 0:
        raise ValueError(f"reserved must not be negative, got {reserved}")
    words: set[str] = set()
    splitter = _splitter()
    for instruction in instructions:
        words.update(word for word, _ in splitter.pre_tokenize_str(build_prompt(instruction)))
    if not words:
        raise ValueError("a word tokenizer needs at least one instruction to take its words from")

    pieces = [*FIRST_PIECES, *sorted(words.difference(FIRST_PIECES))]
    used = len(pieces) + reserved + ACTION_BINS
    vocabulary = WordVocabulary(len(pieces), -(-used // PADDING_ROWS) * PADDING_ROWS)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _tokenizer(pieces, splitter, vocabulary.vocab_size).save(str(directory / "tokenizer.json"))
    _write_json(directory / "special_tokens_map.json", _special_pieces())
    _write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, "padding_side": "right"}
        | {"clean_up_tokenization_spaces": False}
        | _special_pieces(),
    )
    return vocabulary


def _splitter() -> PreTokenizer:
    spaces = Split(Regex(r"[^\S\n]+"), behavior="removed")
    marks = Split(Regex(rf"\n|[^\w\s{SPACE_PIECE}]"), behavior="isolated")
    return Sequence([spaces, marks])


def _tokenizer(pieces: list[str], splitter: PreTokenizer, pad_id: int) -> Tokenizer:
    ids = {piece: index for index, piece in enumerate(pieces)} | {PAD_PIECE: pad_id}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN_PIECE))
    tokenizer.pre_tokenizer = splitter
    begin = (BEGIN_PIECE, ids[BEGIN_PIECE])
    tokenizer.post_processor = TemplateProcessing(single=f"{BEGIN_PIECE} $A", special_tokens=[begin])
    tokenizer.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in _special_pieces().values()])
    return tokenizer


def _special_pieces() -> dict[str, str]:
    return {
        "unk_token": UNKNOWN_PIECE,
        "bos_token": BEGIN_PIECE,
        "eos_token": END_PIECE,
        "pad_token": PAD_PIECE,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
