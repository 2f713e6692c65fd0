"""The training loop: one jitted step, epochs and stages, checkpoints; and the measures of what was trained."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dyn_jax import _validate, metrics
from dyn_jax.datasets import IGNORE, Scan, scan_iou
from dyn_jax.datasets.base import ImageData, checked_images
from dyn_jax.networks.checkpoint import check_finite, check_own, whole
from dyn_jax.training import runs
from dyn_jax.training.points import check_clouds
from dyn_jax.training.recipe import Images, Progress, Recipe, Source, mean_cross_entropy
from dyn_jax.training.runs import Position, State
from dyn_jax.types import PointCloud, Variables

Report = Callable[[int, float], None]
TOGETHER = 8  # steps of one call, at most: its memory is asked for, and cleared by the system, once for all of them


def fit(
    net: nn.Module,
    data: Any,
    recipe: Recipe,
    *,
    seed: int = 0,
    initial: Variables | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 50,
    report: Report | None = None,
) -> dict[str, Any]:
    """Trains `net` through the stages of `recipe`, from scratch, from `initial`, or from where a checkpoint stopped.

    Killed at any moment and called again with the same arguments, it gives the same weights, bit for bit, as one that
    was left alone.

    Args:
      net, data, recipe: see `Recipe`; data are what its source takes: an `ImageData`, rooms, objects.
      seed: of everything random: initialisation, order, augmentation, gate noise, dropout.
      initial: variables to start from; what is in half precision is trained in single precision.
      checkpoint: a file written every `every` steps and after every epoch; where it exists, training goes on from it.
        It stays when training ends: remove it once the variables are kept.
      report: called with (epoch, mean loss), epochs counted from 1 over all stages; a progress bar with the loss and
        the time left then shows on standard error where that is a terminal.

    Returns:
      Variables of numpy arrays.

    Raises:
      ValueError, TypeError: fewer examples than a batch; labels that are no classes of the network, clouds without; a
        recipe that trains some layers only, without `initial`; an `initial` of another network, or not finite; a
        checkpoint of another network, recipe, seed or data.
      FloatingPointError: the loss of an epoch is not finite.
    """
    run = _Run(net, data, seed, _validate.positive_int("every", every), report)
    _validate.positive_int("seed", seed, 0)
    _check_data(net, data)
    if initial is not None:
        check_own(net, initial)
        check_finite("initial", initial)
        initial = whole(initial)
    for stage in recipe.stages:
        _validate.positive_int("epochs", stage.epochs)
        _validate.positive_int("batch_size", stage.batch_size)
        if stage.trains is not None and stage.before is None and initial is None:
            raise ValueError("initial: got None, expected trained variables for a recipe that trains some layers only")
        if (count := stage.source.count(data)) < stage.batch_size:
            raise ValueError(f"data: got {count} examples, expected at least a batch of {stage.batch_size}")
    saved = None
    if checkpoint is not None:
        checkpoint = runs.writable("checkpoint", checkpoint)
        identity = runs.identify(net, recipe, seed, data=data, initial=initial)
        saved = runs.load(checkpoint, identity)
        run = run._replace(keep=functools.partial(runs.save, checkpoint, identity))
    begin: tuple[Any, Position] = saved or (initial, Position())
    start, at = begin
    steps = [stage.epochs * run.per_epoch(stage) for stage in recipe.stages]
    done = sum(steps[: at.stage]) + at.epoch * run.per_epoch(recipe.stages[at.stage]) + at.step
    ended = sum(stage.epochs for stage in recipe.stages[: at.stage])
    # disable=None: tqdm finds out whether standard error is a terminal
    with tqdm(total=sum(steps), initial=done, unit="step", disable=None if report else True, leave=False) as bar:
        for number, stage in enumerate(recipe.stages[at.stage :], start=at.stage):
            if number > at.stage:
                start, at = stage.between(start), Position(number)
            start = _train(run, stage, start, at, ended, bar)
            ended += stage.epochs
    return start


def _check_data(net: nn.Module, data: Any) -> None:
    check = checked_images if isinstance(data, ImageData) else check_clouds
    check(data, classes=getattr(net, "num_classes", None))


class _Run(NamedTuple):
    """What the stages of a run share."""

    net: nn.Module
    data: Any
    seed: int
    every: int
    report: Report | None
    keep: Callable[[State, Position], None] | None = None

    def per_epoch(self, recipe: Recipe) -> int:
        return recipe.source.count(self.data) // recipe.batch_size


def _train(run: _Run, recipe: Recipe, start: Any, at: Position, ended: int, bar: tqdm) -> dict[str, Any]:
    """One stage from `start` (None, variables or a checkpoint's content) and the position `at` on."""
    net, data, source, size, seed = run.net, run.data, recipe.source, recipe.batch_size, run.seed
    per_epoch, (init_key, noise_key) = run.per_epoch(recipe), source.keys(seed)
    options = source.options(net, source.batches(data, size, seed, -1))
    steps, init, optimizer = _steps(net, recipe, per_epoch, tuple(options.items()))
    if start is None:
        start = init(init_key, source.example(net, data))
    if at.epoch or at.step:
        state = runs.restore(start, optimizer)
    else:
        state = State(start["params"], start.get("batch_stats", {}), optimizer.init(start["params"]))
        at = at._replace(cross_entropy=_entropy(net, start, recipe, data, seed, options))
    for epoch in range(at.epoch, recipe.epochs):
        progress, occupancy = Progress(jnp.float32(epoch), jnp.float32(at.cross_entropy)), recipe.occupancy(epoch)
        losses, entropies = [np.array(at.losses)], [np.array(at.cross_entropies)]
        # an epoch that is resumed is drawn from its start, so that the random numbers are the same
        ahead = itertools.islice(source.batches(data, size, seed, epoch), at.step, None)
        number = epoch * per_epoch + at.step
        for group in _groups(ahead, number, run.every):
            inputs, labels = _stacked(group)
            state, loss, entropy = steps(
                state, inputs, labels, len(group), noise_key, np.uint32(number), progress, occupancy
            )
            number += len(group)
            losses.append(loss[: len(group)])
            entropies.append(entropy[: len(group)])
            bar.update(len(group))
            if not bar.disable:
                bar.set_postfix(loss=f"{float(loss[len(group) - 1]):.4f}", refresh=False)
            if run.keep and number % run.every == 0:
                done = at._replace(epoch=epoch, step=number - epoch * per_epoch)
                run.keep(state, done._replace(losses=_values(losses), cross_entropies=_values(entropies)))
        mean = float(np.mean(_values(losses)))
        if not np.isfinite(mean):
            raise FloatingPointError(
                f"fit: the loss of epoch {ended + epoch + 1} is {mean}; lower the learning rate (point clouds: or a "
                f"batch did not fit {options.get('capacity')})"
            )
        state = state._replace(batch_stats=recipe.after_epoch(state.batch_stats, epoch, per_epoch * size))
        at = Position(at.stage, epoch + 1, 0, np.mean(_values(entropies)))
        if run.keep:
            run.keep(state, at)
        if run.report is not None:
            run.report(ended + epoch + 1, mean)
    return jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})


def _groups(batches: Iterable[tuple], number: int, every: int) -> Iterator[list[tuple]]:
    """Batches of equal shapes, at most `TOGETHER`, the last of them at a multiple of `every` where one is passed."""
    group: list[tuple] = []
    for batch in batches:
        if group and jax.tree.map(np.shape, batch) != jax.tree.map(np.shape, group[0]):
            yield group
            group = []
        group.append(batch)
        number += 1
        if len(group) == TOGETHER or number % every == 0:
            yield group
            group = []
    if group:
        yield group


def _stacked(group: list[tuple]) -> tuple:
    """(inputs, labels) [step, ...] of `TOGETHER` steps, the last batch repeated, so that one program runs them all."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *group, *[group[-1]] * (TOGETHER - len(group)))


def _values(parts: list[Any]) -> tuple:
    return tuple(np.concatenate(jax.device_get(parts)))


def _entropy(
    net: nn.Module, variables: Variables, recipe: Recipe, data: Any, seed: int, options: dict[str, Any]
) -> np.floating:
    """`Progress.cross_entropy` before the first epoch."""
    if not recipe.measured:
        return np.float32(np.inf)
    source: Any = recipe.source  # `Images`, or another dataclass with their augmentation
    still = dataclasses.replace(source, shift=0, flip=False)
    apply: Any = net.apply
    entropy = jax.jit(lambda v, x, y: mean_cross_entropy(apply(v, x, **options), y))
    return np.mean([entropy(variables, x, y) for x, y in still.batches(data, recipe.batch_size, seed, 0)])


@functools.lru_cache(maxsize=8)
def _steps(
    net: nn.Module, recipe: Recipe, per_epoch: int, options: tuple[tuple[str, Any], ...]
) -> tuple[Callable, Callable, optax.GradientTransformation]:
    """(jitted training steps, jitted ``net.init``, optimiser); kept, so that a second seed compiles nothing."""
    decayed = lambda params: jax.tree.map(lambda gate: recipe.decay_gates or not gate, gate_mask(net, params))
    optimizer = recipe.optimizer(recipe.epochs, per_epoch, decayed)
    trains = recipe.trains or (lambda name: True)
    still = lambda layer: jax.tree.map(jnp.zeros_like, layer)
    trained_only = lambda layers: {name: leaf if trains(name) else still(leaf) for name, leaf in layers.items()}

    def step(state: State, inputs: Any, labels: jax.Array, key: jax.Array, progress: Progress, occupancy: Any) -> tuple:
        if recipe.perturb is not None:
            now = {"params": state.params, "batch_stats": state.batch_stats}
            frozen = functools.partial(net.apply, jax.lax.stop_gradient(now), **dict(options))
            inputs = recipe.perturb(frozen, inputs, labels, jax.random.fold_in(key, 1))

        def loss_of(params: Variables) -> tuple[jax.Array, tuple]:
            output, updated = net.apply(
                {"params": params, "batch_stats": state.batch_stats},
                inputs,
                occupancy=occupancy,
                train=True,
                rngs={"gate": key, "dropout": key},
                mutable=["batch_stats"],
                **dict(options),
            )
            loss = recipe.loss(output, labels, progress)
            if output.trace.overflow is not None:
                loss = jnp.where(output.trace.overflow, jnp.nan, loss)
            return loss, (updated.get("batch_stats", {}), mean_cross_entropy(output, labels))

        (loss, (batch_stats, entropy)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        # before, so that what is not trained is not differentiated; after, so that it does not decay
        updates, optimized = optimizer.update(trained_only(gradient), state.optimizer, state.params)
        updates = trained_only(updates)
        return State(optax.apply_updates(state.params, updates), batch_stats, optimized), loss, entropy

    @jax.jit
    def steps(state: State, inputs: Any, labels: Any, count: Any, key: jax.Array, first: Any, *others: Any) -> tuple:
        """The first `count` of the batches [step, ...], numbered from `first`; losses and cross-entropies [step]."""

        def one(at: jax.Array, carry: tuple) -> tuple:
            state, losses, entropies = carry
            x, y = jax.tree.map(lambda leaf: leaf[at], (inputs, labels))
            drawn = jax.random.fold_in(key, first + at.astype(first.dtype))
            state, loss, entropy = step(state, x, y, drawn, *others)
            return state, losses.at[at].set(loss), entropies.at[at].set(entropy)

        none = jnp.zeros(len(labels))
        return jax.lax.fori_loop(0, count, one, (state, none, none))

    return steps, jax.jit(net.init), optimizer


def gate_mask(net: nn.Module, params: Variables) -> Any:
    """True for the leaves of `params` that belong to a gate: below a layer that the network's ``gate_layers`` name."""
    named = lambda part: any(fnmatch.fnmatchcase(part.key, name) for name in getattr(net, "gate_layers", ()))
    return jax.tree_util.tree_map_with_path(lambda path, _: any(map(named, path)), params)


def evaluate(net: nn.Module, variables: Variables, data: Any, source: Source = Images()) -> dict[str, Any]:  # noqa: B008
    """Clean accuracy, occupancy rates and executed multiply-adds of the deployed (hard) network.

    Returns:
      ``accuracy`` of the rows of the logits; for an adaptive network also ``occupancy_rate`` [unit], ``varying`` [unit]
      (standard deviation between examples of an example's share of elements that are on) and ``macs_share`` (executed
      of dense); where every point has a label, ``mean_iou``: of scans as `scan_iou` counts, without label 0.

    Raises:
      ValueError, TypeError: labels that are no classes of the network, clouds without.
      FloatingPointError: logits that are not finite, which say no class.
    """
    _check_data(net, data)
    options = source.options(net, source.in_order(data))
    apply = jax.jit(lambda variables, inputs: net.apply(variables, inputs, **options))
    scans = isinstance(data, (list, tuple)) and isinstance(data[0], Scan)
    ignore = 0 if scans else IGNORE
    matrix, shares, executed, dense = 0, [], [], None
    for inputs, labels in source.in_order(data):
        output = apply(variables, inputs)
        bad = int((~np.isfinite(output.logits)).any(axis=1)[labels >= 0].sum())
        if bad:
            raise FloatingPointError(f"evaluate: got NaN or infinite logits in {bad} rows, expected finite ones")
        matrix += metrics.confusion(jnp.argmax(output.logits, axis=1), labels, output.logits.shape[1], ignore)
        if output.trace.units and all(unit.dense_macs is not None for unit in output.trace.units):
            shares.append(np.asarray(metrics.example_shares(output.trace))[labels >= 0])
            executed.append(np.asarray(metrics.executed_macs(output.trace))[labels >= 0])
            dense = metrics.dense_macs(output.trace)
    report: dict[str, Any] = {"accuracy": float(jnp.trace(matrix) / jnp.sum(matrix))}
    if dense is not None:
        every = np.concatenate(shares)
        report["occupancy_rate"] = every.mean(0).round(4).tolist()
        report["varying"] = every.std(0).round(4).tolist()
        report["macs_share"] = float(np.concatenate(executed).mean() / dense)
    if isinstance(inputs, PointCloud) and len(labels) == len(inputs.xyz):
        report["mean_iou"] = float(scan_iou(matrix) if scans else metrics.mean_iou(matrix))
    return report
