"""From a recipe and the shape of its data to components by role, and from components to a
pipeline.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from hfgen.build_transformers import (
    TEXT_WIDTH,
    add_lora,
    build_transformers,
    denoiser_sizes,
    is_transformers_role,
    load_role,
    sizes_of,
    transformers_class,
)
from hfgen.config import _describe, _fits, encode, one_of_key, resolve
from hfgen.data import DataSpec
from hfgen.errors import HfgenError, one_of
from hfgen.pipelines._text import text_width  # pyright: ignore[reportMissingImports]
from hfgen.recipe import (
    BESIDE_PRETRAINED,
    MODELS,
    PIPELINES,
    REREAD,
    Recipe,
    choices,
    is_loaded,
)

AUTOENCODERS = ("vae", "vqvae")
OTHER_NAMES = {"vqvae": "vae", "codes": "vae", "guide": "unet", "teacher": "unet"}
"""What a role is called in the run that it is loaded from, if not by its own name."""

FOLLOWS = {
    **dict.fromkeys(("num_embeddings", "code_size", "num_quantizers"), "codes"),
    **dict.fromkeys(("text_vocab_size", "text_length"), "tokenizer"),
}
"""What a transformer over codes has from other roles."""


def component_class(name: str, where: str) -> type:
    """The class of a component: ours by table, or a model or scheduler of diffusers."""
    if name in MODELS:
        return resolve(MODELS[name])
    cls = getattr(diffusers, name, None)
    if isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin | diffusers.SchedulerMixin):
        return cls
    stock = [
        n for n in dir(diffusers) if n.endswith(("Model", "Scheduler", "AutoencoderKL", "VQModel"))
    ]
    near = str(one_of(where, name, [*MODELS, *stock]))
    hint = near[near.index("did you mean") :].split("?")[0] + "? " if "did you mean" in near else ""
    raise HfgenError(
        f"{where}: unknown model {name!r}; {hint}valid: {', '.join(sorted(MODELS))}, or a "
        f"model or scheduler class of diffusers"
    )


def pipeline_class(name: str) -> type[DiffusionPipeline]:
    """The class of a pipeline: ours by table, or one of diffusers."""
    if name in PIPELINES:
        return resolve(PIPELINES[name])
    cls = getattr(diffusers, name, None)
    if isinstance(cls, type) and issubclass(cls, DiffusionPipeline):
        return cls
    raise HfgenError(
        f"pipeline: unknown pipeline {name!r}; valid: {', '.join(sorted(PIPELINES))}, or a "
        f"pipeline class of diffusers"
    )


def build_components(
    recipe: Recipe, data: DataSpec, parts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Every component of ``recipe.model`` by role, sizes filled in from the data and, for those
    that are trained, from the other components.

    Args:
        data: what is trained on (``latents.training_source``): images, or their latents.
        parts: components that were made for the data already, by role (``Source.parts``).
    """
    settings = component_settings(recipe)
    _check_classes(recipe, settings)
    follow = _follow(recipe, data)
    trained = {role for phase in recipe.objective.phases for role in phase.trains}
    components = dict(parts or {})
    for role in sorted(settings, key=lambda role: (role in trained, list(settings).index(role))):
        if role not in components:
            components[role] = build_component(role, settings[role], follow)
        follow |= sizes_of(role, components[role])
    components = {role: components[role] for role in settings}
    for role, value in settings.items():
        if is_loaded(value):
            _check_fits(role, components[role], follow, recipe)
    _check_space(components)
    return {**components, **recipe.objective.extra_models()}


def component_settings(recipe: Recipe) -> dict[str, Any]:
    """What each role is made or loaded from: ``model.pretrained`` gives its roles, but those that
    name where they are loaded from themselves.
    """
    settings = {role: value for role, value in recipe.model.items() if role != "pretrained"}
    source = recipe.model.get("pretrained")
    if source is not None:
        for role in _roles_in(recipe, str(source)):
            own = settings.get(role, {})
            if not is_loaded(own):
                beside = {k: v for k, v in own.items() if k == "lora" or "type" not in own}
                settings[role] = {"pretrained": source, **beside}
    return settings


def frozen_autoencoder(recipe: Recipe) -> str | None:
    """The role of the autoencoder whose latents ``recipe`` trains on; None for pixels.

    That is ``vae``, or ``vqvae`` as LDMPipeline says, where no phase trains it.
    """
    trained = {role for phase in recipe.objective.phases for role in phase.trains}
    untrained = component_settings(recipe).keys() - trained
    return next((role for role in AUTOENCODERS if role in untrained), None)


def _roles_in(recipe: Recipe, source: str) -> list[str]:
    """The roles that ``model.pretrained`` fills: those of the pipeline there, or the one role that
    is trained.
    """
    from hfgen.hub.load import component_names

    names = component_names(source)
    trained = {role for phase in recipe.objective.phases for role in phase.trains}
    if names is None:  # a single model
        return sorted(trained - set(recipe.model)) if len(trained) > 1 else sorted(trained)
    taken = _component_names(pipeline_class(recipe.pipeline))
    wanted = trained | set(recipe.model) | taken | {*AUTOENCODERS, "text_encoder", "tokenizer"}
    return sorted(set(names) & wanted)


def _check_fits(role: str, model: Any, follow: Mapping[str, Any], recipe: Recipe) -> None:
    trained = {role for phase in recipe.objective.phases for role in phase.trains}
    if role not in trained or not isinstance(model, diffusers.ModelMixin):
        return
    latent = frozen_autoencoder(recipe)
    for name, setting in (("sample_size", "data.resolution"), ("in_channels", "data.channels")):
        has = model.config.get(name)
        if isinstance(has, int) and has != follow[name]:
            raise HfgenError(
                f"model.{role}: {type(model).__name__} was trained with {name} {has}, the "
                f"{'latents have' if latent else 'data has'} {follow[name]}; "
                + (f"give another model.{latent}" if latent else f"set {setting} to {has}")
            )
    has, width = text_width(model), follow.get(TEXT_WIDTH)
    if None not in (has, width) and has != width:
        raise HfgenError(
            f"model.{role}: {type(model).__name__} was trained with texts of width {has}, "
            f"model.text_encoder gives {width}; give another one"
        )
    for name, part in FOLLOWS.items():
        has, wanted = model.config.get(name), follow.get(name)
        if None not in (has, wanted) and has != wanted:
            raise HfgenError(
                f"model.{role}: {type(model).__name__} was trained with {name} {has}, "
                f"model.{part} gives {wanted}; give another one"
            )


CURVED = {"vmf": "SphereUniformPrior", "poincare": "PoincarePrior"}
"""Posteriors on a curved space, whose densities are per unit of its own volume, and its prior."""


def _check_space(components: Mapping[str, Any]) -> None:
    """HfgenError where posterior and prior live on different spaces: the KL would mean nothing."""
    if "vae" not in components:
        return
    kind = (components["vae"].config.get("posterior") or {}).get("type", "gaussian")
    prior = type(components["prior"]).__name__ if "prior" in components else "none"
    needed = CURVED.get(kind)
    if needed != prior and (needed or prior in CURVED.values()):
        valid = needed or "a prior on flat space, or none"
        raise HfgenError(
            f"model.prior: {prior} does not go with model.vae.posterior {kind}: they live on "
            f"different spaces; valid: {valid}"
        )


def build_pipeline(recipe: Recipe, components: Mapping[str, Any]) -> DiffusionPipeline:
    """The recipe's pipeline over ``components``; a constructor argument that is no role is read off
    the objective.
    """
    cls = pipeline_class(recipe.pipeline)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if name in components:
            arguments[name] = components[name]
        elif name == "decoder_likelihood":
            arguments[name] = decoder_likelihood(recipe)
        elif name in getattr(cls, "_optional_components", []):
            arguments[name] = None
        elif name == "requires_safety_checker":  # of Stable Diffusion: ours comes without one
            arguments[name] = False
        elif name in vars(recipe.objective):
            arguments[name] = encode(getattr(recipe.objective, name), choices())
        elif parameter.default is inspect.Parameter.empty:
            raise HfgenError(
                f"pipeline: {recipe.pipeline} needs a component {name!r}; the recipe's roles "
                f"are {', '.join(components)}"
            )
    try:
        return cls(**arguments)
    except ValueError as error:
        raise HfgenError(f"pipeline: {' '.join(str(error).split())}") from None


def decoder_likelihood(recipe: Recipe) -> dict[str, Any] | None:
    """What the output of a frozen decoder of ours means; None for the image itself."""
    from hfgen.hub.load import pipeline_config

    role = "codes" if "codes" in component_settings(recipe) else frozen_autoencoder(recipe)
    value = component_settings(recipe)[role] if role else None
    source = value if isinstance(value, str) else (value or {}).get("pretrained")
    config = pipeline_config(str(source)) if source is not None else {}
    return config.get("likelihood") or config.get("decoder_likelihood")


def exported_roles(recipe: Recipe) -> tuple[str, ...]:
    """Roles of the recipe that its pipeline samples with (a discriminator travels along, without an
    average).
    """
    roles = inspect.signature(
        pipeline_class(recipe.pipeline).__init__
    ).parameters  # a prior is optional, but sampled from
    return tuple(role for role in recipe.model if role in roles and role != "discriminator")


def _component_names(cls: type[DiffusionPipeline]) -> set[str]:
    names = inspect.signature(cls.__init__).parameters
    return {name for name in names if name != "self"} - set(
        getattr(cls, "_optional_components", [])
    )


def _check_classes(recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """HfgenError for a model with classes where the recipe keeps labels from it."""
    for role, value in settings.items():
        classes = value.get("num_class_embeds") if isinstance(value, Mapping) else None
        if classes is not None and not recipe.data.class_conditional:
            raise HfgenError(
                f"model.{role}.num_class_embeds: is {classes}, but data.class_conditional is "
                f"false; set that to true, or this to null"
            )


def _follow(recipe: Recipe, data: DataSpec) -> dict[str, Any]:
    """Constructor arguments that follow the data unless the recipe sets them."""
    likelihood = getattr(recipe.objective, "likelihood", None)
    follow: dict[str, Any] = {
        "sample_size": data.height,
        "in_channels": data.channels,
        "out_channels": likelihood.channels(data.channels)
        if likelihood is not None
        else data.channels,
    }
    if recipe.data.class_conditional:
        if not data.class_names:
            raise HfgenError(
                f"data.class_conditional: {data.name} has no class labels; set it to false, or "
                f"name data.label_column"
            )
        follow["num_class_embeds"] = len(data.class_names)
    return follow


def build_component(role: str, value: Any, follow: Mapping[str, Any] | None = None) -> Any:
    """One component from its entry in ``recipe.model``.

    Args:
        follow: constructor arguments that follow the data, where ``value`` does not set them.
    """
    where = f"model.{role}"
    if isinstance(value, str):
        value = {"pretrained": value}
    if not isinstance(value, Mapping) or not ({"type", "pretrained"} & set(value)):
        raise HfgenError(
            f"{where}: expected {{type: ClassName, ...}} or a path to load it from, got {value!r}"
        )
    options = dict(value)
    if "pretrained" in options:
        return _pretrained(role, options)
    stock = transformers_class(str(options["type"]))
    if stock is not None:
        return _transformers(where, stock, options, follow or {})
    cls = component_class(str(options.pop("type")), f"{where}.type")
    parameters = inspect.signature(cls.__init__).parameters
    _check_arguments(cls, parameters, options, where)
    for name, size in denoiser_sizes(parameters, follow or {}).items():
        if (
            name in parameters
            and issubclass(cls, diffusers.ModelMixin)
            and options.get(name) is None
        ):
            options[name] = size
    try:
        model = cls(**options)
    except (ValueError, TypeError, AssertionError, IndexError) as error:
        raise HfgenError(
            f"{where}: {cls.__name__} cannot be built: {' '.join(str(error).split())}"
        ) from None
    _check_depth(where, model)
    return model


def _check_depth(where: str, model: Any) -> None:
    """A UNet2DModel joins what it has halved with what it has doubled again: sides must agree."""
    size = model.config.get("sample_size")
    if not isinstance(model, diffusers.UNet2DModel) or not isinstance(size, int):
        return
    halvings = len(model.config["down_block_types"]) - 1
    if size % 2**halvings:
        fits = 2**halvings * max(round(size / 2**halvings), 1)
        raise HfgenError(
            f"{where}: {len(model.config['down_block_types'])} down_block_types halve images "
            f"{halvings} times, but {size} is not a multiple of {2**halvings}; set data.resolution "
            f"to {fits}, or take fewer blocks"
        )


def _check_arguments(
    cls: type, parameters: Mapping[str, Any], options: Mapping[str, Any], where: str
) -> None:
    valid = [name for name in parameters if name not in ("self", "kwargs", "args")]
    hints = typing.get_type_hints(cls.__init__)
    for name, value in options.items():
        if name == "posterior" and name not in valid:
            raise HfgenError(
                f"{where}.posterior: {cls.__name__} has one of its own; flows and the like need "
                "the flat latent of MLPVAE or ConvVAE"
            )
        if name not in valid:
            raise HfgenError(one_of_key(f"{where}.{name}", name, valid))
        if name in hints and value is not None and not _fits(hints[name], value, {}):
            raise HfgenError(f"{where}.{name}: expected {_describe(hints[name])}, got {value!r}")


def _pretrained(role: str, options: dict[str, Any]) -> Any:
    from hfgen.hub.load import component_names, load_component

    source, where = options.pop("pretrained"), f"model.{role}"
    if is_transformers_role(role):
        return load_role(role, str(source), options)
    beside = {name: options.pop(name) for name in BESIDE_PRETRAINED if name in options}
    lora = beside.pop("lora", None)
    again = {name: beside.pop(name) for name in REREAD if name in beside}
    if options:
        raise HfgenError(
            f"{where}: {', '.join(options)} cannot be set beside pretrained; its own "
            f"config.json holds them"
        )
    names = component_names(source)
    missing = names is not None and role not in names
    model = load_component(source, OTHER_NAMES.get(role, role) if missing else role)
    if beside:
        model.register_to_config(**beside)
    if again:
        model = _reread(where, model, again)
    return model if lora is None else add_lora(role, model, lora)


def _reread(where: str, model: Any, arguments: Mapping[str, Any]) -> Any:
    if not isinstance(model, resolve(MODELS["PixelTransformer"])):
        raise HfgenError(
            f"{where}: {', '.join(arguments)} beside pretrained: {type(model).__name__} cannot be "
            "read as a flow map; valid: a PixelTransformer"
        )
    return model.reread(**arguments)


def _transformers(
    where: str, cls: type, options: Mapping[str, Any], follow: Mapping[str, Any]
) -> Any:
    try:
        given = {name: value for name, value in options.items() if name != "type"}
        return build_transformers(cls, given, follow)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        text = " ".join(str(error).split())[:200]
        raise HfgenError(f"{where}: {cls.__name__} cannot be built: {text}") from None
