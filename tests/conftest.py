"""What holds for every test: the platform, chosen before jax is imported, and which tests run."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

DEVICES = 8
DEVICE_FLAG = "--xla_force_host_platform_device_count"
PARITY_MODULES = ("torch", "torchvision", "clip", "open_clip", "transformers")


def _choose_platform() -> None:
    """CPU with eight virtual devices, unless the environment says something else."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")  # tests leave no files behind
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
