"""Images per second of CPU time for one D and one G update, 64 x 3 x 32 x 32, against the peers.

    python benchmarks/gan.py [--rounds 7] [--threads 1] [--output docs/benchmarks/gan.json]

Sides: torch-mimicry's SNGAN-32 and torchgan's DCGAN by their own training steps, ours at the same
widths by our objective, and R3GAN beside a plain PyTorch loop of the same networks and loss. Rounds
of all sides are interleaved; medians of CPU time of all threads. Sampling is the generator alone,
in evaluation, 64 images at a time.

Import shims: both peers import torchvision, torch-mimicry TensorFlow, skimage and torch._six (which
torch no longer has) as well; none has a part in a training step, and empty stand-ins take their
place. Both are installed with
``pip install --no-deps torch-mimicry torchgan``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.gan_r3gan import R3GANDiscriminator, R3GANGenerator
from hfgen.models.gan_resnet import ResNetDiscriminator, ResNetGenerator
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.rng import Rng

BATCH, WIDTH = 64, 64
SHIMS = ("torchvision", "tensorflow", "skimage", "torch.utils.tensorboard", "torch._six")
Step = Callable[[Tensor], None]
Side = tuple[Step, nn.Module, int]
"""A training step, the generator and the size of its latents."""


def shim() -> None:
    """Empty stand-ins for what the peers import and a training step does not use."""
    for name in SHIMS:
        for part in ("", ".datasets", ".transforms", ".transforms.functional", ".utils", ".models"):
            sys.modules.setdefault(name + part, MagicMock())


def adam(model: nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 2e-4, betas=(0.5, 0.9), fused=fused)


def ours(generator: nn.Module, discriminator: nn.Module, objective: GAN) -> Side:
    """A training step as the trainer runs it: phases, frozen opponents, fused Adam, channels
    last.
    """
    models = {"generator": generator, "discriminator": discriminator}
    for model in models.values():
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = {role: adam(model, fused=True) for role, model in models.items()}
    steps = iter(range(10**9))

    def step(images: Tensor) -> None:
        number = next(steps)
        images = images.contiguous(memory_format=torch.channels_last)
        for phase in objective.phases:
            (role,) = phase.trains
            for name, model in models.items():
                model.requires_grad_(name == role)
            optimizers[role].zero_grad()
            rng, clock = Rng(0, number, phase.name), Clock(number, 0, 1, BATCH)
            objective.loss(phase.name, models, {"images": images}, rng, clock)[0].backward()
            optimizers[role].step()

    return step, generator, generator.config["latent_dim"]  # type: ignore[index]


def mimicry_sngan() -> Side:
    """torch-mimicry's SNGAN-32 at width 64 by its own ``train_step``."""
    from torch_mimicry.nets.sngan.sngan_32 import SNGANDiscriminator32, SNGANGenerator32

    generator, discriminator = SNGANGenerator32(ngf=WIDTH), SNGANDiscriminator32(ndf=WIDTH)
    opt_g, opt_d = adam(generator), adam(discriminator)

    def step(images: Tensor) -> None:
        batch: Any = (images, None)
        common = {"log_data": MagicMock(), "device": torch.device("cpu")}
        discriminator.train_step(real_batch=batch, netG=generator, optD=opt_d, **common)
        generator.train_step(real_batch=batch, netD=discriminator, optG=opt_g, **common)

    return step, generator, generator.nz


def torchgan_dcgan() -> Side:
    """torchgan's DCGAN at its default widths by its own ``train_ops``."""
    from torchgan.losses import MinimaxDiscriminatorLoss, MinimaxGeneratorLoss
    from torchgan.models import DCGANDiscriminator as PeerDiscriminator
    from torchgan.models import DCGANGenerator as PeerGenerator

    generator, discriminator = (
        PeerGenerator(step_channels=WIDTH),
        PeerDiscriminator(step_channels=WIDTH),
    )
    opt_g, opt_d = adam(generator), adam(discriminator)
    loss_g, loss_d = MinimaxGeneratorLoss(), MinimaxDiscriminatorLoss()

    def step(images: Tensor) -> None:
        cpu = torch.device("cpu")
        loss_d.train_ops(generator, discriminator, opt_d, images, cpu)
        loss_g.train_ops(generator, discriminator, opt_g, cpu, BATCH)

    return step, generator, generator.encoding_dims


def plain_r3gan(generator: nn.Module, discriminator: nn.Module) -> Side:
    """R3GAN's step as its paper's algorithm reads: two forwards, gradients, plain Adam."""
    opt_g, opt_d = adam(generator), adam(discriminator)

    def penalty(logits: Tensor, images: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return gradient.square().sum((1, 2, 3))

    def step(images: Tensor) -> None:
        real = images.detach().requires_grad_()
        fake = generator(torch.randn(BATCH, 64)).sample.detach().requires_grad_()
        a, b = discriminator(real).logits, discriminator(fake).logits
        loss = softplus(b - a) + 0.05 * (penalty(a, real) + penalty(b, fake))
        opt_d.zero_grad()
        loss.mean().backward()
        opt_d.step()
        fake = generator(torch.randn(BATCH, 64)).sample
        loss = softplus(discriminator(images).logits - discriminator(fake).logits)
        opt_g.zero_grad()
        loss.mean().backward()
        opt_g.step()

    return step, generator, 64


def r3gan() -> tuple[nn.Module, nn.Module]:
    options: dict[str, Any] = {"sample_size": 32, "channels": 32, "num_layers": 1}
    return R3GANGenerator(out_channels=3, **options), R3GANDiscriminator(in_channels=3, **options)


def sides() -> dict[str, Side]:
    """Each of ours stands after its peer."""
    dcgan = GAN(r1_gamma=0)
    pairing = GAN(adversarial_loss="relativistic_pairing", r1_gamma=0.1, r2_gamma=0.1, r1_every=1)
    hinge = GAN(adversarial_loss="hinge", r1_gamma=0)
    return {
        "torch-mimicry SNGAN-32": mimicry_sngan(),
        "hfgen SNGAN-32": ours(
            ResNetGenerator(32, 3, 128, WIDTH), ResNetDiscriminator(32, 3, WIDTH), hinge
        ),
        "torchgan DCGAN": torchgan_dcgan(),
        "hfgen DCGAN": ours(
            DCGANGenerator(32, 3, 100, WIDTH), DCGANDiscriminator(32, 3, WIDTH), dcgan
        ),
        "plain PyTorch R3GAN": plain_r3gan(*r3gan()),
        "hfgen R3GAN": ours(*r3gan(), pairing),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shim()
    every = sides()
    training: Seconds = {name: [] for name in every}
    sampling: Seconds = {name: [] for name in every}
    for number in range(options.rounds + 1):
        images = torch.rand(BATCH, 3, 32, 32) * 2 - 1
        for name, (step, generator, size) in every.items():
            taken = timed(step, images), timed(sample, generator, size)
            if number:  # the first round warms up
                training[name].append(taken[0])
                sampling[name].append(taken[1])
    report(training, sampling, options)


Seconds = dict[str, list[float]]


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    """CPU seconds of all threads."""
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began


@torch.no_grad()
def sample(generator: nn.Module, size: int) -> None:
    generator.eval()
    generator(torch.randn(BATCH, size))
    generator.train()


def speeds(seconds: Seconds) -> dict[str, float]:
    return {name: round(BATCH / statistics.median(times), 1) for name, times in seconds.items()}


def ratios(seconds: Seconds) -> dict[str, float]:
    """Each of ours over its peer: the median over rounds."""
    names, found = list(seconds), {}
    for peer, mine in zip(names[::2], names[1::2], strict=True):
        pairs = zip(seconds[peer], seconds[mine], strict=True)
        found[f"{mine} / {peer}"] = round(statistics.median(a / b for a, b in pairs), 2)
    return found


def report(training: Seconds, sampling: Seconds, options: argparse.Namespace) -> None:
    result = {
        "one D and one G update, images per CPU second": speeds(training),
        "training ratios": ratios(training),
        "sampling, images per CPU second": speeds(sampling),
        "sampling ratios": ratios(sampling),
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "shims": list(SHIMS),
    }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
