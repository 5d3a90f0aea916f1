"""One yardstick for all families: samples, likelihood, reconstruction and latents, with protocol.

The names below are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfgen.evaluation.likelihood import LogLikelihood, log_likelihood
    from hfgen.evaluation.measure import evaluate, small_protocol
    from hfgen.evaluation.protocol import Protocol
    from hfgen.evaluation.report import compare
    from hfgen.evaluation.results import Results, Score

__all__ = [
    "LogLikelihood",
    "Protocol",
    "Results",
    "Score",
    "compare",
    "evaluate",
    "log_likelihood",
    "small_protocol",
]

_MODULES = {
    "LogLikelihood": "likelihood",
    "Protocol": "protocol",
    "Results": "results",
    "Score": "results",
    "compare": "report",
    "evaluate": "measure",
    "log_likelihood": "likelihood",
    "small_protocol": "measure",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hfgen.evaluation.{_MODULES[name]}"), name)
