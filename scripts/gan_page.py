"""Fill the tables of ``docs/gan.md`` from ``docs/results/`` and ``docs/benchmarks/``.

python scripts/gan_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coverage import find, header, minutes, read_results, show, value

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "gan.md"


def main() -> None:
    page = PAGE.read_text()
    for name, lines in {"results": results(), "modes": modes(), "speed": speed()}.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = page.split(first)
        page = f"{before}{first}\n" + "\n".join(lines) + f"\n{last}{rest.split(last)[1]}"
    PAGE.write_text(page)


def results() -> list[str]:
    """Measured GAN recipes, data set by data set, the best first."""
    mine = [r for r in read_results().values() if r["family"] == "gan"]
    mine.sort(key=lambda r: (r["data"], value(r["scores"], "fd")))
    names = ("data", "recipe", "FD", "precision", "recall", "Vendi", "class", "images", "time")
    lines = header(*names)
    for r in mine:
        scores = [show(find(r["scores"], n)) for n in ("fd", "precision", "recall", "vendi")]
        scores += [show(s) for s in r["scores"] if s["name"] == "class_accuracy"] or [""]
        cells = [r["data"], f"`{r['recipe']}`", *scores, f"{r['images_seen']:,}", minutes(r)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def modes() -> list[str]:
    """What ``benchmarks/modes.py`` measured."""
    table = read("modes.json")
    lines = header("task", "loss", "modes", "reverse KL", "within 3 std", "length", "CPU seconds")
    for task, of in (("grid", 25), ("stacked", 1000)):
        for loss, row in table.get(task, {}).items():
            share, length = row.get("within_3_std", ""), f"{row['steps']:,} steps"
            cells = [task, loss, f"{row['modes']} of {of}", row["reverse_kl"], share, length]
            lines.append(f"| {' | '.join(map(str, [*cells, row['cpu_seconds']]))} |")
    return lines


def speed() -> list[str]:
    """What ``benchmarks/gan.py`` measured."""
    table = read("gan.json")
    lines = header("side", "training, images per CPU second", "sampling")
    training, sampling = (
        table.get(f"{what}, images per CPU second", {})
        for what in ("one D and one G update", "sampling")
    )
    lines += [f"| {name} | {training[name]} | {sampling[name]} |" for name in training]
    for what in ("training", "sampling"):
        ratios = table.get(f"{what} ratios", {})
        lines += ["", f"Ratios, {what}: " + "; ".join(f"{k}: {v}" for k, v in ratios.items())]
    return [*lines, "", f"Import shims: {', '.join(table.get('shims', []))}."]


def read(name: str) -> dict[str, Any]:
    path = DOCS / "benchmarks" / name
    return json.loads(path.read_text()) if path.is_file() else {}


if __name__ == "__main__":
    main()
