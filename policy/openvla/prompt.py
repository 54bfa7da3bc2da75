"""From an instruction to the token ids that the network reads.

Knows the templates the models were trained with and the tokenizer's file; knows nothing of images or action tokens.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

PROMPT_TEMPLATE = "In: What action should the robot take to {instruction}?\nOut:"
V01_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: What action should the robot take to {instruction}? ASSISTANT:"
)
BEGIN_PIECE = "<s>"
SPACE_PIECE = "▁"
"""The piece of a lone space, between the prompt and the actions in training; id 29871 in the Llama vocabulary."""


def build_prompt(instruction: str, template: str = PROMPT_TEMPLATE) -> str:
    """The instruction in lower case, in its place in `template` (`V01_TEMPLATE` for openvla-v01-7b)."""
    if template.count("{instruction}") != 1:
        raise ValueError(f"a prompt template must hold '{{instruction}}' once, got {template!r}")
    return template.replace("{instruction}", instruction.lower())


class Prompter:
    """Token ids of instructions, by the tokenizer of a checkpoint; each instruction is tokenized once.

    directory: the checkpoint's, with its `tokenizer.json`; nothing is fetched and no code of the checkpoint is run.
    maximum_tokens: the model's `llm_max_length`.

    Raises ValueError where the tokenizer is absent or is not one of an OpenVLA checkpoint.
    """

    def __init__(self, directory: Path | str, template: str = PROMPT_TEMPLATE, maximum_tokens: int = 2048) -> None:
        self.template = template
        self.maximum_tokens = maximum_tokens
        self._tokenizer = _load_tokenizer(Path(directory))
        self.space_id = self._tokenizer.token_to_id(SPACE_PIECE)
        self._known: dict[str, tuple[int, ...]] = {}

    def token_ids(self, instruction: str) -> list[int]:
        """`<s>`, the prompt and, where the prompt does not end with it, the piece "▁" that precedes the action tokens.

        Raises ValueError for an instruction that makes the prompt longer than `maximum_tokens`.
        """
        if instruction not in self._known:
            self._known[instruction] = self._tokenize(instruction)
        return list(self._known[instruction])

    def _tokenize(self, instruction: str) -> tuple[int, ...]:
        ids = self._tokenizer.encode(build_prompt(instruction, self.template)).ids
        if ids[-1] != self.space_id:
            ids.append(self.space_id)
        if len(ids) > self.maximum_tokens:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the model reads at most {self.maximum_tokens}; "
                f"shorten the instruction {instruction[:60]!r}..."
            )
        return tuple(ids)


def _load_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy it from the checkpoint this one was trained from")
    tokenizer = Tokenizer.from_file(str(path))
    # Some tokenizer files carry the padding and truncation of the batch they were last used for.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    missing = [piece for piece in (BEGIN_PIECE, SPACE_PIECE) if tokenizer.token_to_id(piece) is None]
    if missing:
        raise ValueError(
            f"{path} has no piece {' and no piece '.join(map(repr, missing))}; OpenVLA's prompts need both"
        )
    if tokenizer.encode("").ids != [tokenizer.token_to_id(BEGIN_PIECE)]:
        raise ValueError(f"{path} does not put {BEGIN_PIECE!r} in front of a text, as OpenVLA's prompts need")
    return tokenizer
