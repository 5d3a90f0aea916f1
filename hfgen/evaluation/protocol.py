"""How a number was made: a frozen, hashed record that stands beside it and keys every cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from hfgen.evaluation.backbones.base import Backbone

VERSION = 1
"""Raised when the same settings would give other numbers."""


@dataclass(frozen=True, kw_only=True)
class BackboneProtocol:
    """Which network measures, with which weights, on which input."""

    name: str
    revision: str
    preprocessing: str

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneProtocol:
        return cls(
            name=backbone.name, revision=backbone.revision, preprocessing=backbone.preprocessing
        )


@dataclass(frozen=True, kw_only=True)
class ImagesProtocol:
    """A fixed set of images: the reference, or a folder of samples.

    Attributes:
        name, split: of the data set, or the folder.
        fingerprint: hash of the content.
        count: how many are used.
        rows: which: ``all``, or ``first`` of a permutation drawn with ``seed``.
    """

    name: str
    split: str
    fingerprint: str
    count: int
    rows: str = "all"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SamplingProtocol:
    """How a pipeline's images were drawn: image i has its own generator, seeded by (seed, i).

    Attributes:
        model: folder or Hub id, or the pipeline's class for an object.
        weights: hash of the components' parameters.
        ema: whether the exported weights are an average, as the run says; None where unknown.
        sampler: pipeline class and, where there is one, scheduler class.
        call: arguments of the call: num_inference_steps, guidance_scale ...
        labels: where class labels or prompts come from; ``none`` for unconditional samples.
    """

    model: str
    weights: str
    ema: bool | None
    count: int
    seed: int
    sampler: str
    call: dict[str, Any] = field(default_factory=dict)
    labels: str = "none"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that a score depends on besides the metric's own constants.

    Attributes:
        quantisation: pixels are ``round(255 x)`` to 8 bits before any backbone sees them.
        ddof: of covariances.
    """

    backbone: BackboneProtocol
    reference: ImagesProtocol | SamplingProtocol
    samples: SamplingProtocol | ImagesProtocol
    quantisation: str = "round to uint8"
    ddof: int = 1
    version: int = VERSION

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any field."""
        return digest(asdict(self))

    def __str__(self) -> str:
        steps = getattr(self.samples, "call", {}).get("num_inference_steps")
        shown = f", {steps} steps" if steps else ""
        name = getattr(self.reference, "name", getattr(self.reference, "model", ""))
        split = getattr(self.reference, "split", "samples")
        return (
            f"{self.backbone.name}, {self.samples.count} samples{shown} against "
            f"{self.reference.count} of {name}/{split} [{self.digest}]"
        )


def digest(value: Any) -> str:
    """Hash of plain values (what ``json`` writes), 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
