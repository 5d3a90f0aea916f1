"""Generate ``docs/coverage.md`` and ``docs/results.md`` from the tables in the code and the
measured files.

    python scripts/coverage.py            # write
    python scripts/coverage.py --check    # exit 1 where the files are not what would be written

For every name in a table: a recipe that uses it, a test that names it, a picture, a measured
number. A blank cell is open.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage_metrics
from coverage_hub import hub_lines
from coverage_text import text_lines

from hfgen import recipe as recipes
from hfgen.objectives.gan import GAN
from hfgen.objectives.gan_losses import LOSSES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = ROOT / "README.md"
MARKS = ("<!-- results -->", "<!-- /results -->")


@dataclass(frozen=True)
class Row:
    """One name of one table, and what shows that it works."""

    kind: str
    name: str
    recipe: str
    test: str
    picture: str
    number: str

    @property
    def open(self) -> bool:
        return not (self.recipe and self.test and self.picture and self.number)

    def line(self) -> str:
        cells = (self.name, self.recipe, self.test, self.picture, self.number)
        return f"| {' | '.join(f'`{c}`' if i < 2 and c else c for i, c in enumerate(cells))} |"


def main() -> int:
    results = read_results()
    written = {DOCS / "coverage.md": coverage(results), DOCS / "results.md": result_tables(results)}
    written[PAGE] = readme(results)
    written |= {recipe_file(name): expectation(name, result) for name, result in results.items()}
    stale = [
        path for path, text in written.items() if not path.exists() or path.read_text() != text
    ]
    if "--check" in sys.argv:
        print(
            "\n".join(
                f"{path.relative_to(ROOT)} is stale: python scripts/coverage.py" for path in stale
            )
        )
        return int(bool(stale))
    for path, text in written.items():
        path.write_text(text)
        print(path.relative_to(ROOT))
    return 0


def read_results() -> dict[str, dict[str, Any]]:
    """Measured recipes, without those whose recipe has changed since."""
    found = {}
    for path in sorted((DOCS / "results").glob("*.json")):
        result = json.loads(path.read_text())
        name = result["recipe"]
        if (
            name in recipes.bundled()
            and recipes.digest(recipes.load(name)) == result["recipe_hash"]
        ):
            found[name] = result
    return found


# -- what the README and the recipes themselves say


def readme(results: Mapping[str, Any]) -> str:
    """The README with the best of each family on each data set, and the autoencoders."""
    page = PAGE.read_text()
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    makers = [r for r in results.values() if draws(r) and "rfd" not in names(r)]
    rows = header("recipe", "data", "family", *COLUMNS, "training, 2 cores")
    rows += [
        readme_line(result, ("fd", "precision", "recall", "vendi"))
        for data in sorted({data_name(r) for r in makers}, key=data_order)
        for result in best_of_families([r for r in makers if data_name(r) == data])
    ]
    rows += ["", *header("autoencoder", "data", "family", *AUTOENCODER_COLUMNS, "training")]
    rows += [
        readme_line(result, ("rfd", "psnr", "ssim"))
        for result in results.values()
        if "rfd" in names(result)
    ]
    rows += ["", "† trained through the metric's own network, which flatters it: see its picture."]
    table = "\n".join(rows)
    return f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}"


COLUMNS = ("FD ↓", "precision", "recall", "Vendi (diversity)")
AUTOENCODER_COLUMNS = ("reconstruction FD ↓", "PSNR, dB", "SSIM")
EACH_FAMILY = 3


def data_name(result: Mapping[str, Any]) -> str:
    """The data set, whether it was bundled or came from a folder or the Hub."""
    return Path(result["data"]).name


def data_order(data: str) -> tuple[bool, str]:
    """MNIST first: it has the most recipes."""
    return data != "mnist", data


def best_of_families(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best of each family by FD, all ordered by FD."""
    ordered = sorted(results, key=lambda r: value(r["scores"], "fd"))
    places: dict[str, int] = {}
    kept = []
    for result in ordered:
        places[result["family"]] = places.get(result["family"], 0) + 1
        if places[result["family"]] <= EACH_FAMILY:
            kept.append(result)
    return kept


def readme_line(result: Mapping[str, Any], scores: tuple[str, ...]) -> str:
    mark = " †" if sees_metric(result["recipe"]) else ""
    cells = [f"`{result['recipe']}`{mark}", data_name(result), result["family"]]
    cells += [show(find(result["scores"], name)) for name in scores]
    return f"| {' | '.join([*cells, minutes(result)])} |"


def sees_metric(name: str) -> bool:
    """Whether the recipe trains through EfficientNet-Lite0, on which FD is measured."""
    recipe = recipes.load(name)
    perceptual = getattr(recipe.objective, "perceptual", None)
    types = [part.get("type") for part in recipe.model.values() if isinstance(part, dict)]
    return "ProjectedDiscriminator" in types or type(perceptual).__name__.startswith("Efficient")


def names(result: Mapping[str, Any]) -> set[str]:
    return {score["name"] for score in result["scores"]}


def recipe_file(name: str) -> Path:
    return recipes.RECIPES / f"{name}.yaml"


def expectation(name: str, result: Mapping[str, Any]) -> str:
    """The recipe with its ``expect`` and ``duration`` lines, which `hfgen recipes` shows."""
    said = {"expect": expected(result), "duration": minutes(result)}
    lines = [
        line
        for line in recipe_file(name).read_text().splitlines()
        if not line.startswith(("expect:", "duration:"))
    ]
    place = next(i for i, line in enumerate(lines) if line.startswith("description:")) + 1
    lines[place:place] = [f'{key}: "{text}"' for key, text in said.items()]
    return "\n".join(lines) + "\n"


def expected(result: Mapping[str, Any]) -> str:
    """Quality and likelihood of images; of a model that draws none, its scores."""
    scores = result["scores"]
    if not draws(result):
        return ", ".join(f"{score['name']} {show(score)}" for score in scores)
    precision, recall = (value(scores, name) for name in ("precision", "recall"))
    quality = f"{headline(result)}, precision {precision:.2f}, recall {recall:.2f}"
    return f"{quality} {density(scores)}".strip()


def draws(result: Mapping[str, Any]) -> bool:
    """Whether the recipe's pipeline draws images (a dual encoder compares them instead)."""
    return any(score["name"] == "fd" for score in result["scores"])


def minutes(result: Mapping[str, Any]) -> str:
    return f"{result['seconds'] / 60:.1f} min"


# -- coverage


def coverage(results: Mapping[str, Any]) -> str:
    """The page: one table a kind, then what is open."""
    rows = list(all_rows(results))
    kinds = list(dict.fromkeys(row.kind for row in rows))
    blocks = [
        "# Coverage",
        "",
        "Generated by `scripts/coverage.py` from the tables in the code and `docs/results/`; a "
        "blank cell is open.",
        "",
    ]
    for kind in kinds:
        mine = [row for row in rows if row.kind == kind]
        done = sum(not row.open for row in mine)
        blocks += [
            f"## {kind} ({done} of {len(mine)} complete)",
            "",
            *header("name", "recipe", "test", "picture", "measured"),
        ]
        blocks += [row.line() for row in mine] + [""]
    return "\n".join([*blocks, *text_lines(), *hub_lines()])


def all_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    tests = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for path in sorted(ROOT.glob("tests/**/test_*.py"))
    }
    users = used_by()
    for kind, names in tables():
        for name, spoken in names.items():
            users_here = users.get((kind, name), [])
            recipe = next((r for r in users_here if r in results), next(iter(users_here), ""))
            yield row(kind, name, recipe, test_of(name, spoken, tests), results)
    for cells in coverage_metrics.rows(coverage_metrics.all_metrics(results), tests):
        yield Row(*cells)


def tables() -> list[tuple[str, dict[str, str]]]:
    """Kind -> name in recipes -> name in code."""

    def spoken(table: Mapping[str, Any]) -> dict[str, str]:
        return {
            name: choice.rpartition(":")[2] if isinstance(choice, str) else choice.__name__
            for name, choice in table.items()
        }

    parts = {base.__name__: spoken(table) for base, table in recipes.choices().items()}
    return [
        ("Models and schedulers", spoken(recipes.MODELS)),
        ("Pipelines", spoken(recipes.PIPELINES)),
        *parts.items(),
        # "logistic" is another name of "nonsaturating"
        ("AdversarialLoss", {name: name for name in LOSSES if name != "logistic"}),
    ]


def used_by() -> dict[tuple[str, str], list[str]]:
    """(kind, name) -> recipes that use it."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in recipes.bundled():
        recipe = recipes.load(name)
        parts = [
            ("Models and schedulers", value.get("type"))
            for value in recipe.model.values()
            if isinstance(value, dict)
        ]
        parts.append(("Pipelines", recipe.pipeline))
        parts += list(parts_of(recipe.objective))
        for part in parts:
            found.setdefault(part, []).append(name)
    return found


def parts_of(value: Any) -> Iterator[tuple[str, str]]:
    """(kind, name) of an objective and of everything inside it."""
    from hfgen.config import choice_name

    table = recipes.choices()
    for base in table:
        if isinstance(value, base):
            yield base.__name__, choice_name(value, {base: table[base]}) or ""
    if isinstance(value, GAN):
        yield "AdversarialLoss", value.adversarial_loss
        # r1_gamma and r2_gamma stand for the regularisers r1 and r2
        yield from parts_of(
            [r for r in value.all_regularizers.values() if r not in value.regularizers]
        )
    inner = (
        value
        if isinstance(value, tuple | list)
        else vars(value).values()
        if hasattr(value, "__dict__")
        else ()
    )
    for item in inner:
        yield from parts_of(item)


def test_of(name: str, spoken: str, tests: Mapping[str, str]) -> str:
    """The test file that names it most often."""
    pattern = re.compile(rf"\b{re.escape(spoken)}\b|[\"']{re.escape(name)}[\"']")
    counts = {path: len(pattern.findall(text)) for path, text in tests.items()}
    best = max(counts, key=lambda path: counts[path], default="")
    return f"[{Path(best).stem}](../{best})" if best and counts[best] else ""


def row(kind: str, name: str, recipe: str, test: str, results: Mapping[str, Any]) -> Row:
    picture = (
        f"[picture](images/{recipe}.png)"
        if recipe and (DOCS / "images" / f"{recipe}.png").exists()
        else ""
    )
    return Row(
        kind, name, recipe, test, picture, headline(results[recipe]) if recipe in results else ""
    )


# -- results


def result_tables(results: Mapping[str, Any]) -> str:
    """One table a data set: each recipe beside the baselines that it must beat."""
    blocks = [
        "# Results",
        "",
        "Generated by `scripts/coverage.py` from `docs/results/`, which `scripts/measure.py` "
        "writes from exported pipelines.",
        "",
        "FD is the Frechet distance on EfficientNet-Lite0 features (not FID: another backbone) "
        "of 1,000 samples against the "
        "training split; P, R: improved precision and recall; Vendi: effective number of "
        "different images (diversity). In pictures of autoencoders the last four rows are test "
        "images, each above its reconstruction. "
        "Diffusion models are sampled with 50 steps.",
        "",
    ]
    blocks += published(results)
    drawing = [result for result in results.values() if draws(result)]
    for data in sorted({result["data"] for result in drawing}):
        mine = sorted(
            (r for r in drawing if r["data"] == data),
            key=lambda r: value(r["scores"], "fd"),
        )
        columns = (
            "recipe",
            "FD",
            "P",
            "R",
            "coverage",
            "Vendi",
            "likelihood",
            "images",
            "time",
            "img/s",
            "hash",
            "commit",
        )
        blocks += [f"## {data}", "", *header(*columns)]
        blocks += [result_line(result) for result in mine]
        for name, scores in baselines(mine):
            blocks.append(f"| *{name}* | {measured(scores)} | | | | | | |")
        blocks += [
            "",
            f"Hardware: {mine[0]['hardware']}; {mine[0]['threads']} thread(s) for training.",
            "",
        ]
        blocks += [f"![{result['recipe']}](images/{result['recipe']}.png)" for result in mine] + [
            ""
        ]
    return "\n".join(blocks)


def published(results: Mapping[str, Any]) -> list[str]:
    """Recipes of papers: the published number beside ours."""
    held = {name: result for name, result in results.items() if "paper" in result}
    if not held:
        return []
    blocks = [
        "## Published numbers",
        "",
        "-ln p(x) in nats per test image of binarised MNIST, lower is better. A published schedule "
        "takes hours to days on two cores, so each row says which share of it was run. "
        "`static` binarisation draws every pixel once, from a seed, with its grey value as "
        "probability; the set that papers share (Larochelle & Murray 2011) was drawn the same way, "
        "but its draws, and its split into 50,000 training and 10,000 validation images, are not "
        "ours: the noise floor is alike, individual images are not, and differences of some tenths "
        "of a nat say nothing. `dynamic` draws training pixels anew at each visit and test pixels "
        "once. Bounds are computed on the first 1,000 test images with at most 500 samples; fewer "
        "samples than published make our number larger, never smaller, in expectation. AIS (four "
        "chains of 400 temperatures, 256 images) has no part of the encoder in it.",
        "",
        *header(
            *("recipe", "command", "published", "ours", "ours, AIS"),
            *("bound", "time", "schedule", "source"),
        ),
    ]
    for name, result in sorted(held.items()):
        paper, ours = recipes.load(name).paper, result["paper"]
        assert paper is not None
        share = result["images_seen"] / paper.images if paper.images else None
        cells = [
            f"`{name}`",
            f"`hfgen train {name}`",
            f"{paper.value:.2f}",
            show(ours),
            annealed(result["scores"]),
            ours["bound"],
            minutes(result),
            "not stated" if share is None else f"{min(share, 1):.1%}",
            paper.source,
        ]
        blocks.append(f"| {' | '.join(cells)} |")
    return [*blocks, ""]


def annealed(scores: list[dict[str, Any]]) -> str:
    """-ln p(x) by annealed importance sampling, where it was measured."""
    found = [score for score in scores if score["name"] == "ais_nats"]
    return show({**found[0], "value": -found[0]["value"]}) if found else ""


def baselines(results: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for result in results:
        yield f"{result['recipe']}, untrained", result["baselines"]["untrained network"]
    for name, scores in results[0]["baselines"].items():
        if name != "untrained network":
            yield name, scores


def result_line(result: Mapping[str, Any]) -> str:
    cells = [
        f"`{result['recipe']}`",
        measured(result["scores"]),
        density(result["scores"]),
        f"{result['images_seen']:,}",
        minutes(result),
    ]
    cells += [
        f"{result['images_per_second']:,}",
        result["recipe_hash"],
        str(result["trained_at_commit"]),
    ]
    return f"| {' | '.join(cells)} |"


def measured(scores: list[dict[str, Any]]) -> str:
    return " | ".join(
        show(find(scores, name)) for name in ("fd", "precision", "recall", "coverage", "vendi")
    )


DENSITIES = (
    *(f"{bound}_bits_per_dim" for bound in ("vlb", "iw", "elbo", "pf_ode")),
    "iw_nats",
    "elbo_nats",
)
"""The first that a result has stands in the tables. A variational bound comes before the
probability-flow ODE, which on a discrete chain is the density of slightly noised images.
"""


def density(scores: list[dict[str, Any]]) -> str:
    found = {score["name"]: score for score in scores}
    return next((f"{name} {show(found[name])}" for name in DENSITIES if name in found), "")


def headline(result: Mapping[str, Any]) -> str:
    if draws(result):
        return f"FD {show(find(result['scores'], 'fd'))}"
    return f"{result['scores'][0]['name']} {show(result['scores'][0])}"


def find(scores: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(score for score in scores if score["name"] == name)


def value(scores: list[dict[str, Any]], name: str) -> float:
    return float(find(scores, name)["value"])


def show(score: Mapping[str, Any]) -> str:
    error = score.get("standard_error")
    return f"{score['value']:.4g}" + (f" ± {error:.1g}" if error else "")


def header(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


if __name__ == "__main__":
    sys.exit(main())
