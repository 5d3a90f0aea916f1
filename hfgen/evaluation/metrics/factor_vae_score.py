"""FactorVAE score (Kim & Mnih 2018, section 4): which factor was held fixed, by majority vote."""

from __future__ import annotations

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array
from hfgen.evaluation.metrics.factors import as_factors


def factor_vae_score(
    latents: Array,
    factors: Array,
    *,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Accuracy of a majority vote from the least varying latent to the fixed factor; in [0, 1].

    A vote draws a factor, a level of it, and ``batch_size`` samples of that level (with
    replacement); it is for the latent whose variance, over its variance in the whole set, is
    smallest. Latents with a variance below 1e-3 of the largest have collapsed and do not vote.
    A latent stands for one factor, so that fewer latents than factors cannot score 1.

    Args:
        latents: posterior means [N, D].
        factors: integer levels [N, K].
    """
    z, v = as_factors(latents, factors)
    spread = z.var(axis=0)
    active = spread > 1e-3 * spread.max()
    if spread.max() == 0:
        raise HfgenError("latents: all dimensions are constant")
    scaled = z[:, active] / np.sqrt(spread[active])
    members = [[np.flatnonzero(c == level) for level in range(c.max() + 1)] for c in v.T]
    draw = np.random.default_rng(seed)
    votes = np.zeros((scaled.shape[1], v.shape[1]))
    for factor, latent in _votes(scaled, members, train_votes, batch_size, draw):
        votes[latent, factor] += 1
    guess = votes.argmax(axis=1)
    tests = _votes(scaled, members, test_votes, batch_size, draw)
    return float(np.mean([guess[latent] == factor for factor, latent in tests]))


def _votes(
    z: np.ndarray, members: list, count: int, batch_size: int, draw: np.random.Generator
) -> list[tuple[int, int]]:
    """Pairs of the fixed factor and the latent that varies least."""
    votes = []
    for _ in range(count):
        factor = int(draw.integers(len(members)))
        rows = members[factor][draw.integers(len(members[factor]))]
        batch = z[rows[draw.integers(len(rows), size=batch_size)]]
        votes.append((factor, int(batch.var(axis=0).argmin())))
    return votes
