"""torch-fidelity without torchvision: an empty stub of it lets the package import."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Nothing:
    """Stands for every class that torch-fidelity would take from torchvision and we never use."""


class _Stub(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        return (
            ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None
        )

    def create_module(self, spec):
        return _Stub(spec.name)

    def exec_module(self, module):
        pass


def torch_fidelity(module: str) -> ModuleType:
    """``torch_fidelity.<module>``; the stub is gone again afterwards."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        return import_module(f"torch_fidelity.{module}")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
