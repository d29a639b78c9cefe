"""What this machine is: versions, backend, precision in force, cache, memory, extras."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jaxclip import __version__
from jaxclip.hub.released import cache_folder

SHOWN = ("jax", "jaxlib", "flax", "numpy", "pillow")
SWITCHES: tuple[str, ...] = (
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
)
SWITCHES += ("JAX_COMPILATION_CACHE_DIR", "JAXCLIP_CACHE", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,-]+)\])?\s*([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")
_BOUND = re.compile(r"(>=|==)\s*([\d.]+)")


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparison: "0.10.2.dev3" gives (0, 10, 2)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def is_older(version: str, least: str) -> bool:
    """Whether a version is below another one."""
    a, b = numbers(version), numbers(least)
    length = max(len(a), len(b))
    return a + (0,) * (length - len(a)) < b + (0,) * (length - len(b))


class Requirement(NamedTuple):
    """A package that another one needs: at least which version, for which extra of it."""

    package: str
    brackets: tuple[str, ...]  # extras of the package itself
    least: str
    extra: str


def requirements(of: str = "jaxclip") -> list[Requirement]:
    """Everything that an installed package names as its requirements."""
    try:
        lines = importlib.metadata.requires(of) or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was never installed
        return []
    found = []
    for line in lines:
        if parts := _REQUIREMENT.match(line):
            brackets = tuple(filter(None, (parts[2] or "").split(",")))
            bound, extra = _BOUND.search(parts[3]), _EXTRA.search(parts[4] or "")
            least = bound[2] if bound else ""
            found.append(Requirement(parts[1], brackets, least, extra[1] if extra else ""))
    return found


def is_there(needed: Requirement) -> bool:
    """Whether a package is installed, with its own extras."""
    if needed.package == "jaxclip":  # an extra of ours that holds others of ours
        return all(extra_is_there(requirements(), name) for name in needed.brackets)
    if installed(needed.package) is None:
        return False
    return all(extra_is_there(requirements(needed.package), name) for name in needed.brackets)


def extra_is_there(needed: list[Requirement], extra: str) -> bool:
    """Whether all packages of an extra are installed."""
    return all(is_there(each) for each in needed if each.extra == extra)


def check_packages(
    needed: list[Requirement],
) -> tuple[dict[str, str | None], list[str], dict[str, bool]]:
    """(versions of the core, what is missing or too old in words, {extra: installed}).

    A package that only an extra needs may be old where that extra is not whole: others brought it.
    """
    names = dict.fromkeys(each.extra for each in needed if each.extra)
    extras = {name: extra_is_there(needed, name) for name in names}
    versions: dict[str, str | None] = {}
    wrong: list[str] = []
    for each in needed:
        version, least = installed(each.package), each.least
        wanted = f"{each.package}: expected {least} or newer" if least else f"{each.package}:"
        if not each.extra:
            versions[each.package] = version
            if version is None:
                wrong.append(f"{wanted}, got none; pip install {each.package}")
        used = not each.extra or extras[each.extra]
        if used and version is not None and least and is_older(version, least):
            of = f" for the extra {each.extra}" if each.extra else ""
            wrong.append(f"{wanted}{of}, got {version}; pip install -U {each.package}")
    return versions, wrong, extras


def memory() -> dict[str, int | None]:
    """Bytes of memory, in all and free; None where the system does not say."""
    found: dict[str, int | None] = {"total": None, "free": None}
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return found
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if "kB" in line}
    return {"total": sizes.get("MemTotal"), "free": sizes.get("MemAvailable")}


def free_disk(folder: Path) -> int | None:
    """Free bytes where a folder is or would be made; None where the system does not say."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def backend() -> dict[str, Any]:
    """jax's platform, devices and settings; an error in words where jax does not start."""
    try:
        import jax

        devices = jax.devices()
        config = jax.config.values
        return {
            "platform": jax.default_backend(),
            "devices": [device.device_kind for device in devices],
            "processes": jax.process_count(),
            "matmul precision": str(config.get("jax_default_matmul_precision") or "default"),
            "float64": bool(config.get("jax_enable_x64")),
            "compilation cache": str(config.get("jax_compilation_cache_dir") or ""),
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


PRECISION = {
    "cpu": "float32 on a CPU",
    "gpu": 'TF32 on recent GPUs; for parity use precision="highest"',
    "tpu": 'bfloat16 on a TPU; for parity use precision="highest"',
}


def examine_machine() -> dict[str, Any]:
    """Everything about this machine that a report of a wrong number needs, as plain values."""
    versions, wrong, extras = check_packages(requirements())
    ours = backend()
    if "error" in ours:
        wrong.append(f"jax: expected a backend, got an error ({ours['error']})")
    precision = ours.get("matmul precision")
    if precision == "default":
        ours["meaning"] = PRECISION.get(ours["platform"], "the platform's own")
    cache = cache_folder(None)
    files = [path for path in cache.glob("**/*") if path.is_file()] if cache.is_dir() else []
    return {
        "jaxclip": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "executable": sys.executable,
        "processors": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "versions": versions,
        "backend": ours,
        "environment": {name: os.environ[name] for name in SWITCHES if name in os.environ},
        "cache": {
            "folder": str(cache),
            "bytes": sum(path.stat().st_size for path in files),
            "free": free_disk(cache),
        },
        "memory": memory(),
        "extras": extras,
        "wrong": wrong,
    }


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def describe_machine(found: dict[str, Any]) -> list[str]:
    """The lines that `jaxclip doctor` prints."""
    ours, memory, cache = found["backend"], found["memory"], found["cache"]
    versions = found["versions"]
    some = [f"{name} {versions.get(name) or 'none'}" for name in SHOWN if name in versions]
    kinds = ours.get("devices", [])
    counted = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    precision = f"{ours.get('matmul precision', 'unknown')}"
    meaning = f" ({ours['meaning']})" if "meaning" in ours else ""
    extras = found["extras"]
    lines = [
        f"jaxclip     {found['jaxclip']}, Python {found['python']}, {found['system']}",
        f"packages    {', '.join(some) or 'jaxclip is not installed: pip install -e .'}",
        f"backend     {ours.get('platform', ours.get('error', 'none'))}: {counted or 'no device'}",
        f"precision   {precision}{meaning}",
        f"cache       {cache['folder']}, {_size(cache['bytes'])} used, {_size(cache['free'])} free",
        f"programs    {ours.get('compilation cache') or 'kept with the cache'}",
        f"memory      {_size(memory['free'])} free of {_size(memory['total'])}, "
        f"{found['processors']} processors",
        f"extras      {', '.join(name for name, there in extras.items() if there) or 'none'}",
        f"no extras   {', '.join(name for name, there in extras.items() if not there) or 'none'}",
    ]
    lines += [f"            {name}={value}" for name, value in found["environment"].items()]
    lines += [f"wrong       {line}" for line in found["wrong"]]
    return lines if found["wrong"] else [*lines, "nothing is too old"]
