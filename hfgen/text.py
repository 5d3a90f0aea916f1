"""The captions of a recipe's data as what its model reads: token ids, or cached embeddings."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfgen.build import build_component, component_settings
from hfgen.caption_tokenizer import train_tokenizer
from hfgen.data import IndexedSource, Source
from hfgen.data.cache import cache_root, finished
from hfgen.data.text import TextSource, distinct_captions
from hfgen.errors import HfgenError
from hfgen.pipelines._text import (  # pyright: ignore[reportMissingImports]
    check_belongs,
    embed_tokens,
    tokenize,
    uses_mask,
)
from hfgen.recipe import Recipe

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Captions that are encoded together."""
TEXT_VERSION = 1
"""Part of every key: raise it when what a cache holds changes."""
EMBEDDINGS = "embeddings.npy"


def with_text(recipe: Recipe, source: Source, device: torch.device | str = "cpu") -> Source:
    """``source`` with the texts that ``recipe`` is conditioned on; itself where there are none.

    With a frozen ``text_encoder`` a batch holds ``text`` [B, T, D] and, unless it is CLIP's,
    ``text_mask`` [B, T]; with a ``tokenizer`` alone, ``input_ids`` [B, T]. A tokenizer with a
    ``type`` is trained on the captions; every different caption is embedded once and kept on the
    disk.

    Raises:
        HfgenError: images without captions; a tokenizer that does not belong to the encoder.
    """
    settings = component_settings(recipe)
    if "tokenizer" not in settings:
        return source
    texts, rows = distinct_captions(source)
    assert isinstance(source, IndexedSource)  # or it has no distinct captions
    tokenizer = make_tokenizer(settings["tokenizer"], texts)
    ids, mask = _tokens(tokenizer, [*texts, ""])
    if "text_encoder" not in settings:
        return TextSource(source, rows, {"input_ids": ids.numpy()}, {"tokenizer": tokenizer})
    encoder = build_component("text_encoder", settings["text_encoder"])
    try:
        check_belongs(tokenizer, encoder.config.vocab_size, "text encoder")
    except ValueError as error:
        raise HfgenError(f"model.{error}") from None
    folder = cached_embeddings(encoder.to(device), ids, mask, recipe.data.cache_dir)
    tables = {"text": np.load(folder / EMBEDDINGS, mmap_mode="r")}
    if uses_mask(encoder):
        tables["text_mask"] = mask.numpy()
    return TextSource(source, rows, tables, {"tokenizer": tokenizer, "text_encoder": encoder})


def make_tokenizer(setting: Any, texts: list[str]) -> Any:
    """The tokenizer of ``model.tokenizer``: loaded, or trained on ``texts``."""
    given = {"pretrained": setting} if isinstance(setting, str) else setting
    options: dict[str, Any] = dict(given)
    if "type" in options:
        try:
            return train_tokenizer(texts, **options)
        except TypeError as error:
            raise HfgenError(
                f"model.tokenizer: {error}; valid: type, vocab_size, max_length"
            ) from None
    return build_component("tokenizer", options)


def _tokens(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = tokenizer.model_max_length
    if longest > 10_000:
        raise HfgenError(
            "model.tokenizer.max_length: the tokenizer names no longest text; set how many tokens "
            "a text is padded to"
        )
    cut = sum(len(tokenizer(text).input_ids) > longest for text in texts)
    if cut:
        logger.warning("%d captions have more than %d tokens and are cut", cut, longest)
    return tokenize(tokenizer, texts, "caption", truncate=True)


def cached_embeddings(
    encoder: Any, ids: torch.Tensor, mask: torch.Tensor, cache_dir: str | None = None
) -> Path:
    """Folder of the embeddings [U, T, D] of all rows of ``ids``, made where it is not there yet."""
    digest = hashlib.blake2b(encoder_hash(encoder).encode(), digest_size=12)
    digest.update(json.dumps([TEXT_VERSION, list(ids.shape)]).encode())
    for part in (ids, mask):
        digest.update(part.numpy().tobytes())

    def write(folder: Path) -> None:
        shape = (*ids.shape, encoder.config.hidden_size)
        table = np.lib.format.open_memmap(folder / EMBEDDINGS, "w+", np.float32, shape)
        for start in range(0, len(ids), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            table[part] = embed_tokens(encoder, ids[part], mask[part]).cpu().numpy()
        table.flush()

    encoder.eval().requires_grad_(False)
    return finished(cache_root(cache_dir) / "texts", digest.hexdigest(), write)


def encoder_hash(encoder: Any) -> str:
    """Sixteen hexadecimal digits of a text encoder's class and weights."""
    digest = hashlib.blake2b(type(encoder).__name__.encode(), digest_size=8)
    state: Mapping[str, torch.Tensor] = encoder.state_dict()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
