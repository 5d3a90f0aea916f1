"""VAE-GAN and VQGAN: phases, the delayed start, the adaptive weight and the perceptual term."""

import pytest
import torch
from safetensors.torch import save_file

from hfgen.errors import HfgenError
from hfgen.likelihoods import Gaussian
from hfgen.models.prior_codes import CodePrior
from hfgen.models.vae_conv import ConvVAE
from hfgen.models.vae_patch_discriminator import PatchDiscriminator
from hfgen.models.vae_vq import VQVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO
from hfgen.objectives.vae_gan import VAEGAN, adaptive_weight
from hfgen.objectives.vae_perceptual import PERCEPTUALS, EfficientNetPerceptual
from hfgen.objectives.vae_vq import VectorQuantized
from hfgen.objectives.vae_vqgan import VQGAN
from hfgen.perceptual import AlexNetDistance, EfficientNetDistance, load_alexnet_distance
from hfgen.rng import Rng

LIKELIHOOD = Gaussian(std=0.3)
START = Clock(0, 0, 1000)


def setup(side: int = 16):
    torch.manual_seed(0)
    vae = ConvVAE(sample_size=side, block_out_channels=(4, 8), latent_dim=3)
    critic = PatchDiscriminator(in_channels=1, channels=8, num_layers=1)
    return {"vae": vae, "discriminator": critic}, {"images": pictures(side)}


def quantised():
    models, batch = setup()
    codes = {"type": "vq", "num_embeddings": 4, "dim": 2}
    models["vae"] = VQVAE(sample_size=16, block_out_channels=(4, 8), quantizer=codes)
    sizes = {"latent_shape": (2, 4, 4), "num_embeddings": 4, "hidden_size": 8, "num_heads": 2}
    models["prior"] = CodePrior(**sizes, num_layers=1)
    return models, batch


def pictures(side: int, channels: int = 1):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, channels, side, side, generator=generator) * 1.6 - 0.8


@pytest.mark.parametrize(
    ("objective", "made"),
    [
        (VAEGAN(likelihood=LIKELIHOOD), setup),
        (VAEGAN(likelihood=LIKELIHOOD, weight=0.0), setup),
        (VQGAN(likelihood=LIKELIHOOD, learn_prior=True), quantised),
    ],
)
def test_each_phase_reaches_its_own_model(objective, made):
    models, batch = made()
    for phase in objective.phases:
        for role, model in models.items():
            model.requires_grad_(role in phase.trains)
        loss, _ = objective.loss(phase.name, models, batch, Rng(0), START)
        loss.backward()
        for role, model in models.items():
            reached = [p.grad is not None for p in model.parameters()]
            assert all(reached) if role in phase.trains else not any(reached)
            model.zero_grad()


def test_before_the_start_it_is_the_elbo():
    models, batch = setup()
    late = VAEGAN(likelihood=LIKELIHOOD, start_images=100)
    clocks = [START, Clock(1, 100, 1000)]
    before, after = (late.loss("vae", models, batch, Rng(0), c) for c in clocks)
    elbo, _ = ELBO(likelihood=LIKELIHOOD).loss("vae", models, batch, Rng(0), START)
    torch.testing.assert_close(before[0], elbo)
    assert "adversarial" not in before[1] and "adversarial" in after[1]
    added = 0.5 * after[1]["adaptive_weight"] * after[1]["adversarial"]
    torch.testing.assert_close(after[0].detach(), elbo.detach() + added)


def test_before_the_start_the_discriminator_rests():
    models, batch = setup()
    late = VAEGAN(likelihood=LIKELIHOOD, start_images=100)
    loss, logs = late.loss("discriminator", models, batch, Rng(0), START)
    loss.backward()
    assert logs == {} and loss == 0
    assert all(p.grad.abs().max() == 0 for p in models["discriminator"].parameters())


def test_vqgan_without_its_extras_is_the_vq_vae():
    models, batch = quantised()
    plain, _ = VectorQuantized(likelihood=LIKELIHOOD).loss("vae", models, batch, Rng(0), START)
    bare = VQGAN(likelihood=LIKELIHOOD, weight=0.0)
    assert [phase.name for phase in bare.phases] == ["vae"]
    torch.testing.assert_close(bare.loss("vae", models, batch, Rng(0), START)[0], plain)


def test_the_perceptual_term_counts_per_pixel():
    models, batch = setup(side=32)
    perceptual = EfficientNetPerceptual(weight=0.3)
    with_it = VAEGAN(likelihood=LIKELIHOOD, weight=0.0, perceptual=perceptual)
    models |= with_it.extra_models()
    plain, _ = ELBO(likelihood=LIKELIHOOD).loss("vae", models, batch, Rng(0), START)
    loss, logs = with_it.loss("vae", models, batch, Rng(0), START)
    torch.testing.assert_close(loss, plain + 0.3 * 32 * 32 * logs["perceptual"])
    assert logs["perceptual"] > 0


def test_efficientnet_features_are_the_packages_own():
    from hfgen.perceptual import _efficientnet

    original, ours = _efficientnet(), EfficientNetDistance().eval()
    images = pictures(32, channels=3)
    expected = original.extract_features((127.5 * images + 0.5) / 128)  # the whole network
    x = torch.nn.functional.relu6(ours.stem((127.5 * images + 0.5) / 128))
    blocks = [*ours.blocks, *original._blocks[len(ours.blocks) :]]
    for block in blocks:
        x = block(x)
    x = torch.nn.functional.relu6(original._bn1(original._conv_head(x)))
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


def test_a_distance_is_zero_symmetric_and_grows_with_blur():
    network = EfficientNetPerceptual().network
    a = pictures(32, channels=3)
    small = torch.nn.functional.avg_pool2d(a, 2)
    blurred = torch.nn.functional.interpolate(small, scale_factor=2)
    grey = torch.zeros_like(a)
    assert network(a, a).abs().max() < 1e-6
    torch.testing.assert_close(network(a, blurred), network(blurred, a))
    assert (network(a, blurred) < network(a, grey)).all()
    assert not any(p.requires_grad for p in network.parameters())


def test_lpips_takes_local_weights(tmp_path):
    torch.manual_seed(0)
    network = AlexNetDistance()
    save_file(network.state_dict(), tmp_path / "lpips.safetensors")
    loaded = load_alexnet_distance(tmp_path / "lpips.safetensors")
    pair = pictures(32, channels=3), pictures(32, channels=3).flip(0)
    torch.testing.assert_close(loaded(*pair), network(*pair))
    chosen = PERCEPTUALS["lpips"](weights=str(tmp_path / "lpips.safetensors"))
    torch.testing.assert_close(chosen.network(*pair), network(*pair).detach())
    with pytest.raises(HfgenError, match="lpips needs a .safetensors file"):
        PERCEPTUALS["lpips"]().build()
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(HfgenError, match="other.safetensors holds no LPIPS of AlexNet"):
        PERCEPTUALS["lpips"](weights=str(tmp_path / "other.safetensors")).build()


def test_a_patch_sees_no_further_than_it_says():
    torch.manual_seed(0)
    critic = PatchDiscriminator(in_channels=1, channels=4, num_layers=2)
    critic.net = torch.nn.Sequential(
        *[m for m in critic.net if not isinstance(m, torch.nn.GroupNorm)]
    )
    image = torch.zeros(1, 1, 96, 96, requires_grad=True)
    logits = critic(image).logits
    logits[0, logits.shape[1] // 2, logits.shape[2] // 2].backward()
    seen = image.grad[0, 0].nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [34, 34]


def test_adaptive_weight_by_hand():
    image = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight((3 * image).sum(), image.square().sum() / 2, image)
    expected = (9 + 9) ** 0.5 / ((1 + 4) ** 0.5 + 1e-4)
    torch.testing.assert_close(weight, torch.tensor(expected))


def test_bad_values_are_named():
    with pytest.raises(HfgenError, match="objective.weight must be at least 0, got -1"):
        VAEGAN(weight=-1)
    with pytest.raises(HfgenError, match="objective.perceptual.weight must be at least 0, got -2"):
        EfficientNetPerceptual(weight=-2)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        PatchDiscriminator(num_layers=0)
