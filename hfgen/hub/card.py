"""Model cards: a generated part between two markers, and metadata; what its owner writes around
them is kept.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from hfgen.hub.facts import CAPTIONS, FROM_TEXT, SCORING, Facts, Result, read_facts
from hfgen.hub.folder import card_metadata, components, split_card

BEGIN = "<!-- hfgen:begin (generated; write above or below, this part is replaced) -->"
END = "<!-- hfgen:end -->"
_GENERATED = re.compile(r"<!-- hfgen:begin.*?-->.*?<!-- hfgen:end -->", re.DOTALL)
_PLACEHOLDER = "user/name"
_MEASURED_BY = "hfgen evaluate"
_SOFTWARE = ("hfgen", "torch", "diffusers", "accelerate")
_STEPS = 50
"""Of a sampler, where no recipe says how many its samples were drawn with."""
_HUB_DATASETS = {"mnist": "ylecun/mnist"}


def write_card(
    folder: str | Path, *, repo_id: str | None = None, remote: str | None = None
) -> Path:
    """Write or refresh ``README.md`` of a run or a pipeline folder and return its path.

    Between the markers everything is generated anew. Text around them stays, and so do metadata
    keys that hfgen does not know; of the generated ones ``license`` and ``pipeline_tag`` keep the
    owner's value, lists keep the owner's entries.

    Args:
        repo_id: "user/name" for the lines that load it; default the recipe's ``hub.hub_model_id``.
        remote: the card on the Hub; used where nothing was written by hand in the local one.

    Raises HfgenError: not a pipeline, or the metadata of the card that is there is broken YAML.
    """
    facts = read_facts(folder)
    _show_newest_grid(Path(folder))
    path = (facts.shared.run or facts.shared.pipeline) / "README.md"
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if remote is not None and not written_by_hand(old):
        old = remote
    path.write_text(refreshed(old, facts, repo_id, origin=str(path)), encoding="utf-8")
    return path


def _show_newest_grid(run: Path) -> None:
    """The trainer's newest picture (``samples/<images seen>.png``) is the grid, unless a later one
    was drawn."""
    numbered = [path for path in (run / "samples").glob("*.png") if path.stem.isdigit()]
    newest = max(numbered, key=lambda path: int(path.stem), default=None)
    shown = run / "samples" / "grid.png"
    if newest and not (shown.is_file() and shown.stat().st_mtime >= newest.stat().st_mtime):
        shutil.copyfile(newest, shown)


def written_by_hand(text: str) -> bool:
    """Whether a card holds text outside the generated part."""
    _, body = split_card(text)
    return bool(_GENERATED.sub("", body).strip())


def refreshed(old: str, facts: Facts, repo_id: str | None, *, origin: str) -> str:
    """The card ``old`` ("" for none) with its generated part and metadata replaced."""
    _, body = split_card(old)
    asked = card_metadata(old, origin)
    metadata = merge_metadata(asked, generated_metadata(facts))
    chosen = repo_id or facts.recipe.get("hub", {}).get("hub_model_id") or _PLACEHOLDER
    part = f"{BEGIN}\n{render(facts, chosen, str(metadata['license']))}\n{END}"
    if _GENERATED.search(body):
        body = _GENERATED.sub(lambda _: part, body, count=1)
    else:
        body = "\n\n".join(text for text in (body.strip(), part) if text) + "\n"
    ModelCardData(**metadata)  # raises where the Hub would
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=110)
    return f"---\n{front}---\n\n{body.lstrip()}"


# ----------------------------------------------------------------------------------------- metadata


def generated_metadata(facts: Facts) -> dict[str, Any]:
    """Metadata as the Hub reads it (https://huggingface.co/docs/hub/model-cards#model-card-
    metadata).
    """
    widget = [
        {"text": ", ".join(facts.prompts) or " ", "output": {"url": f"samples/{path.name}"}}
        for path in facts.picture_files()
        if path.stem == "grid"
    ]
    license_name = facts.recipe.get("hub", {}).get("license") or "unknown"
    data = ModelCardData(
        model_name=facts.name,
        license=license_name,
        library_name="diffusers",
        pipeline_tag=facts.task,
        tags=["diffusers", "hfgen", *([facts.family] if facts.family else [])],
        datasets=_hub_datasets(facts.dataset) or None,
        eval_results=[_eval_result(result, facts) for result in facts.results] or None,
        widget=widget or None,
    )
    return data.to_dict()


def _hub_datasets(path: str) -> list[str]:
    """The data set's id on the Hub; none for a folder of one's own."""
    if path in _HUB_DATASETS:
        return [_HUB_DATASETS[path]]
    return [path] if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and not Path(path).exists() else []


def _eval_result(result: Result, facts: Facts) -> EvalResult:
    dataset = facts.dataset or "unknown"
    return EvalResult(
        task_type=facts.task,
        dataset_type=(_hub_datasets(dataset) or [dataset])[0],
        dataset_name=dataset,
        metric_type=result.metric,
        metric_name=result.metric,
        metric_value=result.value,
        metric_args={
            "measured_by": _MEASURED_BY,
            "standard_error": result.standard_error,
            "settings": result.settings,
            "protocol": result.protocol,
        },
    )


def merge_metadata(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The owner's metadata with the generated one brought up to date in it."""
    merged = {**new, **{key: value for key, value in old.items() if key != "library_name"}}
    for key in ("tags", "datasets"):
        values = [*_as_list(new.get(key)), *_as_list(old.get(key))]
        if values:
            merged[key] = list(dict.fromkeys(values))
    if old.get("license") in (None, "unknown"):
        merged["license"] = new["license"]
    merged["widget"] = _kept_widgets(old) + new.get("widget", [])
    merged["model-index"] = _merge_index(old.get("model-index"), new.get("model-index"))
    return {key: value for key, value in merged.items() if value not in (None, [])}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _kept_widgets(old: dict[str, Any]) -> list[Any]:
    ours = tuple(f"samples/{name}." for name in CAPTIONS)
    return [
        entry for entry in _as_list(old.get("widget")) if not _picture_of(entry).startswith(ours)
    ]


def _picture_of(entry: Any) -> str:
    output = entry.get("output") if isinstance(entry, dict) else None
    return str(output.get("url", "")) if isinstance(output, dict) else ""


def _merge_index(old: Any, new: Any) -> list[dict[str, Any]]:
    """Generated results replace generated ones; results from elsewhere stay."""
    kept = []
    for model in _as_list(old):
        results = [entry for entry in map(_foreign, model.get("results", [])) if entry["metrics"]]
        kept += [{**model, "results": results}] if results else []
    for model in _as_list(new):
        twin = next((entry for entry in kept if entry.get("name") == model["name"]), None)
        if twin is None:
            kept.append(model)
        else:
            twin["results"] = [*model["results"], *twin["results"]]
    return kept


def _foreign(entry: dict[str, Any]) -> dict[str, Any]:
    """A result of a model index without the metrics that hfgen wrote."""
    metrics = entry.get("metrics", [])
    return {
        **entry,
        "metrics": [m for m in metrics if m.get("args", {}).get("measured_by") != _MEASURED_BY],
    }


# ----------------------------------------------------------------------------------- generated part


def load_lines(facts: Facts, repo_id: str) -> str:
    """The three lines that load the model and make an image (or compare one with a text), with
    diffusers alone.
    """
    trust = ", trust_remote_code=True" if facts.code else ""
    scores = facts.task == SCORING
    text = json.dumps((facts.prompts or ["a picture"])[0], ensure_ascii=False)
    return "\n".join(
        [
            "from diffusers import DiffusionPipeline" + (", utils" if scores else ""),
            f'pipeline = DiffusionPipeline.from_pretrained("{repo_id}"{trust})',
            f'cosine = pipeline([utils.load_image("picture.png")], {text})'
            if scores
            else f"image = pipeline({_call(facts, text)}).images[0]",
        ]
    )


def _call(facts: Facts, text: str) -> str:
    """Arguments without which the pipeline makes no image, and those that its samples were drawn
    with.
    """
    arguments = [text] if facts.task == FROM_TEXT else []
    if facts.config_value("num_class_embeds") or facts.config_value("num_embeds_ada_norm"):
        arguments.append("class_labels=[0]")
    logging = facts.recipe.get("logging", {})
    if "scheduler" in components(facts.index):
        steps = int(logging.get("num_inference_steps", _STEPS))
        most = facts.config_value("num_train_timesteps") or steps
        arguments.append(f"num_inference_steps={min(steps, most)}")
    arguments += [f"{name}={value!r}" for name, value in logging.get("sample_call", {}).items()]
    return ", ".join(arguments)


def render(facts: Facts, repo_id: str, license_name: str) -> str:
    """The generated part, from the template of the family."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    environment.filters["code"] = lambda value: f"`{value}`"
    template = environment.select_template([f"card_{facts.family}.md.jinja", "card.md.jinja"])
    text = template.render(
        name=facts.name,
        repo_id=repo_id,
        description=str(facts.recipe.get("description") or ""),
        task=facts.task,
        classes=facts.config_value("num_class_embeds"),
        components=list(components(facts.index)),
        pictures=[
            {"path": f"samples/{path.name}", "caption": _caption(path.stem, facts)}
            for path in facts.picture_files()
        ],
        load_lines=load_lines(facts, repo_id),
        remote_code=bool(facts.code),
        code_files=facts.code,
        training=training_rows(facts),
        results=[result_row(result) for result in facts.results],
        parameters=_parameter_rows(facts),
        license_text=_license_text(license_name),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _caption(name: str, facts: Facts) -> str:
    if name == "grid" and facts.task == FROM_TEXT:
        return "Samples of each text, a row each, not selected"
    return CAPTIONS[name]


def training_rows(facts: Facts) -> list[tuple[str, str]]:
    """Name and value of what was trained, on what, how long and where; only what is recorded."""
    recipe, last, machine = facts.recipe, facts.last, facts.environment
    data, optimizer, training = (recipe.get(key, {}) for key in ("data", "optimizer", "training"))
    seen = last.get("images_seen")
    rows = [
        ("data", _data_text(data)),
        ("objective", _summary(recipe.get("objective"))),
        (
            "optimizer",
            f"{optimizer['type']}, learning rate {optimizer['learning_rate']}"
            if "type" in optimizer
            else "",
        ),
        (
            "batch",
            f"{training['total_batch_size']} images" if "total_batch_size" in training else "",
        ),
        ("images seen", f"{seen:,}" if seen else ""),
        (
            "averaging",
            f"EMA, half-life {_half_lives(recipe)} images" if _half_lives(recipe) else "",
        ),
        ("precision", str(training.get("mixed_precision", "")).replace("no", "float32")),
        ("time", _duration(last["seconds"]) if "seconds" in last else ""),
        ("hardware", str(machine.get("hardware", ""))),
        ("software", ", ".join(f"{n} {machine[n]}" for n in _SOFTWARE if n in machine)),
    ]
    return [(name, text) for name, text in rows if text]


def _data_text(data: dict[str, Any]) -> str:
    if not data:
        return ""
    size = f", {data['resolution']}×{data['resolution']}" if data.get("resolution") else ""
    return f"{data.get('path')} ({data.get('split', 'train')}){size}"


def _summary(section: Any) -> str:
    """``{"type": "elbo", "beta": 1.0}`` -> "elbo, beta 1.0"; plain values only."""
    if not isinstance(section, dict):
        return ""
    plain = {key: value for key, value in section.items() if isinstance(value, int | float | str)}
    return ", ".join(
        [str(plain.pop("type", "")), *(f"{key} {value}" for key, value in plain.items())]
    )


def _half_lives(recipe: dict[str, Any]) -> str:
    return ", ".join(f"{value:,}" for value in recipe.get("ema", {}).get("half_lives") or [])


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def result_row(result: Result) -> dict[str, str]:
    """Metric with its direction, value with error bar, and protocol as the table shows them."""
    arrow = {"lower": " ↓", "higher": " ↑"}.get(result.better, "")
    protocol = "; ".join(text for text in (result.settings, result.protocol) if text)
    return {"metric": result.metric + arrow, "value": result.text, "protocol": protocol}


def _parameter_rows(facts: Facts) -> list[dict[str, Any]]:
    types = {name: cls for name, (_, cls) in components(facts.index).items()}
    counted = [(name, count) for name, count in facts.parameters.items() if count]
    return [{"component": name, "type": types[name], "parameters": n} for name, n in counted]


def _license_text(name: str) -> str:
    if name == "unknown":
        return "Not stated by its author; set `hub.license` in the recipe, or `license` above."
    return f"The weights: {name}. The training data have a licence of their own."
