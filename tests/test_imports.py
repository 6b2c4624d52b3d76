"""The package is lazy, its layers import downwards only, and its public names exist."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlm_lens

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted([*ROOT.glob("dlm_lens/**/*.py"), *ROOT.glob("kernels/dlm_kernels/**/*.py")])

# Every module may import its own layer and those before it.
LAYERS = [
    {"byte_sizes", "errors", "progress", "trace", "trace_store", "trace_synthetic", "whole_file"},
    {"models", "attention"},
    {
        "policies",
        "policy_names",
        "samplers",
        "denoising",
        "denoising_loop",
        "memory",
        "step_graphs",
        "recording",
    },
    {"metrics", "measure", "pruning", "sweeps"},
    {"plots", "explorer", "eval"},
    {"cli", "cli_parser", "demo", "training"},
]
WIDGETS = {"ipywidgets", "anywidget", "traitlets"}


def module_name(path: Path) -> str:
    base = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all that a module imports, wherever it does so; imports for type checkers aside."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name: str) -> int:
    part = name.split(".")[1]
    found = [rank for rank, parts in enumerate(LAYERS) if part in parts]
    assert found, f"{name} belongs to no layer; name it in LAYERS"
    return found[0]


def test_importing_the_package_loads_nothing_heavy():
    heavy = {
        "torch",
        "transformers",
        "matplotlib",
        "pandas",
        "xarray",
        "zarr",
        "dask",
        "distributed",
        *WIDGETS,
    }
    code = f"import sys, dlm_lens, dlm_lens.cli; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_pages_are_written_without_widgets():
    # tqdm takes ipywidgets where it finds them.
    code = "import sys, dlm_lens.explorer.page; print(*{'anywidget'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", dlm_lens.__all__)
def test_public_name_resolves(name):
    assert getattr(dlm_lens, name) is not None
    assert name in dir(dlm_lens)


def test_no_module_hides_a_public_name():
    """Importing a submodule sets it on the package, where it would hide a public function of its name."""
    homes = sorted({home for home in dlm_lens._NAMES.values() if home})
    code = f"""
import dlm_lens, {", ".join(homes)}
print(*(name for name, home in dlm_lens._NAMES.items() if home and name in vars(dlm_lens)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dlm_lens.nonsense


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_layers_import_downwards_only(path):
    own = module_name(path)
    for name in imports(path):
        top = name.split(".")[0]
        if own.startswith("dlm_kernels"):
            assert top not in {"dlm_lens", "transformers"}, f"{own} imports {name}: kernels know no models"
        if not own.startswith("dlm_lens.explorer"):
            assert top not in WIDGETS, f"{own} imports {name}: widgets belong to the explorer"
        if own.startswith("dlm_lens.") and name.startswith("dlm_lens.") and name != "dlm_lens.__version__":
            assert layer(name) <= layer(own), f"{own} imports {name}, which lies above it"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_module_is_short_and_runs_no_foreign_code(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    tree = ast.parse(text)
    assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in imports(path)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


@pytest.mark.parametrize("path", sorted(ROOT.glob("dlm_lens/explorer/static/*")), ids=lambda path: path.name)
def test_explorer_fetches_nothing(path):
    text = path.read_text().replace("http://www.w3.org/", "")  # names of XML namespaces, never fetched
    assert "http://" not in text
    assert "https://" not in text
    for way in ("fetch(", "XMLHttpRequest", "WebSocket(", "importScripts", "@import"):
        assert way not in text
