"""The runner that every attack shares: checks the input, runs the search, and trusts nothing it returns.

An attack file supplies a *search*: ``search(problem, keys, start) -> Found``. The runner projects what was found,
leaves alone the examples that were misclassified to begin with, and judges success on the victim from the returned
value. What is moved, pixels or coordinates, is a `Domain`; all of it is pure: one ``jax.jit`` holds every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.domains import Coordinates, Domain, Pixels, domain_of
from dyn_jax.attacks.forward import Network, as_forward, traced_once
from dyn_jax.attacks.threat import Ball, Box, Dropped, Threat, in_box
from dyn_jax.objectives import Objective
from dyn_jax.types import Output, PointCloud, Reach, Trace

IGNORE = 255


class Steps(flax.struct.PyTreeNode):
    """What every evaluation of a search recorded: [step, example] inside a search, [example, step] in a result.

    Attributes:
      loss: the objective on `forward`; of a segmented cloud the mean over the rows that count.
      nonfinite: bool, the gradient was not finite somewhere in the example (and was taken as 0 there).
      overflow: bool, see `Trace.overflow`.
      error: bool, the network that is differentiated (of an attack without gradients: the victim) errs there, or says
        the target of a targeted attack.
      work: ``macs`` of the pass, where the network has units; of point clouds also the ``voxels`` that took part in the
        gradient.
    """

    loss: jax.Array
    nonfinite: jax.Array
    overflow: jax.Array
    error: jax.Array
    work: dict[str, jax.Array]


class AttackResult(flax.struct.PyTreeNode):
    """What an attack returns. Rows are those of the logits: images, or clouds, or the points of segmented clouds.

    Attributes:
      adversarial: images [batch, height, width, channel], or coordinates [point, 3]; inside the threat set.
      success: [row] bool, the victim errs on `adversarial` (targeted: says the target) with finite logits.
      clean_success: [row] bool, it already did so on the clean value.
      counted: [row] bool: rows with a label, but for dropped points; all of an image batch.
      invalid: [row] bool: nothing can be said: logits that are not finite, and what only run time can see inside jit:
        pixels outside the box or not finite, labels or targets that are no class, a target equal to its label, a
        victim that overflowed. Never a success.
      loss: [row], the objective on the victim at `adversarial`.
      distance: [image or point], the threat set's norm of the perturbation.
      steps: `Steps`, [example, step] each.
      overflow: [example] bool: some pass of search or victim overflowed, so that the numbers cannot be trusted.
      logits_clean, logits_adversarial: [row, class] of the victim.
      trace_clean, trace_adversarial: the victim's traces.
      record: what else the search recorded, [example, step, ...], see the attack; None for most.
    """

    adversarial: jax.Array
    success: jax.Array
    clean_success: jax.Array
    counted: jax.Array
    invalid: jax.Array
    loss: jax.Array
    distance: jax.Array
    steps: Steps
    overflow: jax.Array
    logits_clean: jax.Array
    logits_adversarial: jax.Array
    trace_clean: Trace
    trace_adversarial: Trace
    record: Any = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a search sees: what it moves, networks as functions of that, and which examples to attack.

    Attributes:
      domain: see `dyn_jax.attacks.domains`.
      forward: (x, reach or None, **options) -> `Output`, differentiated.
      victim: x -> `Output`, judges success.
      same: forward and victim are one network, so that one pass serves both.
      labels, targets: [row]; rows that do not count have label 0.
      counted: [row] bool.
      attacked: [example] bool.
      objective: what is ascended.
      reach: metres that a point can get in one step, None for pixels.
      clean: what the victim says about the clean value.
    """

    domain: Domain
    forward: Callable[..., Output]
    victim: Callable[[jax.Array], Output]
    same: bool
    labels: jax.Array
    targets: jax.Array | None
    counted: jax.Array
    attacked: jax.Array
    objective: Objective
    reach: Reach | None
    clean: Output

    def succeeds(self, logits: jax.Array) -> jax.Array:
        """[example] bool: every row that counts is adversarial, with finite logits."""
        rows = is_adversarial(logits, self.labels, self.targets)
        if len(rows) == self.domain.examples:
            return rows
        return ~self.domain.any_row(~rows & self.counted)

    def losses(self, output: Output, x: jax.Array | None = None) -> jax.Array:
        """The objective, [example]; given x, of the rows that are there."""
        counted = self.counted if x is None else self.domain.judged(x, self.counted)
        return self.domain.mean(self.objective(output, self.labels, self.targets), counted)

    def judged(self, x: jax.Array, output: Output) -> Output:
        """The victim's output at x, given that of `forward`."""
        return output if self.same else self.victim(x)

    @property
    def ball(self) -> Ball:
        """The threat set of a search that needs a radius.

        Raises:
          TypeError: the set is a box.
        """
        threat = self.domain.threat
        if isinstance(threat, (Box, Dropped)):
            raise TypeError(f"threat: got {type(threat).__name__}, expected a ball (Linf, L2, L1 or Ray)")
        return threat

    def in_radius(self, eps: jax.typing.ArrayLike) -> Problem:
        """The problem in a ball of another radius."""
        domain: Any = self.domain
        return dataclasses.replace(self, domain=dataclasses.replace(domain, threat=self.ball.replace(eps=eps)))

    def project(self, x: jax.Array) -> jax.Array:
        """Nearest allowed value."""
        return self.domain.project(x)

    def pick(self, condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        """Values like x: those of `a` where the condition [example] holds, else those of `b`."""
        return jnp.where(self.domain.spread(condition), a, b)

    def finite(self, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(gradient like x with 0 in rows that are not finite, [example] bool: there were some)."""
        bad = ~jnp.all(jnp.isfinite(gradient), axis=tuple(range(1, gradient.ndim)))
        return jnp.where(bad.reshape(-1, *(1,) * (gradient.ndim - 1)), 0, gradient), self.domain.any_row(bad)

    def observed(self, output: Output, losses: jax.Array, nonfinite: jax.Array) -> Steps:
        """The record of one evaluation."""
        overflow = output.trace.overflow
        overflow = jnp.zeros_like(nonfinite) if overflow is None else jnp.broadcast_to(overflow, nonfinite.shape)
        error = self.succeeds(output.logits)
        return Steps(losses, nonfinite, overflow, error, self.domain.work(output.trace))

    def no_steps(self, count: int = 0) -> Steps:
        """`count` empty records, [count, example]."""
        losses = self.losses(self.clean)
        once = self.observed(self.clean, losses, jnp.zeros_like(losses, bool))
        return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, shape=(count, *leaf.shape)), once)

    def pulled(self, x: jax.Array, reach: Reach | None = None) -> tuple[jax.Array, Output, jax.Array]:
        """(gradient of the objective over what is attacked, as it is, what `forward` says, losses [example])."""

        def total(x: jax.Array) -> tuple[jax.Array, tuple]:
            output = self.forward(x, self.reach if reach is None else reach)
            losses = self.losses(output, x)
            return jnp.sum(jnp.where(self.attacked, losses, 0)), (losses, output)

        gradient, (losses, output) = jax.grad(total, has_aux=True)(x)
        return gradient, output, losses

    def evaluate(self, x: jax.Array, reach: Reach | None = None) -> tuple[jax.Array, Output, Steps]:
        """(gradient of the objective like x, what `forward` says, record).

        The gradient is 0 where it is not finite, where nothing may move and where nothing is attacked.
        """
        gradient, output, losses = self.pulled(x, reach)
        gradient, bad = self.finite(gradient)
        return self.domain.moving(gradient), output, self.observed(output, losses, bad)

    def gradient(self, x: jax.Array, reach: Reach | None = None) -> tuple[jax.Array, Steps]:
        """`evaluate` without the output."""
        gradient, _, record = self.evaluate(x, reach)
        return gradient, record

    def of_one_row(self, name: str) -> None:
        """For attacks on classes: raises ValueError for targets, and for segmented clouds."""
        if self.targets is not None:
            raise ValueError(f"targets: got targets, expected None: {name} chooses its own and is untargeted")
        if self.clean.logits.shape[0] != self.domain.examples:
            raise ValueError("inputs: got a segmented cloud, expected one row of logits for each example")


class Found(flax.struct.PyTreeNode):
    """What a search returns: the candidate x, its `Steps` [step, example] or None, a record [step, example, ...]."""

    x: jax.Array
    steps: Steps | None = None
    record: Any = None


Search = Callable[[Problem, Any, "jax.Array | None"], Found]
"""(problem, keys, start or None) -> `Found`; keys are [row] where the attack is `random`, else None."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """``attack(forward, inputs, labels, ...) -> AttackResult``: pure, works under jit and vmap.

    Made by the factories of `dyn_jax.attacks` (`bim`, `pgd`, ...), or from a search of your own.

    Attributes:
      search: see the module.
      threat: the set that the result is projected into; around every image, or every point of a cloud.
      objective: what is ascended.
      random: whether a ``key`` is needed.
      attack_all: also perturb examples on which the criterion already holds (default: leave them alone, as LGM and
        AutoAttack do).
      keep_start: examples that are left alone keep the start of the search instead of the clean value (LGM's release).
      reach: metres a point can get in one step; tells an occupancy that looks ahead which voxels are candidates.
    """

    search: Search
    threat: Threat
    objective: Objective
    random: bool = False
    attack_all: bool = False
    keep_start: bool = False
    reach: jax.typing.ArrayLike | None = None

    def __call__(
        self,
        forward: Network,
        inputs: jax.typing.ArrayLike | PointCloud,
        labels: jax.typing.ArrayLike | None = None,
        *,
        key: jax.Array | None = None,
        victim: Network | None = None,
        targets: jax.typing.ArrayLike | None = None,
        mask: jax.typing.ArrayLike | None = None,
        start: jax.typing.ArrayLike | None = None,
        index: jax.typing.ArrayLike | None = None,
        ignore: int = IGNORE,
    ) -> AttackResult:
        """Attacks a batch of images, or the points of one or several clouds.

        Args:
          forward: inputs -> `Output` (or bare logits), differentiated at every step, e.g.
            ``functools.partial(net.apply, variables, occupancy=occupancy.sigmoid(10.0))``. One of clouds that takes
            ``reach=`` is told how far points may get in the step.
          inputs: images [batch, height, width, channel], float, inside the threat set's box; or a `PointCloud`. Half
            precision is attacked, and comes back, in single precision.
          labels: [row] integers, the true classes, a row being a row of the logits; None: what the victim says about
            the clean value.
          key: typed PRNG key, for attacks with randomness; example i uses ``fold_in(key, index[i])``.
          victim: inputs -> `Output`, the network that success is judged on; default `forward`. For LGM the same
            weights with hard occupancy.
          targets: [row] integer classes to reach: a targeted attack.
          mask: what may change, 1 or 0: pixels [height, width] or broadcastable to the images, or points [point].
          start: where the search begins, like the clean value, instead of the attack's own start.
          index: [example] numbers of the examples for their keys; default 0, 1, ...
          ignore: of clouds: the label of rows that do not count.

        Returns:
          An `AttackResult`.

        Raises:
          ValueError, TypeError: wrong rank, channels or dtype; pixels outside the box or NaN; labels out of range, no
            row that counts; a target equal to the label; fewer than two classes; an empty batch; no key for a random
            attack. (Inside jit, values are traced: shapes and dtypes are checked, the rest is flagged in the result.)
        """
        domain = domain_of(inputs, self.threat, mask)
        same = victim is None or victim is forward
        forward = as_forward(forward)
        victim = forward if victim is None or same else as_forward(victim)
        judge = traced_once(lambda x: victim(domain.input(x)))
        clean = judge(domain.clean)
        rows, classes = clean.logits.shape
        if rows not in (domain.examples, domain.clean.shape[0]):
            raise ValueError(f"forward: got logits of {rows} rows, expected {domain.examples}, one for each example")
        if classes < 2:
            raise ValueError(f"forward: got {classes} output(s), expected one per class; make two of one: [0, logit]")
        labels = jnp.argmax(clean.logits, axis=-1) if labels is None else labels
        labels = _labels("labels", labels, rows, classes, ignore if isinstance(domain, Coordinates) else None)
        counted = domain.counted(labels, classes, ignore)
        if _validate.is_concrete(counted) and not np.asarray(counted).any():
            raise ValueError(f"labels: got no row with another label than {ignore}, expected at least one")
        known = (labels >= 0) & (labels < classes)
        labels = jnp.where(known, labels, 0)
        sound = known | ~counted
        if targets is not None:
            targets = _labels("targets", targets, rows, classes, None)
            _validate.differ("targets", targets, jnp.where(counted, labels, -1))
            sound &= ((targets >= 0) & (targets < classes) & (targets != labels)) | ~counted
        keys = self._keys(domain, key, index)
        start = None if start is None else _validate.finite("start", start, domain.clean)

        clean_success = is_adversarial(clean.logits, labels, targets) & counted
        reach = None if self.reach is None or isinstance(domain, Pixels) else Reach(self.reach)
        at = lambda x, reach=None, **options: forward(domain.input(x), reach, **options)
        every, same = jnp.ones(domain.examples, bool), same and reach is None
        problem = Problem(domain, at, judge, same, labels, targets, counted, every, self.objective, reach, clean)
        left_alone = problem.succeeds(clean.logits)
        left_alone = jnp.zeros_like(left_alone) if self.attack_all else left_alone
        problem = dataclasses.replace(problem, attacked=~left_alone)
        found = self.search(problem, keys, start)

        x = problem.project(jnp.where(jnp.isfinite(found.x), found.x, domain.clean))
        x = jax.lax.stop_gradient(x if self.keep_start else problem.pick(left_alone, domain.clean, x))
        adversarial, counted = judge(x), domain.judged(x, counted)
        steps = problem.no_steps() if found.steps is None else found.steps
        steps, record = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), (steps, found.record))
        flags = [t.overflow for t in (clean.trace, adversarial.trace) if t.overflow is not None]
        lost = jnp.any(jnp.stack(flags)) if flags else jnp.zeros((), bool)
        invalid = counted & ~(_finite(clean.logits) & _finite(adversarial.logits)) | ~sound | lost
        if isinstance(domain, Pixels):
            # what `_validate.within` cannot see inside jit; NaN is not inside
            invalid |= ~in_box(domain.clean, domain.threat.bounds)
        return AttackResult(
            adversarial=x,
            success=is_adversarial(adversarial.logits, labels, targets) & counted & ~invalid,
            clean_success=clean_success & counted & ~invalid,
            counted=counted,
            invalid=invalid,
            loss=self.objective(adversarial, labels, targets),
            distance=self.threat.distance(x, domain.clean),
            steps=steps,
            overflow=jnp.any(steps.overflow, axis=1) | lost,
            logits_clean=clean.logits,
            logits_adversarial=adversarial.logits,
            trace_clean=clean.trace,
            trace_adversarial=adversarial.trace,
            record=record,
        )

    def _keys(self, domain: Domain, key: jax.Array | None, index: jax.typing.ArrayLike | None) -> jax.Array | None:
        if index is not None and jnp.shape(index) != (domain.examples,):
            raise ValueError(f"index: got shape {jnp.shape(index)}, expected ({domain.examples},)")
        if not self.random:
            return None
        if key is None or not jnp.issubdtype(getattr(key, "dtype", float), jax.dtypes.prng_key) or key.shape:
            got = "None" if key is None else f"{type(key).__name__}{list(jnp.shape(key))}"
            raise ValueError(f"key: got {got}, expected one typed PRNG key such as jax.random.key(0)")
        return domain.keys(key, jnp.arange(domain.examples) if index is None else _validate.integers("index", index))


def is_adversarial(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """[row] bool: prediction differs from the label (equals the target) and all logits are finite.

    A NaN among the logits never counts as a success.

    Args:
      logits: [row, class].
      labels, targets: [row] integers.

    Raises:
      ValueError, TypeError: shapes that do not fit, labels that are no integers.
    """
    logits = _validate.logits("logits", logits)
    name, wanted = ("labels", labels) if targets is None else ("targets", targets)
    wanted = _validate.labels(name, wanted, len(logits))
    prediction = jnp.argmax(logits, axis=-1)
    return ((prediction != wanted) if targets is None else (prediction == wanted)) & _finite(logits)


@partial(jax.jit, inline=True)
def _finite(logits: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(logits), axis=-1)


def _labels(name: str, got: Any, rows: int, classes: int, ignore: int | None) -> jax.Array:
    """`_validate.labels` that lets `ignore` pass."""
    got = _validate.labels(name, got, rows)
    wrong = ((got < 0) | (got >= classes)) & (True if ignore is None else got != ignore)
    if _validate.is_concrete(wrong) and np.asarray(wrong).any():
        also = "" if ignore is None else f" or {ignore} (ignored)"
        values = sorted(set(np.asarray(got)[np.asarray(wrong)].tolist()))[:5]
        raise ValueError(f"{name}: got {values}, expected classes in [0, {classes - 1}]{also}")
    return got
