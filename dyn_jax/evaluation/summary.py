"""``result.json``: what an evaluation found, in RobustBench's fields and in those of adaptive networks."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dyn_jax import metrics
from dyn_jax.evaluation import reading
from dyn_jax.evaluation.findings import ERROR, Finding
from dyn_jax.evaluation.findings import finding as findings_of
from dyn_jax.evaluation.plan import ACCURACY, ENERGY, NORM, PLANS, Entry
from dyn_jax.evaluation.programs import Job

Arrays = Mapping[str, np.ndarray]
Results = Mapping[str, Arrays]
ONE_PATH = ("apgd-ce", "apgd-dlr", "pgd", "bim")
"""Attacks whose losses are one path, of which the indicators can say whether it had ended."""
PACKAGES = ("dyn_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def summarise(
    job: Job, examples: Arrays, attacked: Results, facts: Mapping[str, Any], shape: Any, findings: list[dict[str, Any]]
) -> dict[str, Any]:
    """The result of an evaluation, for JSON: the same for the same examples.

    `examples` and `attacked` are those of `Evaluation`, `facts` what else the report shall name, `shape` the network's
    `Output` in shapes, `findings` those of `checks.check`, before the attacks.
    """
    right, invalid = examples["correct"], examples["invalid"]
    before = right & ~invalid
    robust, lost = before & ~examples["broken"], examples["claimed"] & ~examples["broken"]
    dense = _dense(shape)
    findings = [*findings, *_afterwards(job, examples, attacked)]
    return {
        "name": facts.get("name"),
        "dataset": facts.get("dataset"),
        "threat": job.threat.norm.capitalize(),
        "eps": text_of(job.threat.eps),
        "link": None,
        "authors": None,
        "venue": None,
        "architecture": facts.get("architecture"),
        "additional_data": None,
        "number_forward_passes": job.draws[1] if job.subject.stochastic else 1,
        "clean_acc": percent(right),
        "reported": None,
        "autoattack_acc": _autoattack(before, attacked),
        "robust_acc": percent(robust),
        "unreliable": any(one["severity"] == ERROR for one in findings) or bool(np.any(invalid | lost)),
        "checks": findings,
        "examples": len(right),
        "broken": int(np.sum(examples["broken"])),
        "invalid": int(np.sum(invalid)),
        "not_confirmed": int(np.sum(lost)),
        "broken_in_8_bits": int(np.sum(examples["broken_8bit"])) if np.all(examples["grid"]) else None,
        "interval_95": interval(int(np.sum(robust)), len(robust)),
        "attacks": [
            _attack(entry, attacked[entry.name], examples, number, before) for number, entry in enumerate(job.entries)
        ],
        "energy": _energy(job, examples, attacked, shape.trace.units, dense),
        "random": _random(job, examples),
        "curves": {
            "eps": _eps_curve(job, examples, attacked, before),
            "steps": _step_curves(job, examples, attacked, before, dense),
        },
        "facts": {str(key): str(value) for key, value in facts.items()},
        "settings": {
            **dataclasses.asdict(job.budget),
            "lambdas": list(job.budget.lambdas),
            "seed": job.seed,
            "batch_size": job.batch_size,
            "draws": list(job.draws) if job.subject.stochastic else None,
        },
        "environment": environment(),
    }


def finding(one: Finding) -> dict[str, Any]:
    """A finding for JSON."""
    share = None if one.share is None else _rounded(one.share)
    return {**vars(one), "share": share, "examples": [int(row) for row in one.examples]}


def _afterwards(job: Job, examples: Arrays, attacked: Results) -> list[dict[str, Any]]:
    """What the attacks left behind says about them: indicators of failure, and masked gradients."""
    found = []
    for entry in job.entries:
        got = attacked[entry.name]
        base, at, _ = entry.name.partition("@")
        if base in ONE_PATH and got["run"].any():
            rows = np.flatnonzero(got["run"])
            judged = not at and not job.subject.stochastic  # iterates were seen by the network that is judged
            errors = got["path_error"][rows] > 0 if judged else None
            for one in reading.from_attack(got["success"][rows], got["path"][rows], path_success=errors).findings:
                moved = dataclasses.replace(one, message=f"{entry.name}: {one.message}", examples=rows[one.examples])
                found.append(finding(moved))
    first = {e.name: examples["found_by"] == number for number, e in enumerate(job.entries) if e.kind == ACCURACY}
    lost = examples["claimed"] & ~examples["broken"]
    if lost.any() and not job.subject.stochastic:  # fresh draws may differ; nothing else may
        text = f"{lost.sum()} of {examples['claimed'].sum()} broken images are not wrong when judged again"
        found.append(finding(findings_of("not_confirmed", text, lost)))
    return found + [finding(one) for one in reading.from_ensemble(first).findings]


def percent(flags: np.ndarray) -> str:
    """Share in percent with two decimals, as RobustBench writes it."""
    return f"{100 * float(np.mean(flags)):.2f}"


def text_of(eps: float) -> str:
    """8/255 for 0.03137..., else the number."""
    steps = eps * 255
    if abs(steps * 10 - round(steps * 10)) < 1e-4 * max(steps, 1):
        return f"{round(steps, 1):g}/255"
    return f"{eps:g}"


def interval(hits: int, count: int) -> list[float]:
    """Wilson's 95 % interval of a share, in percent."""
    z, share = 1.96, hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return [max(0.0, round(100 * (centre - half), 2)), min(100.0, round(100 * (centre + half), 2))]


def environment() -> dict[str, Any]:
    """Versions and devices."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "device": device.device_kind,
    }


def _autoattack(standing: np.ndarray, attacked: Results) -> str | None:
    """Percent that stand the four attacks of AutoAttack; None unless each met whatever stood those before it: another
    attack may have taken images away."""
    for name in PLANS["standard"]:
        got = attacked.get(name)
        if got is None or np.any(standing & ~got["run"]):
            return None
        standing = standing & ~(got["success"] & got["run"]) if got["run"].any() else standing
    return percent(standing)


def _attack(entry: Entry, got: Arrays, examples: Arrays, number: int, before: np.ndarray) -> dict[str, Any]:
    """One line of the table."""
    run, kind = got["run"], entry.kind
    line: dict[str, Any] = {"attack": entry.name, "kind": kind, "run_on": int(run.sum())}
    if entry.note:
        line["note"] = entry.note
    if not run.any():
        return line
    line["broken"] = int(np.sum(got["success"] & run))
    line["found_first"] = int(np.sum(examples["found_by"] == number))
    if kind == ACCURACY:
        line["accuracy_after"] = percent(before & ~((examples["found_by"] >= 0) & (examples["found_by"] <= number)))
    line["nonfinite_gradients"] = int(np.sum(got["nonfinite"] & run))
    hit = run & got["success"]
    line["distance_of_broken"] = _rounded(np.mean(got["distance"][hit])) if hit.any() else None
    if examples["shares"].shape[1]:
        line["units_changed"] = _rounded(np.mean(got["changed"][run]))
        line["macs"] = _rounded(np.mean(got["macs"][run]))
    if "lambda" in got:
        values, counts = np.unique(got["lambda"][run], return_counts=True)
        line["lambda"] = {f"{value:g}": int(count) for value, count in zip(values, counts)}
    if kind == ENERGY:
        line["inside_ball"] = int(np.sum(got["inside"] & run))
        line["psnr"] = _rounded(np.mean(np.minimum(got["psnr"][run], 100.0)))
        line["accuracy_kept"] = percent((got["prediction"] == examples["label"])[before]) if before.any() else None
    return line


def _energy(job: Job, examples: Arrays, attacked: Results, units: Any, dense: float | None) -> dict[str, Any] | None:
    """Multiply-adds before and after, and the share of what was saved that came back; None for a static network."""
    if not units:
        return None
    of_energy = [entry.name for entry in job.entries if entry.kind == ENERGY]
    return {
        "dense_macs": dense,
        "macs_clean": _rounded(examples["macs"].astype(float).mean()),
        "macs_worst_in_ball": _rounded(examples["macs_worst"].astype(float).mean()),
        "recovery_in_ball": _recovery(examples, examples["macs_worst"], dense),
        "recovery": {name: _recovery(examples, attacked[name]["macs"], dense) for name in of_energy},
        "units": [unit.name for unit in units],
        "on_before": [_rounded(v) for v in examples["shares"].mean(axis=0)],
        "on_worst": [_rounded(v) for v in examples["shares_worst"].mean(axis=0)],
    }


def _dense(shape: Any) -> float | None:
    """Multiply-adds with every unit on; None for a static network, and for voxels."""
    try:
        return float(metrics.dense_macs(shape.trace)) if shape.trace.units else None
    except ValueError:  # voxels have no dense cost
        return None


def _recovery(examples: Arrays, after: np.ndarray, dense: float | None) -> float | None:
    """Mean over the images that save something, as `metrics.recovery`."""
    if dense is None:
        return None
    before = examples["macs"].astype(float)
    some = dense - before > 1e-6 * dense
    return _rounded(np.mean((after - before)[some] / (dense - before)[some])) if some.any() else None


def _random(job: Job, examples: Arrays) -> dict[str, Any] | None:
    """Of a random network: mean, worst and majority over fresh draws, on the clean and on the worst images."""
    if not job.subject.stochastic:
        return None
    row = lambda rate: {
        "mean_acc": percent(1 - rate),
        "worst_acc": percent(rate == 0),
        "majority_acc": percent(rate < 0.5),
    }
    return {"draws": job.draws[1], "clean": row(examples["clean_rate"]), "adversarial": row(examples["rate"])}


def _eps_curve(job: Job, examples: Arrays, attacked: Results, right: np.ndarray) -> dict[str, Any] | None:
    """Accuracy at every radius, from the smallest perturbations that were found."""
    norms = [attacked[e.name] for e in job.entries if e.kind == NORM]
    if not norms:
        return None
    found = [np.where(got["success"], got["distance"].astype(float), np.inf) for got in norms]
    smallest = np.min(found, axis=0)
    smallest = np.where(examples["broken"], np.minimum(smallest, job.threat.eps), smallest)
    radii = job.threat.eps * np.linspace(0, 2, 41)
    finite = smallest[right & np.isfinite(smallest)]
    return {
        "eps": [round(float(r), 8) for r in radii],
        "accuracy": [round(100 * float(np.mean(right & (smallest > r))), 2) for r in radii],
        "median": _rounded(np.median(finite)) if len(finite) else None,
    }


def _step_curves(
    job: Job, examples: Arrays, attacked: Results, right: np.ndarray, dense: float | None
) -> dict[str, dict[str, list[float]]]:
    """What each search had reached on its way, from its first evaluation to its last, as the attacked network saw it.

    ``loss``: the best so far, mean over the examples it ran on. ``accuracy``, of an attack on it: percent of all
    examples that stood the attacks before and every iterate so far. ``recovery``, of an attack on the energy: as
    `_recovery`, of the most expensive iterate so far.
    """
    curves: dict[str, dict[str, list[float]]] = {}
    for number, entry in enumerate(job.entries):
        got = attacked[entry.name]
        if "path" not in got or not got["run"].any() or not got["path"].shape[1]:
            continue
        mean = np.clip(got["path"][got["run"]], -1e9, 1e9).mean(axis=0)
        curves[entry.name] = {"loss": [_rounded(v) for v in mean]}
        if entry.kind == ACCURACY:
            found_by = examples["found_by"]
            standing = right & ~((found_by >= 0) & (found_by < number))
            stands = standing[:, None] & ~((got["path_error"] > 0) & got["run"][:, None])
            curves[entry.name]["accuracy"] = [round(100 * float(v), 2) for v in stands.mean(axis=0)]
        elif entry.kind == ENERGY and "path_macs" in got:
            most = np.maximum(got["path_macs"], examples["macs"][:, None])
            back = [_recovery(examples, column, dense) for column in most.T]
            curves[entry.name] |= {"recovery": [v for v in back if v is not None]}
    return curves


def _rounded(value: Any) -> float:
    """A float with six digits, for JSON: no NaN."""
    value = float(value)
    return float(f"{value:.6g}") if np.isfinite(value) else None  # pyright: ignore[reportReturnType]
