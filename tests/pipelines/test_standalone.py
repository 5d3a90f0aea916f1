"""The inliner: on packages written for the purpose, and on every shipped model and pipeline."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from hfgen import recipe
from hfgen.pipelines._self_contained import export_name
from hfgen.pipelines._standalone import meaning, parse, standalone

HELPED_F = "def helper(): pass\ndef f(): helper()\n"
HELPED_G = "def helper(): pass\ndef g(): helper()\n"
OTHER_DUMPS = "from pickle import dumps\nx = dumps\n"
MODULES = sorted({path.split(":")[0] for path in (recipe.MODELS | recipe.PIPELINES).values()})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package of the given files; returns the full name of its module ``root``."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"made_{tmp_path.name.replace('-', '_')}"

    def write(**files: str) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        for stem, text in {"__init__": "", **files}.items():
            (tmp_path / name / f"{stem}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return f"{name}.root"

    yield write
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def run(code: str) -> dict:
    """What the code defines, executed where no package is around it."""
    module = sys.modules["alone"] = ModuleType("alone")  # dataclasses look for it there
    exec(compile(code, "alone", "exec"), vars(module))
    return vars(sys.modules.pop("alone"))


def test_a_module_that_needs_nobody_is_copied_as_it_is(package):
    text = '# first line\n"""Doc."""\n\nimport math   # odd   spacing\n\nx = math.pi\n'
    assert standalone(package(root=text)) == text


def test_what_is_named_comes_along_with_what_it_needs_and_nothing_else(package):
    root = package(
        root="""
        import math
        from .shapes import area
        def twice(r): return 2 * area(r) + math.floor(0.5)
        """,
        shapes="""
        import cmath
        from json import dumps as write
        from .numbers import PI
        def area(r):
            return PI * square(r)
        def square(x):
            return x * x
        def unused():
            return write(cmath.pi)
        """,
        numbers="PI = 3\nE = 2\n",
    )
    code = standalone(root)
    assert run(code)["twice"](2) == 24
    for absent in ("unused", "dumps", "cmath", "E = 2"):
        assert absent not in code


def test_a_name_that_two_modules_need_is_written_once(package):
    root = package(
        root="from .a import f\nfrom .b import g\nvalue = f() + g()\n",
        a="from .base import one\ndef f(): return one()\n",
        b="from .base import one\ndef g(): return one()\n",
        base="def one(): return 1\n",
    )
    code = standalone(root)
    assert code.count("def one") == 1
    assert run(code)["value"] == 2


def test_order_is_that_of_the_originals_not_that_of_first_use(package):
    """``Base`` names ``Child`` in a method, so a search from ``Base`` meets ``Child`` first; and
    ``late`` needs another module although ``early`` of the same module was needed before."""
    root = package(
        root="from .a import Base, early, late\nresult = (Base().child().name, early, late)\n",
        a="""
        from .b import TWO
        class Base:
            name = "base"
            def child(self): return Child()
        class Child(Base):
            name = "child"
        early = 1
        late = TWO + 1
        """,
        b="TWO = 2\n",
    )
    assert run(standalone(root))["result"] == ("child", 1, 3)


def test_tables_that_are_filled_later_come_along_whole(package):
    root = package(
        root="from .table import TABLE\nresult = dict(TABLE)\n",
        table="TABLE: dict[str, int] = {}\ndef one(): return 1\nTABLE['one'] = one()\n",
    )
    assert run(standalone(root))["result"] == {"one": 1}


def test_reexports_future_imports_and_attribute_documentation(package):
    root = package(
        root='"""Doc."""\nfrom .shelf import make\nx = make()\n',
        shelf="from .deep import make\n",
        deep=(
            "from __future__ import annotations\nLIMIT = 3\n'''What is allowed.'''\n"
            "def make(x: Undefined = None): return LIMIT\n"
        ),
    )
    code = standalone(root)
    assert code.startswith('"""Doc."""')
    assert "What is allowed" in code
    assert run(code)["x"] == 3


def test_absolute_imports_of_the_same_package_are_inlined(package):
    root = package(root="", numbers="PI = 3\n")
    top = root.split(".")[0]
    package(root=f"from {top}.numbers import PI\nx = PI\n", numbers="PI = 3\n")
    assert run(standalone(root))["x"] == 3


def test_an_export_exports_as_itself(package, tmp_path, monkeypatch):
    code = standalone(package(root="from .a import f\nx = f()\n", a="def f(): return 1\n"))
    name = export_name("any.root", code)
    (tmp_path / f"{name}.py").write_text(code)
    importlib.invalidate_caches()
    assert standalone(name) == code
    assert export_name(name, code) == name


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"root": "from . import a\n", "a": ""}, "no 'a' that an export could inline"),
        ({"root": "from .a import *\n", "a": "x = 1\n"}, "by its own name"),
        ({"root": "from .a import x as y\n", "a": "x = 1\n"}, "by its own name"),
        ({"root": "def f():\n    from .a import x\n", "a": "x = 1\n"}, "at the top of the file"),
        ({"root": "from .a import x\n", "a": "print()\nx = 1\n"}, "line 1: runs at import"),
        ({"root": "from .a import f\nfrom .b import g\n", "a": HELPED_F, "b": HELPED_G}, "rename"),
        ({"root": "from .a import x\nhelp = 1\n", "a": "help = 2\nx = help\n"}, "rename one"),
        ({"root": "from .a import x\nfrom json import dumps\n", "a": OTHER_DUMPS}, "rename one"),
        ({"root": "'''\nfrom .a import x\n'''\n"}, "at the top of the file"),
    ],
)
def test_what_cannot_stand_alone_is_refused_in_one_line(package, files, said):
    root = package(**files)
    with pytest.raises(ValueError, match=said) as caught:
        standalone(root)
    assert "\n" not in str(caught.value)
    assert root.split(".")[0] in str(caught.value)


def test_a_class_of_a_script_cannot_travel():
    with pytest.raises(ValueError, match="__main__: .* in a module of its own"):
        standalone("__main__")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1", "# why\nx = 1  # one", True),
        ("def f():\n    return 1", "def f():\n    '''Doc.'''\n    return 1", True),
        ("x = (1 +\n 2)", "x = 1 + 2", True),
        ("x = 1", "x = 2", False),
        ("x = None", "x = 0", False),
        ("f(a)", "f(*a)", False),
        ("x = 'a'", "x = b'a'", False),
        ("class A:\n    x = 1", "class A:\n    y = 1", False),
    ],
)
def test_names_hash_what_is_run(one, other, same):
    assert (meaning(one) == meaning(other)) is same


GRAMMAR = '''
from __future__ import annotations
import dataclasses
@dataclasses.dataclass(frozen=True, kw_only=True)
class A:
    """Doc."""
    x: int | None = None
    y: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    def f(self, *args: int, z: float = 1e-3, **kwargs) -> str:
        return f"{self.x!r:>{args[0]}} {z=} {'a' 'b'}" "c" f"{kwargs}"
async def g(n, /, m=..., *, k=-1):
    with open(n) as file, open(m): yield [i async for i in file if (j := i)], not k
lambda x: x[1:2, ...] @ {**x} if x else b"z"
'''


def test_names_do_not_depend_on_the_version_of_python():
    """The digest was found alike on Python 3.11, 3.12 and 3.13."""
    assert export_name("made.sample", GRAMMAR) == "sample__3110e86c"


@pytest.mark.parametrize("module", MODULES)
def test_shipped_modules_stand_alone(module):
    code = standalone(module)
    assert "hfgen" not in [line.split()[1].split(".")[0] for line in import_lines(code)]
    names = run(code)
    for path in (recipe.MODELS | recipe.PIPELINES).values():
        if path.startswith(f"{module}:"):
            assert isinstance(names[path.split(":")[1]], type)


def import_lines(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.startswith(("import ", "from "))]


def test_the_export_is_the_same_in_every_process():
    """Sets of strings are ordered by a hash that differs from process to process."""
    code = "import sys; from hfgen.pipelines._standalone import standalone; " + (
        "sys.stdout.write(standalone('hfgen.pipelines.vae_pipeline'))"
    )
    ours = standalone("hfgen.pipelines.vae_pipeline")
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == ours


class Garbage:
    """A cycle whose end runs Python, where another thread may take over."""

    def __init__(self):
        self.cycle = self

    def __del__(self):
        sum(range(100))


def test_threads_parse_one_after_the_other():
    """Two threads inside ``ast.parse`` break it in Python 3.11; a push exports beside a save."""
    source = Path(sys.modules[standalone.__module__].__file__).read_text()

    def work() -> None:
        for _ in range(10):
            _ = [Garbage() for _ in range(20)]
            parse(source)

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work) for _ in range(8)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
