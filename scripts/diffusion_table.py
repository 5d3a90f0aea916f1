"""Write the table of measured diffusion recipes in docs/diffusion.md from docs/results.

    python scripts/diffusion_table.py

Nothing in the table is typed by hand; a recipe without a result of its present form is left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hfgen import recipe as recipes
from hfgen.build import build_component

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- results: scripts/diffusion_table.py -->", "<!-- end of results -->"
HEAD = (
    "| recipe | data | FD | precision | recall | bits/dim | NFE | images seen | images/s | minutes "
    "| |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
BOUNDS = ("vlb_bits_per_dim", "pf_ode_bits_per_dim")
"""A chain's own bound first: its probability flow ends at a slightly noisy image."""
FRONT = "front"
"""Mark of a recipe than which none of its data is both quicker and better."""


def main() -> None:
    page = DOCS / "diffusion.md"
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    results = {name: measured(name) for name in recipes.bundled() if is_diffusion(name)}
    found = {name: result for name, result in results.items() if result is not None}
    rows = [row(name, result, found.values()) for name, result in found.items()]
    rows.sort(key=lambda cells: (cells[1], float(cells[2].split()[0])))
    lines = [HEAD, *("| " + " | ".join(cells) + " |" for cells in rows)]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def is_diffusion(name: str) -> bool:
    return recipes.load(name).family == "diffusion"


def measured(name: str) -> dict[str, Any] | None:
    """The result of the recipe as it is now; None where there is none, or one of an older form."""
    file = DOCS / "results" / f"{name}.json"
    result = json.loads(file.read_text()) if file.is_file() else None
    current = result is not None and result["recipe_hash"] == recipes.digest(recipes.load(name))
    return result if current else None


def row(name: str, result: dict[str, Any], others: Collection[dict[str, Any]]) -> list[str]:
    """One line of the table."""
    scores = scores_of(result)
    bits = next((scores[bound] for bound in BOUNDS if bound in scores), None)
    return [
        f"[`{name}`](images/{name}.png)",
        result["data"],
        number(scores.get("fd"), 1),
        number(scores.get("precision"), 2),
        number(scores.get("recall"), 2),
        number(bits, 2),
        str(evaluations(name)),
        f"{result['images_seen']:,}",
        str(result["images_per_second"]),
        f"{result['seconds'] / 60:.1f}",
        FRONT if on_front(result, others) else "",
    ]


def scores_of(result: dict[str, Any]) -> dict[str, Any]:
    return {score["name"]: score for score in result["scores"]}


def evaluations(name: str) -> int:
    """How often the network runs for an image, as the recipe samples."""
    recipe = recipes.load(name)
    scheduler = build_component("scheduler", recipe.model["scheduler"])
    scheduler.set_timesteps(recipe.logging.num_inference_steps)
    corrections = scheduler.config.get("correct_steps", 0)  # of ScoreSdeVeScheduler
    return len(scheduler.timesteps) * (1 + corrections)


def on_front(result: dict[str, Any], others: Collection[dict[str, Any]]) -> bool:
    """No recipe on the same data has both a lower FD and fewer seconds of training."""

    def cost(one: dict[str, Any]) -> tuple[float, float]:
        return scores_of(one)["fd"]["value"], one["seconds"]

    fd, seconds = cost(result)
    rivals = [cost(one) for one in others if one["data"] == result["data"]]
    return not any(f < fd and s < seconds for f, s in rivals)


def number(score: dict[str, Any] | None, digits: int) -> str:
    if score is None:
        return ""
    error = score.get("standard_error")
    return f"{score['value']:.{digits}f}" + (f" ± {error:.1g}" if error and digits == 1 else "")


if __name__ == "__main__":
    main()
