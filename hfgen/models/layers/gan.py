"""What every generator and discriminator shares: their outputs, which sizes they can make,
normalisation by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from hfgen.models.layers.spectral_norm import SNEmbedding, SNLinear

BASES = (4, 5, 6, 7)


@dataclass
class GeneratorOutput(BaseOutput):
    """Output of a generator.

    Attributes:
        sample: images [B, C, H, W], nominally in [-1, 1] (exactly so where the architecture ends in
            a tanh).
    """

    sample: Tensor


@dataclass
class DiscriminatorOutput(BaseOutput):
    """Output of a discriminator.

    Attributes:
        logits: [B], higher means "more real"; unbounded.
        features: the last hidden representation [B, D].
        class_logits: [B, num_class_embeds], where the discriminator classifies (``auxiliary``); one
            more, "generated", with ``multi_hinge``.
        twin_logits: [B, num_class_embeds] of the classifier of generated images
            (``twin_auxiliary``).
        embeddings, proxies: [B, D] of length 1, of the images and of their labels
            (``contrastive``).
        codes: [B, num_codes], where it predicts latent codes (InfoGAN).
        judges: [B, J], where it is made of J discriminators: their own logits, of which ``logits``
            is the mean. Adversarial losses take these.
        maps: [B, C, h, w], where its ``reconstruct`` turns them back into an image.
    """

    logits: Tensor
    features: Tensor
    class_logits: Tensor | None = None
    codes: Tensor | None = None
    judges: Tensor | None = None
    maps: Tensor | None = None
    twin_logits: Tensor | None = None
    embeddings: Tensor | None = None
    proxies: Tensor | None = None

    @property
    def verdicts(self) -> Tensor:
        """Logits of every judge, [B] or [B, J]."""
        return self.logits if self.judges is None else self.judges


CONDITIONINGS = ("projection", "auxiliary", "twin_auxiliary", "contrastive", "multi_hinge")


class ClassHead(nn.Module):
    """How labels and latent codes enter a discriminator, on top of its features.

    Args:
        features: their number D.
        num_class_embeds: number of classes; None for an unconditional discriminator.
        conditioning: ``projection``: the logit gains <embedding(label), features> (Miyato & Koyama
            2018, equation 3). ``auxiliary``: the label is not told; a linear map of the features
            guesses it (Odena et al. 2017, AC-GAN). ``twin_auxiliary``: two such maps (Gong et al.
            2019, TAC-GAN). ``contrastive``: the features and the labels are embedded as unit
            vectors (Kang & Park 2020, ContraGAN; Kang et al. 2021, ReACGAN). ``multi_hinge``: one
            score for each class and one for "generated"; the logit is the label's lead over the
            best of the others (Kavalerov et al. 2019).
        num_codes: latent codes that a hidden layer and a linear map guess (Chen et al. 2016,
            InfoGAN).
        code_features: how many features codes are guessed from, where those are others.
        spectral: spectral normalisation of these layers.
    """

    def __init__(
        self,
        features: int,
        num_class_embeds: int | None,
        conditioning: str = "projection",
        num_codes: int = 0,
        code_features: int | None = None,
        spectral: bool = False,
    ):
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise ValueError(
                f"conditioning {conditioning!r} is unknown; valid: {', '.join(CONDITIONINGS)}"
            )
        linear = SNLinear if spectral else nn.Linear
        self.num_class_embeds, self.conditioning = num_class_embeds, conditioning
        self.embedding = self.classifier = self.twin = self.embed = self.codes = None
        if num_class_embeds is not None and conditioning == "projection":
            cls = SNEmbedding if spectral else nn.Embedding
            self.embedding = cls(num_class_embeds, features)
            nn.init.normal_(self.embedding.weight, 0.0, 0.02)
        elif num_class_embeds is not None and conditioning == "contrastive":
            self.embed = linear(features, features)
            self.proxies = nn.Embedding(num_class_embeds, features)
        elif num_class_embeds is not None:
            self.classifier = linear(features, num_class_embeds)
            if conditioning == "twin_auxiliary":
                self.twin = linear(features, num_class_embeds)
        if num_codes:
            hidden = nn.Linear(code_features or features, 128)
            self.codes = nn.Sequential(hidden, nn.LeakyReLU(0.1), nn.Linear(128, num_codes))

    def forward(
        self,
        logits: Tensor,
        features: Tensor,
        class_labels: Tensor | None,
        code_features: Tensor | None = None,
    ) -> DiscriminatorOutput:
        """``logits`` [B] and ``features`` [B, D] of images with ``class_labels`` [B]; codes are
        read from ``code_features`` [B, E] where there are some.
        """
        check_labels(class_labels, self.num_class_embeds)
        output = DiscriminatorOutput(logits=logits, features=features)
        if self.embedding is not None:
            output["logits"] = logits + (self.embedding(class_labels) * features).sum(1)
        if self.classifier is not None:
            output["class_logits"] = self.classifier(features)
        if self.conditioning == "multi_hinge" and class_labels is not None:
            scores = torch.cat([output["class_logits"], -logits[:, None]], dim=1)
            output["class_logits"], output["logits"] = scores, lead(scores, class_labels)
        if self.twin is not None:
            output["twin_logits"] = self.twin(features)
        if self.embed is not None:
            output["embeddings"] = F.normalize(self.embed(features), dim=1)
            output["proxies"] = F.normalize(self.proxies(class_labels), dim=1)
        if self.codes is not None:
            output["codes"] = self.codes(features if code_features is None else code_features)
        return output


def lead(scores: Tensor, labels: Tensor) -> Tensor:
    """By how much the score of the label exceeds the best of the others, [B]."""
    chosen = scores.gather(1, labels[:, None])
    return (chosen - scores.scatter(1, labels[:, None], -math.inf).amax(1, keepdim=True)).squeeze(1)


def stage_widths(channels: int | list[int], n: int) -> list[int]:
    """One width for each of ``n`` stages, from the smallest resolution to the largest."""
    widths = [channels] * n if isinstance(channels, int) else list(channels)
    if len(widths) != n:
        raise ValueError(f"channels {widths} must have {n} entries, from small to large")
    for width in widths:
        required("channels", width)
    return widths


def code_latents(z: Tensor, categorical_codes: int) -> Tensor:
    """The first ``categorical_codes`` = K latents become the one-hot vector of their largest entry,
    times sqrt(K).

    The argmax of K independent normal numbers is uniform over K: so a categorical code (Chen et al.
    2016, InfoGAN) needs no latents other than the N(0, 1) that every generator takes. sqrt(K) gives
    each entry the second moment of a normal one; a plain one-hot vector drowns in the others.
    """
    if categorical_codes == 0:
        return z
    code, rest = z[:, :categorical_codes], z[:, categorical_codes:]
    one_hot = F.one_hot(code.argmax(1), categorical_codes).to(z.dtype)
    return torch.cat([categorical_codes**0.5 * one_hot, rest], dim=1)


def stages(sample_size: int | None) -> tuple[int, int]:
    """``(base, n)`` such that ``sample_size = base * 2**n`` with ``base`` in 4..7 and ``n >= 1``.

    All powers of two from 8 on have base 4; 28 has base 7. ValueError for other sizes, naming the
    nearest valid ones.
    """
    size = required("sample_size", sample_size)
    base, n = size, 0
    while base % 2 == 0 and base // 2 >= BASES[0]:
        base, n = base // 2, n + 1
    if n < 1 or base not in BASES:
        raise ValueError(f"sample_size {size} cannot be made: {_nearest(size)}")
    return base, n


def _nearest(size: int) -> str:
    sizes = sorted(base << n for base in BASES for n in range(1, 12))
    near = sorted(sorted(sizes, key=lambda valid: abs(valid - size))[:2])
    return (
        f"the nearest valid sizes are {near[0]} and {near[1]} (4, 5, 6 or 7 times a power of two)"
    )


def required(name: str, value: int | None) -> int:
    """``value``; ValueError that names it when it is None or not positive."""
    if value is None:
        raise ValueError(f"{name} is not set: give a positive integer")
    if value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value}")
    return value


def normalization(kind: str, channels: int) -> nn.Module:
    """``batch``, ``group`` (at most 32 groups of at least 4 channels) or ``none``."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        groups = next((g for g in (32, 16, 8, 4, 2) if channels % (4 * g) == 0), 1)
        return nn.GroupNorm(groups, channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm {kind!r} is unknown; valid: batch, group, none")


def check_labels(class_labels: Tensor | None, num_class_embeds: int | None) -> None:
    """ValueError when a conditional model gets no labels, or an unconditional one gets some."""
    if num_class_embeds is None and class_labels is not None:
        raise ValueError("class_labels were given, but the model is unconditional")
    if num_class_embeds is not None and class_labels is None:
        raise ValueError(f"class_labels are missing: the model has {num_class_embeds} classes")


def check_attention(attention_size: int | None, sizes: list[int]) -> None:
    """ValueError when no feature map has the side at which attention is wanted."""
    if attention_size is not None and attention_size not in sizes:
        raise ValueError(f"attention_size {attention_size}: the feature maps are of {sizes}")


def embed_labels(embedding: nn.Embedding, class_labels: Tensor | None) -> Tensor:
    """Rows of an embedding for labels [B] int64, or mixtures of them for weights [B, classes]
    float: the way from one class to another.
    """
    assert class_labels is not None  # `check_labels` has looked
    if class_labels.is_floating_point():
        return class_labels @ embedding.weight
    return embedding(class_labels)


def label_embedding(num_class_embeds: int | None, size: int) -> nn.Embedding | None:
    """A learned vector for each class; None without classes."""
    return None if num_class_embeds is None else nn.Embedding(num_class_embeds, size)


def with_label(z: Tensor, embedding: nn.Embedding | None, class_labels: Tensor | None) -> Tensor:
    """z [B, D] with the label's vector beside it (Mirza & Osindero 2014), or as it is without
    classes; ValueError for labels too many or missing.
    """
    check_labels(class_labels, None if embedding is None else embedding.num_embeddings)
    if embedding is None:
        return z
    return torch.cat([z, embed_labels(embedding, class_labels)], dim=1)


def class_weights(class_labels: Tensor, num_class_embeds: int, like: Tensor) -> Tensor:
    """Labels [B] int64 as one-hot rows; weights [B, classes] float as they are."""
    if not class_labels.is_floating_point():
        class_labels = F.one_hot(class_labels, num_class_embeds)
    return class_labels.to(like.dtype)


@torch.no_grad()
def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """N(0, 0.02^2) weights and zero biases (Radford et al. 2015, section 4)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, std)
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def init_he(module: nn.Module) -> None:
    """N(0, 2 / fan_in) weights and zero biases (He et al. 2015, equation 10)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
        elif isinstance(layer, nn.ConvTranspose2d):
            # an output pixel sees kernel / stride taps a side
            fan_in = layer.weight[:, 0].numel() / (layer.stride[0] * layer.stride[1])
        else:
            continue
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / fan_in))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
