"""What diffusers' ModelTesterMixin checks of its models holds for ours."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FREE_ROWS, MODEL_CASES, MODELS_WITH_WEIGHTS, TINY_MODELS, TINY_SCHEDULERS

from hfgen.recipe import MODELS

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(params=MODEL_CASES)
def case(request):
    """(its tiny instance's description, the model in eval mode)."""
    name, one = MODEL_CASES[request.param]
    return one, one.build(name)


def test_every_registered_model_has_a_tiny_instance():
    assert sorted(set(MODELS) - set(TINY_MODELS) - set(TINY_SCHEDULERS)) == []


@torch.no_grad()
def test_save_and_load(case, tmp_path):
    one, model = case
    model.train().save_pretrained(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["config.json", f"{WEIGHTS}.safetensors"]
    loaded = type(model).from_pretrained(tmp_path)
    assert not any(module.training for module in loaded.modules())
    torch.testing.assert_close(one(loaded), one(model.eval()), rtol=0, atol=0)


def test_the_constructor_is_the_schema(case, tmp_path):
    one, model = case
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    parameters = list(inspect.signature(type(model).__init__).parameters)[1:]
    assert sorted(key for key in saved if not key.startswith("_")) == sorted(parameters)
    assert saved["_class_name"] == type(model).__name__
    again = type(model).from_config(saved)
    assert dict(again.config) | {"_use_default_values": 0} == dict(model.config) | {
        "_use_default_values": 0
    }
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in again.state_dict().items()}


@torch.no_grad()
def test_variant(case, tmp_path):
    one, model = case
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / f"{WEIGHTS}.fp16.safetensors").is_file()
    loaded = type(model).from_pretrained(tmp_path, variant="fp16")
    torch.testing.assert_close(one(loaded), one(model), rtol=0, atol=0)
    with pytest.raises(OSError, match="no file named"):
        type(model).from_pretrained(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("case", MODELS_WITH_WEIGHTS, indirect=True)
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(case, tmp_path, variant):
    one, model = case
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size=int(size * 0.75), variant=variant)
    shards = list(tmp_path.glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert {name for shard in shards for name in load_file(shard)} == set(model.state_dict())
    loaded = type(model).from_pretrained(tmp_path, variant=variant)
    torch.testing.assert_close(one(loaded), one(model), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", MODELS_WITH_WEIGHTS, indirect=True)
def test_device_map_and_a_subfolder_of_shards(case, tmp_path):
    one, model = case
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    model.save_pretrained(tmp_path / "part", max_shard_size=int(size * 0.75))
    options = {"subfolder": "part", "device_map": {"": "cpu"}}
    loaded = type(model).from_pretrained(tmp_path, **options)
    torch.testing.assert_close(one(loaded), one(model), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype(case, tmp_path, dtype):
    one, model = case
    expected = one(model)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert loaded.dtype == dtype
    output = one(loaded, dtype=dtype)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("case", FREE_ROWS, indirect=True)
def test_rows_do_not_depend_on_the_batch(case):
    one, model = case
    together = one(model, 3)
    torch.testing.assert_close(one(model, 1), together[:1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_determinism_and_copies(case):
    one, model = case
    first = one(model)
    torch.testing.assert_close(one(model), first, rtol=0, atol=0)
    torch.testing.assert_close(one(copy.deepcopy(model)), first, rtol=0, atol=0)


@torch.no_grad()
def test_tuples_and_dicts_are_equivalent(case):
    one, model = case
    method = getattr(model, one.method)
    if "return_dict" in inspect.signature(method).parameters:
        torch.testing.assert_close(one(model, return_dict=False), one(model), rtol=0, atol=0)
    else:
        assert not isinstance(method(*one.inputs(3)), tuple)


@pytest.mark.parametrize("case", MODELS_WITH_WEIGHTS, indirect=True)
def test_training_reaches_every_parameter(case):
    one, model = case
    one.loss(model.train()).backward()
    trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    silent = [name for name, value in trained if value.grad is None]
    assert silent == []


def gradients(one, model) -> tuple[list[torch.Tensor], int]:
    """Gradients of a scalar of the output, and how often a submodule was run for them."""
    runs = 0

    def count(*_):
        nonlocal runs
        runs += 1

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    model.zero_grad()
    one.loss(model).backward()
    for hook in hooks:
        hook.remove()
    return [value.grad.clone() for value in model.parameters()], runs


def test_gradient_checkpointing(case):
    one, model = case
    if not model._supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            model.enable_gradient_checkpointing()
        return
    assert not model.is_gradient_checkpointing
    model.train()
    plain, runs = gradients(one, model)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    saved, more_runs = gradients(one, model)
    assert more_runs > runs  # what was not kept is computed again
    torch.testing.assert_close(saved, plain, rtol=1e-4, atol=1e-6)
    model.disable_gradient_checkpointing()
    assert gradients(one, model)[1] == runs


@pytest.mark.parametrize("case", MODELS_WITH_WEIGHTS, indirect=True)
def test_a_tensor_of_another_shape_is_refused_or_left_out(case, tmp_path):
    """`ignore_mismatched_sizes`: the tensor that does not fit is new, all others are loaded."""
    one, model = case
    model.save_pretrained(tmp_path)
    weights = tmp_path / f"{WEIGHTS}.safetensors"
    state = load_file(weights)
    sizes = {name: value.numel() for name, value in model.named_parameters() if value.ndim}
    if not sizes:  # nothing but a scalar
        return
    name = max(sizes, key=lambda name: sizes[name])
    state[name] = torch.cat([state[name], state[name]])
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="shape|size mismatch"):
        type(model).from_pretrained(tmp_path)
    options = {"ignore_mismatched_sizes": True, "low_cpu_mem_usage": False}
    loaded = type(model).from_pretrained(tmp_path, **options)
    for other, value in loaded.named_parameters():
        expected = model.get_parameter(other)
        assert value.shape == expected.shape
        assert other == name or value.equal(expected), other


@torch.no_grad()
@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offloading(case, offload_type):
    """With the CPU itself as the accelerator: the hooks are called, and change nothing."""
    one, model = case
    if not all(isinstance(x, torch.Tensor) for x in one.inputs(3)):
        return  # a function among the inputs cannot be moved
    expected = one(model)
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type=offload_type, **blocks
    )
    torch.testing.assert_close(one(model), expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", MODELS_WITH_WEIGHTS, indirect=True)
def test_layerwise_casting(case):
    """Weights are kept in half the bytes and computed with in float32."""
    one, model = case
    expected = one(model)
    kept = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    types = {"storage_dtype": torch.bfloat16, "compute_dtype": torch.float32}
    model.enable_layerwise_casting(**types)
    stored = [module.weight.dtype for module in model.modules() if type(module) in kept]
    found = one(model)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05)
    assert not stored or torch.bfloat16 in stored
