"""The composition root: one ``Recipe`` dataclass, and tables that map names to classes.

Adding a model is one file and one line in ``MODELS``; an objective one file and one line in
``OBJECTIVES``. Classes are named as "module:Class" and imported when chosen, so that listing
recipes costs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfgen.config import (
    Choices,
    Decoder,
    encode,
    merge,
    one_of_key,
    parse_overrides,
    read_yaml,
    to_yaml,
)
from hfgen.data.config import DataConfig
from hfgen.errors import HfgenError, one_of
from hfgen.hub.config import HubConfig
from hfgen.objectives.base import Objective
from hfgen.training.config import EMAConfig, LoggingConfig, OptimizerConfig, TrainingConfig

FORMAT_VERSION = 1
RECIPES = Path(__file__).parent / "recipes"

MODELS: dict[str, str] = {
    "MLPVAE": "hfgen.models.vae_mlp:MLPVAE",
    "ConvVAE": "hfgen.models.vae_conv:ConvVAE",
    "VQVAE": "hfgen.models.vae_vq:VQVAE",
    "HierarchicalVQVAE": "hfgen.models.vae_vq_hierarchical:HierarchicalVQVAE",
    "LadderVAE": "hfgen.models.vae_ladder:LadderVAE",
    "LatentDiscriminator": "hfgen.models.vae_discriminator:LatentDiscriminator",
    "PatchDiscriminator": "hfgen.models.vae_patch_discriminator:PatchDiscriminator",
    "GaussianMixturePrior": "hfgen.models.prior_mixture:GaussianMixturePrior",
    "VampPrior": "hfgen.models.prior_vamp:VampPrior",
    "FlowPrior": "hfgen.models.prior_flow:FlowPrior",
    "CodePrior": "hfgen.models.prior_codes:CodePrior",
    "PixelCNNPrior": "hfgen.models.prior_pixelcnn:PixelCNNPrior",
    "TwoStagePrior": "hfgen.models.prior_two_stage:TwoStagePrior",
    "SphereUniformPrior": "hfgen.models.prior_sphere:SphereUniformPrior",
    "PoincarePrior": "hfgen.models.prior_poincare:PoincarePrior",
    "MetricPrior": "hfgen.models.prior_metric:MetricPrior",
    "LeapfrogFlow": "hfgen.models.vae_hamiltonian:LeapfrogFlow",
    "RiemannianLeapfrog": "hfgen.models.vae_riemannian:RiemannianLeapfrog",
    "DCGANGenerator": "hfgen.models.gan_dcgan:DCGANGenerator",
    "DCGANDiscriminator": "hfgen.models.gan_dcgan:DCGANDiscriminator",
    "R3GANGenerator": "hfgen.models.gan_r3gan:R3GANGenerator",
    "R3GANDiscriminator": "hfgen.models.gan_r3gan:R3GANDiscriminator",
    "ResNetGenerator": "hfgen.models.gan_resnet:ResNetGenerator",
    "ResNetDiscriminator": "hfgen.models.gan_resnet:ResNetDiscriminator",
    "BigGANGenerator": "hfgen.models.gan_biggan:BigGANGenerator",
    "BigGANDeepGenerator": "hfgen.models.gan_biggan:BigGANDeepGenerator",
    "BigGANDiscriminator": "hfgen.models.gan_biggan:BigGANDiscriminator",
    "LightweightGenerator": "hfgen.models.gan_lightweight:LightweightGenerator",
    "LightweightDiscriminator": "hfgen.models.gan_lightweight:LightweightDiscriminator",
    "ProjectedDiscriminator": "hfgen.models.gan_projected:ProjectedDiscriminator",
    "StyleGAN2Generator": "hfgen.models.gan_stylegan2:StyleGAN2Generator",
    "StyleGAN2Discriminator": "hfgen.models.gan_stylegan2:StyleGAN2Discriminator",
    "PixelTransformer": "hfgen.models.transformer_pixel:PixelTransformer",
    "MagnitudePreservingTransformer": (
        "hfgen.models.transformer_magnitude:MagnitudePreservingTransformer"
    ),
    "FeatureAligner": "hfgen.models.feature_aligner:FeatureAligner",
    "CodeTransformer": "hfgen.models.transformer_codes:CodeTransformer",
    "EDMHeunScheduler": "hfgen.models.scheduler_edm_heun:EDMHeunScheduler",
}
"""Components by class name, beside every model and scheduler class of diffusers."""

PIPELINES: dict[str, str] = {
    "VAEPipeline": "hfgen.pipelines.vae_pipeline:VAEPipeline",
    "GANPipeline": "hfgen.pipelines.gan_pipeline:GANPipeline",
    "DenoisingPipeline": "hfgen.pipelines.diffusion_pipeline:DenoisingPipeline",
    "CLIPScorePipeline": "hfgen.pipelines.clip_pipeline:CLIPScorePipeline",
    "CodesPipeline": "hfgen.pipelines.codes_pipeline:CodesPipeline",
    "TextToImagePipeline": "hfgen.pipelines.text_to_image_pipeline:TextToImagePipeline",
}
"""Pipelines by class name, beside every pipeline class of diffusers."""

OBJECTIVES: dict[str, str] = {
    "elbo": "hfgen.objectives.vae:ELBO",
    "autoencoder": "hfgen.objectives.vae:Autoencoder",
    "iwae": "hfgen.objectives.vae_bounds:IWAE",
    "miwae": "hfgen.objectives.vae_bounds:MIWAE",
    "piwae": "hfgen.objectives.vae_bounds:PIWAE",
    "ciwae": "hfgen.objectives.vae_bounds:CIWAE",
    "dreg": "hfgen.objectives.vae_bounds:DReG",
    "stl": "hfgen.objectives.vae_bounds:StickingTheLanding",
    "hamiltonian": "hfgen.objectives.vae_hamiltonian:HamiltonianELBO",
    "riemannian": "hfgen.objectives.vae_riemannian:RiemannianELBO",
    "vae-gan": "hfgen.objectives.vae_gan:VAEGAN",
    "vqgan": "hfgen.objectives.vae_vqgan:VQGAN",
    "factor-vae": "hfgen.objectives.vae_adversarial:FactorVAE",
    "adversarial-autoencoder": "hfgen.objectives.vae_adversarial:AdversarialAutoencoder",
    "vq": "hfgen.objectives.vae_vq:VectorQuantized",
    "dvae": "hfgen.objectives.discrete_vae:DiscreteVAE",
    "image-codes": "hfgen.objectives.image_codes:ImageCodes",
    "contrastive": "hfgen.objectives.contrastive:Contrastive",
    "text-diffusion": "hfgen.objectives.text_diffusion:TextDiffusion",
    "gan": "hfgen.objectives.gan:GAN",
    "diffusion": "hfgen.objectives.diffusion:Diffusion",
    "flow-map": "hfgen.objectives.flow:FlowMaps",
    "repa": "hfgen.objectives.diffusion_alignment:AlignedDiffusion",
    "reflow": "hfgen.objectives.diffusion_reflow:Reflow",
    "consistency": "hfgen.objectives.diffusion_consistency:Consistency",
}


def choices() -> Choices:
    """Tables for every abstract part of a recipe."""
    from hfgen.likelihoods import LIKELIHOODS, Likelihood
    from hfgen.objectives.diffusion_couplings import COUPLINGS, Coupling
    from hfgen.objectives.diffusion_times import TIME_SAMPLERS, TimeSampler
    from hfgen.objectives.diffusion_weightings import WEIGHTINGS, Weighting
    from hfgen.objectives.flow import FLOW_MAP_TARGETS, FlowMapTarget
    from hfgen.objectives.gan_augment import AUGMENTATIONS, Augmentation
    from hfgen.objectives.gan_regularizers import REGULARIZERS, Regularizer
    from hfgen.objectives.vae_penalties import PENALTIES, Penalty
    from hfgen.objectives.vae_perceptual import PERCEPTUALS, Perceptual

    return {
        Objective: OBJECTIVES,
        Likelihood: LIKELIHOODS,
        TimeSampler: TIME_SAMPLERS,
        Weighting: WEIGHTINGS,
        FlowMapTarget: FLOW_MAP_TARGETS,
        Coupling: COUPLINGS,
        Penalty: PENALTIES,
        Perceptual: PERCEPTUALS,
        Regularizer: REGULARIZERS,
        Augmentation: AUGMENTATIONS,
    }


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A published result that a recipe is held against.

    Attributes:
        value: the number, -ln p(x) in nats per image.
        source: where it stands, and of which setting.
        images: training images of the published schedule (epochs times images); None where it is
            not stated.
        bound: how it was computed: a name of ``evaluation.likelihood.BOUNDS``.
        num_samples: of the bound, as published; at most 500 are drawn here.
        annealed: measure annealed importance sampling too, in which the encoder has no part.
    """

    value: float
    source: str
    images: int | None = None
    bound: Literal["iw", "elbo"] = "iw"
    num_samples: int = 200
    annealed: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run is made of.

    Attributes:
        name: also names the run's folder.
        family: vae, gan, diffusion or text.
        description, expect, duration: for ``hfgen recipes``: what it is, what to expect, how long.
        pipeline: class name of the pipeline that is exported; it takes the roles that its
            constructor names.
        model: role -> ``{type: ClassName, argument: value, ...}``, or a path to load the role from.
        output_dir: default ``runs/<name>``.
        paper: the published result that this recipe is about.
    """

    format_version: int = FORMAT_VERSION
    name: str
    family: Literal["vae", "gan", "diffusion", "text"]
    description: str = ""
    expect: str = ""
    duration: str = ""
    paper: Paper | None = None
    pipeline: str
    output_dir: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any]
    objective: Objective
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version: {self.format_version} is not {FORMAT_VERSION}, the one that "
                f"this hfgen reads"
            )
        trained = {role for phase in self.objective.phases for role in phase.trains}
        for role in sorted(trained - set(self.objective.extra_models())):
            if role not in self.model and "pretrained" not in self.model:
                raise ValueError(
                    f"model: the objective trains {role!r}, which is not among "
                    f"{', '.join(sorted(self.model))}"
                )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output_dir or Path("runs") / self.name)

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML values."""
        return encode(self, choices())

    def to_yaml(self) -> str:
        return to_yaml(self.to_dict())


def bundled() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find(name: str) -> Path:
    """The YAML file that ``name`` means: a bundled recipe, a file, a run's or a pipeline's folder,
    a Hub id.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise HfgenError(f"recipe: no file {name}")
        return path
    if (RECIPES / f"{name}.yaml").is_file():
        return RECIPES / f"{name}.yaml"
    if is_hub_id(name):
        from hfgen.hub.fetch import fetch

        path = fetch(name)
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_dir():
        raise HfgenError(
            f"recipe: {name} holds no recipe.yaml; give a run, a YAML file or one of "
            f"{', '.join(bundled())}"
        )
    raise one_of("recipe", name, bundled())


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can only mean a repository of the Hub: "user/name"."""
    here = Path(name).exists() or name.startswith((".", "/", "runs/"))
    return name.count("/") == 1 and not here and Path(name).suffix not in (".yaml", ".yml")


def read(path: Path) -> dict[str, Any]:
    """A recipe's values as written; ``base: other-recipe`` is filled in below them."""
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is not None:
        below = read(find(str(base)))
        measured = ("expect", "duration", "paper")  # of the base recipe, not of this one
        values = merge({k: v for k, v in below.items() if k not in measured}, values)
    values.setdefault("name", path.stem)
    return values


def load(name: str, overrides: Mapping[str, Any] | list[str] | None = None) -> Recipe:
    """A recipe by name or path, with overrides (nested values, or command-line words) on top.

    A bundled name or a YAML file is trained from scratch; a run's folder, a pipeline's folder or a
    Hub id gives its weights too (``model.pretrained``), unless the run is resumed. What was read
    from a run goes into a fresh folder.

    Raises HfgenError, one line, on unknown keys, wrong types and impossible combinations.
    """
    over = parse_overrides(overrides) if isinstance(overrides, list) else dict(overrides or {})
    path = find(name)
    values = _from_folder(name, path, over)
    pretrained = _model(over).get("pretrained")
    if pretrained is not None:
        from hfgen.hub.load import component_names

        exported = component_names(str(pretrained)) or ()
        kept = _beside(str(pretrained), exported, values.get("model", {}), over)
        values = {**values, "model": kept}
    values = merge(values, over)
    source = name if name in bundled() else str(path)

    def origin(key: str) -> str:
        return "command line" if _has(over, key) else source

    return decode(values, origin)


def _from_folder(name: str, path: Path, over: Mapping[str, Any]) -> dict[str, Any]:
    values = read(path)
    if path.parent == RECIPES:
        return values
    folder = Path(name).suffix not in (".yaml", ".yml")
    if _has(over, "training.resume_from_checkpoint"):
        return {**values, "output_dir": name} if folder and Path(name).is_dir() else values
    if folder:  # a Hub id holds on every machine
        source = name if is_hub_id(name) else str(path.parent)
        kept = _beside(source, _exported_roles(path.parent), values.get("model", {}), over)
        values["model"] = {**kept, "pretrained": source}
    if path.name == "recipe.yaml":
        values["output_dir"] = str(
            _fresh(Path(values.get("output_dir") or f"runs/{values['name']}"))
        )
    return values


def is_loaded(value: Any) -> bool:
    """Whether an entry of ``model`` names where to load it from, rather than what to build."""
    return isinstance(value, str) or (isinstance(value, Mapping) and "pretrained" in value)


REREAD = ("second_time", "velocity_from_image")
"""Arguments of a pretrained pixel transformer that make the same weights a flow map."""

BESIDE_PRETRAINED = ("lora", "scaling_factor", "shift_factor", *REREAD)
"""What may be set on a pretrained component: adapters, how its latents are scaled, a few-step model
from a flow."""


def _exported_roles(folder: Path) -> set[str]:
    """Roles of the pipeline in a run or pipeline folder; none where none was exported."""
    for index in (folder / "pipeline" / "model_index.json", folder / "model_index.json"):
        if index.is_file():
            entries = json.loads(index.read_text(encoding="utf-8"))
            return {role for role in entries if not role.startswith("_")}
    return set()


def _model(over: Mapping[str, Any]) -> Mapping[str, Any]:
    value = over.get("model")
    return value if isinstance(value, Mapping) else {}


def _beside(
    source: str, exported: Collection[str], model: Mapping[str, Any], over: Mapping[str, Any]
) -> dict[str, Any]:
    """``model`` of a recipe whose roles ``exported`` come from ``source``: without the paths that
    they were once made from, so that only the paths of ``over`` count.

    Raises:
        HfgenError: ``over`` would build what ``source`` holds.
    """
    for role, value in _model(over).items():
        built = role in exported and isinstance(value, Mapping) and not is_loaded(value)
        for key in value if built else ():
            if key not in BESIDE_PRETRAINED:
                raise HfgenError(
                    f"command line: model.{role}.{key}: {role} comes from {source} as it is; "
                    f"valid: --model.{role} RUN_OR_PATH for another one, or "
                    f"{', '.join(BESIDE_PRETRAINED)}"
                )
    return {
        role: value for role, value in model.items() if not (role in exported and is_loaded(value))
    }


def _fresh(folder: Path) -> Path:
    """``folder``, or the first of folder-2, folder-3, ... that is not there yet."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def decode(values: Mapping[str, Any], origin=lambda path: "recipe") -> Recipe:
    """A ``Recipe`` from nested values."""
    fields = [f.name for f in dataclasses.fields(Recipe)]
    for key in values:
        if key not in fields:
            raise HfgenError(f"{origin(key)}: {one_of_key(key, key, fields)}")
    return Decoder(choices(), origin).decode(Recipe, values)


_SAYS_NOTHING = {
    "output_dir",
    "logging",
    "hub",
    "description",
    "expect",
    "duration",
    "paper",
    "training.resume_from_checkpoint",
    "training.allow_recipe_change",
}
"""Keys that change neither the weights nor what they were trained on."""


def digest(recipe: Recipe) -> str:
    """Ten hexadecimal digits that change when something changes what is trained. Only what differs
    from the defaults counts, so that a new option leaves the recipes that do not use it alone.
    """
    values = encode(recipe, choices(), with_defaults=False)
    kept = {k: v for k, v in values.items() if k not in _SAYS_NOTHING}
    kept["training"] = {
        k: v for k, v in values.get("training", {}).items() if f"training.{k}" not in _SAYS_NOTHING
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted keys at which two recipes differ in what they train."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        here = f"{path}.{key}" if path else key
        a, b = old.get(key), new.get(key)
        if here in _SAYS_NOTHING:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, here)
        elif a != b:
            found.append(f"{here} ({a!r} -> {b!r})")
    return found


def _has(values: Mapping[str, Any], path: str) -> bool:
    here: Any = values
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return False
        here = here[key]
    return True
