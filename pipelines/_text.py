"""Prompts to token ids and embeddings, the same way in training and in every pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TEXT_WIDTHS = ("caption_channels", "joint_attention_dim", "cross_attention_dim")
"""What diffusers' networks call the width of a text's embeddings; the first that one has."""


def text_width(network: Any) -> int | None:
    """Width of the text embeddings that a network reads; None where it reads none."""
    found = (network.config.get(name) for name in TEXT_WIDTHS)
    return next((width for width in found if width is not None), None)


def check_prompts(prompt: Any, name: str = "prompt", empty: bool = False) -> list[str]:
    """A text or a list of texts, as a list.

    Args:
        name: of the argument.
        empty: whether an empty text is allowed.
    Raises:
        ValueError: no text at all, or not a text.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not prompts:
        raise ValueError(f"{name}={prompt!r}: must be a text or a list of texts")
    for text in prompts:
        if not isinstance(text, str):
            raise ValueError(f"{name}: {text!r} is a {type(text).__name__}, not a text")
        if not empty and not text.strip():
            raise ValueError(f"{name}: a prompt is empty; say what to draw")
    return list(prompts)


def repeat_prompts(prompt: Any, rows: int, each: int) -> list[str]:
    """The text of each image: a single one ``rows`` times, each one of a list ``each`` times."""
    if rows < 1 or each < 1:
        raise ValueError(f"batch_size={rows}, num_images_per_prompt={each}: must be at least 1")
    texts = check_prompts(prompt)
    count = rows * each if isinstance(prompt, str) else each
    return [text for text in texts for _ in range(count)]


def tokenize(
    tokenizer: Any, texts: list[str], name: str = "prompt", truncate: bool = False
) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 for a token, 0 for padding), int64 [B, model_max_length].

    Args:
        truncate: cut texts that are too long rather than refuse them.
    Raises:
        ValueError: a text that is longer than the model takes.
    """
    longest = tokenizer.model_max_length
    for text in texts:
        count = len(tokenizer(text).input_ids)
        if count > longest and not truncate:
            raise ValueError(
                f"{name}: {text[:40]!r}... has {count} tokens, the model takes {longest}; "
                "say it shorter"
            )
    found = tokenizer(
        texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
    )
    return found.input_ids, found.attention_mask


def uses_mask(text_encoder: Any) -> bool:
    """Whether padding is masked: not for CLIP, as in Stable Diffusion."""
    return "clip" not in text_encoder.config.model_type


def embed_tokens(text_encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states [B, T, D], float32, of the encoder's last layer."""
    device = text_encoder.device
    options = {"attention_mask": mask.to(device)} if uses_mask(text_encoder) else {}
    with torch.no_grad():
        return text_encoder(ids.to(device), **options).last_hidden_state.float()


def check_belongs(tokenizer: Any, size: int, owner: str) -> None:
    """ValueError unless the ids of ``tokenizer`` fit ``size`` embeddings of ``owner``."""
    if len(tokenizer) > size:
        raise ValueError(
            f"tokenizer: its {len(tokenizer)} tokens do not belong to the {owner}, which knows "
            f"{size}"
        )
