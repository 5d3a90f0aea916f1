"""Measure a pipeline, a folder or any images against a data set: one pass, every metric."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from hfgen.beside import recipe_call, recipe_data
from hfgen.data import DataConfig, Source, load_source
from hfgen.data.cache import cache_root
from hfgen.errors import HfgenError, one_of
from hfgen.evaluation.backbones import Backbone, BackboneLike, load_backbone
from hfgen.evaluation.denoiser_features import NOISE
from hfgen.evaluation.features import extract, open_store
from hfgen.evaluation.images import (
    FolderImages,
    Images,
    PipelineImages,
    ReconstructedImages,
    SourceImages,
    num_parameters,
)
from hfgen.evaluation.model_metrics import MODEL_METRICS, ModelEvidence
from hfgen.evaluation.pictures import save_neighbours, save_samples
from hfgen.evaluation.protocol import BackboneProtocol, Protocol
from hfgen.evaluation.results import Results, Score
from hfgen.evaluation.store import FeatureStore
from hfgen.evaluation.table import METRICS, Evidence, Metric
from hfgen.evaluation.world import world

METRICS_FILE = "metrics.json"
DEFAULT_BACKBONE = "efficientnet-lite0"
DEFAULT_METRICS = ("fd", "kd", "precision_recall", "density_coverage", "vendi", "vendi_ratio")

Data = DataConfig | Source | str


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of an evaluation that every entry shares.

    Attributes:
        metrics: names in ``METRICS`` and ``MODEL_METRICS``.
        num_images: samples drawn from a pipeline.
        reference_images: how many of the reference, and of held-out images, are used at most;
            None for all.
        evaluations: of a network that a likelihood bound may cost.
        reference_split: ``train`` (the convention) or ``validation``.
        backbone: of the metrics that do not fix one.
        weights: local files or folders by backbone name.
        batch_size: images in one call of the pipeline, at most 64.
        seed: of samples and of drawn subsets.
        feature_layer, feature_noise: of a denoiser, the layer whose features ``representation``
            reads ("" for the middle one) and the noise, sigma / alpha, on the images.
        call: arguments of the pipeline's call (``num_inference_steps``, ``guidance_scale`` ...),
            over those of the recipe beside the model.
        ema: whether the weights are an average; stands in the protocol.
        cache_dir: of reference features; by default ``hfgen`` in the Hugging Face home folder.
        trust_remote_code: whether code that a model brings may run without asking.
        progress: show progress bars.
    """

    metrics: Sequence[str] = DEFAULT_METRICS
    num_images: int = 5000
    reference_images: int | None = None
    evaluations: int = 64_000
    reference_split: str = "train"
    backbone: BackboneLike = DEFAULT_BACKBONE
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    batch_size: int = 64
    seed: int = 0
    feature_layer: str = ""
    feature_noise: float = NOISE
    call: Mapping[str, Any] = field(default_factory=dict)
    ema: bool | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS and name not in MODEL_METRICS:
                raise one_of("metrics", name, [*METRICS, *MODEL_METRICS])
        if not self.metrics:
            raise HfgenError("metrics: none given")
        if self.reference_split not in ("train", "validation"):
            raise one_of("reference_split", self.reference_split, ["train", "validation"])


def evaluate(
    model: Any = None,
    *,
    data: Data | None = None,
    heldout: Source | None = None,
    images: str | Path | Images | None = None,
    reference: str | Path | Images | None = None,
    output: str | Path | None = None,
    add: bool = False,
    **options: Any,
) -> Results:
    """Measure ``model`` or ``images`` against ``data`` or ``reference``.

    Args:
        model: a pipeline, or what ``hfgen.load`` takes: a run's folder, a saved pipeline, a Hub id.
        data: the ``data`` section of a recipe, a path or name as in ``data.path``, or a source. By
            default that of the run's own recipe.
        heldout: images that were not trained on, where ``data`` is a source; else they come from
            the validation split of ``data``.
        images: instead of a model, a folder of images or ``Images``.
        reference: instead of data, a folder of images or ``Images``.
        output: folder for ``metrics.json``, ``samples.png`` and ``neighbours.png``; a killed
            evaluation continues from there. By default ``evaluation`` in the model's folder;
            nothing is kept for a model or images given as objects.
        add: keep the scores of other metrics that ``output`` holds already.
        **options: fields of ``Options``.
    Returns:
        The same on every process.
    Raises:
        HfgenError: one line that says what is wrong and what would be valid.
    """
    settings = Options(**options)
    subject = _Subject.of(model, images, data, heldout, reference, settings)
    folder = _output_folder(output, model, images)
    with tempfile.TemporaryDirectory() as scratch:
        session = _Session(subject, settings, Path(scratch), folder, add)
        results = session.run()
    return results


@dataclass(frozen=True)
class _Subject:
    """What is measured against what."""

    name: str
    images: Images
    reference: Images
    pipeline: Any = None
    heldout: Source | None = None
    call: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: Any, images: Any, data: Any, heldout: Any, reference: Any, settings: Options
    ) -> _Subject:
        if (model is None) == (images is None):
            raise HfgenError("evaluate: give either a model or images")
        if data is not None and reference is not None:
            raise HfgenError("evaluate: give either data or reference, not both")
        _check_place(model)
        target, heldout = _reference(model, data, heldout, reference, settings)
        if model is None:
            measured = images if isinstance(images, Images) else FolderImages(images)
            name = getattr(measured.protocol, "name", "images")
            return cls(name, measured, target, heldout=heldout)
        name, pipeline = _load(model, settings.trust_remote_code)
        call = {**recipe_call(model, pipeline), **settings.call}
        measured = PipelineImages(
            pipeline,
            settings.num_images,
            seed=settings.seed,
            batch_size=settings.batch_size,
            conditions=target.source if isinstance(target, SourceImages) else None,
            call=call,
            name=name,
            ema=settings.ema,
        )
        return cls(name, measured, target, pipeline, heldout, call)


class _Session:
    """One evaluation: which backbones are needed, one pass over each set, then the numbers."""

    def __init__(
        self,
        subject: _Subject,
        settings: Options,
        scratch: Path,
        output: Path | None,
        add: bool,
    ):
        self.subject, self.settings, self.output, self.add = subject, settings, output, add
        self.state = world()
        self.scratch = scratch
        self.cache = cache_root(settings.cache_dir) / "evaluation"
        self.names = [name for name in settings.metrics if name in METRICS]
        self.backbones: dict[str, Backbone] = {}
        self.backbone_of: dict[str, str] = {}
        for name in self.names:
            chosen = load_backbone(METRICS[name].backbone or settings.backbone, settings.weights)
            known = self.backbones.setdefault(chosen.name, chosen)
            known.to(self.state.device or "cpu")
            self.backbone_of[name] = chosen.name
            if METRICS[name].labelled:
                _check_labels(name, subject)
            if METRICS[name].reconstructions:
                self._reconstructed()
            elif METRICS[name].heldout:
                self._heldout_images()
        self.model_metrics = {
            name: MODEL_METRICS[name] for name in settings.metrics if name in MODEL_METRICS
        }
        for name, metric in self.model_metrics.items():  # before hours of drawing samples
            metric.check(self._model_evidence(name))

    def run(self) -> Results:
        work = self.output / "features" if self.output else self.scratch
        real = self._stores(self.subject.reference, self.cache, "reference")[0]
        samples, speed = self._stores(self.subject.images, work, "samples")
        passes = {False: _Pass(self.subject.images, self.subject.reference, samples, real)}
        heldout: dict[str, FeatureStore] = {}
        if any(METRICS[name].heldout for name in self.names):
            images = self._heldout_images()
            heldout = self._stores(images, self.cache, "held-out images")[0]
        if any(METRICS[name].reconstructions for name in self.names):
            decoded = self._reconstructed()
            stores = self._stores(decoded, work, "reconstructions")[0]
            passes[True] = _Pass(decoded, decoded.images, stores, heldout)
        found: list[Any] = [None]
        if self.state.is_main_process:
            found = [self._added(self._results(passes, heldout, speed))]
        if self.state.num_processes > 1:
            broadcast_object_list(found)
        if self.state.is_main_process and self.output:
            self._write(found[0], passes[False])
            shutil.rmtree(work, ignore_errors=True)  # complete: nothing is left to continue
        return found[0]

    def _stores(
        self, images: Images, folder: Path, label: str
    ) -> tuple[dict[str, FeatureStore], float]:
        """Features of all images under every backbone, and images per second."""
        if not self.backbones:
            return {}, 0.0
        stores: dict[str, FeatureStore] = {}
        with self.state.main_process_first():
            for name, backbone in self.backbones.items():
                root = folder if backbone.revision else self.scratch
                stores[name] = open_store(root, images, backbone)
        speed = extract(
            images, self.backbones, stores, label=label, progress=self.settings.progress
        )
        return stores, speed

    def _results(
        self, passes: dict[bool, _Pass], heldout: dict[str, FeatureStore], speed: float
    ) -> Results:
        scores: list[Score] = []
        warnings: list[str] = []
        protocols: dict[str, Protocol] = {}
        for name in self.names:
            metric, backbone = METRICS[name], self.backbone_of[name]
            measured = passes[metric.reconstructions]
            protocol = measured.protocol(self.backbones[backbone])
            protocols[protocol.digest] = protocol
            evidence = measured.evidence(backbone, heldout)
            scores += _scores(name, metric, evidence, protocol.digest)
            warnings += _warnings(name, metric, evidence)
        for name, metric in self.model_metrics.items():
            scores += metric.compute(self._model_evidence(name))
        pipeline = self.subject.pipeline
        return Results(
            model=self.subject.name,
            scores=tuple(scores),
            protocols={k: {"summary": str(p), **asdict(p)} for k, p in protocols.items()},
            warnings=tuple(dict.fromkeys(warnings)),
            images_per_second=speed or None,
            num_parameters=num_parameters(pipeline) if pipeline is not None else None,
            output=str(self.output or ""),
        )

    def _added(self, results: Results) -> Results:
        """With the scores of before, where they are to be kept."""
        if not (self.add and self.output and (self.output / METRICS_FILE).exists()):
            return results
        return results.added_to(Results.load(self.output / METRICS_FILE))

    def _pipeline(self, metric: str) -> Any:
        if self.subject.pipeline is None:
            raise HfgenError(f"metrics: {metric} needs a model, not a folder of images")
        return self.subject.pipeline

    def _model_evidence(self, metric: str) -> ModelEvidence:
        return ModelEvidence(
            self._pipeline(metric),
            self._heldout(),
            self.settings.weights,
            self.settings.evaluations,
            self.subject.call,
            self.settings.feature_layer,
            self.settings.feature_noise,
        )

    def _reconstructed(self) -> ReconstructedImages:
        pipeline = self._pipeline("reconstructions")
        return ReconstructedImages(pipeline, self._heldout_images(), self.subject.name)

    def _heldout_images(self) -> SourceImages:
        source, limit = self._heldout(), self.settings.reference_images
        return SourceImages(source, min(limit or len(source), len(source)), self.settings.seed)

    def _heldout(self) -> Source:
        """Held-out images; the reference itself where a source was given without any."""
        if self.subject.heldout is not None:
            return self.subject.heldout
        if isinstance(self.subject.reference, SourceImages):
            return self.subject.reference.source
        raise HfgenError("metrics: this needs a data set, not a folder as reference")

    def _write(self, results: Results, measured: _Pass) -> None:
        assert self.output is not None
        if measured.samples:
            name = next(iter(measured.samples))
            samples, reference = measured.samples[name], measured.real[name]
            save_samples(samples, self.output / "samples.png")
            target = self.output / "neighbours.png"
            save_neighbours(samples, reference, measured.reference, target)
        results.save(self.output / METRICS_FILE)


@dataclass(frozen=True)
class _Pass:
    """Images, what they are measured against, and the features of both by backbone."""

    images: Images
    reference: Images
    samples: dict[str, FeatureStore]
    real: dict[str, FeatureStore]
    cached: dict[str, Any] = field(default_factory=dict)

    def evidence(self, backbone: str, heldout: dict[str, FeatureStore]) -> Evidence:
        """The same object for all metrics of one backbone, so that features are read once."""
        if backbone not in self.cached:
            found = (self.samples[backbone], self.real[backbone], heldout.get(backbone))
            labels = (self.images.labels(), self.reference.labels())
            self.cached[backbone] = Evidence(*found, *labels)
        return self.cached[backbone]

    def protocol(self, backbone: Backbone) -> Protocol:
        """What the scores of this pass under ``backbone`` depend on."""
        key = f"protocol of {backbone.name}"
        if key not in self.cached:
            self.cached[key] = Protocol(
                backbone=BackboneProtocol.of(backbone),
                reference=self.reference.protocol,
                samples=self.images.protocol,
            )
        return self.cached[key]


def _check_labels(metric: str, subject: _Subject) -> None:
    """HfgenError unless samples and reference have classes."""
    if subject.reference.labels() is None:
        raise HfgenError(f"metrics: {metric} needs a reference with class labels")
    if subject.images.labels() is None:
        raise HfgenError(f"metrics: {metric}: {subject.name} draws no images of a given class")


def _scores(name: str, metric: Metric, evidence: Evidence, digest: str) -> list[Score]:
    return [
        Score(
            name=key,
            value=number.value,
            standard_error=number.standard_error,
            better=metric.better,
            protocol=digest,
            settings=metric.settings,
        )
        for key, number in metric.numbers(name, evidence).items()
    ]


def _warnings(name: str, metric: Metric, evidence: Evidence) -> list[str]:
    found = []
    count, width = evidence.fake.shape
    if metric.gaussian and min(count, len(evidence.real)) < width:
        found.append(
            f"{name}: fewer images ({min(count, len(evidence.real))}) than features ({width}): "
            "the covariance is singular and the distance biased upwards; compare only equal counts"
        )
    if metric.convention and count != metric.convention:
        found.append(f"{name}: {count} samples; published values use {metric.convention}")
    return found


def _check_place(model: Any) -> None:
    """HfgenError for a path where nothing is, before it is asked for its data."""
    if isinstance(model, str | Path) and not Path(model).is_dir():
        from hfgen.hub.client import meant_id

        meant_id(model)


def _reference(
    model: Any, data: Any, heldout: Any, reference: Any, settings: Options
) -> tuple[Images, Source | None]:
    if reference is not None:
        given = reference if isinstance(reference, Images) else FolderImages(reference)
        return given, heldout
    if isinstance(data, Source):
        return SourceImages(data, settings.reference_images, settings.seed), heldout
    config = DataConfig(path=data) if isinstance(data, str) else data
    origin = f"{model}/recipe.yaml" if isinstance(model, str | Path) else "a recipe"
    config = config or data_config(recipe_data(model), origin)
    source = load_source(config, settings.reference_split)
    validation = load_source(config, "validation")
    return SourceImages(source, settings.reference_images, settings.seed), validation


def data_config(section: Mapping[str, Any], origin: str) -> DataConfig:
    """A ``DataConfig`` of a ``data`` section; HfgenError when it is empty or has unknown keys."""
    if not section:
        raise HfgenError(
            f"data: which images to compare with? nothing in {origin}; name a data set (data.path) "
            "or a reference folder"
        )
    known = [entry.name for entry in fields(DataConfig)]
    for name in section:
        if name not in known:
            raise one_of(f"{origin}: data", name, known)
    return DataConfig(**section)


def _load(model: Any, trust_remote_code: bool) -> tuple[str, Any]:
    """Name and pipeline, in evaluation mode on the device that Accelerate finds; the main process
    loads first, so that what has to be fetched is fetched once.
    """
    if isinstance(model, str | Path):
        from hfgen.hub.trust import load_asking

        name = str(model)
        with world().main_process_first():
            pipeline = load_asking(name, trust_remote_code=trust_remote_code)
    else:
        name, pipeline = type(model).__name__, model
    if not callable(pipeline) or not hasattr(pipeline, "components"):
        raise HfgenError(f"{name}: not a DiffusionPipeline")
    pipeline.to(world().device)
    pipeline.set_progress_bar_config(disable=True)
    return name, pipeline


def _output_folder(output: Any, model: Any, images: Any) -> Path | None:
    if output is not None:
        return Path(output)
    if isinstance(model, str | Path) and Path(model).is_dir():
        return Path(model) / "evaluation"
    return None


Callback = Callable[[Any], dict[str, float]]


def small_protocol(
    source: Source,
    *,
    metrics: Sequence[str] = ("fd", "precision_recall"),
    num_images: int = 512,
    backbone: BackboneLike = DEFAULT_BACKBONE,
    seed: int = 0,
    **options: Any,
) -> Callback:
    """A quick evaluation for use during training; the backbone is loaded and the reference is
    measured once, and cached.

    Args:
        source: validation images; at most 2048 of them are used.
        **options: fields of ``Options``.
    Returns:
        A function of a pipeline that gives score names and values. Values are for comparing
        checkpoints of one run: few samples bias a Frechet distance upwards, always alike.
    """
    measured_by = load_backbone(backbone, options.pop("weights", {}))
    count = min(2048, len(source))

    @torch.inference_mode()
    def measure(pipeline: Any) -> dict[str, float]:
        results = evaluate(
            pipeline,
            data=source,
            metrics=metrics,
            num_images=num_images,
            reference_images=count,
            backbone=measured_by,
            seed=seed,
            progress=False,
            **options,
        )
        return results.values()

    return measure
