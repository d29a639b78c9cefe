"""What holds for every test: the platform, chosen before jax is imported, and which tests run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

DEVICES = 8
DEVICE_FLAG = "--xla_force_host_platform_device_count"
PARITY_MODULES = ("torch", "torchvision", "clip", "open_clip", "transformers")


def _choose_platform() -> None:
    """CPU with eight virtual devices, unless the environment says something else."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")  # tests leave no files behind
    # NumPy's BLAS spins in its threads: two workers on two cores wait fifty times as long
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    flags = os.environ.get("XLA_FLAGS", "")
    if DEVICE_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DEVICE_FLAG}={DEVICES}".strip()


_choose_platform()  # here and not in a fixture: test modules import jax while they are collected


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the session's own: no test reads or writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "slow: runs with --slow"
    if missing := [name for name in PARITY_MODULES if find_spec(name) is None]:
        reasons["parity"] = f"needs {', '.join(missing)}: pip install -e '.[parity]'"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def _program_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("programs"))


@contextmanager
def _jax_options(patch: pytest.MonkeyPatch, options: dict[str, Any]) -> Iterator[None]:
    """For this process, and by environment for its children."""
    import jax

    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        patch.setenv(name.upper(), str(value))
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def quick_compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that compile much and compute little: half the time to compile.

    LLVM's optimisations are left out, XLA's are not. Tests of the numbers that users see, of
    towers, files and the embedded model, compile as users do.
    """
    with _jax_options(monkeypatch, {"jax_disable_most_optimizations": True}):
        yield


@pytest.fixture
def kept_programs(_program_folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that compile the same step again and again: each program once, in children too."""
    from jax.experimental.compilation_cache import compilation_cache

    options = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": _program_folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with _jax_options(monkeypatch, options):
        compilation_cache.reset_cache()
        yield
    compilation_cache.reset_cache()
