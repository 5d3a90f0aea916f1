"""evaluate(): one set of numbers for any batch size, number of processes and interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from hfgen.data import TensorSource
from hfgen.errors import HfgenError
from hfgen.evaluation import Results, compare, evaluate, small_protocol
from hfgen.evaluation.backbones import CallableBackbone
from hfgen.evaluation.baselines import PixelGaussian, RepeatedImages
from hfgen.evaluation.features import extract, open_store
from hfgen.evaluation.images import FolderImages, Images, PipelineImages, SourceImages
from hfgen.evaluation.protocol import digest
from hfgen.evaluation.store import FeatureStore
from hfgen.models.gan_dcgan import DCGANGenerator
from hfgen.models.vae_mlp import MLPVAE
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline
from hfgen.pipelines.gan_pipeline import GANPipeline
from hfgen.pipelines.vae_pipeline import VAEPipeline
from tests.tiny_unet import tiny_unet

SIDE = 16
PROJECTION = torch.randn(3 * SIDE * SIDE, 12, generator=torch.Generator().manual_seed(0)) / 100


def project(images: Tensor) -> Tensor:
    return torch.tanh(images.float().flatten(1) @ PROJECTION / 255)


def backbone() -> CallableBackbone:
    return CallableBackbone(project, "projection", revision="test-1")


def source(n: int = 200, seed: int = 0, **options) -> TensorSource:
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 1, 4, 4, generator=draw)
    images = torch.nn.functional.interpolate(low, size=SIDE, mode="bilinear")
    labels = torch.randint(0, 3, (n,), generator=draw)
    return TensorSource((images * 255).to(torch.uint8), labels, name="blobs", **options)


def vae_pipeline() -> VAEPipeline:
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=SIDE, hidden_size=16, latent_dim=3)
    return VAEPipeline(vae, likelihood={"type": "bernoulli"})


ALL_FREE = (
    "fd", "kd", "precision_recall", "density_coverage", "vendi", "vendi_ratio", "authpct", "mifd",
    "fd_infinity",
)  # fmt: skip


@pytest.fixture
def options(tmp_path) -> dict:
    return {"backbone": backbone(), "cache_dir": str(tmp_path / "cache"), "progress": False}


def test_a_model_from_end_to_end(tmp_path, options):
    metrics = (*ALL_FREE, "rfd", "c_t", "likelihood", "reconstruction", "representation")
    results = evaluate(
        vae_pipeline(),
        data=source(),
        heldout=source(80, 1, split="validation"),
        metrics=metrics,
        num_images=150,
        output=tmp_path / "out",
        **options,
    )
    assert {"fd", "kd", "recall", "coverage", "rfd", "iw_nats", "psnr", "knn_accuracy"} <= set(
        results.values()
    )
    assert all(np.isfinite(list(results.values().values())))
    assert results["fd"].standard_error > 0 and results["kd"].standard_error > 0
    assert results["fd"].value > 10 * results["rfd"].value > 0 or results["rfd"].value > 0
    protocol = results.protocols[results["fd"].protocol]
    assert protocol["reference"]["fingerprint"] == source().spec.fingerprint
    assert protocol["backbone"]["revision"] == "test-1"
    assert results.protocols[results["rfd"].protocol] != protocol
    assert Results.load(tmp_path / "out" / "metrics.json") == results
    assert not (tmp_path / "out" / "features").exists()
    with Image.open(tmp_path / "out" / "neighbours.png") as picture:
        assert picture.mode == "L"
    for score in results.scores:
        assert score.name in results.table()


def test_grey_pixels_likelihood_is_named_in_the_results(options):
    found = evaluate(vae_pipeline(), data=source(64), metrics=("likelihood",), **options)
    assert "not a density" in found["elbo_nats"].settings
    assert "elbo_bits_per_dim" not in found.values()


def moments(images: Images, folder: Path):
    store = open_store(folder, images, backbone())
    extract(images, {"b": backbone()}, {"b": store}, progress=False)
    return store.moments()


def test_batch_size_and_order_do_not_change_moments(tmp_path):
    """The same samples drawn 7 and 64 at a time, and blocks done in another order."""
    pipe = vae_pipeline()
    found = []
    for size in (7, 64):
        images = PipelineImages(pipe, 150, seed=3, batch_size=size)
        found.append(moments(images, tmp_path / str(size)))
    images = PipelineImages(pipe, 150, seed=3, batch_size=64)
    store = open_store(tmp_path / "backwards", images, backbone())
    for block in (2, 0, 1):
        rows = np.asarray(store.rows(block))
        store.write(rows[::-1], {"features": project_rows(images, rows[::-1])})
    found.append(store.moments())
    for other in found[1:]:
        assert other.count == 150
        assert np.abs(other.mean - found[0].mean).max() <= 1e-9
        assert np.abs(other.covariance - found[0].covariance).max() <= 1e-9


def project_rows(images: Images, rows: np.ndarray) -> np.ndarray:
    pixels = images.uint8(rows.tolist())
    order = np.argsort(rows)
    features = backbone().extract(pixels[torch.from_numpy(order)])["features"].numpy()
    return features[np.argsort(order)]


def test_a_killed_evaluation_continues(tmp_path, options, monkeypatch):
    whole = evaluate(vae_pipeline(), data=source(), num_images=200, **options)
    drawn = []
    draw = PipelineImages.uint8

    def interrupted(self, indices):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(list(indices))
        return draw(self, indices)

    again = {**options, "num_images": 200, "output": tmp_path / "out"}
    monkeypatch.setattr(PipelineImages, "uint8", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(vae_pipeline(), data=source(), **again)
    rest = []
    monkeypatch.setattr(
        PipelineImages, "uint8", lambda self, i: rest.append(list(i)) or draw(self, i)
    )
    results = evaluate(vae_pipeline(), data=source(), **again)
    assert [i[0] for i in rest] == [128, 192]
    assert results.values() == whole.values()


def test_two_processes_give_the_same_numbers(tmp_path, options):
    """150 images are three blocks: one process gets padding in the last round."""
    script = Path(__file__).with_name("two_processes.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, str(script), str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    environment = {  # one thread: two processes share the cores
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "seen.json").read_text())
    assert [f["processes"] for f in found] == [2]
    alone = evaluate(vae_pipeline(), data=source(), num_images=150, metrics=ALL_FREE, **options)
    assert found[0]["values"] == pytest.approx(alone.values(), rel=1e-9, abs=1e-12)


def test_features_of_another_protocol_are_refused(tmp_path):
    images = SourceImages(source())
    store = open_store(tmp_path, images, backbone())
    with pytest.raises(HfgenError, match=r"made under another protocol \(backbone differ\)"):
        FeatureStore(store.folder, {**store._key, "backbone": "another"}, images.count)
    other = open_store(tmp_path, SourceImages(source(seed=5)), backbone())
    assert other.folder != store.folder


def test_reference_statistics_are_measured_once(options, monkeypatch):
    seen = []
    uint8 = SourceImages.uint8
    monkeypatch.setattr(
        SourceImages, "uint8", lambda self, i: seen.append(len(i)) or uint8(self, i)
    )
    first = evaluate(vae_pipeline(), data=source(), num_images=64, **options)
    count = sum(seen)
    second = evaluate(vae_pipeline(), data=source(), num_images=64, **options)
    assert count == 200 and sum(seen) == count
    assert first.values() == second.values()


def test_any_field_changes_the_digest():
    base = {"a": 1, "b": {"c": [1, 2]}}
    others = [{"a": 2, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [2, 1]}}, {"a": 1}]
    assert len({digest(v) for v in (base, *others)}) == 4


def save(folder: Path, images: Tensor) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:03d}.png")
    return folder


def test_folder_against_folder(tmp_path, options):
    pixels = source(60).uint8(range(60))
    one = save(tmp_path / "one", pixels[:30])
    same = save(tmp_path / "same", pixels[:30])
    two = save(tmp_path / "two", pixels[30:])
    equal = evaluate(images=one, reference=same, metrics=("fd", "precision_recall"), **options)
    other = evaluate(images=two, reference=one, metrics=("fd", "precision_recall"), **options)
    assert abs(equal["fd"].value) < 1e-9 < other["fd"].value
    assert equal["precision"].value == equal["recall"].value == 1


def test_baselines_are_what_they_say(options):
    data = source(300)
    gauss = PixelGaussian(data, 200)
    assert gauss.uint8([5, 3])[1].equal(gauss.uint8([3])[0])
    drawn = gauss.uint8(range(200)).float()
    real = data.uint8(range(300)).float()
    assert (drawn.mean(0) - real.mean(0)).abs().mean() < 6
    repeated = RepeatedImages(data, 200, distinct=4)
    assert len(repeated.uint8(range(200)).flatten(1).unique(dim=0)) == 4
    metrics = ("fd", "precision_recall", "vendi_ratio")
    gauss_scores, copies, real_scores = (
        evaluate(images=i, data=data, metrics=metrics, **options)
        for i in (gauss, repeated, SourceImages(data))
    )
    assert copies["precision"].value == 1 and copies["recall"].value < 0.2
    assert real_scores["fd"].value < min(gauss_scores["fd"].value, copies["fd"].value)


def test_conditional_pipelines_get_labels_from_the_data(options):
    generator = DCGANGenerator(
        sample_size=SIDE, channels=4, latent_dim=4, out_channels=1, num_class_embeds=3
    ).eval()
    images = PipelineImages(GANPipeline(generator), 40, conditions=source())
    assert images.protocol.labels == "class_labels of blobs"
    alone = images.uint8([17])
    assert (images.uint8(range(15, 20))[2].int() - alone[0].int()).abs().max() <= 1
    with pytest.raises(HfgenError, match="GANPipeline needs class_labels: name a data set"):
        PipelineImages(GANPipeline(generator), 40)


def test_class_accuracy_knows_the_labels_that_samples_were_drawn_with(options):
    data = source()
    rooms = {"metrics": ("class_accuracy",), "num_images": 90, "seed": 3, **options}
    vae = MLPVAE(sample_size=SIDE)
    for pipeline, low, high in ((Shades, 0.95, 1), (Shifted, 0, 0.05)):
        score = evaluate(pipeline(vae), data=shades(), **rooms)["class_accuracy"]
        assert low <= score.value <= high and score.standard_error < 0.03
    with pytest.raises(HfgenError, match="VAEPipeline draws no images of a given class"):
        evaluate(vae_pipeline(), data=data, **rooms)
    unlabelled = TensorSource(shades().uint8(range(90)), name="plain")
    with pytest.raises(HfgenError, match="needs a reference with class labels"):
        evaluate(Shades(vae), data=unlabelled, **rooms)


class Shades(VAEPipeline):
    """Noise around a grey that says the class, ``shift`` classes off."""

    num_classes, shift = 3, 0

    def __call__(self, class_labels, generator, batch_size=1, output_type="np"):
        draws = [torch.rand(SIDE, SIDE, 1, generator=one).numpy() for one in generator]
        greys = [
            ((c + self.shift) % 3 + draw) / 3 for c, draw in zip(class_labels, draws, strict=True)
        ]
        return type("Output", (), {"images": np.stack(greys)})()


class Shifted(Shades):
    """Draws the next class to the one that is asked for."""

    shift = 1


def shades() -> TensorSource:
    """What ``Shades`` draws without a shift."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (200,), generator=draw)
    images = (labels.view(-1, 1, 1, 1) + torch.rand(200, 1, SIDE, SIDE, generator=draw)) / 3
    return TensorSource((images * 255).to(torch.uint8), labels, name="shades")


def test_small_protocol_for_training(options):
    measure = small_protocol(
        source(), num_images=64, backbone=backbone(), cache_dir=options["cache_dir"]
    )
    first = measure(vae_pipeline())
    assert set(first) == {"fd", "precision", "recall"}
    assert first == measure(vae_pipeline())


def test_likelihood_of_a_gan_says_it_has_none(options):
    generator = DCGANGenerator(sample_size=SIDE, channels=4, latent_dim=4, out_channels=1)
    with pytest.raises(HfgenError, match="a GAN has no likelihood"):
        evaluate(GANPipeline(generator), data=source(), metrics=("likelihood",), **options)


def test_warnings_beside_the_numbers(tmp_path):
    wide = CallableBackbone(lambda x: x.float().flatten(1)[:, :300] / 255, "wide", revision="1")
    found = evaluate(
        vae_pipeline(),
        data=source(),
        num_images=64,
        backbone=wide,
        metrics=("fd",),
        cache_dir=str(tmp_path),
        progress=False,
    )
    assert "fewer images (64) than features (300)" in found.warnings[0]
    assert found.warnings[0] in found.table()


class Silent(VAEPipeline):
    """Returns no images."""

    def __call__(self, batch_size=1, generator=None, output_type="pil"):
        return type("Output", (), {"images": []})()


class Broken(VAEPipeline):
    """Returns NaN."""

    def __call__(self, batch_size=1, generator=None, output_type="pil"):
        return type("Output", (), {"images": np.full((batch_size, SIDE, SIDE, 1), np.nan)})()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "give either a model or images"),
        ({"model": "x", "images": "y"}, "give either a model or images"),
        ({"model": vae_pipeline()}, "which images to compare with"),
        ({"model": vae_pipeline(), "data": source(), "reference": "x"}, "not both"),
        ({"model": vae_pipeline(), "data": source(), "metrics": ("fdd",)}, "did you mean 'fd'"),
        ({"model": vae_pipeline(), "data": source(), "metrics": ()}, "metrics: none given"),
        ({"model": vae_pipeline(), "data": source(), "num_images": 1}, "num_images: 1"),
        ({"model": vae_pipeline(), "data": source(), "batch_size": 0}, "batch_size: 0"),
        (
            {"model": vae_pipeline(), "data": source(), "reference_split": "tset"},
            "mean 'test'|tset",
        ),
        ({"model": vae_pipeline(), "data": source(), "reference_images": 999}, "which has 200"),
        (
            {"model": vae_pipeline(), "data": source(), "call": {"num_inference_steps": 5}},
            "num_inference_steps: VAEPipeline takes no such argument; it takes batch_size",
        ),
        ({"model": Silent(MLPVAE(sample_size=SIDE)), "data": source()}, "returned no images"),
        ({"model": Broken(MLPVAE(sample_size=SIDE)), "data": source()}, "hold NaN or infinity"),
        ({"model": 3, "data": source()}, "int: not a DiffusionPipeline"),
        ({"images": "/nowhere", "data": source()}, "/nowhere: no such folder of images"),
    ],
)
def test_bad_input(arguments, says, options):
    with pytest.raises(HfgenError, match=says):
        evaluate(**{"num_images": 64, **options, **arguments})


@pytest.mark.parametrize(
    ("metric", "pipeline", "reference", "says"),
    [
        ("rfd", "denoiser", None, "DenoisingPipeline: no vae to reconstruct images with"),
        ("rfd", "vae", "folder", "this needs a data set, not a folder as reference"),
        ("c_t", "vae", "folder", "this needs a data set, not a folder as reference"),
    ],
)
def test_what_is_missing_is_said_before_samples_are_drawn(
    metric, pipeline, reference, says, tmp_path, options, monkeypatch
):
    monkeypatch.setattr(PipelineImages, "uint8", lambda *_: pytest.fail("drew samples"))
    made = {
        "vae": vae_pipeline,
        "denoiser": lambda: DenoisingPipeline(tiny_unet(), DDPMScheduler()),
    }
    if reference:
        against = {"reference": save(tmp_path / reference, source(4).uint8(range(4)))}
    else:
        against = {"data": source()}
    with pytest.raises(HfgenError, match=says):
        evaluate(made[pipeline](), metrics=(metric,), **against, **options)


def test_bad_folders(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(HfgenError, match="0 images"):
        FolderImages(empty)
    mixed = save(tmp_path / "mixed", source(4).uint8(range(4)))
    Image.new("RGB", (5, 7)).save(mixed / "zz.png")
    with pytest.raises(HfgenError, match="zz.png: images of several sizes .16x16 and 5x7"):
        FolderImages(mixed).uint8(range(5))
    (mixed / "000.png").write_bytes(b"no picture")
    with pytest.raises(HfgenError, match="000.png: cannot be read as an image"):
        FolderImages(mixed)


def test_report_of_two_runs(tmp_path, options):
    for name, seed in (("first", 0), ("second", 1)):
        evaluate(
            vae_pipeline(),
            data=source(),
            num_images=64,
            seed=seed,
            metrics=("fd", "precision_recall"),
            output=tmp_path / name / "evaluation",
            **options,
        )
    lines = [{"step": s, "images_seen": 10 * s, "loss": 1 / s} for s in range(1, 4)]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 4, "images_se'
    (tmp_path / "first" / "metrics.jsonl").write_text(text)
    page = compare([tmp_path / "first", tmp_path / "second"], tmp_path / "report")
    html = page.read_text()
    assert "http://" not in html and "https://" not in html and "<script" not in html
    assert html.count("data:image/png;base64,") == 3 + 2 * 2
    results = Results.load(tmp_path / "first" / "evaluation" / "metrics.json")
    assert f"{results['fd'].value:.5g} ±" in html
    assert results["fd"].protocol in html
    assert {p.name for p in page.parent.glob("*.png")} == {
        "scores.png", "precision_recall.png", "training.png",
    }  # fmt: skip
    with pytest.raises(HfgenError, match="run hfgen evaluate first"):
        compare([tmp_path / "absent"], tmp_path / "report")
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "metrics.json").write_text("{}")
    with pytest.raises(HfgenError, match="not the results of an evaluation"):
        compare([tmp_path / "absent"], tmp_path / "report")


def test_report_says_when_protocols_differ(tmp_path, options):
    for name, data in (("a", source()), ("b", source(seed=9))):
        evaluate(
            vae_pipeline(), data=data, num_images=64, metrics=("fd",),
            output=tmp_path / name, **options,
        )  # fmt: skip
    page = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "report")
    assert "Not one protocol: reference differs between a | b" in page.read_text()
