"""Training speed of four VAEs against pythae, in the same process and on the same images.

    pip install --no-deps pythae==0.1.2 pydantic imageio cloudpickle
    python benchmarks/vae.py [--rounds 7] [--images 2560] [--output docs/benchmarks/vae.json]

Each side trains by its own trainer. Networks have the same layers, the batch is 128 (100 for IWAE),
Adam runs at 1e-3, and no average is kept. After one warm-up round, rounds of both sides alternate;
the figure is the median over rounds of images per second of CPU time, and of the ratio of a pair.
Then both train the first network for equal CPU time, and one evaluator bounds -ln p(x).

What differs: the convolutional VQ-VAE runs in ``channels_last`` on our side, a switch of the
trainer that its recipes set and pythae's does not have; ``vq-vae-bf16`` is the same in mixed
precision, which pythae's trainer has for CUDA alone (its side runs in float32). pythae's decoders
end in a sigmoid followed by a cross-entropy of probabilities, ours in logits. pythae 0.1.2 needs no
shim here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from hfgen.data import BatchStream, DataConfig, TensorSource, load_source
from hfgen.evaluation.likelihood import log_likelihood
from hfgen.likelihoods import Gaussian
from hfgen.models.layers.conv import DownBlock, UpBlock, group_norm
from hfgen.models.vae_mlp import MLPVAE
from hfgen.models.vae_vq import VQVAE
from hfgen.objectives.base import Objective
from hfgen.objectives.vae import ELBO
from hfgen.objectives.vae_bounds import IWAE
from hfgen.objectives.vae_penalties import TotalCorrelation
from hfgen.objectives.vae_vq import VectorQuantized
from hfgen.pipelines.vae_pipeline import VAEPipeline
from hfgen.training.checkpoints import Checkpoints
from hfgen.training.config import EMAConfig, LoggingConfig, OptimizerConfig, TrainingConfig
from hfgen.training.log import Log
from hfgen.training.trainer import Hooks, Trainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pythae.data.datasets import BaseDataset
    from pythae.models import (
        IWAE as PythaeIWAE,
    )
    from pythae.models import VAE, BetaTCVAE, BetaTCVAEConfig, IWAEConfig, VAEConfig, VQVAEConfig
    from pythae.models import VQVAE as PythaeVQVAE
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig


@dataclass(frozen=True)
class Round:
    """``run`` trains on one pass over the images; ``layers`` are the network's weights by the names
    that ``MLPVAE`` has for them.
    """

    run: Callable[[], None]
    layers: Callable[[], dict[str, Tensor]]


HIDDEN = {"vae": 400, "beta-tcvae": 400, "iwae-50": 200}
LATENT = {"vae": 20, "beta-tcvae": 10, "iwae-50": 50}
VQ = ("vq-vae", "vq-vae-bf16")
CODES, DIM, WIDTHS = 128, 16, (32, 64)


class MLPEncoder(BaseEncoder):
    """784 - hidden - latent, as ``MLPVAE``."""

    def __init__(self, hidden: int, latent: int):
        super().__init__()
        self.fc1, self.fc21 = nn.Linear(784, hidden), nn.Linear(hidden, latent)
        self.fc22 = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> ModelOutput:
        h = torch.relu(self.fc1(x.flatten(1)))
        return ModelOutput(embedding=self.fc21(h), log_covariance=self.fc22(h))


class MLPDecoder(BaseDecoder):
    """latent - hidden - 784 with the sigmoid that pythae's cross-entropy wants."""

    def __init__(self, hidden: int, latent: int):
        super().__init__()
        self.fc3, self.fc4 = nn.Linear(latent, hidden), nn.Linear(hidden, 784)

    def forward(self, z: Tensor) -> ModelOutput:
        out = torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))
        return ModelOutput(reconstruction=out.view(-1, 1, 28, 28))


class ConvEncoder(BaseEncoder):
    """The encoder of ``VQVAE``."""

    def __init__(self):
        super().__init__()
        widths = (1, *WIDTHS)
        self.blocks = nn.Sequential(
            *[DownBlock(widths[i], widths[i + 1], 1) for i in range(len(WIDTHS))],
            group_norm(WIDTHS[-1]),
            nn.SiLU(),
            nn.Conv2d(WIDTHS[-1], DIM, 1),
        )

    def forward(self, x: Tensor) -> ModelOutput:
        return ModelOutput(embedding=self.blocks(x))


class ConvDecoder(BaseDecoder):
    """The decoder of ``VQVAE``."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv2d(DIM, WIDTHS[-1], 1),
            UpBlock(WIDTHS[1], WIDTHS[0], 1, 14),
            UpBlock(WIDTHS[0], 1, 1, 28),
        )

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.blocks(z))


def pythae_model(name: str) -> nn.Module:
    shape = {"input_dim": (1, 28, 28)}
    if name in VQ:
        config = VQVAEConfig(**shape, num_embeddings=CODES)
        return PythaeVQVAE(config, ConvEncoder(), ConvDecoder())
    options = {**shape, "latent_dim": LATENT[name], "reconstruction_loss": "bce"}
    parts = (MLPEncoder(HIDDEN[name], LATENT[name]), MLPDecoder(HIDDEN[name], LATENT[name]))
    if name == "beta-tcvae":
        return BetaTCVAE(BetaTCVAEConfig(**options, beta=6.0), *parts)
    if name == "iwae-50":
        return PythaeIWAE(IWAEConfig(**options, number_samples=50), *parts)
    return VAE(VAEConfig(**options), *parts)


def our_model(name: str) -> tuple[nn.Module, Objective]:
    if name in VQ:
        quantizer = {"type": "vq", "num_embeddings": CODES, "dim": DIM}
        vae = VQVAE(block_out_channels=WIDTHS, quantizer=quantizer)
        return vae, VectorQuantized(likelihood=Gaussian(std=2**0.5))
    vae = MLPVAE(hidden_size=HIDDEN[name], latent_dim=LATENT[name])
    if name == "beta-tcvae":
        return vae, ELBO(penalty=TotalCorrelation(weight=5.0))
    return vae, IWAE(num_samples=50) if name == "iwae-50" else ELBO()


def pythae_round(name: str, images: Tensor, batch: int, folder: str) -> Round:
    config = BaseTrainerConfig(
        output_dir=folder,
        num_epochs=1,
        learning_rate=1e-3,
        per_device_train_batch_size=batch,
        optimizer_cls="Adam",
    )
    trainer = BaseTrainer(
        pythae_model(name), BaseDataset(images, torch.zeros(len(images))), training_config=config
    )
    trainer.prepare_training()
    epochs = iter(range(1, 10_000))

    def layers() -> dict[str, Tensor]:
        named = trainer.model.state_dict()
        return {k.split(".", 1)[1]: v for k, v in named.items() if k.startswith(("enc", "dec"))}

    return Round(lambda: trainer.train_step(next(epochs)), layers)


def our_round(name: str, images: Tensor, batch: int, folder: str) -> Round:
    steps = len(images) // batch
    vae, objective = our_model(name)
    precision = "bf16" if name.endswith("bf16") else "no"
    AcceleratorState._reset_state()  # the precision of the round before
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    trainer = Trainer(
        accelerator=accelerator,
        objective=objective,
        models={"vae": vae},
        exported=("vae",),
        stream=BatchStream(TensorSource(images), batch, seed=0),
        training=TrainingConfig(
            max_steps=10_000 * steps,
            total_batch_size=batch,
            channels_last=name in VQ,
            mixed_precision=precision,
        ),
        optimizer=OptimizerConfig(type="adam", learning_rate=1e-3),
        ema=EMAConfig(half_lives=()),
        log=Log(accelerator, LoggingConfig(), Path(folder)),
        checkpoints=Checkpoints(Path(folder), None),
        recipe="",
        hooks=Hooks(),
    )

    def train() -> None:
        for _ in range(steps):
            trainer._meter.add(trainer.train_step())
        trainer._meter.reduce(accelerator)

    return Round(train, vae.state_dict)


def measure(name: str, images: int, rounds: int) -> dict[str, float]:
    batch = 100 if name == "iwae-50" else 128
    source = load_source(DataConfig(path="mnist"))
    count = images // 10 if name in ("iwae-50", *VQ) else images
    grey = source.uint8(range(count - count % batch))
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "pythae": pythae_round(name, grey.float() / 255, batch, folder),
            "hfgen": our_round(name, grey, batch, folder),
        }
        speed: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(rounds + 1):
            for side, train in sides.items():
                start = time.process_time()
                with contextlib.redirect_stderr(io.StringIO()):  # pythae's progress bar
                    train.run()
                if repeat:  # the first round warms up
                    speed[side].append(len(grey) / (time.process_time() - start))
    ratios = [a / b for a, b in zip(speed["hfgen"], speed["pythae"], strict=True)]
    return {side: statistics.median(values) for side, values in speed.items()} | {
        "ratio": statistics.median(ratios)
    }


def nll_after(seconds: float, images: int = 500) -> dict[str, float]:
    """-ln p(x) of test digits by IW-100, after each trainer ran for equal CPU time on the
    784-400-20 VAE; the layers of both have the same names.
    """
    grey = load_source(DataConfig(path="mnist")).uint8(range(9984))
    held_out = load_source(DataConfig(path="mnist"), split="validation")
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        peer = pythae_round("vae", grey.float() / 255, 128, folder)
        ours = our_round("vae", grey, 128, folder)
        for side, train in (("pythae", peer), ("hfgen", ours)):
            start = time.process_time()
            while time.process_time() - start < seconds:
                train.run()
            vae = MLPVAE(hidden_size=400, latent_dim=20)
            vae.load_state_dict(train.layers())
            pipeline = VAEPipeline(vae.eval(), likelihood={"type": "bernoulli"})
            result = log_likelihood(pipeline, held_out, bound="iw", k=100, max_images=images)
            found[side] = -result.nats
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--models", default="vae,beta-tcvae,iwae-50,vq-vae,vq-vae-bf16")
    parser.add_argument("--seconds", type=float, default=30, help="CPU time of the comparison")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    results: dict[str, dict[str, float]] = {}
    print(f"{'model':12} {'pythae':>10} {'hfgen':>10} {'ratio':>7}   images per CPU-second")
    for name in options.models.split(","):
        results[name] = row = measure(name, options.images, options.rounds)
        print(f"{name:12} {row['pythae']:10.0f} {row['hfgen']:10.0f} {row['ratio']:7.2f}")
    nats = nll_after(options.seconds)
    print(f"-ln p(x) after {options.seconds:g} CPU-seconds: " + str(nats))
    if options.output is not None:
        machine = {"processor": platform.processor(), "torch": torch.__version__, "threads": 1}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "images_per_cpu_second": results}
        report["nats_after"] = {"cpu_seconds": options.seconds, **nats}
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
