"""Quantisers of a latent map: learned codebooks (gradient or EMA, residual), FSQ and LFQ.

All take [B, D, *positions] and return the same shape. Codebooks that follow the data (EMA, k-means
start, restarts) change in ``advance``, once per step, from sums over all micro-batches and
processes, so that splitting a batch changes nothing but which latents a dead code restarts from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Quantized:
    """What a quantiser makes of latents z [B, D, *positions].

    Attributes:
        codes: the quantised latents e, same shape; gradients pass to z as if by the identity (or
            rotated).
        indices: [B, *positions, levels of residual quantisation], int64.
        codebook: ||sg(z) - e||^2 per image, [B]; zero where there is nothing to learn by it.
        commitment: ||z - sg(e)||^2 per image, [B].
        entropy: of LFQ, mean entropy of a code minus entropy of the mean code, in nats; else 0.
    """

    codes: Tensor
    indices: Tensor
    codebook: Tensor
    commitment: Tensor
    entropy: Tensor


class Quantizer(nn.Module, ABC):
    """One vocabulary, or several in sequence.

    Attributes:
        dim: D, channels of the latents.
        num_embeddings: size of (each) vocabulary.
        num_quantizers: indices per position.
    """

    dim: int
    num_embeddings: int
    num_quantizers: int = 1

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized: ...

    @abstractmethod
    def embed(self, indices: Tensor) -> Tensor:
        """Indices [B, *positions, num_quantizers] -> codes [B, D, *positions]."""

    def tables(self) -> Tensor:
        """Every code of every vocabulary, [num_quantizers, num_embeddings, D]."""
        device = next(self.buffers()).device
        index = torch.arange(self.num_embeddings, device=device).view(-1, 1, 1)
        return self.embed(index).squeeze(-1).unsqueeze(0)

    def advance(self, step: int) -> None:
        """A new training step begins: take over what the last one has seen."""

    @torch.no_grad()
    def start_from(self, z: Tensor) -> None:
        """See the first latents before they are quantised (k-means start); once."""


def _rows(z: Tensor) -> Tensor:
    """[B, D, *positions] -> [B * positions, D]."""
    return z.flatten(2).transpose(1, 2).flatten(0, 1)


def _squares(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).sum(1)


def _all_reduce(tensor: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def _from_first_process(tensor: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, 0)
    return tensor


def rotate(z: Tensor, e: Tensor) -> Tensor:
    """e, with the gradient of z carried by the rotation and scaling that takes z to e, [N, D].

    Rotation trick (Fifty et al. 2024, section 4.2): R z = (I - 2 r r^T + 2 e' z'^T) z with unit
    vectors z', e' and r = (z' + e') / |z' + e'|.
    """
    with torch.no_grad():
        unit_z, unit_e = F.normalize(z, dim=1), F.normalize(e, dim=1)
        r = F.normalize(unit_z + unit_e, dim=1)
        scale = e.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True).clamp(min=1e-6)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True)

    return scale * (z - 2 * dot(r, z) * r + 2 * dot(unit_z, z) * unit_e)


class VectorQuantizer(Quantizer):
    """The nearest of ``num_embeddings`` learned vectors (van den Oord et al. 2017).

    Args:
        num_embeddings: K, size of the codebook.
        dim: D, channels of the latents.
        ema_decay: None to learn the codebook by gradient (their eq. 3); a decay, e.g. 0.99, for
            moving averages of the latents that chose each code (their appendix A.1).
        rotation: pass the gradient by the rotation trick rather than straight through.
        kmeans_start: start the codebook as the k-means centres of the first batch's latents.
        restart_below: codes used less often than this share of 1 / K are moved onto a latent of
            the batch at hand (Dhariwal et al. 2020, section 3.1); 0 for never.
    """

    codebook: Tensor
    started: Tensor
    last_step: Tensor
    usage: Tensor
    sums: Tensor
    seen_counts: Tensor
    seen_sums: Tensor
    spare: Tensor

    def __init__(
        self,
        num_embeddings: int = 512,
        dim: int = 32,
        ema_decay: float | None = None,
        rotation: bool = False,
        kmeans_start: bool = True,
        restart_below: float = 0.03,
    ):
        super().__init__()
        if num_embeddings < 2 or dim < 1:
            raise ValueError(
                f"quantizer: needs num_embeddings >= 2 and dim >= 1, got {num_embeddings} and {dim}"
            )
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"quantizer: ema_decay must be in (0, 1) or null, got {ema_decay}")
        self.num_embeddings, self.dim, self.rotation = num_embeddings, dim, rotation
        self.ema_decay, self.restart_below = ema_decay, restart_below
        start = torch.randn(num_embeddings, dim) / math.sqrt(dim)
        if ema_decay is None:
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
        self.register_buffer("started", torch.tensor(not kmeans_start))
        self.register_buffer("last_step", torch.tensor(-1))
        self.register_buffer("usage", torch.ones(num_embeddings))
        self.register_buffer("sums", start.clone())
        self.register_buffer("seen_counts", torch.zeros(num_embeddings))
        self.register_buffer("seen_sums", torch.zeros(num_embeddings, dim))
        self.register_buffer("spare", start.clone())

    def forward(self, z: Tensor) -> Quantized:
        rows = _rows(z.float())
        index = nearest(rows.detach(), self.codebook.detach())
        if self.training and torch.is_grad_enabled():
            self._observe(rows.detach(), index)
        indices = index.view(len(z), *z.shape[2:], 1)
        e = self.embed(indices)
        if self.rotation:
            moved = rotate(rows, _rows(e.detach()))
            codes = moved.view(len(z), -1, self.dim).transpose(1, 2).reshape(z.shape)
        else:
            codes = z + (e - z).detach()
        commitment = _squares(z - e.detach())
        learn = _squares(z.detach() - e) if self.ema_decay is None else z.new_zeros(len(z))
        return Quantized(codes, indices, learn, commitment, z.new_zeros(()))

    def embed(self, indices: Tensor) -> Tensor:
        return F.embedding(indices.squeeze(-1), self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def nearest_codes(self, z: Tensor) -> Tensor:
        """The codes of latents, same shape, without learning from them."""
        index = nearest(_rows(z.float()), self.codebook)
        return self.embed(index.view(len(z), *z.shape[2:], 1))

    def tables(self) -> Tensor:
        return self.codebook.unsqueeze(0)

    @torch.no_grad()
    def start_from(self, z: Tensor) -> None:
        if bool(self.started):
            return
        rows = _rows(z.float())
        if len(rows) < self.num_embeddings:
            raise ValueError(
                f"quantizer: num_embeddings {self.num_embeddings} is larger than the {len(rows)} "
                "latents of a batch that it starts from; take a smaller one or a larger batch"
            )
        centres = _from_first_process(kmeans(rows, self.num_embeddings))
        self.codebook.copy_(centres)
        self.sums.copy_(centres)
        self.started.fill_(True)

    @torch.no_grad()
    def _observe(self, rows: Tensor, index: Tensor) -> None:
        counts = torch.bincount(index, minlength=self.num_embeddings).to(rows.dtype)
        self.seen_counts += _all_reduce(counts)
        if self.ema_decay is not None:
            sums = torch.zeros_like(self.codebook).index_add_(0, index, rows)
            self.seen_sums += _all_reduce(sums)
        if self.restart_below:
            picks = torch.randint(len(rows), (self.num_embeddings,), device=rows.device)
            self.spare.copy_(_from_first_process(rows[picks]))

    @torch.no_grad()
    def advance(self, step: int) -> None:
        if step == int(self.last_step) or not bool(self.seen_counts.any()):
            self.last_step.fill_(step)
            return
        decay = 0.99 if self.ema_decay is None else self.ema_decay
        self.usage.lerp_(self.seen_counts, 1 - decay)
        if self.ema_decay is not None:
            self.sums.lerp_(self.seen_sums, 1 - decay)
            alive = self.usage > 1e-5
            self.codebook[alive] = self.sums[alive] / self.usage[alive, None]
        self._restart()
        self.seen_counts.zero_()
        self.seen_sums.zero_()
        self.last_step.fill_(step)

    def _restart(self) -> None:
        if not self.restart_below:
            return
        mean_use = self.usage.mean()
        dead = self.usage < self.restart_below * mean_use
        if not bool(dead.any()):
            return
        self.codebook[dead] = self.spare[dead]
        self.sums[dead] = self.spare[dead] * mean_use
        self.usage[dead] = mean_use


def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each row, [N]: ||x - e||^2 without the ||x||^2 of all codes."""
    codebook = codebook.to(rows.dtype)
    return torch.addmm(codebook.square().sum(1), rows, codebook.T, alpha=-2).argmin(1)


def kmeans(rows: Tensor, clusters: int, iterations: int = 10) -> Tensor:
    """Centres [clusters, D] of rows [N, D] by Lloyd's algorithm; an empty cluster keeps its
    centre.
    """
    centres = rows[torch.randperm(len(rows), device=rows.device)[:clusters]].clone()
    for _ in range(iterations):
        index = nearest(rows, centres)
        counts = torch.bincount(index, minlength=clusters).to(rows.dtype)
        sums = torch.zeros_like(centres).index_add_(0, index, rows)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
    return centres


class ResidualQuantizer(Quantizer):
    """Codebooks in sequence, each for what the ones before it left over (Zeghidour et al. 2021).

    Args:
        num_quantizers: how many.
        **options: of each ``VectorQuantizer``.
    """

    def __init__(self, num_quantizers: int = 4, **options):
        super().__init__()
        if num_quantizers < 1:
            raise ValueError(f"quantizer: num_quantizers must be >= 1, got {num_quantizers}")
        self.layers = nn.ModuleList([VectorQuantizer(**options) for _ in range(num_quantizers)])
        self.dim, self.num_embeddings = self._levels[0].dim, self._levels[0].num_embeddings
        self.num_quantizers = num_quantizers

    @property
    def _levels(self) -> list[VectorQuantizer]:
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Quantized:
        residual, parts = z, []
        for layer in self._levels:
            part: Quantized = layer(residual)
            parts.append(part)
            residual = residual - part.codes.detach()
        return Quantized(
            codes=z + (sum(part.codes for part in parts) - z).detach(),
            indices=torch.cat([part.indices for part in parts], dim=-1),
            codebook=torch.stack([part.codebook for part in parts]).sum(0),
            commitment=torch.stack([part.commitment for part in parts]).sum(0),
            entropy=z.new_zeros(()),
        )

    def embed(self, indices: Tensor) -> Tensor:
        split = indices.split(1, dim=-1)
        codes = [layer.embed(i) for layer, i in zip(self._levels, split, strict=True)]
        return torch.stack(codes).sum(0)

    def tables(self) -> Tensor:
        return torch.stack([level.codebook for level in self._levels])

    def advance(self, step: int) -> None:
        for layer in self._levels:
            layer.advance(step)

    @torch.no_grad()
    def start_from(self, z: Tensor) -> None:
        if all(bool(layer.started) for layer in self._levels):
            return
        for layer in self._levels:
            layer.start_from(z)
            index = nearest(_rows(z.float()), layer.codebook)
            z = z - layer.embed(index.view(len(z), *z.shape[2:], 1))


class FiniteScalarQuantizer(Quantizer):
    """Each channel rounded to one of a few levels (FSQ, Mentzer et al. 2024, section 3).

    Args:
        levels: number of levels of each channel; their product is the vocabulary.
    """

    levels: Tensor

    def __init__(self, levels: tuple[int, ...] = (8, 6, 5)):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"quantizer: every one of levels must be >= 2, got {tuple(levels)}")
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.dim, self.num_embeddings = len(levels), math.prod(levels)

    def _column(self, z: Tensor) -> Tensor:
        return self.levels.view(1, -1, *[1] * (z.dim() - 2))

    def forward(self, z: Tensor) -> Quantized:
        levels = self._column(z)
        half = (levels - 1) * 1.001 / 2  # a little wider, so that the outer levels can be reached
        offset = 0.5 * (levels % 2 == 0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        whole = bounded + (bounded.round() - bounded).detach()
        digits = whole.detach().long() + levels // 2
        zeros = z.new_zeros(len(z))
        indices = (digits * self._basis(z)).sum(1).unsqueeze(-1)
        return Quantized(whole / (levels // 2), indices, zeros, zeros, z.new_zeros(()))

    def _basis(self, z: Tensor) -> Tensor:
        basis = torch.cumprod(torch.cat([self.levels.new_ones(1), self.levels[:-1]]), dim=0)
        return basis.view(1, -1, *[1] * (z.dim() - 2))

    def embed(self, indices: Tensor) -> Tensor:
        index = indices.squeeze(-1).unsqueeze(1)
        levels = self._column(index)
        digits = index // self._basis(index) % levels
        return (digits - levels // 2) / (levels // 2)


class LookupFreeQuantizer(Quantizer):
    """The sign of each channel (LFQ, Yu et al. 2024, section 3.1).

    The entropy term wants each code certain and all codes used: E[H(p)] - H(E[p]), where a channel
    is +1 with probability sigmoid(4 z) (a softmax over squared distances to -1 and 1). Channels
    count as independent in H(E[p]), an upper bound (Zhao et al. 2024, section 3.3).

    Args:
        bits: channels; the vocabulary is 2^bits.
    """

    basis: Tensor

    def __init__(self, bits: int = 10):
        super().__init__()
        if not 1 <= bits <= 30:
            raise ValueError(f"quantizer: bits must be in [1, 30], got {bits}")
        self.dim, self.num_embeddings = bits, 2**bits
        self.register_buffer("basis", 2 ** torch.arange(bits), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        sign = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
        bit = (sign > 0).movedim(1, -1).long()
        indices = (bit * self.basis).sum(-1, keepdim=True)
        probability = torch.sigmoid(4 * _rows(z))
        each = _binary_entropy(probability).sum(1).mean()
        mean = _binary_entropy(probability.mean(0)).sum()
        commitment = _squares(z - sign)
        return Quantized(
            z + (sign - z).detach(), indices, torch.zeros_like(commitment), commitment, each - mean
        )

    def embed(self, indices: Tensor) -> Tensor:
        bit = indices // self.basis % 2
        return (2.0 * bit - 1).movedim(-1, 1)


class GumbelQuantizer(Quantizer):
    """A categorical posterior over codes (Jang et al. 2017; the dVAE of Ramesh et al. 2021, 2.1).

    A linear map makes logits of each latent. What is decoded is the likeliest code; for training,
    ``relax`` draws a differentiable mixture of codes. There is no codebook loss: the objective
    ``dvae`` adds the KL to the uniform prior.

    Args:
        num_embeddings: K, size of the codebook.
        dim: D, channels of the latents and of the codes.
    """

    def __init__(self, num_embeddings: int = 512, dim: int = 32):
        super().__init__()
        if num_embeddings < 2 or dim < 1:
            raise ValueError(
                f"quantizer: needs num_embeddings >= 2 and dim >= 1, got {num_embeddings} and {dim}"
            )
        self.num_embeddings, self.dim = num_embeddings, dim
        self.to_logits = nn.Linear(dim, num_embeddings)
        self.codebook = nn.Parameter(torch.randn(num_embeddings, dim) / math.sqrt(dim))

    def logits(self, z: Tensor) -> Tensor:
        """Latents [B, D, *positions] -> ln q(code) up to a constant, [B, *positions, K]."""
        return self.to_logits(z.movedim(1, -1)).float()

    def relax(self, logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        """Codes [B, D, *positions], mixed by softmax((logits + Gumbel noise) / temperature).

        Args:
            uniform: [B, *positions, K] in [0, 1), what the noise is made of.
        """
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-6, 1 - 1e-6)))
        share = torch.softmax((logits + gumbel) / temperature, dim=-1)
        return (share @ self.codebook.float()).movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantized:
        indices = self.logits(z).argmax(-1, keepdim=True)
        codes, zeros = self.embed(indices), z.new_zeros(len(z))
        return Quantized(codes, indices, zeros, zeros, z.new_zeros(()))

    def embed(self, indices: Tensor) -> Tensor:
        return F.embedding(indices.squeeze(-1), self.codebook).movedim(-1, 1)

    def tables(self) -> Tensor:
        return self.codebook.unsqueeze(0)


def _binary_entropy(p: Tensor) -> Tensor:
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * torch.log1p(-p))


QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "residual": ResidualQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "gumbel": GumbelQuantizer,
}


def build_quantizer(config: dict) -> Quantizer:
    """``{"type": "vq", "num_embeddings": 512}`` -> a quantiser; ValueError on an unknown type."""
    options = dict(config)
    kind = options.pop("type", None)
    if kind not in QUANTIZERS:
        raise ValueError(f"quantizer: unknown type {kind!r}; valid: {', '.join(QUANTIZERS)}")
    try:
        return QUANTIZERS[kind](**options)
    except TypeError as error:
        raise ValueError(f"quantizer: {kind} does not take these options: {error}") from None
