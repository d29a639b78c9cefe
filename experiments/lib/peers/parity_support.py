"""The official implementations, as far as the tests marked `parity` need them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def official_module(name: str) -> ModuleType:
    """Load one module of the package `clip` by its file, skipping the test where it is missing.

    By file because importing the package asks for `pkg_resources`, which setuptools no longer has.
    `simple_tokenizer` needs ftfy and regex, `model` needs torch.
    """
    full_name = f"official_clip_{name}"
    if full_name in sys.modules:
        return sys.modules[full_name]
    package = importlib.util.find_spec("clip")
    if package is None or not package.submodule_search_locations:
        import pytest

        pytest.skip("needs the official code: pip install clip-anytorch==2.6.0")
    path = Path(package.submodule_search_locations[0]) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(full_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[full_name] = module
    return module


def _import_or_skip(name: str) -> ModuleType:
    """The module; skips the test where it is missing. Outside of tests pytest is not needed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if "pytest" not in sys.modules:
            raise
        import pytest

        pytest.skip(f"could not import {name}")


def torchvision_transforms() -> ModuleType:
    """Import `torchvision.transforms`, skipping the test where it is missing.

    The wheel is built for CUDA. On a CPU torch its operators do not exist, and the import fails
    where it describes them to the compiler; the transforms need neither, so that step is left out.
    """
    torch = _import_or_skip("torch")
    register_fake = torch.library.register_fake

    def register_if_present(op: Any, *args: Any, **options: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register_fake(op, *args, **options)

    torch.library.register_fake = register_if_present
    try:
        return _import_or_skip("torchvision.transforms")
    finally:
        torch.library.register_fake = register_fake


def official_transform(size: int) -> Any:
    """The released preprocessing, step by step (clip/clip.py: _transform)."""
    transforms = torchvision_transforms()
    return transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(
                (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            ),
        ]
    )
