"""A standard evaluation: many attacks, the worst of each example, judged again; killed, it goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.threat import ball
from dyn_jax.evaluation import checks, files, programs, shards, summary
from dyn_jax.evaluation.chunks import Chunks, divided
from dyn_jax.evaluation.plan import ACCURACY, ENERGY, Budget, Entry, Threat, lambdas_of, plan
from dyn_jax.evaluation.subject import Subject, plain, subject_of
from dyn_jax.types import Occupancy, Variables

Arrays = dict[str, np.ndarray]
EXAMINED = 12
"""Images that the checks look at before the attacks."""
ROBUST = -1
"""`found_by` of an example that no attack broke; `WRONG`: that was wrong to begin with."""
WRONG = -2


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


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that says what an evaluation is; see `evaluate`."""

    subject: Subject
    entries: tuple[Entry, ...]
    threat: Threat
    budget: Budget
    seed: int
    batch_size: int
    draws: tuple[int, int]
    devices: Sequence[Any] | None

    def key(self, purpose: str) -> jax.Array:
        """A key for one purpose: attacks and verdicts never share one."""
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(purpose.encode()))


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
    classes = shape.logits.shape[-1]
    if classes < 2:
        raise ValueError("net: got one output, expected one for each class; make two of it: [0, logit]")
    _validate.labels("labels", labels, len(images), classes)
    entries = plan(
        attacks,
        threat,
        budget,
        classes=classes,
        trace=shape.trace,
        softens="occupancy" in subject.takes,
        taps="tap" in subject.takes and not subject.stochastic,
    )
    job = Job(subject, entries, threat, budget, seed, min(batch_size, len(images)), draws, devices)
    mine = np.arange(len(images))[number::parts]
    if output is None:
        if parts > 1:
            raise ValueError("output: got None for several processes, expected a folder that all of them see")
        found = _one_part(job, shards.Memory(), mine, images, labels, progress)
        return _whole(job, [found], labels, facts, shape)
    manifest = shards.describe(_config(job, parts, facts, images), variables, images, labels)
    folder = shards.Folder(output, manifest, part=number, parts=parts, resume=resume)
    try:
        folder.put("final", _one_part(job, folder, mine, images, labels, progress))
        found = [shards.read_shard(folder.path / "shards" / f"{p + 1}-of-{parts}" / "final.npz", folder.run)
                 for p in range(parts)]  # fmt: skip
        complete = [arrays for arrays in found if arrays is not None]
        if len(complete) < parts:
            return None
        evaluation = _whole(job, complete, labels, facts, shape)
        files.save(folder.path, evaluation, files.pictures_of(job, evaluation.examples, images))
        return evaluation
    finally:
        folder.close()


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
        "norm": job.threat.norm,
        "eps": job.threat.eps,
        "network": job.subject.fingerprint(images[:1]),
        "occupancy": plain(repr(job.subject.judged)),
        "seed": job.seed,
        "batch_size": job.batch_size,
        "draws": list(job.draws),
        "processes": parts,
        **dataclasses.asdict(job.budget),
        **{f"of {key}": str(value) for key, value in (facts or {}).items()},
    }


def _one_part(job: Job, store: shards.Store, mine: np.ndarray, images: np.ndarray, labels: np.ndarray, progress: bool):
    """All phases on the examples of this process: arrays [example of mine, ...], attacks as ``number/field``."""
    variables = job.subject.variables
    findings = _examined(job, store, images, labels)

    def phase(number: int, name: str, call: Callable, rows: np.ndarray, *arrays: np.ndarray, left: str = "") -> Arrays:
        size = _size(len(rows), job.batch_size)
        chunks = divided(rows, size)
        run = Chunks(call, variables, size, job.devices)
        names = [f"{number:02d}-{name}-{k:05d}" for k in range(len(chunks))]
        done = {k: kept for k, kept in ((k, store.get(names[k])) for k in range(len(chunks))) if kept is not None}
        todo = [k for k in range(len(chunks)) if k not in done]
        computed = run([chunks[k] for k in todo], *arrays)
        for kept, k in zip(_bar(computed, len(chunks), len(done), f"{name}{left}", progress), todo):
            store.put(names[k], kept)
            done[k] = kept
        return {field: np.concatenate([done[k][field] for k in range(len(chunks))]) for field in done[0]}

    clean = phase(0, "clean", programs.clean_pass(job.subject, job.key("clean"), job.draws[1]), mine, images, labels)
    place = {int(row): k for k, row in enumerate(mine)}
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
        call = programs.attacked(
            job.subject,
            entry,
            job.threat,
            lambdas_of(entry, job.budget),
            (job.key(entry.name), job.key("judge")),
            job.draws,
        )
        left = f", {int(np.sum(found_by >= 0))} broken, {int(np.sum(found_by == ROBUST))} left"
        got = phase(number + 1, entry.name, call, rows, images, labels, left=left)
        at = np.array([place[int(row)] for row in rows])
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
            inside = got["inside"]
            more = inside & (got["macs"] > dearest[at])
            costly[at[more]], dearest[at[more]] = got["adversarial"][more], got["macs"][more]
            shares[at[more]] = got["shares"][more]
    late = standing & (found_by == ROBUST) & (beside != ROBUST)
    found_by[late], adversarial[late] = beside[late], fooling[late]
    whole = np.zeros_like(images)
    whole[mine] = adversarial
    call = programs.verdict(job.subject, job.threat, job.key("verdict"), job.draws[1])
    again = phase(len(job.entries) + 1, "verdict", call, mine, whole, images, labels)
    result |= {f"verdict/{name}": value for name, value in again.items()}
    return result | {
        "findings": findings,
        "found_by": found_by,
        "adversarial": adversarial,
        "costly": costly,
        "macs_worst": dearest,
        "shares_worst": shares,
        "invalid": clean["invalid"] | broken_invalid & (found_by == ROBUST),
    }


def _examined(job: Job, store: shards.Store, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
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


def _bar(computed: Iterator, total: int, done: int, name: str, progress: bool) -> Iterator:
    if not progress:
        return computed
    from tqdm import tqdm

    return iter(tqdm(computed, desc=name, total=total, initial=done, unit="chunk"))


def _whole(job: Job, parts: list[Arrays], labels: np.ndarray, facts: dict[str, Any] | None, shape: Any) -> Evaluation:
    """The evaluation of all examples from those of the processes."""
    count = len(labels)

    def gather(name: str, rows: str = "rows", missing: Any = 0) -> np.ndarray:
        there = [part for part in parts if name in part]
        like = there[0][name]
        whole = np.full((count, *like.shape[1:]), missing, like.dtype)
        for part in there:
            whole[part[rows]] = part[name]
        return whole

    clean = {name.partition("/")[2]: gather(name) for name in parts[0] if name.startswith("clean/")}
    again = {name.partition("/")[2]: gather(name) for name in parts[0] if name.startswith("verdict/")}
    found_by = gather("found_by")
    broken = (found_by >= 0) & again["wrong"] & again["inside"]
    examples = {
        "label": labels,
        "prediction": clean["prediction"],
        "correct": clean["correct"],
        "invalid": gather("invalid"),
        "broken": broken,
        "claimed": found_by >= 0,
        "inside": again["inside"],
        "found_by": found_by,
        "rate": again["rate"],
        "adversarial": gather("adversarial"),
        "adversarial_8bit": again["coarse"],
        "broken_8bit": (found_by >= 0) & again["coarse_wrong"],
        "grid": again["grid"],
        "macs": clean["macs"],
        "macs_worst": gather("macs_worst"),
        "costliest": gather("costly"),
        "shares": clean["shares"],
        "shares_worst": gather("shares_worst"),
        "clean_rate": clean["rate"],
    }
    attacked: dict[str, Arrays] = {}
    for number, entry in enumerate(job.entries):
        rows = f"{number}/rows"
        fields = sorted({name for part in parts for name in part if name.startswith(f"{number}/") and name != rows})
        run = np.zeros(count, bool)
        for part in parts:
            if rows in part:
                run[part[rows]] = True
        attacked[entry.name] = {"run": run, **{name.partition("/")[2]: gather(name, rows) for name in fields}}
    first = json.loads(str(parts[0]["findings"]))
    found = summary.summarise(job, examples, attacked, facts or {}, shape, first)
    return Evaluation(found, examples, attacked)
