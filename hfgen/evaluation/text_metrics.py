"""Metrics of images and texts: CLIP score, R-precision, retrieval, likelihood of codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from hfgen.data import Source
from hfgen.data.text import check_captions
from hfgen.errors import HfgenError
from hfgen.evaluation.images import image_generator
from hfgen.evaluation.results import Score
from hfgen.hub.load_text import load_clip

if TYPE_CHECKING:
    from hfgen.evaluation.model_metrics import ModelEvidence

BATCH = 32
MAX_IMAGES = 500
CANDIDATES = 100


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of each pair of unit vectors [N, D] (Hessel et al. 2021, eq. 1, w = 100)."""
    return 100 * (images * texts).sum(1).clamp(min=0)


def r_precision(images: Tensor, texts: Tensor, captions: Sequence[str], seed: int = 0) -> Tensor:
    """Whether each image's own text is the nearest of 100, [N] of 0 and 1 (Xu et al. 2018, 4.1).

    The other texts are drawn from those with another caption.

    Args:
        images, texts: unit vectors [N, D].
        captions: of the rows.
    """
    distinct = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    rows = torch.tensor([captions.index(text) for text in distinct])  # one row for each caption
    if len(rows) < 2:
        raise HfgenError("r_precision: needs at least 2 different captions")
    found = []
    for i, text in enumerate(captions):
        others = rows[rows != rows[distinct[text]]]
        order = torch.rand(len(others), generator=image_generator(seed, i)).argsort()
        chosen = torch.cat([torch.tensor([i]), others[order[: CANDIDATES - 1]]])
        found.append(float((texts[chosen] @ images[i]).argmax() == 0))
    return torch.tensor(found)


def retrieval(images: Tensor, texts: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Whether the nearest image of each text, and the nearest text of each image, has its caption,
    [N] of 0 and 1 each, among all N.
    """
    near = texts @ images.T
    to_image, to_text = near.argmax(1).tolist(), near.argmax(0).tolist()
    pairs = list(enumerate(zip(to_image, to_text, strict=True)))
    right = [[captions[i] == captions[a], captions[i] == captions[b]] for i, (a, b) in pairs]
    return torch.tensor(right).float().unbind(1)  # type: ignore[return-value]


@torch.inference_mode()
def text_scores(evidence: ModelEvidence) -> list[Score]:
    """CLIP score and R-precision of images drawn for held-out captions, and of the real ones."""
    pipeline, captions = evidence.pipeline, _captions(evidence.source)
    clip = load_clip(evidence.weights["clip"])
    texts = clip.embed_texts(captions)
    found = {"": _drawn(pipeline, captions, evidence.call), "real_": _real(evidence.source)}
    settings = f"{len(captions)} captions of {_where(evidence.source)}, {evidence.weights['clip']}"
    scores = []
    for prefix, images in found.items():
        vectors, better = clip.embed_images(images), "none" if prefix else "higher"
        rows = {
            "clip_score": clip_score(vectors, texts),
            "r_precision": r_precision(vectors, texts, captions),
        }
        scores += [_score(prefix + k, v, settings, better) for k, v in rows.items()]
    return scores


@torch.inference_mode()
def clip_retrieval(evidence: ModelEvidence) -> list[Score]:
    """How well a dual encoder finds held-out images by their captions, and the other way round."""
    pipeline, captions = evidence.pipeline, _captions(evidence.source)
    texts, images = pipeline.embed_texts(captions), pipeline.embed_images(_real(evidence.source))
    to_image, to_text = retrieval(images, texts, captions)
    rows = {
        "text_to_image_top1": to_image,
        "image_to_text_top1": to_text,
        "r_precision": r_precision(images, texts, captions),
    }
    settings = f"{len(captions)} pairs of {_where(evidence.source)}"
    return [_score(name, values, settings, "higher") for name, values in rows.items()]


@torch.inference_mode()
def code_likelihood(evidence: ModelEvidence) -> list[Score]:
    """Exact -log2 p(codes | condition) of held-out images: per pixel and channel, and per code."""
    pipeline, source = evidence.pipeline, evidence.source
    count, nats = min(len(source), MAX_IMAGES), []
    captions = _captions(source) if pipeline.transformer.has_text else None
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        given: dict[str, Any] = {}
        if captions is not None:
            given["prompt"] = [captions[i] for i in rows]
        elif pipeline.num_classes is not None:
            given["class_labels"] = source.labels(rows)
        images = (source.batch(rows)["images"] + 1) / 2
        nats.append(pipeline.log_prob(pipeline.encode_image(images), **given).double().cpu())
    bits = -torch.cat(nats) / math.log(2)
    pixels, codes = math.prod(pipeline.image_shape), pipeline.transformer.length
    settings = f"exact rate of {codes} codes, {count} images of {_where(source)}"
    return [
        _score("code_bits_per_dim", bits / pixels, settings, "lower"),
        _score("bits_per_code", bits / codes, settings, "lower"),
    ]


def has_clip(evidence: ModelEvidence) -> None:
    """HfgenError unless images are drawn from texts, held-out captions and a dual encoder given."""
    if evidence.pipeline.components.get("tokenizer") is None or is_clip(evidence.pipeline):
        name = type(evidence.pipeline).__name__
        raise HfgenError(f"metrics: this needs a pipeline that draws from texts, not {name}")
    if "clip" not in evidence.weights:
        raise HfgenError("metrics: this needs a dual encoder; give --weights clip=RUN_OR_FOLDER")
    _captions(evidence.source)


def has_pairs(evidence: ModelEvidence) -> None:
    """HfgenError unless the pipeline is a dual encoder and its data have captions."""
    if not is_clip(evidence.pipeline):
        name = type(evidence.pipeline).__name__
        raise HfgenError(f"metrics: this needs a dual encoder of images and texts, not {name}")
    _captions(evidence.source)


def has_codes(evidence: ModelEvidence) -> None:
    """HfgenError unless the pipeline draws codes one after the other."""
    if not {"codes", "transformer"} <= set(evidence.pipeline.components):
        name = type(evidence.pipeline).__name__
        raise HfgenError(f"metrics: this needs a transformer over codes, not {name}")
    if evidence.pipeline.transformer.has_text:
        _captions(evidence.source)


def is_clip(pipeline: Any) -> bool:
    """Whether a pipeline is a dual encoder."""
    return "clip" in pipeline.components


def _captions(source: Source) -> list[str]:
    texts = source.captions(range(min(len(source), MAX_IMAGES)))
    check_captions(texts, f"data.path: {source.spec.name!r}")
    return texts


def _real(source: Source) -> list[Image.Image]:
    return _to_pil(source.uint8(range(min(len(source), MAX_IMAGES))))


def _drawn(pipeline: Any, captions: list[str], call: Any) -> list[Image.Image]:
    images: list[Image.Image] = []
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(captions), BATCH):
        texts = captions[start : start + BATCH]
        generators = [image_generator(0, start + i) for i in range(len(texts))]
        images += pipeline(texts, generator=generators, **call).images
    return images


def _to_pil(images: Tensor) -> list[Image.Image]:
    rows = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row) for row in rows]


def _where(source: Source) -> str:
    return f"{source.spec.name}/{source.spec.split}"


def _score(name: str, values: Tensor, settings: str, better: str) -> Score:
    error = float(values.double().std() / math.sqrt(len(values)))
    return Score(
        name=name,
        value=float(values.double().mean()),
        standard_error=error,
        better=better,
        settings=settings,
    )
