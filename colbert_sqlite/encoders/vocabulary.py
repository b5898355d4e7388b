"""The ids that a checkpoint's words have in its vocabulary: markers, mask token, skiplist; and its lengths.

In: a :class:`Checkpoint` and a :class:`Vocabulary`, the latter read from files here or handed over by another library.
Out: the two :class:`Side` of a model. Leaves to others: settings files (checkpoint.py), tokens (tokens.py).
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from colbert_sqlite.encoders.checkpoint import Checkpoint, TextSettings, read_json
from colbert_sqlite.encoders.tokens import Side, first_pieces
from colbert_sqlite.errors import ModelError

# For a network that sets no limit of its own.
DEFAULT_LENGTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A tokenizer, the ids of its special tokens, and the longest sequence that the network takes."""

    tokenizer: Tokenizer  # truncation and padding off
    pad: int | None
    unknown: int | None
    mask: int | None
    end: int | None
    limit: int | None


def side_of(checkpoint: Checkpoint, text: TextSettings, vocabulary: Vocabulary) -> Side:
    """Return how the checkpoint reads *text*, its queries or its passages.

    :raises ModelError: if the vocabulary lacks the model's marker
    """
    tokenizer = vocabulary.tokenizer
    marker = None
    skip = frozenset[int]()
    if checkpoint.layout == "stanford":
        # Stanford looks the marker up, and an unknown one becomes [UNK]; padding is recognized by its id.
        if text.marker:
            marker = tokenizer.token_to_id(text.marker)
            marker = vocabulary.unknown if marker is None else marker
        if text.skiplist:
            skip = first_pieces(tokenizer, text.skiplist)
        if not text.expand_to and vocabulary.pad is not None:
            skip |= {vocabulary.pad}
    else:
        if text.marker:
            marker = tokenizer.token_to_id(text.marker)
            if marker is None:
                raise ModelError(f"the tokenizer in {checkpoint.folder} lacks the model's marker {text.marker!r}")
        ids = [tokenizer.token_to_id(word) for word in text.skiplist]
        # PyLate drops unknown tokens when its skiplist has an unknown word; sentence-transformers does not.
        if checkpoint.layout == "pylate":
            ids = [vocabulary.unknown if token is None else token for token in ids]
        skip = frozenset(token for token in ids if token is not None)
    expand_with = vocabulary.end if vocabulary.mask is None else vocabulary.mask
    if text.expand_token:
        expand_with = tokenizer.token_to_id(text.expand_token)
    if expand_with is None and text.expand_to:
        raise ModelError(f"the tokenizer in {checkpoint.folder} has no token to fill queries up with")
    length = min((n for n in (text.length, vocabulary.limit) if n), default=DEFAULT_LENGTH)
    return Side(
        length=length,
        prompt=text.prompt,
        strip=checkpoint.layout == "pylate",
        marker=marker,
        expand_to=min(text.expand_to, length),
        mask=expand_with or 0,
        attend=text.attend,
        skip=skip,
    )


def plain_sides(tokenizer: Tokenizer, query_length: int, document_length: int) -> tuple[Side, Side]:
    """Return how a model without training for late interaction reads queries and passages.

    It has no markers. Punctuation of passages gives no embeddings.
    """
    skip = frozenset(i for mark in string.punctuation if (i := tokenizer.token_to_id(mark)) is not None)
    return Side(length=query_length), Side(length=document_length, skip=skip)


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Read the vocabulary in a checkpoint's folder.

    :raises ModelError: if there is no tokenizer.json, or a file is damaged
    """
    folder = checkpoint.module_folders[0]
    try:
        settings = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
        lengths = read_json(folder / "sentence_bert_config.json")
        tokenizer = read_tokenizer(folder)
        if lengths.get("do_lower_case"):
            steps = [normalizers.Lowercase(), *filter(None, [tokenizer.normalizer])]
            tokenizer.normalizer = normalizers.Sequence(steps)
        limits = (
            lengths.get("max_seq_length") or settings.get("model_max_length"),
            read_json(folder / "config.json").get("max_position_embeddings"),
        )
        return Vocabulary(
            tokenizer=tokenizer,
            pad=_special(tokenizer, settings, "pad_token"),
            unknown=_special(tokenizer, settings, "unk_token"),
            mask=_special(tokenizer, settings, "mask_token"),
            end=_special(tokenizer, settings, "eos_token"),
            limit=min((n for n in limits if n and n > 0), default=None),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the settings files of the model in {folder} are damaged: {error}") from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer.json of *folder*; turn truncation and padding off.

    :raises ModelError: if it is missing or damaged
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special(tokenizer: Tokenizer, settings: dict[str, Any], name: str) -> int | None:
    token = settings.get(name)
    # Older files describe the token, newer ones name it.
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else tokenizer.token_to_id(content)
