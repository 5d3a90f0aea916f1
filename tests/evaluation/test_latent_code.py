"""Codes learned without labels, beside classes: tables with known answers, a known generator."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hfgen.data import TensorSource
from hfgen.errors import HfgenError
from hfgen.evaluation import evaluate
from hfgen.evaluation.metrics import code_accuracy
from hfgen.models.gan_dcgan import DCGANGenerator
from hfgen.models.layers.gan import code_latents
from hfgen.pipelines.gan_pipeline import GANPipeline

CLASSES = 3


@pytest.mark.parametrize(
    ("codes", "classes", "accuracy", "purity"),
    [
        ([2, 2, 0, 1], [5, 5, 7, 9], 1, 1),  # names do not matter
        ([0, 1, 2, 3], [4, 4, 4, 5], 0.5, 1),  # several codes for one class
        ([0, 0, 0, 0], [1, 1, 2, 3], 0.5, 0.5),  # one code for all
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.5, 0.5),  # nothing
    ],
)
def test_known_tables(codes, classes, accuracy, purity):
    found = code_accuracy(np.array(codes), np.array(classes))
    assert (found.accuracy, found.purity) == (accuracy, purity)


class Grey(DCGANGenerator):
    """Images of one grey for each code; or, told so, of a grey that the code does not decide."""

    knows = True

    def forward(self, z, class_labels=None):
        code = code_latents(z, CLASSES)[:, :CLASSES].argmax(1) if self.knows else (z[:, 3] > 0) * 1
        return SimpleNamespace(sample=(code / 2 - 0.5)[:, None, None, None].expand(-1, 1, 8, 8))


def real() -> TensorSource:
    labels = torch.arange(60) % CLASSES
    shades = (255 * (labels + 1) / 4).round().to(torch.uint8)
    return TensorSource(shades[:, None, None, None].expand(-1, 1, 8, 8).clone(), labels=labels)


def measured(**config) -> dict[str, float]:
    generator = Grey(8, 1, latent_dim=5, channels=8, **config)
    generator.knows = config.get("categorical_codes") == CLASSES and Grey.knows
    pipeline = GANPipeline(generator)
    pipeline.set_progress_bar_config(disable=True)
    results = evaluate(pipeline, data=real(), metrics=("latent_code",), progress=False)
    return {score.name: score.value for score in results.scores}


def test_a_code_that_decides_and_one_that_does_not(monkeypatch):
    assert measured(categorical_codes=CLASSES) == {"code_accuracy": 1, "code_purity": 1}
    monkeypatch.setattr(Grey, "knows", False)
    broken = measured(categorical_codes=CLASSES)
    assert broken["code_accuracy"] < 0.4 and broken["code_purity"] < 0.6


def test_a_generator_without_a_code_is_told_so():
    with pytest.raises(HfgenError, match="latent_code: needs a generator with categorical_codes"):
        measured()
