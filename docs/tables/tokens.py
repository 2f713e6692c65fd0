"""The table of SlowFormer."""

from __future__ import annotations

from docs.tables import block, find, markdown, named, record, source


@named("slowformer")
def slowformer() -> str:
    """What one patch brings back on images that it was not made on."""
    kept = record("slowformer_avit")
    body = [
        (
            *(row["network"], row["attack"], f"{row['patch']} x {row['patch']}" if row["patch"] else "all pixels"),
            f"{row['saved before %']:.1f} to {row['saved after %']:.1f}",
            f"{row['recovery %']:.1f} ± {row['standard error']:.1f}",
            f"{row['accuracy before %']:.1f} to {row['accuracy after %']:.1f}",
        )
        for row in kept["rows"]
    ]
    s, rows = kept["settings"], kept["rows"]
    size = max(s["sizes"])
    best = max((r for r in rows if r["patch"] == size), key=lambda r: r["recovery %"])
    random = find(rows, network=best["network"], attack="random patch", patch=size)
    return block(
        markdown(("network", "attack", "patch", "saved, %", "recovery, %", "accuracy, %"), body),
        source("slowformer_avit"),
        f"Patches in the corner of 32 x 32 digits, made on {s['images']} training images ({s['steps']} steps of Adam "
        f"at {s['learning_rate']:g}, batches of {s['batch']}), judged on {s['images']} test images. Recovery is the "
        "share of the saved multiply-adds that comes back, mean over images with its standard error; below 0 the "
        f"network saves more than before. The best patch of {size} x {size} pixels brings {best['recovery %']:.0f} % "
        f"back where a random one brings {random['recovery %']:.0f} %; both hide part of the digit, and the accuracy "
        f"falls to {best['accuracy after %']:.1f} and {random['accuracy after %']:.1f} %.",
    )
