"""Texts that go with images: cleaned, put into a template, and the words they are made of."""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections.abc import Iterable

from hfgen.errors import HfgenError

FIELDS = ("caption", "label")
"""What a template may name."""
_MARKUP = re.compile(r"<[^<>]*>")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def clean(text: str) -> str:
    """Without markup, control characters and runs of white space; entities and accents composed.

    Letters keep their case: what that means is the tokenizer's business.
    """
    plain = unicodedata.normalize("NFC", _MARKUP.sub(" ", html.unescape(text)))
    kept = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in plain)
    return " ".join("".join(kept).split())


def check_template(template: str) -> None:
    """HfgenError unless ``template`` names ``{caption}`` or ``{label}``, and nothing else."""
    try:
        named = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise HfgenError(f"data.caption_template: {template!r} is no template: {error}") from None
    if not named or set(named) - set(FIELDS):
        raise HfgenError(
            f"data.caption_template: {template!r} must name {{caption}} or {{label}}, nothing else"
        )


def caption_of(text: str | None, label: str | None, template: str | None) -> str:
    """The caption of one image; empty where what the template names is not there."""
    values = {"caption": clean(text or ""), "label": clean(label or "")}
    if template is None:
        return values["caption"]
    named = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return template.format(**values) if all(values[name] for name in named) else ""


def words(texts: Iterable[str]) -> set[str]:
    """All words in lower case."""
    return {word.lower() for text in texts for word in _WORD.findall(text)}


def unseen_words(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """Words of ``texts`` that are not among ``known`` (in lower case), in alphabetic order."""
    return sorted(words(texts) - set(known))
