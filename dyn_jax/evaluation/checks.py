"""Can the robustness that attacks are about to measure be trusted? Findings with a code, a meaning and a remedy.

`check` looks at a network, on a handful of images, before any attack; `from_attack` and `from_ensemble` at what attacks
have left behind. Without a finding nothing is proved; with one of severity ``error`` the robust accuracy says nothing.

Source: the flags of AutoAttack (Croce and Hein 2020, ``checks.py`` of the released code), the indicators of Pintor et
al. 2022, and checks of our own where both are silent: frozen random numbers, a reversed gradient, a saturated
cross-entropy, hard gates and other steps without derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax._precision import single
from dyn_jax.attacks.forward import Network, as_forward
from dyn_jax.attacks.threat import L1, Ball, Bounds, Linf, ball
from dyn_jax.evaluation import indicators
from dyn_jax.evaluation import program as programs
from dyn_jax.evaluation.findings import CODES as CODES
from dyn_jax.evaluation.findings import ERROR, finding, seen
from dyn_jax.evaluation.findings import Finding as Finding
from dyn_jax.evaluation.reading import from_attack as from_attack
from dyn_jax.evaluation.reading import from_ensemble as from_ensemble
from dyn_jax.evaluation.subject import held, plain
from dyn_jax.objectives import cross_entropy, margin
from dyn_jax.testing._compare import quick_jit
from dyn_jax.types import Output

DIFFERENCE = 1e-4  # of logits over their norm, between passes that should agree (AutoAttack)
PROBABILITY = 1e-5  # AutoAttack
WALK = (20, 2 / 255)  # steps and step size of the unconstrained walk (Pintor et al.)


def check(
    forward: Network | None,
    images: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    eps: jax.typing.ArrayLike | str,
    key: jax.Array,
    victim: Network | None = None,
    make_forward: Callable[[jax.Array], Network] | None = None,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Finding, ...]:
    """What stands in the way of attacking a network by its gradient. Compiles it once, runs it some forty times.

    Args:
      forward: images -> `Output` or logits, the network that attacks differentiate. None where `make_forward` says
        it all.
      images: [batch, height, width, channel] in `bounds`, a handful (AutoAttack and the paper of the indicators: one
        batch, a dozen).
      labels: [batch].
      eps, norm, bounds: the threat set; checks move inside it, but for the unconstrained walk.
      key: typed PRNG key of the checks' own random steps.
      victim: the network that is judged, default `forward`; for LGM the same weights with hard occupancy.
      make_forward: key -> forward of a network that is random by declaration: attacks average over its keys. Given
        beside `forward`, it shows whether `forward` is one frozen draw of it.

    Returns:
      Findings, errors first; empty where nothing was found.

    Raises:
      ValueError, TypeError: shapes, dtypes or ranges that do not fit; neither `forward` nor `make_forward`.
    """
    if forward is None and make_forward is None:
        raise TypeError("forward: got None without make_forward, expected a network")
    threat = ball(norm, eps, bounds)
    if not _validate.is_concrete(images, labels):
        raise TypeError("images: got a traced array, expected numbers: call check outside of jit")
    images = single(_validate.images("images", images))
    _validate.within("images", images, bounds)
    key_kind = getattr(key, "dtype", None)
    if key_kind is None or not jnp.issubdtype(key_kind, jax.dtypes.prng_key) or jnp.shape(key):
        raise TypeError(f"key: got {type(key).__name__}, expected one typed PRNG key such as jax.random.key(0)")
    *keys, first, second = jax.random.split(key, 4)
    findings: list[Finding] = []
    with jax.debug_nans(False):
        drawn = None if make_forward is None else _Network(make_forward, images, first)
        attacked = _Network(forward, images) if forward is not None else drawn
        assert attacked is not None
        labels = _validate.labels("labels", labels, len(images), attacked.classes)
        judge = attacked if victim is None or victim is forward else _Network(victim, images, gradient=False)
        for network in {id(attacked): attacked, id(judge): judge}.values():
            findings += _of_answers(network, images, "" if network is attacked else "victim: ")
        if drawn is not None and drawn is not attacked:
            findings += _frozen_draw(attacked, drawn, images, second)
        findings += _of_program(attacked)
        findings += _of_gradient(attacked, judge, images, np.asarray(labels), threat, keys)
    once = {(f.code, f.message.removeprefix("victim: ")): f for f in reversed(findings)}
    known = list(CODES)
    return tuple(sorted(once.values(), key=lambda f: (f.severity != ERROR, known.index(f.code))))


class _Network:
    """A network, traced and compiled: logits, scores, and what a cotangent of the logits becomes at the images."""

    def __init__(
        self, forward: Callable, images: jax.Array, key: jax.Array | None = None, *, gradient: bool = True
    ) -> None:
        make = (lambda _: forward) if key is None else forward

        def run(images: jax.Array, *key: jax.Array) -> tuple[jax.Array, tuple]:
            output = as_forward(make(*key or (None,)))(images)
            if len(output.logits) != len(images):
                raise ValueError(f"forward: got logits of {len(output.logits)} rows, expected {len(images)}")
            return output.logits, tuple(unit.score for unit in output.trace.units)

        self.key = key
        self.traced, self.program = programs.trace(run, images, key)
        # a function that draws from the host's random numbers is another program each time it is traced
        again, _ = programs.trace(lambda *arguments: run(*arguments), images, key)  # a new function: nothing is cached
        self.constants: list[list | None] = [jax.device_put(self.traced.consts)]
        differ = lambda one, other: any(
            not np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other) if a is not b
        )
        within = lambda closed: held(closed)[len(closed.consts) :]
        if plain(str(again.jaxpr)) != plain(str(self.traced.jaxpr)) or differ(within(again), within(self.traced)):
            self.constants.append(None)
        elif differ(again.consts, self.traced.consts):
            self.constants.append(jax.device_put(again.consts))
        self.classes = self.program.avals[self.program.logits].shape[1]
        self.error: str | None = None

        def pull(constants: list, images: jax.Array, key: tuple, cotangent: jax.Array) -> tuple:
            def outputs(images: jax.Array) -> tuple[jax.Array, tuple]:
                logits, *scores = jax.core.eval_jaxpr(self.traced.jaxpr, constants, images, *key)
                return logits, tuple(scores)

            if not gradient or self.error is not None:
                return *outputs(images), jnp.zeros_like(images)
            logits, back, scores = jax.vjp(outputs, images, has_aux=True)
            return logits, scores, back(cotangent.astype(logits.dtype))[0]

        self._pull = quick_jit(pull)

    def __call__(
        self, images: jax.Array, cotangent: Any = None, key: jax.Array | None = None, trace: int = 0
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """(logits, scores, gradient by the images of ``sum(cotangent * logits)``)."""
        cotangent = jnp.zeros((len(images), self.classes)) if cotangent is None else jnp.asarray(cotangent)
        keys = () if self.key is None else (self.key if key is None else key,)
        arguments = (self.constants[trace], images, keys, cotangent)
        try:
            logits, scores, gradient = self._pull(*arguments)
        except (TypeError, ValueError, NotImplementedError) as error:  # a while loop, a callback
            if self.error is not None:
                raise
            self.error = str(error).splitlines()[0]
            self._pull = quick_jit(self._pull.__wrapped__)
            logits, scores, gradient = self._pull(*arguments)
        return np.asarray(logits, np.float32), [np.asarray(s) for s in scores], np.asarray(gradient)


def _normalised(logits: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(logits, axis=1, keepdims=True)
    return logits / np.where(length > 0, length, 1)


def _differ(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """([example] bool, the largest difference) of logits over their norms; rows that are not finite do not differ."""
    difference = np.max(np.abs(_normalised(a) - _normalised(b)), axis=1)
    difference = np.where(np.isfinite(difference), difference, 0)
    return difference > DIFFERENCE, float(difference.max())


def _of_answers(network: _Network, images: jax.Array, who: str) -> list[Finding]:
    """Randomness and form of the logits, of attacked network and victim alike."""
    logits = network(images)[0]
    other_program = None in network.constants
    traces = (0,) if other_program else range(len(network.constants))
    moved, largest = zip(*(_differ(logits, network(images, trace=trace)[0]) for trace in traces))
    text = f"{who}normalised logits of two passes differ by up to {max(largest):.2g}"
    found = seen("randomised", text, np.logical_or.reduce(moved))
    if other_program and not found:
        found.append(finding("randomised", f"{who}tracing it twice gives two programs"))
    frozen, seeded = programs.random_draws(network.program)
    frozen += [] if found else programs.noise_constants(network.program)
    if frozen:
        found.append(finding("frozen_randomness", f"{who}drawn under a constant key: {_listed(frozen)}"))
    if seeded:
        found.append(finding("seeded_by_input", f"{who}drawn under a key made from the image: {_listed(seeded)}"))
    inside = logits.max() < 1 + PROBABILITY and logits.min() > -PROBABILITY
    if inside and np.all(np.abs(logits.sum(axis=1) - 1) < PROBABILITY):
        found.append(finding("probabilities", f"{who}every row lies in [0, 1] and sums to 1"))
    if network.classes < 4:
        found.append(finding("few_classes", f"{who}{network.classes} classes"))
    return found


def _frozen_draw(attacked: _Network, drawn: _Network, images: jax.Array, key: jax.Array) -> list[Finding]:
    """`make_forward` answers differently under two keys, `forward` does not: it is one draw."""
    moved, largest = _differ(drawn(images)[0], drawn(images, key=key)[0])
    still, _ = _differ(attacked(images)[0], attacked(images)[0])
    text = f"under two keys the logits of make_forward differ by up to {largest:.2g}, those of forward never"
    return [] if still.any() else seen("frozen_randomness", text, moved)


def _of_program(network: _Network) -> list[Finding]:
    program, found = network.program, []
    number, loops = programs.gradients_inside(program)
    if number:
        found.append(finding("gradient_in_forward", f"{number} equations of a gradient{' inside a loop' * loops}"))
    if not programs.reaches_logits(program):
        found.append(finding("no_gradient", "no gradient path from the images to the logits (stop_gradient, a cast)"))
    hard = programs.hard_operations(program)
    if programs.hard_gates(program):  # the gates' own comparisons, stacked or sliced
        hard = [name for name in hard if not name.startswith(programs.COMPARISONS)]
    if hard:
        found.append(finding("hard_operation", f"no derivative: {_listed(hard)}"))
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_gradient(
    network: _Network, judge: _Network, images: jax.Array, labels: np.ndarray, threat: Ball, keys: Sequence[jax.Array]
) -> list[Finding]:
    """What only running shows: at the images, at random points of the threat set, and along the gradient."""
    found = []
    inside = threat.project(images + threat.noise(jax.random.split(keys[0], len(images)), images), images)
    signs = jax.random.rademacher(keys[1], images.shape, images.dtype)
    corner = threat.project(images + threat.eps * threat.direction(signs), images)

    clean, scores, _ = network(images)
    start, start_scores, start_gradient = network(inside, _cotangent(margin, network(inside)[0], labels))
    far, far_scores, _ = network(corner)
    if network.error is not None:
        found.append(finding("no_gradient", f"jax.grad fails: {network.error}"))
    answers = [clean, start, far] + ([judge(images)[0]] if judge is not network else [])
    bad = ~np.all([np.isfinite(a).all(axis=1) for a in answers], axis=0)
    found += seen("nonfinite_logits", f"NaN or infinite logits on {bad.sum()} of {len(images)} images", bad)
    finite: np.ndarray = np.all(np.isfinite(start), axis=1)

    hard = programs.hard_gates(network.program)
    if hard:
        moved = [(after[i] >= 0) != (scores[i] >= 0) for i in hard for after in (start_scores, far_scores)]
        flips = np.concatenate([flipped.reshape(len(images), -1) for flipped in moved], axis=1)
        text = f"{len(hard)} of {len(scores)} gated units have no gradient towards their scores; random steps flip "
        text += f"{100 * flips.sum() / flips.size:.2g} % of their gates"
        found.append(finding("hard_gates", text, flips.any(axis=1)))
    if network.error is not None:
        return found

    lost = finite & ~np.isfinite(start_gradient).all(axis=(1, 2, 3))
    found += seen("nonfinite_gradient", f"on {lost.sum()} of {len(lost)} images", lost)
    zero = finite & indicators.unavailable_gradients(start_gradient)
    found += seen("zero_gradient", f"on {zero.sum()} of {len(zero)} images at a random start", zero)
    usable = finite & ~lost & ~zero
    found += _reversed(network, inside, start_gradient, labels, threat, usable)
    found += _saturated(network, images, clean, labels)
    return found + _walk(network, judge, images, labels, threat.bounds)


def _cotangent(objective: Callable, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gradient of an objective by the logits; 0 in rows that are not finite."""
    total = lambda z: jnp.sum(objective(Output(z), jnp.asarray(labels)))
    rows = np.isfinite(logits).all(axis=1, keepdims=True)
    return np.where(rows, np.asarray(jax.grad(total)(jnp.asarray(np.where(rows, logits, 0)))), 0)


def _margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(margin(Output(jnp.asarray(logits)), jnp.asarray(labels)))


def _reversed(
    network: _Network, x: jax.Array, gradient: np.ndarray, labels: np.ndarray, threat: Ball, usable: np.ndarray
) -> list[Finding]:
    """Central difference of the margin along its gradient, over what the gradient promises: -1 where it is reversed.

    A surrogate promises something else than small steps do (straight-through), a kink or a flipped gate disturbs single
    images: found is only what has the wrong sign, by more than half, on most images.
    """
    length = np.sqrt(np.sum(gradient.astype(np.float64) ** 2, axis=(1, 2, 3)))
    length = np.where(usable & (length > 0), length, 1)
    spread = {Linf: 0.5, L1: -0.5}.get(type(threat), 0)  # the L2 norm of what changes all pixels alike
    size = float(np.asarray(threat.eps)) * x[0].size ** spread
    step = (0.01 * size * gradient / length[:, None, None, None]).astype(np.float32)
    step = np.where(usable[:, None, None, None], step, 0)
    up, down = (_margins(network(x + sign * step)[0], labels) for sign in (1, -1))
    promised = 2 * 0.01 * size * length
    some = usable & (promised > 0)  # not with eps 0
    ratio = np.where(some, (up - down) / np.where(some, promised, 1), 1)
    wrong = np.isfinite(ratio) & (ratio < -0.5)
    if wrong.sum() <= usable.sum() / 2:
        return []
    median = float(np.median(ratio[wrong]))
    text = f"along the gradient the margin of {wrong.sum()} of {len(wrong)} images moves {median:.2g} times as promised"
    return [finding("reversed_gradient", text, wrong)]


def _saturated(network: _Network, images: jax.Array, logits: np.ndarray, labels: np.ndarray) -> list[Finding]:
    """Cross-entropy whose gradient has vanished in single precision while that of the margin has not."""
    finite: np.ndarray = np.all(np.isfinite(logits), axis=1)
    gone = lambda loss: indicators.unavailable_gradients(network(images, _cotangent(loss, logits, labels))[2])
    vanished = finite & (np.argmax(logits, axis=1) == labels) & gone(cross_entropy) & ~gone(margin)
    least = float(np.min(-_margins(logits, labels), where=vanished, initial=np.inf))
    text = f"on {vanished.sum()} of {len(vanished)} images, whose margins are {least:.3g} logits and more"
    return seen("saturated_loss", text, vanished)


def _walk(network: _Network, judge: _Network, images: jax.Array, labels: np.ndarray, bounds: Bounds) -> list[Finding]:
    """Sign steps up the margin, bounded by the box alone; an image survives that no iterate of the walk fooled."""
    steps, size = WALK
    x = images
    logits = network(x)[0]
    survives = np.isfinite(logits).all(axis=1)
    for step in range(steps + 1):
        answer = logits if judge is network else judge(x)[0]
        survives &= (np.argmax(answer, axis=1) == labels) & np.isfinite(answer).all(axis=1)
        if step == steps or not survives.any():
            break
        gradient = network(x, _cotangent(margin, logits, labels))[2]
        x = jnp.clip(x + size * jnp.sign(jnp.nan_to_num(gradient)), *bounds)
        logits = network(x)[0]
    text = (
        f"{survives.sum()} of {len(images)} images survive {steps} sign steps of {size * 255:.3g}/255 without a bound"
    )
    return seen("unconstrained_failure", text, survives)
