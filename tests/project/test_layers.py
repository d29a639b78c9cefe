"""Who may lean on whom: DESIGN.md's table, held by reading every import, wherever it stands."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A room is a module or a folder directly under jaxclip/; to each, the rooms it may import from.
BASE = {"config", "losses", "tokenizer", "model_tokenizer", "files", "images", "data", "reference"}
MIDDLE = {"checkpoint", "models", "hardware", "training", "evaluation", "convert"}
MAY_IMPORT: dict[str, set[str]] = {
    **{room: set() for room in BASE},
    "data": {
        "images",
        "tokenizer",
        "config",
        "model_tokenizer",
    },  # which files count; how many captions are cut
    "images": {"config"},  # mean and standard deviation of the pixels
    "shapes": {"config"},
    "model_tokenizer": {"config", "tokenizer"},
    "checkpoint": {"config", "shapes"},
    "terminal": set(),
    "models": {"checkpoint", "config", "losses", "shapes", "tokenizer", "model_tokenizer"},
    "hardware": {"models", "checkpoint", "config"},
    "convert": {"checkpoint", "config", "shapes", "terminal", "images", "tokenizer"}
    | {"model_tokenizer"},  # images: kinds of files
    # checkpoint and config: what the models rest on, and what a run folder is written with
    "training": {"models", "hardware", "losses", "data", "tokenizer", "images", "checkpoint"}
    | {"config", "terminal", "model_tokenizer"},
    "evaluation": {"models", "hardware", "losses", "data", "tokenizer", "checkpoint", "config"}
    | {"images", "terminal", "reference", "model_tokenizer"},
    "hub": BASE | {"checkpoint", "models", "hardware", "convert", "terminal"},
    "parity": BASE | MIDDLE,
    "search": BASE | MIDDLE | {"hub", "terminal"},
    "doctor": BASE | MIDDLE | {"hub", "parity"},
    "demo": BASE | MIDDLE | {"hub", "search", "terminal"},
    "cli": BASE | MIDDLE | {"hub", "parity", "terminal", "doctor", "search"} | {"demo"},
    "__main__": {"cli"},
    # the public face: what it names is imported on first use, see test_package.py
    "__init__": BASE | MIDDLE | {"hub", "parity", "doctor"},
}

MAY_IMPORT = {room: rooms | {"files"} for room, rooms in MAY_IMPORT.items()}  # whoever reads files
MAY_IMPORT["files"] = set()

# The same inside jaxclip/models/.
TOWERS = {"vit", "resnet", "text"}
MODELS_MAY_IMPORT: dict[str, set[str]] = {
    "starts": set(),
    "layers": {"starts"},
    "pools": {"layers", "starts"},
    **{tower: {"layers", "starts"} for tower in TOWERS},
    "vit": {"layers", "starts", "pools"},
    "parameters": set(),
    "inputs": set(),
    "encoders": {"layers", "parameters", "inputs"},
    "clip": TOWERS | {"layers", "starts", "parameters", "inputs", "encoders"},
    "single": TOWERS | {"layers", "starts", "parameters", "encoders"},
    "__init__": TOWERS | {"layers", "clip"},
}

TORCH = {"torch", "torchvision", "clip", "open_clip", "timm", "transformers"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
WITHOUT_JAX = (
    "config",
    "tokenizer",
    "images",
    "checkpoint",
    "convert",
    "files",
    "terminal",
    "shapes",
)
# an index that has nothing new is left alone without jax
WITHOUT_JAX += ("search.catalogue", "search.index", "search.update", "search.page")
WITHOUT_JAX += ("model_tokenizer", "hub.hugging_face", "hub.find", "hub.released", "hub.download")
REFERENCE_IMPORTS = {"__future__", "collections", "math", "typing", "numpy"}
# The one exception: `main`, the demonstration, reads weights, drawings and names, without jax.
REFERENCE_MAIN_IMPORTS = {"zipfile", "pathlib.Path"} | {
    f"jaxclip.{name}"
    for name in (
        "checkpoint.load",
        "checkpoint.nest",
        "images.open.decode_image",
        "images.preprocess.Preprocess",
        "tokenizer.tokenize",
    )
}


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[str, int]]:
    """Every name that `source` imports, with its line: `from a import b` gives `a.b`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{start}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def top_level_imports(source: str) -> set[str]:
    """The libraries that are imported as soon as the module is."""
    body = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for node in body for name, _ in imports(ast.unparse(node), "a.b")}


def ours_complaint(module: str, name: str) -> str | None:
    """What is wrong with `module`, one of ours, importing `name`, one of ours too."""
    if name == "jaxclip.__version__":
        return None
    here, there = module.split("."), name.split(".")
    if len(there) == 1 or there[1] not in MAY_IMPORT:
        return "leans on the package as a whole: name the module it needs"
    if here[1] != there[1]:
        return None if there[1] in MAY_IMPORT[here[1]] else f"{here[1]} may not lean on {there[1]}"
    if here[1] != "models" or there[2] in MODELS_MAY_IMPORT[here[2]]:
        return None
    return f"models.{here[2]} may not lean on models.{there[2]}"


def reference_parts(source: str) -> tuple[str, str]:
    """The reference without its function `main`, and that function."""
    tree = ast.parse(source)
    is_main = [isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body]
    parts = [
        [node for node, main in zip(tree.body, is_main, strict=True) if main == wanted]
        for wanted in (False, True)
    ]
    rest, main = (ast.unparse(ast.Module(part, [])) for part in parts)
    return rest, main


def complaint(module: str, name: str) -> str | None:
    """What is wrong with `module` importing `name`, in a few words."""
    room, library = module.split(".")[1], name.split(".")[0]
    if library == "convert":
        return "imports the folder `convert`: it is called jaxclip.convert"
    if library in {"experiments", "tests"}:
        return f"leans on {library}, which is never installed"
    if library in TORCH or name.startswith("safetensors.torch"):
        return f"imports {library}: torch and its kin belong in tests"
    inside = ".".join(module.split(".")[1:3])
    if {room, inside} & set(WITHOUT_JAX) and (
        library in JAX or name.startswith("safetensors.flax")
    ):
        return f"imports {library}: {inside} works without jax"
    if room == "reference" and library not in REFERENCE_IMPORTS:
        return f"imports {library}: the reference needs NumPy only"
    return ours_complaint(module, name) if library == "jaxclip" else None


def complaints(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """All that is wrong with the imports of one of our modules."""
    full = f"{module}.__init__" if is_package else module
    if full.split(".")[1] not in MAY_IMPORT:
        return [f"{module}: not in the table; give it a place there and in DESIGN.md"]
    if full.startswith("jaxclip.models.") and full.split(".")[2] not in MODELS_MAY_IMPORT:
        return [f"{module}: not in the table of models; give it a place there"]
    if module == "jaxclip.reference":
        source = reference_parts(source)[0]
    found = imports(source, module, is_package=is_package)
    wrong = ((name, line, complaint(full, name)) for name, line in found)
    return [f"{module}, line {line}, {name}: {what}" for name, line, what in wrong if what]


def our_modules() -> dict[str, Path]:
    """All modules that are installed, by the name they are installed under."""
    files = [*ROOT.glob("jaxclip/**/*.py"), *ROOT.glob("convert/**/*.py")]
    found = {}
    for file in files:
        parts = list(file.relative_to(ROOT).with_suffix("").parts)
        parts = ["jaxclip", *parts] if parts[0] == "convert" else parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def first_circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle in the graph, or nothing."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        circles = (walk(other, [*path, module]) for other in sorted(graph.get(module, ())))
        circle = next((c for c in circles if c), [])
        done.add(module)
        return circle

    return next((c for c in (walk(module, []) for module in sorted(graph)) if c), [])


@pytest.mark.parametrize(("module", "file"), our_modules().items(), ids=our_modules())
def test_imports_follow_the_table(module: str, file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert complaints(source, module, is_package=file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxclip.config", "from jaxclip import models"),
        ("jaxclip.config", "import jax.numpy as jnp"),
        ("jaxclip.checkpoint", "def f():\n    from safetensors.flax import load_file"),
        ("jaxclip.checkpoint", "from jaxclip.models.layers import Block"),
        ("jaxclip.convert.layouts.openai", "def read():\n    import torch"),
        ("jaxclip.convert.layouts.openai", "from ... import hub"),
        ("jaxclip.reference", "import scipy"),
        ("jaxclip.reference", "from .losses import contrastive_loss"),
        ("jaxclip.reference", "def loss():\n    from jaxclip.checkpoint import load"),
        ("jaxclip.hub.load", "import convert"),
        ("jaxclip.hub.load", "from convert.openai import names"),
        ("jaxclip.hub.load", "import importlib\nimportlib.import_module('torch')"),
        ("jaxclip.hub.load", "from jaxclip import cli"),
        ("jaxclip.hub.load", "from jaxclip import load"),
        ("jaxclip.training.loop", "from experiments import sweep"),
        ("jaxclip.training.loop", "from ..evaluation.metrics import recall"),
        ("jaxclip.models.vit", "from .text import TextTransformer"),
        ("jaxclip.models.layers", "from jaxclip.models import clip"),
        ("jaxclip.models.decoder", "import numpy"),
        ("jaxclip.helpers", "import numpy"),
    ],
)
def test_an_offending_import_is_found(module: str, source: str) -> None:
    assert len(complaints(source, module)) == 1


def test_lawful_imports_pass() -> None:
    assert complaints("from .layers import Block\nimport jax", "jaxclip.models.vit") == []
    assert complaints("from ..checkpoint import save", "jaxclip.convert.layouts.openai") == []
    assert complaints("from .layouts import openai", "jaxclip.convert", is_package=True) == []
    assert complaints("import numpy as np", "jaxclip.reference") == []


def test_no_circles() -> None:
    files = our_modules()
    graph = {}
    for module, file in files.items():
        source = file.read_text(encoding="utf-8")
        names = [n for n, _ in imports(source, module, is_package=file.name == "__init__.py")]
        targets = {n if n in files else n.rpartition(".")[0] for n in names}
        graph[module] = {t for t in targets if t in files and t != "jaxclip"} - {module}
    assert first_circle(graph) == []


def test_a_circle_is_found() -> None:
    assert first_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert first_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def outside_files() -> list[Path]:
    return [*ROOT.glob("experiments/**/*.py"), *ROOT.glob("tests/**/*.py")]


@pytest.mark.parametrize("file", outside_files(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_experiments_and_tests_call_convert_by_its_name(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert not [line for name, line in imports(source, "x.y") if name.split(".")[0] == "convert"]


def outside_complaints(source: str, file: str) -> list[str]:
    """Imports that an experiment or a test may not have."""
    names = [name for name, _ in imports(source, file.removesuffix(".py").replace("/", "."))]
    if file.startswith("experiments/"):
        return [name for name in names if name.split(".")[0] == "tests"]
    return [name for name in names if re.match(r"tests\.(\w+\.)*(test_|conftest)", name)]


@pytest.mark.parametrize("file", outside_files(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_experiments_import_no_tests_and_nobody_imports_a_test_file(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert outside_complaints(source, file.relative_to(ROOT).as_posix()) == []


def test_an_import_of_a_test_is_found() -> None:
    assert outside_complaints("from tests.support import tiny", "experiments/report.py")
    assert outside_complaints("from tests.data.test_pairs import png", "tests/data/test_tables.py")
    assert not outside_complaints("from tests.support import tiny", "tests/data/test_tables.py")


@pytest.mark.parametrize("file", outside_files(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_torch_stays_where_it_belongs(file: Path) -> None:
    """Tests and benchmarks import it inside functions, so that importing them works without it."""
    source = file.read_text(encoding="utf-8")
    if file.is_relative_to(ROOT / "experiments") and not {"bench", "peers"} & set(file.parts):
        assert not [name for name, _ in imports(source, "x.y") if name.split(".")[0] in TORCH]
    elif not file.is_relative_to(ROOT / "tests" / "golden") and "peers" not in file.parts:
        assert not top_level_imports(source) & TORCH


def test_the_reference_list_is_numpy_and_the_standard_library() -> None:
    assert REFERENCE_IMPORTS - set(sys.stdlib_module_names) == {"numpy"}


def test_the_reference_s_demonstration_imports_readers_without_jax() -> None:
    source = (ROOT / "jaxclip" / "reference.py").read_text(encoding="utf-8")
    names = {name for name, _ in imports(reference_parts(source)[1], "jaxclip.reference")}
    assert names == REFERENCE_MAIN_IMPORTS
