"""DALL-E: sampling, likelihood, completion, guidance and re-ranking of a transformer over codes."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from hfgen.pipelines.codes_pipeline import CodesPipeline, _filtered, _pick, uniform_draws
from tests.text import tiny

KINDS = {
    "text": {"prompt": ["red heart", "green circle"]},
    "class": {"class_labels": [0, 2], "batch_size": 2},
    "nothing": {"batch_size": 2},
}
QUANTIZERS = {
    "vq": {"type": "vq", "num_embeddings": 12, "dim": 4, "kmeans_start": False},
    "fsq": {"type": "fsq", "levels": [3, 4]},
    "gumbel": {"type": "gumbel", "num_embeddings": 12, "dim": 4},
    "residual": {
        "type": "residual",
        "num_quantizers": 2,
        "num_embeddings": 6,
        "dim": 4,
        "kmeans_start": False,
    },
}


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def draw(pipeline: CodesPipeline, **options) -> torch.Tensor:
    options = {"generator": generators(), **options}
    return pipeline(output_type="latent", **options).images


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_is_uncached(kind, quantizer):
    pipeline = tiny.codes_pipeline(kind, QUANTIZERS[quantizer])
    cached = draw(pipeline, **KINDS[kind])
    assert torch.equal(cached, draw(pipeline, use_cache=False, **KINDS[kind]))
    assert len(cached.unique()) > 2, "or the comparison shows nothing"


@pytest.mark.parametrize("options", [{"guidance_scale": 3.0}, {"temperature": 0.7, "top_k": 5}])
def test_cached_is_uncached_with_guidance_and_filters(options):
    pipeline = tiny.codes_pipeline()
    options = {**options, **KINDS["text"]}
    assert torch.equal(draw(pipeline, **options), draw(pipeline, use_cache=False, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_is_the_product_of_the_sampling_probabilities(kind):
    pipeline = tiny.codes_pipeline(kind)
    given = KINDS[kind]
    condition = pipeline._condition(
        pipeline._prompts(given.get("prompt"), 2, 1), given.get("class_labels"), 2
    )
    uniform = uniform_draws(2, pipeline.transformer.length, generators())
    empty = torch.zeros(2, 0, dtype=torch.long)
    drawn, nats = pipeline._draw(condition, None, empty, uniform, (1.0, 1.0, None, 1.0), True)
    named = {k: v for k, v in given.items() if k != "batch_size"}
    exact = pipeline.log_prob(pipeline._map(drawn), **named)
    assert torch.allclose(exact.double(), nats, atol=1e-4)
    assert (nats < -1).all()


def test_probabilities_of_all_images_sum_to_one():
    book = tiny.codes({"type": "vq", "num_embeddings": 2, "dim": 4, "kmeans_start": False})
    model = tiny.spread(tiny.transformer(book))
    every = torch.cartesian_prod(*[torch.arange(2)] * 4)
    with torch.no_grad():  # of the first four codes, whatever follows
        log_p = torch.log_softmax(model(every), -1)[:, :4]
    total = log_p.gather(2, every.unsqueeze(2)).sum((1, 2)).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-5)


def test_bits_per_dim_is_the_likelihood_of_the_images_codes():
    pipeline = tiny.codes_pipeline()
    image = torch.rand(2, 3, 16, 16)
    nats = pipeline.log_prob(pipeline.encode_image(image), prompt=["red face", "red heart"])
    bits = pipeline.bits_per_dim(image, prompt=["red face", "red heart"])
    assert torch.allclose(bits * math.log(2) * 3 * 16 * 16, -nats)


def test_frequencies_follow_the_probabilities():
    pipeline = tiny.codes_pipeline("nothing")
    drawn = pipeline(batch_size=4000, output_type="latent", generator=generators(1)[0]).images
    with torch.no_grad():
        expected = pipeline.transformer.start(1, None)[0].softmax(-1)[0]
    share = torch.bincount(drawn[:, 0, 0, 0], minlength=12) / 4000
    assert (share - expected).abs().max() < 4 * 0.5 / math.sqrt(4000)


def test_guidance_of_one_is_none_and_more_changes_something():
    pipeline = tiny.codes_pipeline()
    plain = draw(pipeline, **KINDS["text"])
    assert torch.equal(plain, draw(pipeline, guidance_scale=1.0, **KINDS["text"]))
    # guidance towards the same text is no guidance, whatever its scale
    same = draw(
        pipeline,
        prompt="red heart",
        guidance_scale=5.0,
        negative_prompt="red heart",
        generator=generators(1),
    )
    assert torch.equal(same, draw(pipeline, prompt="red heart", generator=generators(1)))
    assert not torch.equal(plain, draw(pipeline, guidance_scale=6.0, **KINDS["text"]))


def test_guidance_of_zero_ignores_the_prompt():
    pipeline = tiny.codes_pipeline()
    a = draw(pipeline, prompt="red heart", guidance_scale=0.0, generator=generators(1))
    b = draw(pipeline, prompt="blue circle", guidance_scale=0.0, generator=generators(1))
    assert torch.equal(a, b)


@pytest.mark.parametrize("use_cache", [True, False])
def test_completion_keeps_its_prefix(use_cache):
    pipeline = tiny.codes_pipeline()
    image = torch.rand(1, 3, 16, 16)
    known = pipeline.encode_image(image)
    drawn = draw(pipeline, image=image, keep=0.5, use_cache=use_cache, **KINDS["text"])
    assert torch.equal(drawn[:, :2], known[:, :2].expand(2, -1, -1, -1))
    assert not torch.equal(drawn[0], drawn[1])


def test_a_row_does_not_depend_on_the_others():
    pipeline = tiny.codes_pipeline()
    both = draw(pipeline, **KINDS["text"])
    alone = draw(pipeline, prompt="green circle", generator=[generators()[1]])
    assert torch.equal(both[1:], alone)


def test_several_images_of_each_prompt():
    pipeline = tiny.codes_pipeline()
    options = {"num_images_per_prompt": 2, "generator": generators(4)}
    drawn = draw(pipeline, prompt=["red heart", "green circle"], **options)
    repeated = ["red heart"] * 2 + ["green circle"] * 2
    assert torch.equal(drawn, draw(pipeline, prompt=repeated, generator=generators(4)))


def test_filters_against_their_definition():
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    kept = {
        "none": (_filtered(p.log(), 1.0, None, 1.0), [0.5, 0.3, 0.15, 0.05]),
        "top_k": (_filtered(p.log(), 1.0, 2, 1.0), [0.625, 0.375, 0, 0]),
        "top_p": (_filtered(p.log(), 1.0, None, 0.7), [0.625, 0.375, 0, 0]),
        "one is always left": (_filtered(p.log(), 1.0, None, 0.01), [1, 0, 0, 0]),
        "greedy": (_filtered(p.log(), 0.0, None, 1.0), [1, 0, 0, 0]),
        "temperature": (_filtered(p.log(), 0.5, None, 1.0), (p**2 / (p**2).sum())[0].tolist()),
    }
    for name, (found, expected) in kept.items():
        assert found.exp()[0].tolist() == pytest.approx(expected), name


def test_an_impossible_code_is_never_picked():
    share = torch.tensor([[0.0, 0.4, 0.0, 0.6, 0.0]], dtype=torch.float64).expand(4, -1)
    uniform = torch.tensor([[0.0], [0.399], [0.4], [1 - 1e-12]], dtype=torch.float64)
    assert _pick(share, uniform).flatten().tolist() == [1, 1, 3, 3]


def test_ranking_keeps_the_best_candidate():
    pipeline = tiny.codes_pipeline()

    def brightest(images, prompts):
        assert len(images) == len(prompts) == 2
        return torch.tensor([float(np.asarray(image).mean()) for image in images])

    def mean(images):
        return [float(np.asarray(image).mean()) for image in images]

    options = {**KINDS["text"], "generator": generators()}
    ranked = mean(pipeline(ranker=brightest, num_candidates=5, **options).images)
    noise = uniform_draws(2, 5 * pipeline.transformer.length, generators())
    condition = pipeline._condition(KINDS["text"]["prompt"], None, 2)
    empty = torch.zeros(2, 0, dtype=torch.long)
    every = []
    for part in noise.split(pipeline.transformer.length, 1):
        drawn = pipeline._draw(condition, None, empty, part, (1.0, 1.0, None, 1.0), True)[0]
        pixels = pipeline._decode(drawn).detach().clamp(-1, 1)
        every.append(pixels.mean((1, 2, 3)).tolist())
    best = np.array(every).argmax(0)
    picked = (np.array(every)[best, [0, 1]] + 1) * 127.5
    assert ranked == pytest.approx(picked.tolist(), abs=0.5)


def test_a_dual_encoder_ranks():
    images = tiny.codes_pipeline()(
        "red heart", ranker=tiny.clip_pipeline(), num_candidates=2, generator=generators(1)
    ).images
    assert len(images) == 1 and images[0].size == (16, 16)


BAD = {
    "empty": ({"prompt": ""}, "prompt is empty"),
    "not a text": ({"prompt": [3]}, "3 is a int"),
    "missing": ({}, "must be a text"),
    "over-long": ({"prompt": "red heart " * 9}, "has 20 tokens, the model takes 8"),
    "negative guidance": ({"prompt": "red", "guidance_scale": -1}, "must not be negative"),
    "temperature": ({"prompt": "red", "temperature": -1}, "must not be negative"),
    "top_k": ({"prompt": "red", "top_k": 0}, "at least 1"),
    "top_p": ({"prompt": "red", "top_p": 0.0}, "above 0"),
    "keep": ({"prompt": "red", "image": torch.rand(1, 3, 16, 16), "keep": 1.0}, "below 1"),
    "candidates": ({"prompt": "red", "num_candidates": 3}, "with a ranker"),
    "labels": ({"prompt": "red", "class_labels": 1}, "no classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        tiny.codes_pipeline()(**options)
    assert "\n" not in str(error.value)


def test_a_prompt_for_a_model_without_text():
    with pytest.raises(ValueError, match="the model has no text"):
        tiny.codes_pipeline("class")(prompt="red", class_labels=1)
    with pytest.raises(ValueError, match="guidance_scale=2.0: this model has no text"):
        tiny.codes_pipeline("nothing")(guidance_scale=2.0)


def test_codes_of_another_vocabulary():
    pipeline = tiny.codes_pipeline()
    other = tiny.codes({"type": "vq", "num_embeddings": 7, "dim": 4, "kmeans_start": False})
    with pytest.raises(ValueError, match="another vocabulary or size: \\(7, 4, 1\\)"):
        CodesPipeline(other, pipeline.transformer, pipeline.tokenizer)


def test_a_tokenizer_that_does_not_belong():
    pipeline = tiny.codes_pipeline()
    with pytest.raises(ValueError, match="do not belong to the transformer"):
        CodesPipeline(pipeline.codes, pipeline.transformer, tiny.bytes_pairs())
    with pytest.raises(ValueError, match="tokenizer: missing"):
        CodesPipeline(pipeline.codes, pipeline.transformer)


def test_it_loads_without_hfgen(tmp_path):
    pipeline = tiny.codes_pipeline()
    pipeline.save_pretrained(tmp_path / "pipe")
    images = pipeline(generator=generators(), output_type="np", **KINDS["text"]).images
    np.save(tmp_path / "expected.npy", images)
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["hfgen"] = None
import numpy as np, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "pipe")!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
gens = [torch.Generator().manual_seed(i) for i in range(2)]
images = pipe(["red heart", "green circle"], generator=gens, output_type="np").images
assert np.array_equal(images, np.load({str(tmp_path / "expected.npy")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
