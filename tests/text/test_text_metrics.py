"""CLIP score, R-precision, retrieval: against cases whose answer is known."""

from __future__ import annotations

import pytest
import torch

from hfgen.data import TensorSource
from hfgen.errors import HfgenError
from hfgen.evaluation import evaluate
from hfgen.evaluation.text_metrics import clip_score, r_precision, retrieval
from tests.text import tiny


def unit(n: int, d: int = 8) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows, dim=1)


def test_clip_score_is_a_hundred_cosines_and_never_negative():
    x = unit(4)
    assert torch.allclose(clip_score(x, x), torch.full((4,), 100.0))
    assert (clip_score(x, -x) == 0).all()


def test_clip_score_against_torchmetrics_definition():
    x, y = unit(6), unit(12)[6:]
    cosine = torch.nn.functional.cosine_similarity(x, y)
    assert torch.allclose(clip_score(x, y), 100 * cosine.clamp(min=0))


def test_r_precision_of_a_perfect_and_of_a_blind_encoder():
    captions = [str(i) for i in range(150)]
    eye = torch.eye(150)
    assert r_precision(eye, eye, captions).mean() == 1
    blind = r_precision(
        unit(150),
        torch.nn.functional.normalize(
            torch.randn(150, 8, generator=torch.Generator().manual_seed(9)), dim=1
        ),
        captions,
    )
    assert float(blind.mean()) < 0.06, "one in a hundred by chance"


def test_equal_captions_are_no_distractors():
    captions = ["a", "a", "b"]
    texts = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    images = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert r_precision(images, texts, captions).tolist() == [1, 1, 1]
    assert [part.tolist() for part in retrieval(images, texts, captions)] == [[1, 1, 1]] * 2


def test_retrieval_sees_which_way_fails():
    images = torch.tensor([[1.0, 0], [0.8, 0.6]])
    texts = torch.tensor([[0.9, 0.436], [0.9, 0.436]])
    to_image, to_text = retrieval(images, texts, ["a", "b"])
    assert to_image.tolist() == [0, 1] and to_text.tolist() == [1, 0]


@pytest.fixture(scope="module")
def held_out() -> TensorSource:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TensorSource(images, captions=tiny.CAPTIONS, name="pairs")


def test_a_pipeline_is_scored_by_a_saved_dual_encoder(held_out, tmp_path):
    tiny.clip_pipeline().save_pretrained(tmp_path / "clip")
    results = evaluate(
        tiny.codes_pipeline(),
        data=held_out,
        metrics=("text", "codes"),
        progress=False,
        weights={"clip": tmp_path / "clip"},
    )
    found = {score.name: score.value for score in results.scores}
    assert set(found) == {
        "clip_score",
        "r_precision",
        "real_clip_score",
        "real_r_precision",
        "code_bits_per_dim",
        "bits_per_code",
    }
    pipeline = tiny.codes_pipeline()
    images = (held_out.batch(range(6))["images"] + 1) / 2
    bits = pipeline.bits_per_dim(images, prompt=tiny.CAPTIONS).mean()
    assert found["code_bits_per_dim"] == pytest.approx(float(bits), rel=1e-4)
    assert found["bits_per_code"] * 16 == pytest.approx(float(bits) * 3 * 256, rel=1e-4)


def test_the_dual_encoder_itself(held_out):
    results = evaluate(tiny.clip_pipeline(), data=held_out, metrics=("retrieval",), progress=False)
    assert {score.name for score in results.scores} == {
        "text_to_image_top1",
        "image_to_text_top1",
        "r_precision",
    }


@pytest.mark.parametrize(
    ("metric", "pipeline", "message"),
    [
        ("text", tiny.codes_pipeline, "give --weights clip="),
        ("text", lambda: tiny.codes_pipeline("nothing"), "draws from texts"),
        ("retrieval", tiny.codes_pipeline, "needs a dual encoder"),
        ("codes", tiny.clip_pipeline, "transformer over codes"),
    ],
)
def test_what_a_metric_needs(held_out, metric, pipeline, message):
    with pytest.raises(HfgenError, match=message):
        evaluate(pipeline(), data=held_out, metrics=(metric,), progress=False)
