"""Metrics as pure functions: features [N, D] in (numpy or torch), numbers out, float64 inside."""

from hfgen.evaluation.metrics.active_units import active_units
from hfgen.evaluation.metrics.authpct import authpct
from hfgen.evaluation.metrics.c_t import CopyTest, c_t
from hfgen.evaluation.metrics.class_accuracy import class_accuracy
from hfgen.evaluation.metrics.cmmd import cmmd
from hfgen.evaluation.metrics.code_accuracy import CodeAccuracy, code_accuracy
from hfgen.evaluation.metrics.dci import DCI, dci
from hfgen.evaluation.metrics.factor_vae_score import factor_vae_score
from hfgen.evaluation.metrics.fid_infinity import frechet_distance_infinity
from hfgen.evaluation.metrics.frechet_distance import (
    frechet_distance,
    frechet_distance_with_error,
)
from hfgen.evaluation.metrics.inception_score import inception_score
from hfgen.evaluation.metrics.kernel_distance import kernel_distance, kernel_distance_subsets
from hfgen.evaluation.metrics.knn_accuracy import knn_accuracy, knn_classes
from hfgen.evaluation.metrics.linear_probe import linear_probe
from hfgen.evaluation.metrics.lpips import LPIPS, load_lpips
from hfgen.evaluation.metrics.mifid import memorisation_distance, mifid
from hfgen.evaluation.metrics.mig import mig
from hfgen.evaluation.metrics.neighbours import Neighbours, nearest, nearest_others
from hfgen.evaluation.metrics.precision_recall import (
    PRDC,
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    prdc,
    precision_recall,
)
from hfgen.evaluation.metrics.reconstruction import psnr, ssim
from hfgen.evaluation.metrics.sap import sap
from hfgen.evaluation.metrics.vendi_score import vendi_score

__all__ = [
    "DCI",
    "LPIPS",
    "PRDC",
    "CodeAccuracy",
    "CopyTest",
    "DensityCoverage",
    "Neighbours",
    "PrecisionRecall",
    "active_units",
    "authpct",
    "c_t",
    "class_accuracy",
    "cmmd",
    "code_accuracy",
    "dci",
    "density_coverage",
    "factor_vae_score",
    "frechet_distance",
    "frechet_distance_infinity",
    "frechet_distance_with_error",
    "inception_score",
    "kernel_distance",
    "kernel_distance_subsets",
    "knn_accuracy",
    "knn_classes",
    "linear_probe",
    "load_lpips",
    "memorisation_distance",
    "mifid",
    "mig",
    "nearest",
    "nearest_others",
    "prdc",
    "precision_recall",
    "psnr",
    "sap",
    "ssim",
    "vendi_score",
]
