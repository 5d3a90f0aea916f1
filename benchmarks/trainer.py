"""The trainer beside a bare PyTorch loop and pythae's trainer: same model, same batch, same
optimizer, one run.

    python benchmarks/trainer.py            # writes docs/benchmarks/trainer.json

Rounds are interleaved and timed in CPU seconds, because the machine is shared; the ratio is that of
the medians. No EMA and no logging on either side. Peers: `pip install --no-deps pythae==0.1.2`
(skipped, and said so, where it is missing).
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from hfgen.data import BatchStream, TensorSource
from hfgen.environment import describe
from hfgen.models.vae_mlp import MLPVAE
from hfgen.objectives.base import Clock, Objective
from hfgen.objectives.diffusion import Diffusion
from hfgen.objectives.vae import ELBO
from hfgen.training.checkpoints import Checkpoints
from hfgen.training.config import EMAConfig, LoggingConfig, OptimizerConfig, TrainingConfig
from hfgen.training.log import Log
from hfgen.training.trainer import Hooks, Trainer

RESULT = Path(__file__).parents[1] / "docs" / "benchmarks" / "trainer.json"
Step = Callable[[], Any]


def images(size: int, channels: int = 1) -> Tensor:
    return torch.randint(0, 256, (2048, channels, size, size), dtype=torch.uint8)


def ours(
    objective: Objective, models: dict[str, Any], pixels: Tensor, batch: int, lr: float
) -> Step:
    """One step of hfgen's trainer, data included."""
    AcceleratorState._reset_state()
    accelerator = Accelerator()
    folder = Path(tempfile.mkdtemp())
    training = TrainingConfig(total_batch_size=batch, max_steps=10**9)
    trainer = Trainer(
        accelerator=accelerator,
        objective=objective,
        models=models,
        exported=(),
        stream=BatchStream(TensorSource(pixels), batch, seed=0),
        training=training,
        optimizer=OptimizerConfig(learning_rate=lr),
        ema=EMAConfig(half_lives=()),
        log=Log(accelerator, LoggingConfig(), folder),
        checkpoints=Checkpoints(folder, 1),
        recipe="",
        hooks=Hooks(),
    )
    return trainer.train_step


def bare(
    model: nn.Module, loss: Callable[[Tensor], Tensor], pixels: Tensor, batch: int, lr: float
) -> Step:
    """The loop that one would write by hand: index slicing, the same fused optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    order = torch.randperm(len(pixels))
    position = 0

    def step() -> None:
        nonlocal order, position
        if position + batch > len(pixels):
            order, position = torch.randperm(len(pixels)), 0
        rows = order[position : position + batch]
        position += batch
        optimizer.zero_grad(set_to_none=True)
        loss(pixels[rows].float().div_(127.5).sub_(1)).backward()
        optimizer.step()

    return step


class PlainRng:
    """What a bare loop would draw with: the global generator."""

    def randn(self, name: str, shape: Any) -> Tensor:
        return torch.randn(shape)


def objective_alone(objective: Objective, models: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The same loss without the trainer: what is left is the trainer's own overhead."""
    phase, clock = objective.phases[0].name, Clock(0, 0, 1, 1)

    def loss(x: Tensor) -> Tensor:
        return objective.loss(phase, models, {"images": x}, PlainRng(), clock)[0]  # type: ignore[arg-type]

    return loss


def elbo_through_the_model(model: Any) -> Callable[[Tensor], Tensor]:
    """The loop that one would write around the model as it is shipped."""

    def loss(x: Tensor) -> Tensor:
        posterior = model.encode(x).latent_dist
        logits = model.decode(
            posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        ).sample
        bce = nn.functional.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="sum")
        return bce / len(x) + posterior.kl().mean()

    return loss


def elbo_by_hand(model: Any) -> Callable[[Tensor], Tensor]:
    """PyTorch's classic example: not even the model's own methods."""

    def loss(x: Tensor) -> Tensor:
        h = torch.relu(model.fc1((x.flatten(1) + 1) / 2))
        mean, logvar = model.fc21(h), model.fc22(h)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        logits = model.fc4(torch.relu(model.fc3(z)))
        target = (x.flatten(1) + 1) / 2
        bce = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()
        return (bce + kl) / len(x)

    return loss


def ddpm_by_hand(model: Any, scheduler: Any) -> Callable[[Tensor], Tensor]:
    def loss(x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x),))
        return (model(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()

    return loss


def pythae_step(pixels: Tensor, batch: int, lr: float) -> Step:
    """pythae's BaseTrainer over its own VAE of the same size: one of its train steps at a time."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    data = pixels.float() / 255
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    model = VAE(config, encoder=_pythae_encoder(), decoder=_pythae_decoder())
    settings = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        learning_rate=lr,
        optimizer_cls="AdamW",
        no_cuda=True,
    )
    trainer = BaseTrainer(
        model=model,
        train_dataset=BaseDataset(data, torch.zeros(len(data))),
        training_config=settings,
    )
    trainer.prepare_training()
    steps = len(trainer.train_loader)

    def step() -> None:
        trainer.train_step(epoch=1)  # an epoch: its trainer has no smaller unit

    step.steps = steps  # type: ignore[attr-defined]
    return step


def _pythae_encoder() -> nn.Module:
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc21, self.fc22 = (
                nn.Linear(784, 400),
                nn.Linear(400, 20),
                nn.Linear(400, 20),
            )

        def forward(self, x: Tensor) -> Any:
            h = torch.relu(self.fc1(x.flatten(1)))
            return ModelOutput(embedding=self.fc21(h), log_covariance=self.fc22(h))

    return Encoder()


def _pythae_decoder() -> nn.Module:
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(
                reconstruction=torch.sigmoid(self.fc4(torch.relu(self.fc3(z)))).unflatten(
                    1, (1, 28, 28)
                )
            )

    return Decoder()


def race(sides: dict[str, Step], batch: int, steps: int, rounds: int) -> dict[str, float]:
    """Median images per CPU second of each side, rounds interleaved."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, step in sides.items():
            unit = getattr(step, "steps", 1)
            calls = max(1, steps // unit)
            began = time.process_time()
            for _ in range(calls):
                step()
            elapsed = time.process_time() - began
            if number:  # the first round warms up
                speeds[name].append(calls * unit * batch / elapsed)
    return {name: statistics.median(values) for name, values in speeds.items()}


def unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def main() -> None:
    pixels, scheduler = images(28), DDPMScheduler()
    vae, alone, same, by_hand = MLPVAE(), MLPVAE(), MLPVAE(), MLPVAE()
    sides = {
        "hfgen": ours(ELBO(), {"vae": vae}, pixels, 128, 1e-3),
        "bare loop, same objective": bare(
            alone, objective_alone(ELBO(), {"vae": alone}), pixels, 128, 1e-3
        ),
        "bare loop, loss by hand": bare(same, elbo_through_the_model(same), pixels, 128, 1e-3),
        "bare loop, model inlined": bare(by_hand, elbo_by_hand(by_hand), pixels, 128, 1e-3),
    }
    if importlib.util.find_spec("pythae"):
        sides["pythae"] = pythae_step(pixels, 128, 1e-3)
    results = {"VAE 784-400-20, batch 128": race(sides, 128, 160, 9)}
    colour, ours_net, their_net = images(32, 3), unet(), unet()
    sides = {
        "hfgen": ours(Diffusion(), {"unet": ours_net, "scheduler": scheduler}, colour, 16, 1e-4),
        "bare loop": bare(their_net, ddpm_by_hand(their_net, scheduler), colour, 16, 1e-4),
    }
    results["UNet2D 32x32, batch 16"] = race(sides, 16, 4, 9)
    written = {
        "unit": "images per CPU second, median of interleaved rounds",
        "results": {},
        "environment": describe(),
    }
    for model, speeds in results.items():
        ratios = {
            f"hfgen / {name}": round(speeds["hfgen"] / value, 3)
            for name, value in speeds.items()
            if name != "hfgen"
        }
        written["results"][model] = {
            **{name: round(value, 1) for name, value in speeds.items()},
            **ratios,
        }
        print(model, written["results"][model])
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
