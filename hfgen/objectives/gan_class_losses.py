"""Losses that tie a discriminator's embeddings or codes to classes, as pure functions of rows.

Embeddings and proxies [B, E] are unit vectors, row i's proxy that of its label. Every row is
compared with every other, so that the loss of a batch is not that of its micro-batches.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def conditional_contrastive(
    embeddings: Tensor, proxies: Tensor, labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """The 2C loss of each row, [B] (Kang & Park 2020, ContraGAN, equation 8).

    -log((e^(f_i . w_i) + sum_k [k != i, y_k = y_i] e^(f_i . f_k)) / (e^(f_i . w_i) + sum_k [k != i]
    e^(f_i . f_k))), every product over ``temperature``.

    Args:
        labels: [B] int64.
    """
    to_proxy = (embeddings * proxies).sum(1, keepdim=True) / temperature
    to_rows = embeddings @ embeddings.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    others = to_rows.masked_fill(itself, -math.inf)
    friends = others.masked_fill(labels[:, None] != labels, -math.inf)
    near, all_rows = (torch.cat([to_proxy, part], 1).logsumexp(1) for part in (friends, others))
    return all_rows - near


def data_to_data(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    temperature: float = 0.5,
    positive: float = 0.98,
    negative: float = 0.02,
) -> Tensor:
    """D2D-CE of each row, [B] (Kang et al. 2021, ReACGAN, section 3.2).

    -log(p_i / (p_i + sum_k [y_k != y_i] e^(max(f_i . f_k - m_n, 0) / t))) with p_i = e^(min(f_i .
    w_i - m_p, 0) / t): rows that are near enough to their class, or far enough from another row,
    no longer count.

    Args:
        labels: [B] int64.
        positive, negative: the margins m_p and m_n.
    """
    to_proxy = ((embeddings * proxies).sum(1, keepdim=True) - positive).clamp_max(0) / temperature
    to_rows = F.relu(embeddings @ embeddings.T - negative) / temperature
    strangers = to_rows.masked_fill(labels[:, None] == labels, -math.inf)
    return torch.cat([to_proxy, strangers], 1).logsumexp(1) - to_proxy.squeeze(1)


def invariant_information(logits: Tensor, moved: Tensor) -> Tensor:
    """-I(c; c') in nats, a scalar: of the codes that rows and their transformed copies are given
    (Ji et al. 2019, "Invariant Information Clustering", equations 3 and 4).

    P = sum_i softmax(logits_i) softmax(moved_i)^T / B, made symmetric; -sum_cd P_cd ln(P_cd / (P_c
    P_d)). Least, -ln K, where every copy has its original's code, without doubt, and all K codes
    are equally frequent.

    Args:
        logits, moved: [B, K], of the rows and of their copies.
    """
    first, second = logits.softmax(1), moved.softmax(1)
    joint = first.T @ second / len(first)
    joint = (joint + joint.T) / 2
    tiny = torch.finfo(joint.dtype).tiny
    margin = joint.sum(0).clamp_min(tiny).log()
    return (joint * (margin[:, None] + margin - joint.clamp_min(tiny).log())).sum()
