"""Write the table of measured diffusion recipes in docs/diffusion.md from docs/results.

    python scripts/diffusion_table.py

Nothing in the table is typed by hand; a recipe without a result is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hfgen import recipe as recipes

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- results: scripts/diffusion_table.py -->", "<!-- end of results -->"
HEAD = (
    "| recipe | data | FD | precision | recall | bits/dim | steps | images seen | images/s "
    "| minutes |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    page = DOCS / "diffusion.md"
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    rows = [row(name) for name in recipes.bundled() if measured(name)]
    rows.sort(key=lambda cells: (cells[1], float(cells[2].split()[0])))
    lines = [HEAD, *("| " + " | ".join(cells) + " |" for cells in rows)]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def measured(name: str) -> bool:
    return recipes.load(name).family == "diffusion" and result_file(name).is_file()


def result_file(name: str) -> Path:
    return DOCS / "results" / f"{name}.json"


def row(name: str) -> list[str]:
    """One line of the table."""
    result = json.loads(result_file(name).read_text())
    scores = {score["name"]: score for score in result["scores"]}
    steps = recipes.load(name).logging.num_inference_steps
    bits = next((s for key, s in scores.items() if key.endswith("bits_per_dim")), None)
    return [
        f"[`{name}`](images/{name}.png)",
        result["data"],
        number(scores.get("fd"), 1),
        number(scores.get("precision"), 2),
        number(scores.get("recall"), 2),
        number(bits, 2),
        str(steps),
        f"{result['images_seen']:,}",
        str(result["images_per_second"]),
        f"{result['seconds'] / 60:.1f}",
    ]


def number(score: dict[str, Any] | None, digits: int) -> str:
    if score is None:
        return ""
    error = score.get("standard_error")
    return f"{score['value']:.{digits}f}" + (f" ± {error:.1g}" if error and digits == 1 else "")


if __name__ == "__main__":
    main()
