"""A tiny instance of every registered model; a new line in the table needs one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfgen.config import resolve
from hfgen.models.layers.metric import Metric
from hfgen.recipe import MODELS


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """``options`` of the constructor, ``inputs(batch_size)`` of ``method``; whether the rows of a
    batch depend on one another (minibatch statistics), and whether there is anything to train."""

    options: dict[str, Any]
    inputs: Callable[[int], tuple]
    method: str = "forward"
    couples_rows: bool = False
    has_weights: bool = True

    def build(self, name: str) -> Any:
        torch.manual_seed(0)
        return resolve(MODELS[name])(**self.options).eval()

    def __call__(self, model: Any, batch_size: int = 3, dtype=torch.float32, **options) -> Tensor:
        """The first tensor of the model's output, [batch_size, ...]."""
        torch.manual_seed(0)  # for an estimate by sampling
        inputs = [cast(x, dtype) for x in self.inputs(batch_size)]
        output = getattr(model, self.method)(*inputs, **options)
        return output if isinstance(output, Tensor) else output[0]

    def loss(self, model: Any) -> Tensor:
        """A scalar that every parameter has a part in."""
        return self(model).square().mean()


class TinyVAE(TinyModel):
    def loss(self, model: Any) -> Tensor:
        images, *labels = self.inputs(3)
        posterior = model.encode(images, *labels).latent_dist
        z, log_q = posterior.rsample(normal(3, *model.latent_shape))
        return model.decode(z, *labels).sample.square().mean() + log_q.mean()


class TinyDecoding(TinyModel):
    """A discriminator with a decoder."""

    def loss(self, model: Any) -> Tensor:
        maps = model(*self.inputs(3)).maps
        return super().loss(model) + model.reconstruct(maps).square().mean()


class TinyVamp(TinyModel):
    """A prior that is made of an encoder."""

    def build(self, name: str) -> Any:
        model = super().build(name)
        with torch.no_grad():
            model.tie(TINY_MODELS["MLPVAE"][0].build("MLPVAE"))
        return model

    def loss(self, model: Any) -> Tensor:
        model.tie(TINY_MODELS["MLPVAE"][0].build("MLPVAE"))
        return super().loss(model)


def prior(inputs: Callable[[int], tuple], tiny: type = TinyModel, **options) -> TinyModel:
    return tiny(options=options, inputs=inputs, method="log_prob")


def cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def noise(*shape: int) -> Callable[[int], tuple]:
    """One normal tensor [batch_size, *shape]."""
    return lambda rows: (normal(rows, *shape),)


def normal(*shape: int) -> Tensor:
    """The first rows of 8: ``randn`` gives other numbers for another number of rows."""
    rows, *rest = shape
    return torch.randn(8, *rest, generator=torch.Generator().manual_seed(0))[:rows]


def labelled(*shape: int, classes: int = 3) -> Callable[[int], tuple]:
    """A normal tensor and labels."""
    return lambda rows: (normal(rows, *shape), torch.arange(rows) % classes)


def noisy(*shape: int, classes: int | None = None) -> Callable[[int], tuple]:
    """A noisy image, its time, and labels where the model takes some."""

    def inputs(rows: int) -> tuple:
        time = torch.arange(rows) * 100
        return (normal(rows, *shape), time, *([torch.arange(rows) % classes] if classes else []))

    return inputs


def on_sphere(dim: int) -> Callable[[int], tuple]:
    return lambda rows: (torch.nn.functional.normalize(normal(rows, dim), dim=1),)


class CurvedTiny:
    """The metric of two centroids, in the type of the latents that it is asked about."""

    def __getattr__(self, name: str) -> Any:
        def call(z: Tensor, *arguments: Tensor) -> Tensor:
            centroids = torch.stack([torch.zeros(4), torch.ones(4)]).to(z.dtype)
            matrices = torch.eye(4).repeat(2, 1, 1).to(z.dtype)
            return getattr(Metric(centroids, matrices, 1.0, 0.1), name)(z, *arguments)

        return call


TINY_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2"],
}
FSQ = {"type": "fsq", "levels": [3, 3]}
SMALL = {"sample_size": 8, "channels": 8}
BIGGAN = {**SMALL, "class_dim": 4, "attention_size": 8, "num_class_embeds": 3}
CODES = {
    "num_embeddings": 5,
    "code_size": 2,
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
}
R3GAN = {"sample_size": 8, "channels": 16, "num_layers": 1, "group_width": 8}
TINY_MODELS: dict[str, list[TinyModel]] = {
    "MLPVAE": [
        TinyVAE(
            options={"sample_size": 8, "hidden_size": 16, "latent_dim": 4},
            inputs=noise(1, 8, 8),
        ),
        TinyVAE(
            options={"sample_size": 8, "hidden_size": 16, "num_layers": 2, "num_class_embeds": 3},
            inputs=labelled(1, 8, 8),
        ),
    ],
    "ConvVAE": [
        TinyVAE(
            options={"sample_size": 9, "in_channels": 3, "block_out_channels": [8, 8]},
            inputs=noise(3, 9, 9),
        ),
        TinyVAE(
            options={"sample_size": 8, "block_out_channels": [8], "num_class_embeds": 3},
            inputs=labelled(1, 8, 8),
        ),
    ],
    "LadderVAE": [
        TinyVAE(
            options={"sample_size": 8, "levels": "1x1,4x2", "hidden_size": 16},
            inputs=noise(1, 8, 8),
        ),
        TinyVAE(
            options={
                "sample_size": 8,
                "levels": "2x1",
                "hidden_size": 8,
                "num_class_embeds": 3,
            },
            inputs=labelled(1, 8, 8),
        ),
    ],
    "VQVAE": [
        TinyModel(
            options={"sample_size": 8, "block_out_channels": [8, 8], "quantizer": FSQ},
            inputs=noise(1, 8, 8),
        ),
    ],
    "HierarchicalVQVAE": [
        TinyModel(
            options={
                "sample_size": 8,
                "block_out_channels": [8, 8],
                "quantizer": {"num_embeddings": 5, "dim": 2, "ema_decay": 0.9},
                "num_class_embeds": 3,
            },
            inputs=labelled(1, 8, 8),
        ),
    ],
    "GaussianMixturePrior": [prior(noise(4), latent_shape=[4], num_components=3)],
    "VampPrior": [
        prior(noise(4), tiny=TinyVamp, latent_dim=4, num_components=3, sample_size=8),
    ],
    "FlowPrior": [
        prior(noise(2, 2), latent_shape=[2, 2], kind=kind, num_layers=2, hidden_size=8)
        for kind in ("maf", "iaf")
    ],
    "CodePrior": [
        prior(
            noise(2, 2, 2),
            latent_shape=[2, 2, 2],
            num_embeddings=5,
            hidden_size=8,
            num_layers=1,
            num_heads=2,
        )
    ],
    "PixelCNNPrior": [
        prior(
            noise(2, 3, 3),
            latent_shape=[2, 3, 3],
            num_embeddings=5,
            hidden_size=8,
            num_layers=2,
            kernel_size=3,
        )
    ],
    "TwoStagePrior": [
        TinyModel(
            options={"latent_shape": [4], "hidden_size": 8, "num_samples": 2},
            inputs=noise(4),
            method="log_prob",
            couples_rows=True,  # by the draws of its estimate
        )
    ],
    "LatentDiscriminator": [
        TinyModel(options={"latent_shape": [2, 2], "hidden_size": 8}, inputs=noise(2, 2)),
    ],
    "PoincarePrior": [
        TinyModel(
            options={"latent_dim": 4, "normal": kind},
            inputs=lambda rows: (normal(rows, 4) / 8,),
            method="log_prob",
            has_weights=False,
        )
        for kind in ("wrapped", "riemannian")
    ],
    "MetricPrior": [
        TinyModel(
            options={
                "latent_dim": 2,
                "num_centroids": 3,
                "sample_size": 4,
                "hidden_size": 8,
            },
            inputs=noise(1, 4, 4),
            method="read",
        ),
    ],
    "RiemannianLeapfrog": [
        TinyModel(
            options={"num_steps": 2},
            inputs=lambda rows: (normal(rows, 4), 2 * normal(rows, 4), lambda z: z, CurvedTiny()),
        ),
    ],
    "LeapfrogFlow": [
        TinyModel(
            options={"latent_dim": 4, "num_steps": 2},
            inputs=lambda rows: (normal(rows, 4), 2 * normal(rows, 4), lambda z: z),
        ),
    ],
    "PatchDiscriminator": [
        TinyModel(
            options={"in_channels": 1, "channels": 4, "num_layers": 1}, inputs=noise(1, 16, 16)
        ),
    ],
    "SphereUniformPrior": [
        TinyModel(
            options={"latent_dim": 4}, inputs=on_sphere(4), method="log_prob", has_weights=False
        ),
    ],
    "DCGANGenerator": [
        TinyModel(
            options={"sample_size": 8, "out_channels": 1, "latent_dim": 4, "channels": 4},
            inputs=noise(4),
        ),
        TinyModel(
            options={
                "sample_size": 14,
                "out_channels": 3,
                "latent_dim": 4,
                "channels": 4,
                "norm": "none",
                "num_class_embeds": 3,
            },
            inputs=labelled(4),
        ),
    ],
    "DCGANDiscriminator": [
        TinyModel(
            options={"sample_size": 8, "in_channels": 1, "channels": 4},
            inputs=noise(1, 8, 8),
        ),
        TinyModel(
            options={"sample_size": 14, "in_channels": 3, "channels": 4, "num_class_embeds": 3},
            inputs=labelled(3, 14, 14),
        ),
    ],
    "R3GANGenerator": [
        TinyModel(
            options={**R3GAN, "out_channels": 1, "latent_dim": 4, "num_class_embeds": 3},
            inputs=labelled(4),
        ),
    ],
    "R3GANDiscriminator": [
        TinyModel(options={**R3GAN, "in_channels": 1}, inputs=noise(1, 8, 8)),
    ],
    "ResNetGenerator": [
        TinyModel(
            options={
                **SMALL,
                "out_channels": 3,
                "latent_dim": 4,
                "attention_size": 8,
                "num_class_embeds": 3,
            },
            inputs=labelled(4),
        ),
        TinyModel(
            options={**SMALL, "out_channels": 1, "latent_dim": 4, "spectral_norm": True},
            inputs=noise(4),
        ),
    ],
    "ResNetDiscriminator": [
        TinyModel(
            options={**SMALL, "in_channels": 3, "attention_size": 4, "num_class_embeds": 3},
            inputs=labelled(3, 8, 8),
        ),
    ],
    "BigGANGenerator": [
        TinyModel(
            options={**BIGGAN, "out_channels": 3, "latent_dim": 5},
            inputs=labelled(5),
        ),
    ],
    "BigGANDeepGenerator": [
        TinyModel(
            options={**BIGGAN, "out_channels": 1, "latent_dim": 4},
            inputs=labelled(4),
        ),
    ],
    "BigGANDiscriminator": [
        TinyModel(
            options={**SMALL, "in_channels": 3, "attention_size": 4, "num_class_embeds": 3},
            inputs=labelled(3, 8, 8),
        ),
        TinyModel(
            options={"sample_size": 16, "in_channels": 1, "channels": [8, 4], "deep": True},
            inputs=noise(1, 16, 16),
        ),
    ],
    "LightweightGenerator": [
        TinyModel(
            options={**SMALL, "sample_size": 16, "out_channels": 1, "latent_dim": 4},
            inputs=noise(4),
        ),
    ],
    "LightweightDiscriminator": [
        TinyDecoding(
            options={**SMALL, "sample_size": 16, "in_channels": 3, "num_class_embeds": 3},
            inputs=labelled(3, 16, 16),
        ),
    ],
    "ProjectedDiscriminator": [
        TinyModel(
            options={
                "sample_size": 8,
                "in_channels": 3,
                "channels": 8,
                "input_size": 32,
                "backbone": TINY_BACKBONE,
                "num_class_embeds": 3,
            },
            inputs=labelled(3, 8, 8),
        ),
    ],
    "MagnitudePreservingTransformer": [
        TinyModel(
            options={
                "sample_size": 8,
                "in_channels": 1,
                "out_channels": 1,
                "hidden_dim": 16,
                "num_layers": 2,
                "num_attention_heads": 2,
                "num_class_embeds": 4,
            },
            inputs=noisy(1, 8, 8, classes=4),
        ),
    ],
    "FeatureAligner": [
        TinyModel(
            options={
                "hidden_dim": 6,
                "input_size": 32,
                "level": 0,
                "projector_dim": 8,
                "backbone": TINY_BACKBONE,
            },
            inputs=lambda rows: (*noise(3, 8, 8)(rows), normal(rows, 4, 6)),
        ),
    ],
    "StyleGAN2Generator": [
        TinyModel(
            options={**SMALL, "out_channels": 3, "latent_dim": 4, "style_dim": 4},
            inputs=noise(4),
        ),
        TinyModel(
            options={**SMALL, "out_channels": 1, "latent_dim": 4, "num_class_embeds": 3},
            inputs=labelled(4),
        ),
    ],
    "StyleGAN2Discriminator": [
        TinyModel(
            options={**SMALL, "in_channels": 1, "group_size": 3, "num_class_embeds": 3},
            inputs=labelled(1, 8, 8),
            couples_rows=True,
        ),
    ],
    "CodeTransformer": [
        TinyModel(
            options={**CODES, **condition},
            inputs=lambda rows, given=given: (torch.arange(rows * 3).view(-1, 3) % 5, *given(rows)),
        )
        for condition, given in (
            ({}, lambda rows: ()),
            ({"num_class_embeds": 3}, lambda rows: (torch.arange(rows) % 3,)),
            (
                {"text_vocab_size": 7, "text_length": 2},
                lambda rows: (torch.arange(rows * 2).view(rows, 2) % 7,),
            ),
        )
    ],
    "PixelTransformer": [
        TinyModel(
            options={
                "sample_size": 8,
                "in_channels": 1,
                "out_channels": 1,
                "bottleneck_dim": 4,
                "hidden_dim": 16,
                "num_layers": 2,
                "num_attention_heads": 2,
                "num_class_embeds": 4,
            },
            inputs=noisy(1, 8, 8, classes=4),
        ),
    ],
}


TINY_SCHEDULERS: dict[str, list[dict[str, Any]]] = {
    "EDMHeunScheduler": [{}, {"s_churn": 1.0, "prediction_type": "v_prediction"}],
}


def tiny(name: str, index: int = 0) -> Any:
    return TINY_MODELS[name][index].build(name)


def cases(table: dict[str, str], tinies: dict[str, list]) -> dict[str, tuple[str, Any]]:
    """``Name-0`` -> (name, its tiny instance), for every registered name that has one."""
    return {
        f"{name}-{index}": (name, one)
        for name in table
        for index, one in enumerate(tinies.get(name, []))
    }


MODEL_CASES = cases(MODELS, TINY_MODELS)
SCHEDULER_CASES = cases(MODELS, TINY_SCHEDULERS)
FREE_ROWS = [key for key, (_, one) in MODEL_CASES.items() if not one.couples_rows]
MODELS_WITH_WEIGHTS = [key for key, (_, one) in MODEL_CASES.items() if one.has_weights]
