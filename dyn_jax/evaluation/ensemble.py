"""A standard evaluation: many attacks, the worst of each example, judged again; killed, it goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dyn_jax import _validate
from dyn_jax.attacks.threat import ball
from dyn_jax.evaluation import checks, files, programs, shards, summary
from dyn_jax.evaluation.chunks import Chunks, divided
from dyn_jax.evaluation.plan import ACCURACY, ENERGY, Budget, Threat, plan
from dyn_jax.evaluation.programs import Job
from dyn_jax.evaluation.subject import plain, subject_of
from dyn_jax.types import Occupancy, Variables

Arrays = dict[str, np.ndarray]
Store = shards.Folder | shards.Memory
EXAMINED = 12  # images that the checks look at before the attacks
ROBUST, WRONG = -1, -2  # `found_by` of an example that no attack broke, and of one that was wrong to begin with


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      summary: what ``result.json`` says: accuracies, energy, who found what, settings.
      examples: arrays [example, ...]: ``label``, ``prediction``, ``correct``, ``invalid``, ``broken``, ``found_by``
        (number of the attack, -1: robust, -2: wrong to begin with), ``rate`` of wrong draws, ``adversarial`` (the clean
        image where robust), ``adversarial_8bit``, ``macs``, ``macs_worst``, ``costliest``, ``shares`` and
        ``shares_worst`` [example, unit].
      attacks: name -> arrays [example, ...] of one attack, ``run`` says which examples it was run on; of one attack
        alone also ``adversarial``, what it returned.
    """

    summary: dict[str, Any]
    examples: Arrays
    attacks: dict[str, Arrays]

    @property
    def robust_accuracy(self) -> float:
        """Share of the examples that were right and stayed so under every attack."""
        return float(np.mean(self.examples["correct"] & ~self.examples["broken"] & ~self.examples["invalid"]))


def evaluate(
    net: Any,
    variables: Variables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    eps: float | str,
    norm: str = "linf",
    attacks: str | Sequence[str] = "standard",
    occupancy: Occupancy | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    batch_size: int = 100,
    draws: tuple[int, int] = (20, 20),
    output: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
    facts: dict[str, Any] | None = None,
    part: tuple[int, int] | None = None,
    devices: Sequence[Any] | None = None,
) -> Evaluation | None:
    """Attacks a network with an ensemble and keeps, of each example, the worst.

    An example that an attack broke is not attacked again. Attacks on the energy, and those for the smallest
    perturbation, run on every example: the most expensive image inside the ball counts, and so does one inside the ball
    on which the network errs. What was found is judged once more, by a pass of its own.

    Args:
      net: a Linen module or a function (variables, images), see `subject_of`.
      variables: its weights.
      images: [example, height, width, channel] in [0, 1].
      labels: [example].
      eps, norm: the ball, e.g. "8/255" and ``linf``.
      attacks: names or plans, see `dyn_jax.evaluation.plan`: ``standard`` (AutoAttack), ``plus``, ``rand`` (for random
        networks), ``dynamics`` (also led by LGM), ``energy``, ``curve``.
      occupancy: what the network is deployed with; default hard gates. A random one (`occupancy.gumbel_sigmoid`) makes
        gradients the mean, and verdicts the majority, of draws.
      budget: steps and queries, default those of `Budget`.
      seed: of everything random; an example's keys come from its number.
      batch_size: examples of a chunk on each device; halved where memory is short, with equal results.
      draws: of a random network: draws of every gradient, fresh draws of every verdict.
      output: folder of the run: the same call goes on where it was killed. None: nothing is kept.
      resume: there must be a run to go on with.
      progress: a bar on standard error.
      facts: what else the report names, e.g. ``{"name": "skipnet-32-cifar10", "dataset": "cifar10"}``.
      part: (this process, processes): which share of the examples is its own; default what `jax.distributed` says.
      devices: default all local ones.

    Returns:
      An `Evaluation`; None where other processes still have examples to do: the last one has it.

    Raises:
      ValueError, TypeError: bad input, before anything is computed or written: see `plan`, `Folder`, `subject_of`;
        labels that are no classes of the network; images outside [0, 1].
    """
    images = np.asarray(_validate.images("images", images), np.float32)
    _validate.within("images", images, (0.0, 1.0))
    labels = np.asarray(_validate.labels("labels", labels, len(images)), np.int32)
    _validate.choice("norm", norm, ("linf", "l2", "l1"))
    threat, budget = Threat(norm, float(np.asarray(ball(norm, eps).eps))), Budget() if budget is None else budget
    number, parts = (jax.process_index(), jax.process_count()) if part is None else part
    _check_options(budget, seed, batch_size, draws, number, parts, len(images), facts, devices)
    if resume and output is None:
        raise ValueError("resume: got True without an output, expected the folder of the run to go on with")
    subject = subject_of(net, variables, occupancy)
    shape = subject.shape(images[:1])
    if shape.logits.shape[-1] < 2:
        raise ValueError("net: got one output, expected one for each class; make two of it: [0, logit]")
    _validate.labels("labels", labels, len(images), shape.logits.shape[-1])
    entries = plan(attacks, threat, budget, subject, shape)
    job = Job(subject, entries, threat, budget, seed, min(batch_size, len(images)), draws, devices)
    mine = np.arange(len(images))[number::parts]
    if output is None:
        if parts > 1:
            raise ValueError("output: got None for several processes, expected a folder that all of them see")
        return _whole(job, [_one_part(job, shards.Memory(), mine, images, labels, progress)], labels, facts, shape)
    manifest = shards.describe(_config(job, parts, facts, images), variables, images, labels)
    with contextlib.closing(shards.Folder(output, manifest, part=number, parts=parts, resume=resume)) as folder:
        folder.put("final", _one_part(job, folder, mine, images, labels, progress))
        ends = [folder.path / "shards" / f"{p + 1}-of-{parts}" / "final.npz" for p in range(parts)]
        found = [arrays for end in ends if (arrays := shards.read_shard(end, folder.run)) is not None]
        if len(found) < parts:
            return None
        evaluation = _whole(job, found, labels, facts, shape)
        files.save(folder.path, evaluation, files.pictures_of(job, evaluation.examples, images))
        return evaluation


def _check_options(
    budget: Any, seed: Any, batch_size: Any, draws: Any, number: Any, parts: Any, count: int, facts: Any, devices: Any
) -> None:
    if not isinstance(budget, Budget):
        raise TypeError(f"budget: got {type(budget).__name__}, expected a dyn_jax.evaluation.Budget")
    _validate.positive_int("seed", seed, 0)
    _validate.positive_int("batch_size", batch_size)
    if not isinstance(draws, tuple) or len(draws) != 2:
        raise TypeError(f"draws: got {draws!r}, expected (of gradients, of verdicts)")
    for name, each in zip(("draws of gradients", "draws of verdicts"), draws):
        _validate.positive_int(name, each)
    _validate.positive_int("part", number, 0)
    if not number < _validate.positive_int("part", parts) <= count:
        raise ValueError(f"part: got {(number, parts)}, expected (process, processes), at most one for each of {count}")
    if facts is not None and not isinstance(facts, Mapping):
        raise TypeError(f"facts: got {type(facts).__name__}, expected a mapping")
    if devices is not None and not len(devices):
        raise ValueError("devices: got none, expected at least one")


def _config(job: Job, parts: int, facts: dict[str, Any] | None, images: np.ndarray) -> dict[str, Any]:
    return {
        "attacks": [entry.name for entry in job.entries],
        **dataclasses.asdict(job.threat),
        "network": job.subject.fingerprint(images[:1]),
        "occupancy": plain(repr(job.subject.judged)),
        "seed": job.seed,
        "batch_size": job.batch_size,
        "draws": list(job.draws),
        "processes": parts,
        **dataclasses.asdict(job.budget),
        **{f"of {key}": str(value) for key, value in (facts or {}).items()},
    }


def _one_part(job: Job, store: Store, mine: np.ndarray, images: np.ndarray, labels: np.ndarray, progress: bool):
    """All phases on the examples of this process: arrays [example of mine, ...], attacks as ``number/field``."""
    findings = _examined(job, store, images, labels)

    def phase(number: int, name: str, call: Callable, rows: np.ndarray, *arrays: np.ndarray, left: str = "") -> Arrays:
        size = _size(len(rows), job.batch_size)
        chunks = divided(rows, size)
        names = [f"{number:02d}-{name}-{k:05d}" for k in range(len(chunks))]
        kept: list[Any] = [store.get(name) for name in names]
        todo = [k for k, done in enumerate(kept) if done is None]
        computed = Chunks(call, job.subject.variables, size, job.devices)([chunks[k] for k in todo], *arrays)
        if progress:
            computed = tqdm(computed, f"{name}{left}", len(chunks), initial=len(chunks) - len(todo), unit="chunk")
        for done, k in zip(computed, todo):
            store.put(names[k], done)
            kept[k] = done
        return {field: np.concatenate([done[field] for done in kept]) for field in kept[0]}

    clean = phase(0, "clean", programs.clean_pass(job), mine, images, labels)
    standing = clean["correct"] & ~clean["invalid"]
    found_by = np.where(standing, ROBUST, WRONG)
    adversarial = images[mine].copy()
    costly, dearest = images[mine].copy(), clean["macs"].copy()
    shares = clean["shares"].copy()
    beside, fooling = np.full(len(mine), ROBUST), images[mine].copy()  # what attacks found that look for something else
    result: Arrays = {"rows": mine, **{f"clean/{name}": value for name, value in clean.items()}}
    broken_invalid = np.zeros(len(mine), bool)
    for number, entry in enumerate(job.entries):
        rows = mine[standing & (found_by == ROBUST)] if entry.kind == ACCURACY else mine
        if not len(rows):
            continue
        left = f", {int(np.sum(found_by >= 0))} broken, {int(np.sum(found_by == ROBUST))} left"
        got = phase(number + 1, entry.name, programs.attacked(job, entry), rows, images, labels, left=left)
        at = np.searchsorted(mine, rows)
        for name, value in got.items():
            if name != "adversarial" or len(job.entries) == 1:  # those of many would fill the memory
                result[f"{number}/{name}"] = value
        result[f"{number}/rows"] = rows
        broken_invalid[at] |= got["invalid"] & standing[at]
        if entry.kind == ACCURACY:
            hit = at[got["success"]]
            adversarial[hit], found_by[hit] = got["adversarial"][got["success"]], number
        else:
            fooled = got["fooled"] & (beside[at] == ROBUST)
            beside[at[fooled]], fooling[at[fooled]] = number, got["adversarial"][fooled]
        if entry.kind == ENERGY:
            more = got["inside"] & (got["macs"] > dearest[at])
            costly[at[more]], dearest[at[more]] = got["adversarial"][more], got["macs"][more]
            shares[at[more]] = got["shares"][more]
    late = standing & (found_by == ROBUST) & (beside != ROBUST)
    found_by[late], adversarial[late] = beside[late], fooling[late]
    whole = np.zeros_like(images)
    whole[mine] = adversarial
    again = phase(len(job.entries) + 1, "verdict", programs.verdict(job), mine, whole, images, labels)
    return result | {
        **{f"verdict/{name}": value for name, value in again.items()},
        "findings": findings,
        "found_by": found_by,
        "adversarial": adversarial,
        "costly": costly,
        "macs_worst": dearest,
        "shares_worst": shares,
        "invalid": clean["invalid"] | broken_invalid & (found_by == ROBUST),
    }


def _examined(job: Job, store: Store, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What `checks.check` finds on the first images, as JSON text."""
    kept = store.get("checks")
    if kept is None:
        forward = job.subject.forward(job.subject.variables)
        draws = job.subject.stochastic
        found = checks.check(
            None if draws else forward,
            images[:EXAMINED],
            labels[:EXAMINED],
            eps=job.threat.eps,
            norm=job.threat.norm,
            key=job.key("checks"),
            make_forward=(lambda key: lambda x: forward(x, key)) if draws else None,
        )
        kept = {"findings": np.array(json.dumps([summary.finding(one) for one in found]))}
        store.put("checks", kept)
    return kept["findings"]


def _size(rows: int, most: int) -> int:
    """Rows of a chunk: as few chunks as can be, all alike, so that hardly a row is filled up.

    It depends on the number of rows alone, not on the devices.
    """
    return -(-rows // -(-rows // most))


def _whole(job: Job, parts: list[Arrays], labels: np.ndarray, facts: dict[str, Any] | None, shape: Any) -> Evaluation:
    """The evaluation of all examples from those of the processes."""
    count = len(labels)

    def gather(name: str, rows: str = "rows") -> np.ndarray:
        there = [part for part in parts if name in part]
        like = there[0][name]
        whole = np.zeros((count, *like.shape[1:]), like.dtype)
        for part in there:
            whole[part[rows]] = part[name]
        return whole

    def below(prefix: str, rows: str = "rows") -> Arrays:
        names = sorted({name for part in parts for name in part if name.startswith(prefix)} - {rows})
        return {name.removeprefix(prefix): gather(name, rows) for name in names}

    clean, again = below("clean/"), below("verdict/")
    claimed = gather("found_by") >= 0
    examples = {
        "label": labels,
        **{name: clean[name] for name in ("prediction", "correct", "macs", "shares")},
        **{name: again[name] for name in ("inside", "rate", "grid")},
        **{name: gather(name) for name in ("invalid", "found_by", "adversarial", "macs_worst", "shares_worst")},
        "clean_rate": clean["rate"],
        "claimed": claimed,
        "broken": claimed & again["wrong"] & again["inside"],
        "adversarial_8bit": again["coarse"],
        "broken_8bit": claimed & again["coarse_wrong"],
        "costliest": gather("costly"),
    }
    attacked: dict[str, Arrays] = {}
    for number, entry in enumerate(job.entries):
        rows = f"{number}/rows"
        run = np.isin(np.arange(count), np.concatenate([part.get(rows, []) for part in parts]))
        attacked[entry.name] = {"run": run, **below(f"{number}/", rows)}
    first = json.loads(str(parts[0]["findings"]))
    found = summary.summarise(job, examples, attacked, facts or {}, shape, first)
    return Evaluation(found, examples, attacked)
