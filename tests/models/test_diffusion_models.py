"""The pixel transformer: shapes, symmetry, forward-mode derivatives, bad sizes."""

import pytest
import torch
from torch.func import jvp

from hfgen.denoising import Flow, LinearPath, Parameterisation
from hfgen.models.layers.transformer import rotary_angles, rotate_pairs, sinusoidal_embedding
from hfgen.models.transformer_pixel import PixelTransformer


def build(**options) -> PixelTransformer:
    """A small one with every weight drawn, so that nothing is hidden behind a zero."""
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "patch_size": 4}
    model = PixelTransformer(**{**sizes, "hidden_dim": 32, "num_layers": 2, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_shapes_and_times():
    model, x = build(out_channels=6), torch.randn(2, 3, 8, 8)
    one = model(x, 500).sample
    assert one.shape == (2, 6, 8, 8)
    torch.testing.assert_close(one, model(x, torch.tensor([500, 500])).sample)
    torch.testing.assert_close(one, model(x, torch.tensor(500.0), return_dict=False)[0])
    assert not torch.allclose(one, model(x, 400).sample)


def test_it_starts_at_zero():
    model = PixelTransformer(sample_size=8, hidden_dim=32, num_layers=1)
    assert model(torch.randn(2, 3, 8, 8), 1.0).sample.abs().max() == 0


def test_patches_come_back_where_they_were():
    """With blocks switched off, pixel (i, j) of the output depends on the patch of (i, j) alone."""
    model = build(num_layers=0, patch_size=2)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    model(x, 1.0).sample[0, 0, 5, 3].backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    assert touched.tolist() == [[4, 2], [4, 3], [5, 2], [5, 3]]


def test_labels_and_the_second_time_change_the_output():
    model, x = build(num_class_embeds=3, second_time=True), torch.randn(1, 3, 8, 8)

    def run(label, second):
        labels, seconds = torch.tensor([label]), torch.tensor([second])
        return model(x, 500.0, class_labels=labels, second_timestep=seconds).sample

    base = run(0, 100.0)
    assert not torch.allclose(base, run(1, 100.0))
    assert not torch.allclose(base, run(0, 200.0))


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"num_class_embeds": 3}, {}),
        ({}, {"class_labels": torch.tensor([0])}),
        ({"second_time": True}, {}),
        ({}, {"second_timestep": torch.tensor([1.0])}),
    ],
)
def test_missing_or_surplus_conditions_are_refused(options, call):
    with pytest.raises(ValueError, match="class_labels|second_timestep"):
        build(**options)(torch.randn(1, 3, 8, 8), 1.0, **call)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "sample_size 8 is not a multiple of patch_size=3"),
        ({"hidden_dim": 30}, "hidden_dim 30 is not a multiple"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func itself
def test_jvp_equals_a_central_difference():
    model = build(second_time=True).double()
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64, generator=generator).unbind()
    r, ones = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def run(x, t):
        return model(x, t, second_timestep=r).sample

    t = torch.tensor([0.5, 0.8], dtype=torch.float64)
    _, tangent = jvp(run, (x, t), (v, ones))
    h = 1e-2  # norms and embeddings are float32 inside
    difference = (run(x + h * v, t + h) - run(x - h * v, t - h)) / (2 * h)
    assert ((tangent - difference).norm() / tangent.norm()).item() < 3e-3


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        model(x, 3.0).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_rotary_products_depend_on_the_offset_alone():
    angles = rotary_angles(4, 4, 16).reshape(4, 4, 8)
    q, k = torch.randn(2, 16).unbind()

    def turn(x, row, column):
        return rotate_pairs(x, angles[row, column].cos(), angles[row, column].sin())

    one = turn(q, 0, 1) @ turn(k, 2, 2)
    torch.testing.assert_close(one, turn(q, 1, 2) @ turn(k, 3, 3))
    assert not torch.isclose(one, turn(q, 0, 1) @ turn(k, 2, 3))


def test_sinusoidal_embedding_is_diffusers_own():
    from diffusers.models.embeddings import get_timestep_embedding

    time = torch.tensor([0.0, 1.0, 999.0])
    expected = get_timestep_embedding(time, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(time, 32), expected)


def test_a_velocity_from_an_image_means_that_image():
    """Both readings of the same weights: x_t - t u is the image, at every t that is not cut off."""
    path = LinearPath()
    same = {"second_time": True, "bottleneck_dim": 8}
    image, velocity = build(**same), build(**same, velocity_from_image=True)
    x_t, t, r = torch.randn(3, 3, 8, 8), torch.tensor([0.05, 0.4, 1.0]), torch.zeros(3)
    sample, time = path.model_input(x_t, t)
    call = {"second_timestep": path.model_input(x_t, r)[1]}
    expected = image(sample, time, **call).sample
    u = velocity(sample, time, **call).sample
    torch.testing.assert_close(Parameterisation(path, Flow()).denoised(u, x_t, t), expected)
    nearly_clean = velocity(sample, torch.full((3,), 1e-3), **call).sample
    assert nearly_clean.isfinite().all() and nearly_clean.abs().max() < 1e3
