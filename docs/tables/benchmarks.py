"""Tables of speed beside peers."""

from __future__ import annotations

from docs.tables import block, find, markdown, named, record, source, span


@named("bench-bim")
def bim() -> str:
    """BIM on ResNet-32 beside torchattacks and a hand-written loop."""
    kept = record("bim_resnet32_cpu")
    peer = find(kept["rows"], contender="torchattacks BIM")["ms/step"]
    s = kept["settings"]
    body = [
        (
            *(
                r["contender"],
                f"{r['ms/step']:.0f}",
                f"{r['CPU ms/step']:.0f}",
                f"{r['images/s'] * s['steps'] / 100:.1f}",
            ),
            f"{peer / r['ms/step']:.2f}",
        )
        for r in kept["rows"]
    ]
    header = ("contender", "ms/step", "CPU ms/step", "images/s at 100 steps", "times torchattacks")
    return block(
        markdown(header, body),
        source("bim_resnet32_cpu"),
        f"Published weights, batch {s['batch']}, paired in one run, medians of {s['rounds']} rounds of {s['steps']} "
        "steps.",
    )


@named("bench-early-attack")
def early_attack() -> str:
    """Early Attack beside the released loop."""
    kept = record("early_attack_cpu")
    body = [
        (
            *(r["contender"], f"{r['images per second']:.1f} ({r['lowest']:.1f} to {r['highest']:.1f})"),
            f"{r['times the best released loop']:.1f}",
        )
        for r in kept["rows"]
    ]
    s = kept["settings"]
    return block(
        markdown(("contender", "images/s", "times the best released loop"), body),
        source("early_attack_cpu"),
        f"{s['steps']} iterations, {s['images']} images at once; wanted: 10 times the released loop.",
    )


@named("bench-grad-auto")
def grad_auto() -> str:
    """GradAuto beside the released loop and a careful one."""
    kept = record("grad_auto_cpu")
    body = [
        (
            *(r["contender"], f"{r['ms per step']:.0f} ({r['lowest']:.0f} to {r['highest']:.0f})"),
            *(f"{r['images per second at 300 steps']:.2f}", f"{r['times the released loop']:.2f}"),
            f"{r['times the careful loop']:.2f}",
        )
        for r in kept["rows"]
    ]
    s = kept["settings"]
    header = ("contender", "ms/step", "images/s at 300 steps", "times the released loop", "times a careful loop")
    return block(
        markdown(header, body),
        source("grad_auto_cpu"),
        f"SkipNet-38, batch {s['batch']}, medians over the rounds of {s['steps']} steps, with the lowest and highest; "
        "wanted: 3 times the released loop, which is not reached. The careful loop freezes the parameters; the "
        "released one also computes their gradients. A step is one forward and two backward passes (with the paper's "
        "settings, which project in half of the steps only, one and a half), and little else.",
    )


@named("bench-sparse3d")
def sparse3d() -> str:
    """Sparse convolution beside MinkowskiEngine and spconv."""
    rows = record("sparse3d_cpu")["rows"]
    networks = [r for r in rows if r["claimed user s"] and "MinkowskiEngine 0.5.4" in r["claimed user s"]]
    body = [
        (r["what"], f"{r['voxels']:,}", f"MinkowskiEngine {r['claimed user s']['MinkowskiEngine 0.5.4']}",
         f"{r['user s']:.2f}", f"{r['wall s']:.2f}")
        for r in networks
    ]  # fmt: skip
    for what in ("stack forward", "stack forward + backward"):
        ours, peer = (find(rows, what=what, library=name) for name in ("dyn_jax", "spconv, 1 thread"))
        beside = f"spconv, same run, one thread: {peer['user s']:.3f} (wall {peer['wall s']:.3f})"
        body.append((what, f"{ours['voxels']:,}", beside, f"{ours['user s']:.3f}", f"{ours['wall s']:.3f}"))
    growth = [r for r in rows if "microseconds per voxel" in r]
    each = ", ".join(f"{r['microseconds per voxel']:.0f}" for r in growth)
    sizes = ", ".join(f"{r['voxels'] // 1000}" for r in growth)
    largest = max(networks, key=lambda r: r["temporary MB"])
    compiles = span(r["compile s"] for r in networks)
    return block(
        markdown(("what", "voxels", "peer, user s", "dyn_jax, user s", "wall s"), body),
        source("sparse3d_cpu"),
        "User CPU seconds, kernel maps included. MinkowskiEngine's numbers were measured once on this kind of machine "
        "and with the weights' gradient too. The stack is eight submanifold convolutions 32 -> 32 on lidar voxels. "
        f"{largest['what']}: {largest['temporary MB']:.0f} MiB of temporaries; compilation {compiles} s. MinkUNet14A "
        f"with gradient takes {each} microseconds per voxel at {sizes} thousand voxels: linear.",
    )


@named(
    "bench-cylinder3d",
    waits="cylinder3d_cpu",
    command="benchmarks.cylinder3d --scan FILE --large FILE --output benchmarks/results/cylinder3d_cpu.json",
)
def cylinder3d() -> str:
    """Cylinder3D at full size beside spconv, and its growth."""
    kept = record("cylinder3d_cpu")
    body = [
        (
            *(r["what"], r["library"], f"{r['points']:,}" if "points" in r else None, f"{r['user s']:.2f}"),
            *(f"{r['GFLOP']:.0f}", f"{r['GFLOP per user s']:.0f}"),
            *(f"{r[key]:.0f}" if key in r else None for key in ("compile user s", "temporary MB")),
        )
        for r in kept["rows"]
    ]
    header = ("what", "library", "points", "user s", "GFLOP", "GFLOP per user s", "compile, user s", "temporary MB")
    peak = max(r["peak process MB"] for r in kept["rows"])
    return block(
        markdown(header, body),
        source("cylinder3d_cpu"),
        "Wanted: all gradients of the first scan in under 3 user seconds. GFLOP: of the pairs that exist. Time grows "
        f"with the work to the power {kept['settings']['exponent of the growth']:.2f}; peak of the process "
        f"{peak:,.0f} MiB.",
    )


@named("bench-training")
def training_step() -> str:
    """A training step beside PyTorch's, and the gradient to a kernel in two forms."""
    kept = record("training_step_cpu")
    ratio = lambda row: f"{row[key]:.2f}" if (key := "times PyTorch's step") in row else None
    body = [
        (row["contender"], f"{row['ms']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f})", ratio(row))
        for row in kept["rows"]
    ]
    s = kept["settings"]
    return block(
        markdown(("contender", "ms", "times PyTorch's step"), body),
        source("training_step_cpu"),
        f"Batch {s['batch']}, medians of {s['rounds']} rounds, contenders in turns; wanted: at least as fast as "
        "PyTorch's eager step of the static network.",
    )
