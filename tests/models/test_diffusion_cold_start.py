"""A trained flow, read as a flow map: the same function before it learns to take long steps."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

from hfgen.build import build_component
from hfgen.denoising import Flow, LinearPath, Parameterisation, Sample
from hfgen.errors import HfgenError
from hfgen.models.transformer_pixel import PixelTransformer
from hfgen.pipelines.diffusion_pipeline import DenoisingPipeline

PATH = LinearPath()


def trained(**options) -> PixelTransformer:
    torch.manual_seed(0)
    model = PixelTransformer(
        sample_size=8, in_channels=1, out_channels=1, hidden_dim=16, num_layers=1, **options
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def noisy():
    x_t, t = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 0.4, 0.7, 1.0])
    return x_t, t, PATH.model_input(x_t, t)[1]


@pytest.mark.parametrize("prediction", [Sample(), Flow()])
def test_at_first_every_average_velocity_is_the_flows_velocity(prediction, tmp_path):
    """Of an image-predicting flow and of one that predicts the velocity, at any second time."""
    before = trained(num_class_embeds=3)
    DenoisingPipeline(before, FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    words = {"second_time": True, "velocity_from_image": isinstance(prediction, Sample)}
    model = build_component("unet", {"pretrained": str(tmp_path), **words})
    (x_t, t, time), labels = noisy(), torch.tensor([0, 1, 2, 0])
    image = Parameterisation(PATH, prediction).denoised(
        before(x_t, time, class_labels=labels).sample, x_t, t
    )
    for r in (torch.zeros(4), 500 * t, time):
        u = model(x_t, time, class_labels=labels, second_timestep=r).sample
        torch.testing.assert_close(Parameterisation(PATH, Flow()).denoised(u, x_t, t), image)
    assert model.config["second_time"] and model.config["num_class_embeds"] == 3


def test_the_second_time_can_be_learned():
    x_t, _, time = noisy()
    model = trained().reread(second_time=True)
    model(x_t, time, second_timestep=0 * time).sample.square().sum().backward()
    assert model.second_time_in[-1].weight.grad.abs().max() > 1e-6


def test_a_flow_map_keeps_its_second_time():
    before, (x_t, _, time) = trained(second_time=True), noisy()
    after = before.reread(second_time=True)
    call = {"second_timestep": 0.3 * time}
    assert torch.equal(after(x_t, time, **call).sample, before(x_t, time, **call).sample)


def test_another_network_cannot_be_read_so(tmp_path):
    UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).save_pretrained(tmp_path)
    with pytest.raises(HfgenError, match="UNet2DModel cannot be read as a flow map") as error:
        build_component("unet", {"pretrained": str(tmp_path), "second_time": True})
    assert "\n" not in str(error.value)
