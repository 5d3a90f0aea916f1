"""Features of a denoiser: the named layer's, of the noisy image that its path makes."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, EDMEulerScheduler
from torch import nn

from hfgen.data import TensorSource
from hfgen.errors import HfgenError
from hfgen.evaluation import evaluate
from hfgen.evaluation.denoiser_features import denoiser_features
from hfgen.hidden import layer_outputs, middle_layer
from hfgen.models.transformer_pixel import PixelTransformer
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline
from hfgen.rng import Rng
from tests.tiny_unet import tiny_unet as unet


def transformer(**options) -> PixelTransformer:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "hidden_dim": 32}
    return PixelTransformer(**sizes, num_layers=4, **options).eval()


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("scheduler", "scale"), [("edm", 1.04**-0.5), ("ddpm", 1.04**-0.5)])
def test_it_is_the_layers_output_for_the_noisy_image(scheduler, scale):
    """At sigma / alpha = 0.2, EDM sees (x + 0.2 n) / sqrt(0.2^2 + 1) with sigma_data 1; so does,
    by its own definition, a chain.
    """
    build = {"edm": EDMEulerScheduler(sigma_data=1.0), "ddpm": DDPMScheduler()}
    pipeline = DenoisingPipeline(transformer(), build[scheduler])
    found = denoiser_features(pipeline, images(), "tokens_in", noise=0.2)
    x_t = scale * (images() + 0.2 * Rng(0).randn("noise", images().shape))
    network = pipeline.unet
    patches = network.patches_in(x_t).flatten(2).transpose(1, 2)
    expected = network.tokens_in(patches).mean(1)
    # a chain has the step that is nearest to a ratio of 0.2
    torch.testing.assert_close(found, expected, atol=2e-3 if scheduler == "ddpm" else 1e-6, rtol=0)


@pytest.mark.parametrize(("network", "width"), [(unet(), 16), (transformer(), 32)])
def test_batches_change_nothing_and_the_middle_is_found(network, width):
    pipeline = DenoisingPipeline(network, DDPMScheduler())
    whole = denoiser_features(pipeline, images(20))
    parts = [denoiser_features(pipeline, images(20)[i : i + 16], start=i) for i in (0, 16)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert whole.shape == (20, width)
    assert middle_layer(network) in ("mid_block", "blocks.2")


def test_a_layer_with_several_outputs_gives_its_first():
    network = unet()
    with layer_outputs(network, "down_blocks.0") as found:
        network(images(), 3)
    assert found[0].shape == (6, 8, 4, 4)
    network(images(), 3)
    assert len(found) == 1, "nothing is kept afterwards"


def labelled(count: int = 200) -> TensorSource:
    """Class 1 is brighter."""
    labels = torch.arange(count) % 2
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels[labels == 1] += 60
    return TensorSource(pixels.to(torch.uint8), labels, class_names=("dark", "bright"))


@pytest.mark.parametrize("network", [unet(num_class_embeds=3), transformer(num_class_embeds=3)])
def test_probes_read_the_classes_off_a_layer(network):
    pipeline = DenoisingPipeline(network, DDPMScheduler(), label_dropout=0.1)
    options = {"data": labelled(), "heldout": labelled(), "metrics": ("representation",)}
    results = evaluate(pipeline, **options, feature_noise=0.5, progress=False)
    assert results["linear_probe"].value > 0.85
    assert "sigma/alpha 0.5" in results["linear_probe"].settings
    layer = next(
        name for name in ("conv_in", "tokens_in") if name in dict(network.named_children())
    )
    other = evaluate(pipeline, **options, feature_layer=layer, progress=False)
    assert layer in other["linear_probe"].settings


def test_an_autoencoders_metric_says_that_there_is_none():
    pipeline = DenoisingPipeline(unet(), DDPMScheduler())
    with pytest.raises(HfgenError, match="needs a pipeline with a vae, not DenoisingPipeline"):
        evaluate(pipeline, data=labelled(), metrics=("reconstruction",), progress=False)


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        (DDPMPipeline(unet(), DDPMScheduler()), {"layer": "mid_blok"}, "mid_block"),
        (DDPMPipeline(unet(), DDPMScheduler()), {"noise": 1e-4}, "the network knows 0.01 to"),
        (DenoisingPipeline(unet(num_class_embeds=2), DDPMScheduler()), {}, "without a null label"),
        (
            DenoisingPipeline(unet(), DDPMScheduler(), vae=AutoencoderKL(latent_channels=1)),
            {},
            "a latent model",
        ),
    ],
    ids=["layer", "noise", "classes", "latents"],
)
def test_what_has_no_such_features_is_one_line(pipeline, options, message):
    with pytest.raises(HfgenError, match=message) as error:
        denoiser_features(pipeline, images(), **options)
    assert "\n" not in str(error.value)


def test_a_network_without_blocks_names_no_middle():
    with pytest.raises(HfgenError, match="name one of its layers"):
        middle_layer(nn.Linear(2, 2))
