"""Imports point one way, `import dyn_jax` is light, and the public doors are documented."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import dyn_jax

ROOT = pathlib.Path(__file__).parents[1]
# A room may import itself and every room before it. A room is a name directly inside dyn_jax, or a folder beside it.
ROOMS = (
    *(
        "_validate",
        "_precision",
        "_files",
        "types",
        "macs",
        "objectives",
        "occupancy",
        "nn",
        "sparse3d",
        "gates",
        "metrics",
        "attacks",
    ),
    *("networks", "datasets", "testing", "plotting", "evaluation", "deployed", "training", "dyn_jax"),
    *("weights_convert", "cli", "__main__", "experiments", "docs", "benchmarks", "examples", "tests"),
)
OUTSIDE = ("weights_convert", *ROOMS[ROOMS.index("experiments") :])


def room_of(module: str) -> str | None:
    """The room of a dotted name, None for what is not ours."""
    top, _, inside = module.partition(".")
    if top != "dyn_jax":
        return top if top in OUTSIDE else None
    name = inside.split(".")[0]
    known = name in ROOMS or (ROOT / "dyn_jax" / name).is_dir() or (ROOT / "dyn_jax" / f"{name}.py").is_file()
    return name if name and known else "dyn_jax"  # dyn_jax itself, or what its __init__ names


def imported(path: pathlib.Path) -> set[str]:
    """Every module that a file imports, inside functions too, and what it takes from it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_point_one_way():
    wrong, rooms = [], set()
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = room_of(".".join(parts).removesuffix(".__init__"))
        if room is None:
            continue
        assert room in ROOMS, f"{path.relative_to(ROOT)}: where does the room {room} stand among {ROOMS}?"
        rooms.add(room)
        for module in sorted(imported(path)):
            other = room_of(module)
            if other is not None and ROOMS.index(other) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(ROOT)} ({room}) imports {module}")
    assert {"types", "networks", "attacks", "cli", "weights_convert", "experiments"} <= rooms
    assert not wrong, "\n".join(wrong)


def test_import_is_light():
    """`import dyn_jax` loads jax, flax, optax and what they load, and starts no backend."""
    code = (
        "import sys, flax.linen, flax.serialization, flax.struct, jax, optax\n"
        "before = {name.split('.')[0] for name in sys.modules} | sys.stdlib_module_names\n"
        "import dyn_jax\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized(), *{name.split('.')[0] for name in sys.modules} - before)"
    )
    found = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert found == ["False", "dyn_jax"], f"a backend runs: {found[0]}; loaded besides: {found[1:]}"


def test_every_room_is_an_attribute():
    """`import dyn_jax` is enough, whatever is used; none of them is loaded before."""
    private = {"cli", "deployed"}
    packages = {path.parent.name for path in ROOT.glob("dyn_jax/*/__init__.py")}
    modules = {path.stem for path in ROOT.glob("dyn_jax/[a-z]*.py")}
    rooms = (packages | modules) - private
    code = (
        "import sys, dyn_jax\n"
        "assert not [name for name in sys.modules if name.startswith('dyn_jax.')] and 'jax' not in sys.modules\n"
        f"rooms = [getattr(dyn_jax, name).__name__ for name in {sorted(rooms)}]\n"
        "assert dyn_jax.deploy is dyn_jax.deployed.deploy and not hasattr(dyn_jax, 'attack')\n"
        "print(*rooms, *set(dir(dyn_jax)) & set(sys.argv[1:]))"
    )
    found = subprocess.check_output([sys.executable, "-c", code, *rooms], text=True).split()
    assert set(found) == rooms | {f"dyn_jax.{name}" for name in rooms}


@pytest.mark.parametrize(
    "module", ["attacks", "objectives", "metrics", "occupancy", "networks", "macs", "datasets", "sparse3d"]
)
def test_public_functions_have_docstrings(module):
    __import__(f"dyn_jax.{module}")
    area = getattr(dyn_jax, module)
    public = [v for n, v in vars(area).items() if inspect.isfunction(v) and not n.startswith("_")]
    assert public
    assert not [f.__name__ for f in public if not f.__doc__]
