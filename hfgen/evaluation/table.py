"""The metrics by name: one line each. A line says what is computed, on which backbone and
output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Estimate
from hfgen.evaluation.metrics.authpct import authpct
from hfgen.evaluation.metrics.c_t import c_t
from hfgen.evaluation.metrics.class_accuracy import class_accuracy
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
    """What a metric may look at: features of one backbone, read when asked for.

    Attributes:
        asked, classes: the class [N] that each sample was asked for, and that of each reference
            image; None where there are none.
    """

    samples: FeatureStore
    reference: FeatureStore
    heldout: FeatureStore | None = None
    asked: np.ndarray | None = None
    classes: np.ndarray | None = None

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
        function: the pure function of features that it calls.
        settings: its constants, in words.
        better: direction, or by field where there are several.
        backbone: the one its definition fixes; None for the user's choice.
        convention: number of samples that published values use.
        gaussian: whether it fits covariances, so that N < D deserves a warning.
        heldout: whether it needs a second real set.
        reconstructions: whether it measures reconstructions of held-out images against these,
            instead of samples against the reference.
        labelled: whether it needs samples of given classes and a labelled reference.
        fields: names of its scores, where they are several.
    """

    compute: Callable[[Evidence], Any]
    function: Callable[..., Any]
    settings: str = ""
    better: str = "lower"
    backbone: str | None = None
    convention: int | None = None
    gaussian: bool = False
    heldout: bool = False
    reconstructions: bool = False
    labelled: bool = False
    fields: tuple[str, ...] = ()

    def scores(self, name: str) -> tuple[str, ...]:
        """Names of the scores it gives under the name ``name``."""
        return self.fields or (name,)

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


def _class_accuracy(e: Evidence) -> Estimate:
    assert e.classes is not None and e.asked is not None  # ``labelled``
    return class_accuracy(e.real, e.classes, e.fake, e.asked)


def _vendi_share(e: Evidence) -> float:
    count = min(len(e.fake), len(e.real))
    rows = np.linspace(0, len(e.real) - 1, count).astype(int)
    return vendi_score(e.fake[:count]) / vendi_score(e.real[rows])


_FRECHET = Metric(
    _frechet,
    frechet_distance_with_error,
    "analytic SE of the samples, reference fixed",
    gaussian=True,
)
_INFINITY = Metric(
    _infinity,
    frechet_distance_infinity,
    "15 sizes from 5000 (N/2 if fewer) on 1/N",
    gaussian=True,
)
_KERNEL = Metric(
    lambda e: kernel_distance(e.fake, e.real), kernel_distance, "cubic kernel, all pairs, jackknife"
)
_SUBSETS = Metric(_subsets, kernel_distance_subsets, "100 subsets of 1000 (N if fewer), seed 2020")
_CLASSES = Metric(
    lambda e: inception_score(e.logits),
    inception_score,
    "10 splits, seed 2020, logits without bias",
    better="higher",
)
_MEMORISATION = Metric(lambda e: mifid(e.fake, e.real), mifid, "threshold 0.1", gaussian=True)

METRICS: dict[str, Metric] = {
    "fd": _FRECHET,
    "fid": replace(_FRECHET, backbone="inception", convention=50_000),
    "fd_dinov2": replace(_FRECHET, backbone="dinov2", convention=50_000),
    "sfid": replace(
        _FRECHET,
        compute=_spatial,
        settings=f"mixed_6/conv, {_FRECHET.settings}",
        backbone="inception",
        convention=50_000,
    ),
    "rfd": replace(_FRECHET, heldout=True, reconstructions=True),
    "rfid": replace(_FRECHET, heldout=True, reconstructions=True, backbone="inception"),
    "fd_infinity": _INFINITY,
    "fid_infinity": replace(_INFINITY, backbone="inception"),
    "kd": _KERNEL,
    "kid": replace(_KERNEL, backbone="inception"),
    "kd_subsets": _SUBSETS,
    "kid_subsets": replace(_SUBSETS, backbone="inception"),
    "is": replace(_CLASSES, backbone="inception", convention=50_000),
    "class_score": replace(
        _CLASSES, settings="inception score of this backbone's classes, 10 splits, seed 2020"
    ),
    "class_accuracy": Metric(
        _class_accuracy,
        class_accuracy,
        "linear probe of the reference, l2 10",
        better="higher",
        labelled=True,
    ),
    "precision_recall": Metric(
        lambda e: precision_recall(e.real, e.fake),
        precision_recall,
        "k=3, <=",
        better="higher",
        fields=("precision", "recall"),
    ),
    "density_coverage": Metric(
        lambda e: density_coverage(e.real, e.fake),
        density_coverage,
        "k=5, <",
        better="higher",
        fields=("density", "coverage"),
    ),
    "cmmd": Metric(
        lambda e: cmmd(e.real, e.fake),
        cmmd,
        "RBF sigma 10, x1000",
        backbone="clip",
        convention=30_000,
    ),
    "vendi": Metric(
        lambda e: vendi_score(e.fake), vendi_score, "cosine, order 1; grows with N", better="higher"
    ),
    "vendi_ratio": Metric(
        _vendi_share, vendi_score, "over the Vendi score of as many reals", better="higher"
    ),
    "mifid": replace(_MEMORISATION, backbone="inception"),
    "mifd": _MEMORISATION,
    "authpct": Metric(
        lambda e: authpct(e.real, e.fake), authpct, "against the reference", better="higher"
    ),
    "c_t": Metric(
        lambda e: Estimate(c_t(e.real, e.test, e.fake).statistic, 1.0),
        c_t,
        "1 cell; below -3: copies",
        better="none",
        heldout=True,
    ),
}
"""Those that fix no backbone are measured on the user's choice."""
