"""Tables of the speed of sparse convolution beside its peers."""

from __future__ import annotations

from docs.tables import block, columns, markdown, named, record, source, span
from docs.tables.benchmarks import if_there, measured


@named("bench-sparse3d")
def sparse3d() -> str:
    """MinkUNet beside MinkowskiEngine, and its growth."""
    rows = record("sparse3d_cpu")["rows"]
    networks = [r for r in rows if r["claimed user s"] and "MinkowskiEngine 0.5.4" in r["claimed user s"]]
    body = [
        (r["what"], f"{r['voxels']:,}", f"MinkowskiEngine {r['claimed user s']['MinkowskiEngine 0.5.4']}",
         f"{r['user s']:.2f}", f"{r['wall s']:.2f}")
        for r in networks
    ]  # fmt: skip
    grown = [r for r in rows if "microseconds per voxel" in r]
    each = ", ".join(f"{r['microseconds per voxel']:.0f}" for r in grown)
    sizes = ", ".join(f"{r['voxels'] // 1000}" for r in grown)
    linear = f" MinkUNet14A with gradient takes {each} microseconds per voxel at {sizes} thousand voxels: linear."
    largest = max(networks, key=lambda r: r["temporary MB"])
    compiles = span(r["compile s"] for r in networks)
    return block(
        markdown(("what", "voxels", "peer, user s", "dyn_jax, user s", "wall s"), body),
        source("sparse3d_cpu"),
        "User CPU seconds, kernel maps included. MinkowskiEngine's numbers were measured once on this kind of machine "
        "and with the weights' gradient too. "
        f"{largest['what']}: {largest['temporary MB']:.0f} MiB of temporaries; compilation {compiles} s."
        + (linear if grown else ""),
    )


@named(
    "bench-cylinder3d",
    waits="cylinder3d_cpu",
    command="benchmarks.cylinder3d --scan FILE --large FILE --output benchmarks/results/cylinder3d_cpu.json",
)
def cylinder3d() -> str:
    """Cylinder3D at full size beside spconv, and its growth."""
    kept = record("cylinder3d_cpu")
    cells = {
        "what": lambda r: r["what"],
        "library": lambda r: r["library"],
        "points": lambda r: if_there(r, "points", ","),
        "user s": lambda r: f"{r['user s']:.2f}",
        "wall s": lambda r: f"{r['wall s']:.2f}",
        "GFLOP": lambda r: f"{r['GFLOP']:.0f}",
        "GFLOP per user s": lambda r: f"{r['GFLOP per user s']:.0f}",
        "compile, user s": lambda r: if_there(r, "compile user s", ".0f"),
        "temporary MB": lambda r: if_there(r, "temporary MB", ".0f"),
    }
    peak = max(r["peak process MB"] for r in kept["rows"])
    return block(
        columns(kept["rows"], cells),
        source("cylinder3d_cpu"),
        "Wanted: all gradients of the first scan in under 3 user seconds. GFLOP: of the pairs that exist. Time grows "
        f"with the work to the power {kept['settings']['exponent of the growth']:.2f}; peak of the process "
        f"{peak:,.0f} MiB.",
    )


@measured("bench-sparse-stack", "sparse_stack_cpu", "Eight sparse convolutions")
def sparse_stack() -> str:
    """A stack of submanifold convolutions beside spconv, thread beside thread."""
    kept = record("sparse_stack_cpu")
    cells = {
        "what": lambda r: r["what"],
        "library": lambda r: r["library"],
        "cores": lambda r: r["cores"],
        "ms": lambda r: f"{1000 * r['wall s']:.1f}",
        "user ms": lambda r: f"{1000 * r['user s']:.1f}",
        "times spconv": lambda r: if_there(r, "times spconv, wall"),
        "in user time": lambda r: if_there(r, "times spconv, user"),
    }
    voxels = kept["rows"][0]["voxels"]
    return block(
        columns(kept["rows"], cells),
        source("sparse_stack_cpu"),
        f"Submanifold 3x3x3 convolutions 32 -> 32 and ReLUs on {voxels:,} LiDAR voxels, the kernel map included, a "
        f"pass, medians of {kept['settings']['repeats']} rounds. One core: both libraries bound to it, in turns; "
        "spconv has one thread anyway, with more its CPU kernels race. One call allocates its temporaries, a loop (an "
        "attack) has them once. Wanted: at most spconv's time on one thread.",
    )
