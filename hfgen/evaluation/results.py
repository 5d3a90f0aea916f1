"""What an evaluation found: numbers with error bars and protocol, as JSON and as a table."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hfgen.errors import HfgenError


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number.

    Attributes:
        name: e.g. ``fd``, ``precision``, ``bits_per_dim``.
        value: the number; ``standard_error`` is None where no honest one is known.
        better: ``lower``, ``higher`` or ``none`` (a diagnostic).
        protocol: digest of the protocol it was made under.
        settings: the metric's own constants, in words.
    """

    name: str
    value: float
    standard_error: float | None = None
    better: str = "lower"
    protocol: str = ""
    settings: str = ""

    def __str__(self) -> str:
        if self.standard_error is None:
            return f"{self.value:.5g}"
        return f"{self.value:.5g} ± {self.standard_error:.2g}"


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that one evaluation measured.

    Attributes:
        model: what was measured.
        scores: in the order of the metrics asked for.
        protocols: by digest, as plain values.
        warnings: what a reader must know beside the numbers.
        images_per_second: while samples were drawn and measured; None when they were there.
        num_parameters: of the pipeline's networks; None for a folder.
        output: folder with metrics.json, samples and pictures.
    """

    model: str
    scores: tuple[Score, ...]
    protocols: dict[str, dict[str, Any]]
    warnings: tuple[str, ...] = ()
    images_per_second: float | None = None
    num_parameters: int | None = None
    output: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Score:
        """The score called ``name``; HfgenError when it was not measured."""
        for score in self.scores:
            if score.name == name:
                return score
        names = ", ".join(score.name for score in self.scores)
        raise HfgenError(f"{name}: not among the measured scores: {names}")

    def values(self) -> dict[str, float]:
        """Name -> value."""
        return {score.name: score.value for score in self.scores}

    def added_to(self, before: Results) -> Results:
        """``before`` with these scores, which take the place of those of the same name."""
        names = {score.name for score in self.scores}
        kept = tuple(score for score in before.scores if score.name not in names)
        return replace(
            self,
            scores=kept + self.scores,
            protocols={**before.protocols, **self.protocols},
            warnings=tuple(dict.fromkeys(before.warnings + self.warnings)),
            images_per_second=self.images_per_second or before.images_per_second,
            num_parameters=self.num_parameters or before.num_parameters,
        )

    def table(self) -> str:
        """Scores, error bars, direction, constants and protocols as text."""
        arrows = {"lower": "↓", "higher": "↑", "none": " "}
        rows = [
            (s.name, arrows[s.better], str(s), s.settings, f"[{s.protocol}]" if s.protocol else "")
            for s in self.scores
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(5)] if rows else []
        lines = [self.model]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  " + "  ".join(cells).rstrip())
        lines += [f"  [{key}] {value['summary']}" for key, value in self.protocols.items()]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_atomically(Path(path), json.dumps(asdict(self), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """The inverse of ``save``; HfgenError when the file is absent or something else."""
        try:
            found = json.loads(Path(path).read_text())
            scores = tuple(Score(**score) for score in found.pop("scores"))
            return cls(scores=scores, warnings=tuple(found.pop("warnings")), **found)
        except FileNotFoundError as error:
            raise HfgenError(f"{path}: not there; run hfgen evaluate first") from error
        except (ValueError, KeyError, TypeError) as error:
            raise HfgenError(f"{path}: not the results of an evaluation ({error})") from error


def write_atomically(path: Path, text: str) -> None:
    """Write aside and rename; HfgenError when the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise HfgenError(f"{path}: cannot be written ({error.strerror})") from error
