"""Tables of what came after the three papers: DeepSloth, experts, sparse activations, adversarial training."""

from __future__ import annotations

from docs.tables import block, markdown, named, record, source


@named("deepsloth-efficacy")
def deepsloth() -> str:
    """What DeepSloth does to the shipped SDN and to RDI-ResNet-38."""
    kept = record("deepsloth_efficacy")
    share = lambda value: f"{100 * value:.0f}"
    body = [
        (
            *(r["network"], r["input"], f"{r['efficacy']:.2f}", share(r["last exit"])),
            *(share(r["work"]), share(r["accuracy"])),
        )
        for r in kept["rows"]
    ]
    header = ("network", "input", "efficacy", "reach the last exit, %", "work, %", "accuracy, %")
    s = kept["settings"]
    return block(
        markdown(header, body),
        source("deepsloth_efficacy"),
        f"Claimed: {kept['claimed']['per sample']} (per sample).",
        f"Data: {s['examples']} of the {s['data']}; eps {s['eps']:g} (Linf), {s['steps']} steps. SDN at its threshold, "
        "RDI-ResNet-38 at the released ones. Few images: the spread of an efficacy is a few hundredths.",
    )


@named("deepsloth-norms")
def norms() -> str:
    """What DeepSloth does to the shipped SDN and to RDI-ResNet-38, norm by norm."""
    kept = record("deepsloth_norms")
    share = lambda value: f"{100 * value:.0f}"
    body = [
        (
            *(r["network"], r["norm"], r["input"], f"{r['efficacy']:.2f}", share(r["last exit"])),
            *(share(r["work"]), share(r["accuracy"])),
        )
        for r in kept["rows"]
    ]
    header = ("network", "norm", "input", "efficacy", "reach the last exit, %", "work, %", "accuracy, %")
    s, sizes = kept["settings"], kept["sizes"]
    return block(
        markdown(header, body),
        source("deepsloth_norms"),
        f"Data: {s['examples']} of the {s['data']}, {s['crafted']} training images for the perturbations of all and of "
        f"a class (the true label picks it). Sizes: Linf {sizes['linf']:g}, L2 {sizes['l2']:.2f}, L1 {sizes['l1']:g}, "
        f"of the noise too; {f'at most {most} steps' if (most := s['steps']) else 'steps as released'}. SDN at its "
        "threshold, RDI-ResNet-38 at the released ones. Few images: the spread of an efficacy is a few hundredths."
        + (f" {note}" if (note := kept.get("note")) else ""),
    )


@named("experts-routes")
def experts() -> str:
    """What changes in a network whose cost cannot."""
    kept = record("experts_routes")
    to = lambda r, name, digits: f"{r[f'{name} before{digits}']:.0f} to {r[f'{name} after{digits}']:.0f}"
    body = [
        (
            *(r["network"], r["attack"], r["gradient"], to(r, "accuracy", " %")),
            f"{r['intersection over union']:.2f}",
            f"{r['imbalance before']:.2f} to {r['imbalance after']:.2f}",
            *(to(r, "share of expert 0", " %"), to(r, "work", " %")),
        )
        for r in kept["rows"]
    ]
    header = ("network", "attack on", "gradient", "accuracy, %", "experts, IoU", "imbalance", "expert 0, %", "work, %")
    s = kept["settings"]
    return block(
        markdown(header, body),
        source("experts_routes"),
        f"{s['images']} {s['data']}; eps {255 * s['eps']:.0f}/255, {s['steps']} steps of a quarter of it. Intersection "
        "over union of the experts that ran before and after, 1 where none changed; imbalance is the load's standard "
        "deviation over its mean; both are means over the units.",
    )


@named("sponge-activations")
def sponge() -> str:
    """Energy of an accelerator that skips zeros, on static networks."""
    kept = record("sponge_activations")
    error = lambda r: "" if r["standard error"] is None else f" ± {r['standard error']:.1f}"
    body = [
        (
            *(r["network"], r["input"], f"{r['more energy %']:+.1f}{error(r)}", f"{r['more multiply-adds %']:+.1f}"),
            *(f"{r['not zero %']:.1f}", f"{r['accuracy %']:.0f}"),
        )
        for r in kept["rows"]
    ]
    header = ("network", "input", "energy, %", "multiply-adds, %", "activations not zero, %", "accuracy, %")
    s = kept["settings"]
    return block(
        markdown(header, body),
        source("sponge_activations"),
        f"{s['images']} {s['data']}, published weights; eps {255 * s['eps']:.0f}/255, {s['steps']} steps of "
        f"{255 * s['step']:.0f}/255. Energy by the sponge paper's model against the same image unchanged, with its "
        "standard error.",
    )


@named("training-adversarial")
def adversarial() -> str:
    """Accuracy and work of a small SkipNet trained against five things."""
    kept = record("adversarial_training")
    columns = {
        "clean accuracy": "accuracy, %",
        "robust accuracy, FGM": "under FGM",
        "robust accuracy, LGM": "under LGM",
        "robust accuracy, worst": "under both",
        "clean work": "work, %",
        "work under attack on the energy": "under attack on the energy",
    }
    cell = lambda c: f"{round(100 * c['mean'])} ± {round(100 * (c['std'] or 0))}"
    body = [(row["trained against"], *(cell(row[name]) for name in columns)) for row in kept["rows"]]
    s = kept["settings"]
    return block(
        markdown(("trained against", *columns.values()), body),
        source("adversarial_training"),
        f"Data: {s['data']}, {s['examples']} test images; PGD with eps {255 * s['eps']:.0f}/255, "
        f"{s['steps in training']} steps in training and {s['steps of the judge']} after it; {s['epochs']} epochs, "
        f"{100 * s['attacked share of a batch']:.0f} % of a batch attacked. ± is the standard deviation over seeds.",
    )


@named(
    "deepsloth-adversarial",
    waits="deepsloth_adversarial",
    command="experiments.deepsloth_adversarial",
)
def deepsloth_adversarial() -> str:
    """Efficacy and accuracy of a small SDN trained against four things."""
    kept = record("deepsloth_adversarial")
    inputs = ("clean", "noise", "PGD", "DeepSloth")
    efficacy = lambda c: f"{c['mean']:.2f} ± {c['std'] or 0:.2f}"
    share = lambda c: f"{round(100 * c['mean'])} ± {round(100 * (c['std'] or 0))}"
    body = [
        (
            row["trained against"],
            efficacy(row["threshold"]),
            *(efficacy(row[f"efficacy, {name}"]) for name in inputs),
            *(share(row[f"accuracy, {name}"]) for name in inputs),
        )
        for row in kept["rows"]
    ]
    header = (
        "trained against",
        "threshold",
        *(f"efficacy, {n}" for n in inputs),
        *(f"accuracy %, {n}" for n in inputs),
    )
    s = kept["settings"]
    return block(
        markdown(header, body),
        source("deepsloth_adversarial"),
        "Claimed: adversarial training gives limited protection.",
        f"Data: {s['data']}, {s['examples']} test images; eps {255 * s['eps']:.0f}/255, {s['steps in training']} steps "
        f"in training on {100 * s['attacked share of a batch']:.0f} % of a batch and {s['steps of the judge']} after "
        f"it; {s['epochs']} epochs. At a network's threshold its efficacy on {s['held back']} clean training "
        f"images, held back, is {s['efficacy held']}, so that all save alike. ± is the standard deviation over seeds.",
    )
