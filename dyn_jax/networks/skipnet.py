"""SkipNet (Wang et al., ECCV 2018): a residual network whose blocks are run or skipped, by a gate, for each input."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn_jax import _validate, macs
from dyn_jax.gates import FeedForwardGate, RecurrentGate
from dyn_jax.networks.blocks import BlockSpec, block_plan, cifar_depths, imagenet_fields, runs
from dyn_jax.nn import Dense, Projection, add_relu, execute, rows, stem, window_mean
from dyn_jax.nn.normalization import CIFAR10_MEAN_STD, DIGITS_MEAN_STD, IMAGENET_MEAN_STD, MeanStd, inputs
from dyn_jax.nn.repeat import scanned
from dyn_jax.nn.residual import branch_macs
from dyn_jax.occupancy import bernoulli, hard, stochastic, straight_through
from dyn_jax.types import Occupancy, Output, Tap, Trace, UnitTrace


class SkipNet(nn.Module):
    """Block b becomes ``o * block(x) + (1 - o) * shortcut(x)`` with ``o = occupancy(score)`` (LGM paper eq. 11, 13).

    The score comes from the mixed output of the block before, so the first block always runs. Where a block changes
    the shape, skipping it leaves its projection (without ReLU). Units: every block but the first, one element each.

    Attributes:
      depths, widths, block, stem, normalization, winograd: as in `ResNet` (projection shortcuts).
      gate: ``rnn`` (one shared LSTM), ``ff1`` or ``ff2`` (a small network per block).
      policy: ``sp`` or ``rl``, how it is trained; without an `occupancy` argument training uses
        ``straight_through(1)`` for ``sp`` and ``bernoulli()`` for ``rl``, evaluation ``hard()`` for both.
      image_size: height and width the gates' pooling windows are made for.
      scan_from, remat: as in `ResNet`, for blocks with recurrent gates only, and not where something is written, drawn
        or left out: in training, under a random occupancy, in another `execution` than ``dense``.
      execution: ``dense``; or what hard gates have off is not evaluated: ``conditional`` for the whole batch, ``rows``
        for each row of it (basic blocks; no gradient to weights), see `dyn_jax.nn.execute`.
    """

    depths: tuple[int, ...] = (6, 6, 6)
    widths: tuple[int, ...] = (16, 32, 64)
    block: str = "basic"
    stem: str = "cifar"
    gate: str = "rnn"
    policy: str = "rl"
    num_classes: int = 10
    image_size: int = 32
    normalization: MeanStd | None = CIFAR10_MEAN_STD
    winograd: bool = False
    scan_from: int | None = 12
    remat: bool = False
    execution: str = "dense"

    gate_layers = ("control", "group*_gate*")  # patterns of the names of the layers that score

    @nn.compact
    def __call__(
        self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False, tap: Tap | None = None
    ) -> Output:
        """Images as in `ResNet` -> `Output` whose trace has one unit for each gated block, scores [batch].

        `tap` is what stands between the trunk and every gate, see `dyn_jax.types.Tap`.
        """
        x = inputs(images, self.normalization)
        _validate.choice("gate", self.gate, ("rnn", "ff1", "ff2"))
        _validate.choice("policy", self.policy, ("sp", "rl"))
        if occupancy is None:
            trained = straight_through(1.0) if self.policy == "sp" else bernoulli()
            occupancy = trained if train else hard()
        x, static_macs = stem(x, self.widths[0], self.stem, train)
        plan = list(block_plan(self.depths, self.widths, self.block, self.widths[0]))
        control = RecurrentGate(name="control") if self.gate == "rnn" else None
        carry = control.zero_carry(x) if control else None
        units = []
        score = None
        alone = train or self.is_initializing() or tap is not None or isinstance(occupancy, stochastic.Stochastic)
        alone = alone or self.scan_from is None or self._execution(occupancy, train) != "dense"
        least = len(plan) if alone else _validate.positive_int("scan_from", self.scan_from, 2)
        # the first block has no score before it, the last one none behind it
        for run in [plan[:1], *runs(plan[1:-1]), plan[1:][-1:]]:
            if control is not None and len(run) >= least and run[0] is not plan[0] and run[0] is not plan[-1]:
                (x, carry, score), more = self._scanned(run, (x, carry, score), occupancy)
                units += more
                static_macs += len(run) * control.macs(x.shape[-1])
                continue
            for spec in run:
                name = f"group{spec.stage + 1}_layer{spec.index}"
                x, unit, cost = self._block(x, score, spec, name, occupancy, train)
                static_macs += cost
                units += [] if unit is None else [unit]
                last = spec is plan[-1]
                x, gate_input = (x, x) if tap is None or last else tap(x, len(units))
                carry, score, gate_macs = self._gate(gate_input, control, carry, spec, last, train)
                static_macs += 0 if last else gate_macs
        pooled = window_mean(x, self._window(len(self.depths) - 1))
        logits = Dense(self.num_classes, name="fc")(pooled)
        static_macs += macs.dense(pooled.shape[-1], self.num_classes)
        return Output(logits, Trace(tuple(units), static_macs))

    def _scanned(self, run: list[BlockSpec], begin: tuple, occupancy: Occupancy) -> tuple[tuple, list[UnitTrace]]:
        """Equal blocks with recurrent gates in one loop: (features, carry, score) behind them, and their units."""
        branch = run[0].branch(self.winograd, parent=None)
        control = RecurrentGate(parent=None)
        shared = {"params": self.variables["params"]["control"]}
        embed = Dense(control.hidden, parent=None)
        window = self._window(run[0].stage)

        def step(state: tuple, v: Any) -> tuple[tuple, tuple]:
            x, carry, score = state
            out = add_relu(x, branch.apply(v["branch"], x))
            o = occupancy(score)
            x = _mixed(o, out, x)
            embedding = embed.apply(v["gate"], window_mean(x, window))
            carry, following = control.apply(shared, carry, embedding)  # pyright: ignore[reportAssignmentType]
            return (x, carry, following), (score, o)

        at = lambda spec, what: f"group{spec.stage + 1}_{what}{spec.index}"
        layers = [{"branch": at(spec, "layer"), "gate": at(spec, "gate")} for spec in run]
        state, left = scanned(self, layers, step, begin, self.remat)
        cost = branch_macs(branch, run[0].in_features, state[0].shape[1] * state[0].shape[2])
        return state, [_unit(score, o, cost, names["branch"]) for (score, o), names in zip(left, layers)]

    def _block(
        self, x: jax.Array, score: jax.Array | None, spec: BlockSpec, name: str, occupancy: Occupancy, train: bool
    ) -> tuple[jax.Array, UnitTrace | None, int]:
        """Returns the mixed features, the unit, and the multiply-adds that always run."""
        skipped = residual = x
        if spec.changes_shape:
            # One projection serves the block and the skip. In training the released code runs it twice for a
            # gated block, which moves its running statistics twice.
            shortcut = Projection(spec.out_features, spec.stride, name=name.replace("layer", "ds"))
            residual = shortcut(x, train)
            skipped = shortcut(x, train) if train and score is not None else residual
        block = lambda x, residual: add_relu(residual, spec.branch(self.winograd, name=name)(x, train))
        positions = residual.shape[1] * residual.shape[2]
        cost = branch_macs(spec.branch(parent=None), spec.in_features, positions)
        projection_macs = macs.conv2d(1, spec.in_features, spec.out_features, positions) if spec.changes_shape else 0
        if score is None:
            return block(x, residual), None, cost + projection_macs
        o = stochastic.apply(occupancy, score, lambda: self.make_rng("gate"))
        how = self._execution(occupancy, train)
        if how == "rows":
            layers = {kind: of[name] for kind, of in self.variables.items() if name in of}
            shortcut = residual if spec.changes_shape else None
            x = rows.block(layers, o > 0, x, shortcut, spec.stride, self.winograd)
        else:
            x = _mixed(o, execute.unit(how == "conditional", self, o > 0, block, skipped, x, residual), skipped)
        return x, _unit(score, o, cost, name), projection_macs

    def _execution(self, occupancy: Occupancy, train: bool) -> str:
        known = (*execute.EXECUTIONS, *(("rows",) if self.block == "basic" else ()))
        return execute.chosen(self, occupancy, train, known)

    def _gate(
        self, x: jax.Array, control: RecurrentGate | None, carry: Any, spec: BlockSpec, last: bool, train: bool
    ) -> tuple[Any, jax.Array | None, int]:
        """Score [batch] of the block after `spec`, from its mixed output.

        The last block has a gate too (its parameters are in every checkpoint); nothing uses its score.
        """
        name = f"group{spec.stage + 1}_gate{spec.index}"
        if control is None:
            gate = FeedForwardGate(1 if self.gate == "ff1" else 2, name=name)
            return carry, gate(x, train), gate.macs(x.shape[-1], x.shape[1], x.shape[2])
        embedding = Dense(control.hidden, name=name)(window_mean(x, self._window(spec.stage)))
        if last:
            return carry, None, 0
        carry, score = control(carry, embedding)
        return carry, score, control.macs(x.shape[-1])

    def _window(self, stage: int) -> int:
        return self.image_size // (2**stage if self.stem == "cifar" else 4 * 2**stage)


@partial(jax.jit, inline=True)
def _mixed(o: jax.Array, out: jax.Array, skipped: jax.Array) -> jax.Array:
    weight = o.reshape(-1, 1, 1, 1)
    return weight * out + (1 - weight) * skipped


def _unit(score: jax.Array, o: jax.Array, cost: int, name: str) -> UnitTrace:
    return UnitTrace(score, o, cost, name=name, extras={"probability": jax.nn.sigmoid(score)})


def cifar(depth: int, policy: str = "rl", gate: str = "rnn", **fields: Any) -> SkipNet:
    """SkipNet-`depth` for 32x32 images, ``depth = 6 n + 2`` (38, 74, 110: 17, 35, 53 gates); any field can be given.

    `gate` is ``rnn`` or ``ff``: FFGate-I up to depth 74 and FFGate-II from 110 on, as published.
    """
    if gate == "ff":
        gate = "ff2" if depth >= 110 else "ff1"
    return SkipNet(**{"depths": cifar_depths(depth), "policy": policy, "gate": gate, **fields})


def imagenet(depth: int, policy: str = "rl", **fields: Any) -> SkipNet:
    """SkipNet-18, 34, 50, 101 or 152 for 224x224 images with recurrent gates (7, 15, 15, 32, 49 of them)."""
    own = {"policy": policy, "image_size": 224, "normalization": IMAGENET_MEAN_STD}
    return SkipNet(**{**imagenet_fields(depth), **own, **fields})


def digits(**fields: Any) -> SkipNet:
    """The small network of the embedded demo: 12 blocks, 11 recurrent gates."""
    defaults = {"depths": (4, 4, 4), "widths": (8, 16, 32), "policy": "sp", "normalization": DIGITS_MEAN_STD}
    return SkipNet(**{**defaults, **fields})
