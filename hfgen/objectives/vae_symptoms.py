"""What the logged means of an autoencoder say is going wrong, and what to try."""

from __future__ import annotations

from collections.abc import Mapping

from hfgen.objectives.base import Clock

SETTLED = 10_000
"""Images before anything is said: an untrained network looks ill."""
FEW_CODES = 0.1
MANY_NATS = 1000.0


def symptoms(terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
    """Name of the trouble -> one line on it.

    - posterior collapse: no latent dimension varies over the batch by more than 0.01
      (``active_units``, Burda et al. 2016) and the KL is under 0.1 nats, where there is one;
    - exploding KL: more than 1,000 nats, than the reconstruction costs, and than 20 nats for each
      latent dimension in use;
    - dead codes: less than a tenth of those that a batch could use (``code_usage``).
    """
    if clock.images_seen < SETTLED:
        return {}
    found: dict[str, str] = {}
    kl = terms.get("kl")
    if terms.get("active_units", 1.0) < 0.5 and (kl is None or kl < 0.1):
        cost = "" if kl is None else f", KL {kl:.2g} nats"
        found["posterior collapse"] = (
            f"no latent dimension is used{cost}; try objective.kl_warmup_images, "
            "objective.free_bits, objective.kl_cycles or a lower objective.beta"
        )
    usual = max(abs(terms.get("reconstruction", 0.0)), 20 * terms.get("active_units", 0.0))
    if kl is not None and kl > max(MANY_NATS, usual):
        found["exploding KL"] = (
            f"{kl:.4g} nats; try a lower optimizer.learning_rate, optimizer.max_grad_norm, "
            "objective.spectral or a higher objective.beta"
        )
    if terms.get("code_usage", 1.0) < FEW_CODES:
        found["dead codes"] = (
            f"{terms['code_usage']:.1%} of the codebook is used; try model.vae.quantizer with "
            "kmeans_start, a higher restart_below, ema_decay: 0.99, rotation, fewer codes, or fsq"
        )
    return found
