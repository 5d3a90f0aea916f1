"""Class labels on their way from a data set into a conditional model."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from torch import Tensor

from hfgen.errors import HfgenError


class Condition(StrEnum):
    """What a likelihood is given; the value says so beside the number."""

    NONE = ""
    CLASS = "given the class"
    NULL_LABEL = "under the null label"


def network_classes(network: Any) -> int | None:
    """How many labels a network knows, the null label among them; None without classes."""
    return network.config.get("num_class_embeds")


def check_classes(who: str, known: int | None, in_data: int | None) -> None:
    """HfgenError unless a model that knows ``known`` labels can be told those of the data."""
    if known is None:
        return
    if in_data is None:
        raise HfgenError(f"{who}: class-conditional, but these images have no labels")
    if in_data > known:
        raise HfgenError(f"{who}: knows {known} classes, but these images have {in_data}")


def label_arguments(network: Any, labels: Tensor | None) -> dict[str, Tensor]:
    """``class_labels`` for a network with classes, nothing for others.

    Args:
        labels: [B] of the images, or None.
    Raises:
        HfgenError: a network with classes, and images without.
    """
    known = network_classes(network)
    if known is None:
        return {}
    most = None if labels is None else int(labels.max()) + 1
    check_classes(type(network).__name__, known, most)
    assert labels is not None
    return {"class_labels": labels.to(network.device)}
