"""From an instruction to the token ids that the network reads.

Knows the templates the models were trained with and the tokenizer's file; knows nothing of images or action tokens.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

PROMPT_TEMPLATE = "In: What action should the robot take to {instruction}?\nOut:"
V01_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: What action should the robot take to {instruction}? ASSISTANT:"
)
BEGIN_PIECE = "<s>"
SPACE_PIECE = "▁"  # a lone space, which stood between prompt and actions in training; 29871 in the Llama vocabulary


def build_prompt(instruction: str, template: str = PROMPT_TEMPLATE) -> str:
    """The instruction in lower case, in its place in `template` (`V01_TEMPLATE` for openvla-v01-7b)."""
    if template.count("{instruction}") != 1:
        raise ValueError(f"a prompt template must hold '{{instruction}}' once, got {template!r}")
    return template.replace("{instruction}", instruction.lower())


class Prompter:
    """Token ids of instructions, by the tokenizer of a checkpoint; an instruction that returns is not tokenized again.

    directory: the checkpoint's, with its `tokenizer.json`; nothing is fetched and no code of the checkpoint is run.
    maximum_tokens: the model's `llm_max_length`.

    Raises ValueError where the tokenizer is absent or is not one of an OpenVLA checkpoint.
    """

    def __init__(self, directory: Path | str, template: str = PROMPT_TEMPLATE, maximum_tokens: int = 2048) -> None:
        build_prompt("", template)  # refuses a wrong template now rather than at the first frame
        self.template = template
        self.maximum_tokens = maximum_tokens
        self._tokenizer, self.space_id = _load_tokenizer(Path(directory))
        self._remembered = lru_cache(maxsize=1024)(self._tokenize)

    def token_ids(self, instruction: str) -> list[int]:
        """`<s>`, the prompt and, where the prompt does not end with it, the piece "▁" that precedes the action tokens.

        Raises ValueError for an instruction that makes the prompt longer than `maximum_tokens`.
        """
        return list(self._remembered(instruction))

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


def _load_tokenizer(directory: Path) -> tuple[Tokenizer, int]:
    """The tokenizer in `directory` and its id of the piece "▁".

    The file is read directly, because it says all there is to know. `AutoTokenizer` would build a tokenizer by the
    class that `tokenizer_config.json` names and, finding the model type "openvla", warn or ask for remote code.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy it from the checkpoint this one was trained from")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"{path} is no tokenizer file ({error}); copy it again") from error
    # Some tokenizer files carry the padding and truncation of the batch they were last used for.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    space_id = tokenizer.token_to_id(SPACE_PIECE)
    if space_id is None:
        raise ValueError(f"{path} has no piece {SPACE_PIECE!r}, which precedes the actions in every OpenVLA prompt")
    added = tokenizer.encode("").tokens
    if added != [BEGIN_PIECE]:
        raise ValueError(f"{path} puts {added} around a text; OpenVLA's prompts need {BEGIN_PIECE!r} in front, no more")
    return tokenizer, space_id
