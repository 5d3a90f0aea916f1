"""The metrics by name: one line each. A line says what is computed, on which backbone and
output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Estimate
from hfgen.evaluation.metrics.authpct import authpct
from hfgen.evaluation.metrics.c_t import c_t
from hfgen.evaluation.metrics.cmmd import cmmd
from hfgen.evaluation.metrics.fid_infinity import frechet_distance_infinity
from hfgen.evaluation.metrics.frechet_distance import frechet_distance_with_error
from hfgen.evaluation.metrics.inception_score import inception_score
from hfgen.evaluation.metrics.kernel_distance import kernel_distance, kernel_distance_subsets
from hfgen.evaluation.metrics.mifid import mifid
from hfgen.evaluation.metrics.precision_recall import density_coverage, precision_recall
from hfgen.evaluation.metrics.vendi_score import vendi_score
from hfgen.evaluation.store import FeatureStore


@dataclass(frozen=True)
class Evidence:
    """What a metric may look at: features of one backbone, read when asked for."""

    samples: FeatureStore
    reference: FeatureStore
    heldout: FeatureStore | None = None

    @cached_property
    def fake(self) -> np.ndarray:
        return np.array(self.samples.output("features"))

    @cached_property
    def real(self) -> np.ndarray:
        return np.array(self.reference.output("features"))

    @cached_property
    def logits(self) -> np.ndarray:
        return np.array(self.samples.output("logits"))

    @cached_property
    def spatial(self) -> tuple[np.ndarray, np.ndarray]:
        pair = (self.samples, self.reference)
        fake, real = (np.array(store.output("spatial")) for store in pair)
        return fake, real

    @cached_property
    def test(self) -> np.ndarray:
        if self.heldout is None:
            raise HfgenError("c_t: needs held-out images, i.e. data with a validation split")
        return np.array(self.heldout.output("features"))


@dataclass(frozen=True)
class Metric:
    """One line of the table.

    Attributes:
        compute: numbers from the evidence: one, or a dataclass of several.
        settings: its constants, in words.
        better: direction, or by field where there are several.
        backbone: the one its definition fixes; None for the user's choice.
        convention: number of samples that published values use.
        gaussian: whether it fits covariances, so that N < D deserves a warning.
        heldout: whether it needs a second real set.
        reconstructions: whether it measures reconstructions of held-out images against these,
            instead of samples against the reference.
    """

    compute: Callable[[Evidence], Any]
    settings: str = ""
    better: str = "lower"
    backbone: str | None = None
    convention: int | None = None
    gaussian: bool = False
    heldout: bool = False
    reconstructions: bool = False

    def numbers(self, name: str, evidence: Evidence) -> dict[str, Estimate]:
        """Score name -> estimate."""
        result = self.compute(evidence)
        if isinstance(result, Estimate):
            return {name: result}
        if isinstance(result, float):
            return {name: Estimate(result)}
        return {field: Estimate(float(value)) for field, value in asdict(result).items()}


def _frechet(e: Evidence) -> Estimate:
    return frechet_distance_with_error(e.fake, e.real, fixed=True)


def _spatial(e: Evidence) -> Estimate:
    return frechet_distance_with_error(*e.spatial, fixed=True)


def _infinity(e: Evidence) -> Estimate:
    smallest = min(5000, len(e.fake) // 2)
    return frechet_distance_infinity(e.fake, e.reference.moments(), smallest=smallest)


def _subsets(e: Evidence) -> Estimate:
    size = min(1000, len(e.fake), len(e.real))
    return kernel_distance_subsets(e.fake, e.real, subset_size=size)


def _vendi_share(e: Evidence) -> float:
    count = min(len(e.fake), len(e.real))
    rows = np.linspace(0, len(e.real) - 1, count).astype(int)
    return vendi_score(e.fake[:count]) / vendi_score(e.real[rows])


_SE = "analytic SE of the samples, reference fixed"
_INFINITY = "15 sizes from 5000 (N/2 if fewer) on 1/N"

METRICS: dict[str, Metric] = {
    "fd": Metric(_frechet, _SE, gaussian=True),
    "fid": Metric(_frechet, _SE, backbone="inception", convention=50_000, gaussian=True),
    "fd_dinov2": Metric(_frechet, _SE, backbone="dinov2", convention=50_000, gaussian=True),
    "sfid": Metric(
        _spatial, f"mixed_6/conv, {_SE}", backbone="inception", convention=50_000, gaussian=True
    ),
    "rfd": Metric(_frechet, _SE, gaussian=True, heldout=True, reconstructions=True),
    "rfid": Metric(
        _frechet, _SE, backbone="inception", gaussian=True, heldout=True, reconstructions=True
    ),
    "fd_infinity": Metric(_infinity, _INFINITY, gaussian=True),
    "fid_infinity": Metric(_infinity, _INFINITY, backbone="inception", gaussian=True),
    "kd": Metric(lambda e: kernel_distance(e.fake, e.real), "cubic kernel, all pairs, jackknife"),
    "kid": Metric(
        lambda e: kernel_distance(e.fake, e.real),
        "cubic kernel, all pairs, jackknife",
        backbone="inception",
    ),
    "kid_subsets": Metric(
        _subsets, "100 subsets of 1000 (N if fewer), seed 2020", backbone="inception"
    ),
    "is": Metric(
        lambda e: inception_score(e.logits),
        "10 splits, seed 2020, logits without bias",
        better="higher",
        backbone="inception",
        convention=50_000,
    ),
    "class_score": Metric(
        lambda e: inception_score(e.logits),
        "inception score of this backbone's classes, 10 splits, seed 2020",
        better="higher",
    ),
    "precision_recall": Metric(
        lambda e: precision_recall(e.real, e.fake), "k=3, <=", better="higher"
    ),
    "density_coverage": Metric(
        lambda e: density_coverage(e.real, e.fake), "k=5, <", better="higher"
    ),
    "cmmd": Metric(
        lambda e: cmmd(e.real, e.fake), "RBF sigma 10, x1000", backbone="clip", convention=30_000
    ),
    "vendi": Metric(
        lambda e: vendi_score(e.fake), "cosine, order 1; grows with N", better="higher"
    ),
    "vendi_ratio": Metric(_vendi_share, "over the Vendi score of as many reals", better="higher"),
    "mifid": Metric(
        lambda e: mifid(e.fake, e.real), "threshold 0.1", backbone="inception", gaussian=True
    ),
    "mifd": Metric(lambda e: mifid(e.fake, e.real), "threshold 0.1", gaussian=True),
    "authpct": Metric(lambda e: authpct(e.real, e.fake), "against the reference", better="higher"),
    "c_t": Metric(
        lambda e: Estimate(c_t(e.real, e.test, e.fake).statistic, 1.0),
        "1 cell; below -3: copies",
        better="none",
        heldout=True,
    ),
}
