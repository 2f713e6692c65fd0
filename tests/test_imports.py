"""Imports point one way, `import dyn_jax` is light, and the public doors are documented."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import dyn_jax

ROOT = pathlib.Path(dyn_jax.__file__).parent
# What each area may import from dyn_jax; every area may import itself and _validate.
ALLOWED = {
    "_validate": set(),
    "types": set(),
    "segments": set(),
    "occupancy": {"segments"},
    "macs": set(),
    "metrics": {"types"},
    "objectives": {"types", "metrics"},
    "exits": {"types", "metrics", "objectives", "gates"},
    "nn": {"macs", "types"},
    "sparse3d": {"types", "occupancy", "segments"},
    "gates": {"macs", "types", "occupancy", "nn"},
    "networks": {"macs", "types", "occupancy", "segments", "nn", "sparse3d", "gates", "training.checkpoint"},
    "attacks": {"types", "objectives", "metrics"},
    "testing": {"types", "occupancy", "metrics", "macs", "attacks"},
    "datasets": {"types"},
    "training": {
        *("types", "occupancy", "metrics", "macs", "objectives", "exits", "nn", "sparse3d", "gates", "networks"),
        "datasets",
    },
    "plotting": None,
    "demo": None,
    "demo_points": None,
    "cli": None,
    "__main__": None,
    "__init__": None,
}


def area_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """dyn_jax areas (or exact modules, where only those are allowed) that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_direction(path):
    area = area_of(path)
    assert area in ALLOWED, f"{area}: say in ALLOWED what it may import"
    names = imported(path)
    assert not {n for n in names if n.split(".")[0] in ("weights_convert", "experiments", "benchmarks", "tests")}
    if ALLOWED[area] is None:
        return
    allowed = ALLOWED[area] | {area, "_validate"}
    inside = {n.removeprefix("dyn_jax.") for n in names if n.startswith("dyn_jax.")}
    bad = {n for n in inside if not any(n == a or n.startswith(a + ".") for a in allowed)}
    assert not bad, f"{path.name} ({area}) imports {sorted(bad)}, allowed are {sorted(allowed)}"


def test_import_is_light():
    code = (
        "import sys, time; start = time.perf_counter(); import dyn_jax; seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'tensorflow', 'tensorflow_datasets', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "print(seconds, *heavy)"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(3)]
    assert not runs[0][1:], f"import dyn_jax pulls in {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 2.0


@pytest.mark.parametrize(
    "module", ["attacks", "objectives", "metrics", "occupancy", "networks", "macs", "datasets", "sparse3d"]
)
def test_public_functions_have_docstrings(module):
    __import__(f"dyn_jax.{module}")
    area = getattr(dyn_jax, module) if hasattr(dyn_jax, module) else sys.modules[f"dyn_jax.{module}"]
    public = [v for n, v in vars(area).items() if inspect.isfunction(v) and not n.startswith("_")]
    assert public
    assert not [f.__name__ for f in public if not f.__doc__]
