"""Can the robustness that attacks are about to measure be trusted? Findings with a code, a meaning and a remedy.

`check` looks at a network, on a handful of images, before any attack; `from_attack` and `from_ensemble` at what attacks
have left behind. Without a finding nothing is proved; with one of severity ``error`` the robust accuracy says nothing.

Source: the flags of AutoAttack (Croce and Hein 2020, ``checks.py`` of the released code), the indicators of Pintor et
al. 2022, and checks of our own where both are silent: frozen random numbers, a reversed gradient, a saturated
cross-entropy, hard gates and other steps without derivative.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.forward import Network, as_forward
from dyn_jax.attacks.threat import Ball, Bounds, ball
from dyn_jax.evaluation import indicators
from dyn_jax.evaluation import program as programs
from dyn_jax.objectives import cross_entropy, margin
from dyn_jax.testing._compare import quick_jit
from dyn_jax.types import Output

ERROR, WARNING = "error", "warning"


class Code(NamedTuple):
    """What a finding means, and what to do: the same for every network."""

    severity: str
    meaning: str
    remedy: str


CODES: dict[str, Code] = {
    "no_gradient": Code(
        ERROR,
        "no gradient path leads from the images to the logits, or the network cannot be differentiated",
        "attack a differentiable surrogate of the part that cuts the gradient off, or use decision-based attacks",
    ),
    "zero_gradient": Code(
        ERROR,
        "the gradient of the margin by the image is exactly zero",
        "replace the part without derivative in the attacked network by a surrogate (BPDA), or attack with Square",
    ),
    "reversed_gradient": Code(
        ERROR,
        "a small step along the gradient changes the margin the other way",
        "the network's own derivative (custom_vjp) is wrong: attack without it, and with Square",
    ),
    "hard_gates": Code(
        WARNING,
        "gates decide by a step without derivative: gradients are blind to what flips them",
        "zero gradients: hard gates; attack the straight-through network, and the soft one (LGM)",
    ),
    "hard_operation": Code(
        WARNING,
        "rounding, a sign, a choice or a comparison on the way to the logits has no derivative",
        "give the operation a straight-through derivative in the attacked network (BPDA)",
    ),
    "frozen_randomness": Code(
        ERROR,
        "random numbers under a constant key, or noise kept as a constant: attack and verdict see one and the same draw",
        "give the key as an argument, average gradients over fresh keys, and judge under other keys",
    ),
    "seeded_by_input": Code(
        ERROR,
        "random numbers whose key is computed from the image: a hidden function without useful derivative",
        "give the key as an argument and average over fresh keys",
    ),
    "randomised": Code(
        ERROR,
        "two passes over the same images differ",
        "give the key as an argument and average gradients over fresh keys (AutoAttack's version rand)",
    ),
    "gradient_in_forward": Code(
        ERROR,
        "the network differentiates inside its own forward pass: it optimises while it answers",
        "standard attacks may not see through it: attack adaptively, with a longer or an unrolled inner loop",
    ),
    "probabilities": Code(
        WARNING,
        "the outputs are probabilities: the softmax flattens the gradients of every loss",
        "return the logits before the softmax",
    ),
    "saturated_loss": Code(
        WARNING,
        "the cross-entropy's gradient is exactly zero in single precision though the margin's is not",
        "divide the logits by a constant, or use the margin or the DLR loss",
    ),
    "nonfinite_logits": Code(
        ERROR,
        "NaN or infinite logits: neither robust nor broken",
        "find the operation that overflows (jax.debug_nans); such images count as invalid",
    ),
    "nonfinite_gradient": Code(
        WARNING,
        "the gradient is NaN or infinite where the logits are finite: attacks take it as zero there",
        "guard square roots, norms and divisions at 0 with a double where",
    ),
    "few_classes": Code(
        WARNING,
        "fewer than four classes: DLR needs three, targeted DLR four",
        "use the cross-entropy or the margin; one output z of a binary network becomes two by [0, z]",
    ),
    "unconstrained_failure": Code(
        WARNING,
        "images survive steps along the gradient without any bound on the perturbation",
        "gradients do not lead to adversarial examples here: look at the other findings, then attack with Square",
    ),
    "silent_success": Code(
        WARNING,
        "an iterate fooled the network, but what the attack returned does not",
        "return the best iterate, not the last one",
    ),
    "incomplete_optimization": Code(
        WARNING,
        "the loss was still rising at the end of an attack that failed",
        "more steps, or a larger step size",
    ),
    "unstable_predictions": Code(
        WARNING,
        "the loss of images whose attack failed jumps between close points",
        "smooth the loss: average gradients over random points, or attack a surrogate",
    ),
    "transfer_failure": Code(
        WARNING,
        "the attack fooled the network that was differentiated, but not the one that is judged",
        "bring the surrogate closer (a steeper occupancy, straight-through), or judge every iterate",
    ),
    "black_box_better": Code(
        ERROR,
        "an attack without gradients broke images that no gradient attack broke",
        "gradients are masked: look at the other findings; report the worst case over all attacks",
    ),
}
"""Code -> severity, meaning, remedy: all that `check`, `from_attack` and `from_ensemble` can find."""

DIFFERENCE = 1e-4  # of logits over their norm, between passes that should agree (AutoAttack)
PROBABILITY = 1e-5  # AutoAttack
BLACK_BOX_SHARE = 0.002  # AutoAttack
SETTLED, STABLE = 0.05, 0.1  # Pintor et al., incomplete optimisation and unstable predictions
WALK = (20, 2 / 255)  # steps and step size of the unconstrained walk (Pintor et al.)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
      code: a key of `CODES`.
      severity: ``error``: the robust accuracy says nothing; ``warning``: it may be too high.
      share: of the images that show it, in [0, 1]; None where it is a matter of the program.
      message: what was seen.
      remedy: what to do.
      examples: indices of images that show it.
    """

    code: str
    severity: str
    share: float | None
    message: str
    remedy: str
    examples: np.ndarray


class Reading(NamedTuple):
    """Findings, and beside them the raw values [example] that they were read from, by code."""

    findings: tuple[Finding, ...]
    raw: dict[str, np.ndarray]


def finding(code: str, message: str, where: Any = None) -> Finding:
    """A `Finding` with the severity and the remedy of its code; `where`: [example] bool."""
    severity, _, remedy = CODES[code]
    if where is None:
        return Finding(code, severity, None, message, remedy, np.zeros(0, int))
    where = np.asarray(where, bool)
    return Finding(code, severity, float(where.mean()), message, remedy, np.flatnonzero(where))


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
    images = _validate.images("images", images)
    _validate.within("images", images, bounds)
    key_kind = getattr(key, "dtype", None)
    if key_kind is None or not jnp.issubdtype(key_kind, jax.dtypes.prng_key) or jnp.shape(key):
        raise TypeError(f"key: got {type(key).__name__}, expected one typed PRNG key such as jax.random.key(0)")
    noise_key, corner_key, first, second = jax.random.split(key, 4)
    findings: list[Finding] = []
    with jax.debug_nans(False):
        drawn = None if make_forward is None else _Network(make_forward, images, first)
        attacked = _Network(forward, images) if forward is not None else drawn
        assert attacked is not None
        labels = _validate.labels("labels", labels, len(images), attacked.classes)
        judge = attacked if victim is None or victim is forward else _Network(victim, images)
        for network in {id(attacked): attacked, id(judge): judge}.values():
            findings += _of_answers(network, images, labels, "" if network is attacked else "victim: ")
        if drawn is not None and drawn is not attacked:
            findings += _frozen_draw(attacked, drawn, images, second)
        findings += _of_program(attacked)
        findings += _of_gradient(attacked, judge, images, np.asarray(labels), threat, noise_key, corner_key)
    once = {(f.code, f.message.removeprefix("victim: ")): f for f in reversed(findings)}
    known = list(CODES)
    return tuple(sorted(once.values(), key=lambda f: (f.severity != ERROR, known.index(f.code))))


class _Network:
    """A network, traced and compiled: logits, scores, and what a cotangent of the logits becomes at the images."""

    def __init__(self, forward: Callable, images: jax.Array, key: jax.Array | None = None) -> None:
        make = (lambda _: forward) if key is None else forward

        def run(images: jax.Array, *key: jax.Array) -> tuple[jax.Array, tuple]:
            output: Output = as_forward(make(*key or (None,)))(images)
            return output.logits, tuple(unit.score for unit in output.trace.units)

        self.key = key
        self.traced, self.program = programs.trace(run, images, key)
        # a function that draws from the host's random numbers is another program each time it is traced
        again, _ = programs.trace(lambda *arguments: run(*arguments), images, key)  # a new function: nothing is cached
        self.constants = [self.traced.consts]
        if _text(again) != _text(self.traced):
            self.constants.append(None)
        elif any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(again.consts, self.traced.consts) if a is not b):
            self.constants.append(again.consts)
        self.classes = self.program.avals[self.program.logits].shape[1]
        self.error: str | None = None

        def pull(constants: list, images: jax.Array, key: tuple, cotangent: jax.Array) -> tuple:
            def outputs(images: jax.Array) -> tuple[jax.Array, tuple]:
                logits, *scores = jax.core.eval_jaxpr(self.traced.jaxpr, constants, images, *key)
                return logits, tuple(scores)

            if self.error is not None:
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
        return np.asarray(logits), [np.asarray(s) for s in scores], np.asarray(gradient)


def _text(closed: Any) -> str:
    return re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))


def _normalised(logits: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(logits, axis=1, keepdims=True)
    return logits / np.where(length > 0, length, 1)


def _differ(a: np.ndarray, b: np.ndarray, labels: Any = None) -> tuple[np.ndarray, float]:
    """([example] bool, the largest difference) of logits over their norms; rows that are not finite do not differ."""
    difference = np.max(np.abs(_normalised(a) - _normalised(b)), axis=1)
    difference = np.where(np.isfinite(difference), difference, 0)
    return difference > DIFFERENCE, float(difference.max())


def _of_answers(network: _Network, images: jax.Array, labels: jax.Array, who: str) -> list[Finding]:
    """Randomness and form of the logits, of attacked network and victim alike."""
    found = []
    logits = network(images)[0]
    other_program = None in network.constants
    repeats = [network(images)[0]] + ([network(images, trace=1)[0]] if len(network.constants) > 1 and not other_program else [])
    moved, largest = np.zeros(len(logits), bool), 0.0
    for repeat in repeats:
        rows, size = _differ(logits, repeat)
        moved, largest = moved | rows, max(largest, size)
    randomised = moved.any() or other_program
    if moved.any():
        found.append(finding("randomised", f"{who}normalised logits of two passes differ by up to {largest:.2g}", moved))
    elif other_program:
        found.append(finding("randomised", f"{who}tracing it twice gives two programs"))
    frozen, seeded = programs.random_draws(network.program)
    frozen += [] if randomised else programs.noise_constants(network.program)
    if frozen:
        found.append(finding("frozen_randomness", f"{who}drawn under a constant key: {_listed(frozen)}"))
    if seeded:
        found.append(finding("seeded_by_input", f"{who}drawn under a key made from the image: {_listed(seeded)}"))
    if _are_probabilities(logits):
        found.append(finding("probabilities", f"{who}every row lies in [0, 1] and sums to 1"))
    if network.classes < 4:
        found.append(finding("few_classes", f"{who}{network.classes} classes"))
    return found


def _are_probabilities(logits: np.ndarray) -> bool:
    inside = logits.max() < 1 + PROBABILITY and logits.min() > -PROBABILITY
    return bool(inside and np.all(np.abs(logits.sum(axis=1) - 1) < PROBABILITY))


def _frozen_draw(attacked: _Network, drawn: _Network, images: jax.Array, key: jax.Array) -> list[Finding]:
    """`make_forward` answers differently under two keys, `forward` does not: it is one draw."""
    moved, largest = _differ(drawn(images)[0], drawn(images, key=key)[0])
    still, _ = _differ(attacked(images)[0], attacked(images)[0])
    if not moved.any() or still.any():
        return []
    text = f"under two keys the logits of make_forward differ by up to {largest:.2g}, those of forward never"
    return [finding("frozen_randomness", text, moved)]


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
    network: _Network,
    judge: _Network,
    images: jax.Array,
    labels: np.ndarray,
    threat: Ball,
    noise_key: jax.Array,
    corner_key: jax.Array,
) -> list[Finding]:
    """What only running shows: at the images, at random points of the threat set, and along the gradient."""
    found = []
    inside = threat.project(images + threat.noise(jax.random.split(noise_key, len(images)), images), images)
    signs = jax.random.rademacher(corner_key, images.shape, images.dtype)
    corner = threat.project(images + threat.eps * threat.direction(signs), images)

    clean, scores, _ = network(images)
    start, start_scores, start_gradient = network(inside, _margin_cotangent(network(inside)[0], labels))
    far, far_scores, _ = network(corner)
    if network.error is not None:
        found.append(finding("no_gradient", f"jax.grad fails: {network.error}"))
    answers = [clean, start, far] + ([judge(images)[0]] if judge is not network else [])
    bad = ~np.all([np.isfinite(a).all(axis=1) for a in answers], axis=0)
    if bad.any():
        found.append(finding("nonfinite_logits", f"NaN or infinite logits on {bad.sum()} of {len(bad)} images", bad))
    finite = np.isfinite(start).all(axis=1)

    hard = programs.hard_gates(network.program)
    if hard:
        flips = np.zeros(len(images), bool)
        count = total = 0
        for i in hard:
            for moved in (start_scores[i], far_scores[i]):
                flipped = ((moved >= 0) != (scores[i] >= 0)).reshape(len(images), -1)
                flips |= flipped.any(axis=1)
                count, total = count + int(flipped.sum()), total + flipped.size
        text = f"{len(hard)} of {len(scores)} gated units have no gradient towards their scores; "
        found.append(finding("hard_gates", f"{text}random steps flip {100 * count / total:.2g} % of their gates", flips))
    if network.error is not None:
        return found

    lost = finite & ~np.isfinite(start_gradient).all(axis=(1, 2, 3))
    if lost.any():
        found.append(finding("nonfinite_gradient", f"on {lost.sum()} of {len(lost)} images", lost))
    zero = finite & indicators.unavailable_gradients(start_gradient)
    if zero.any():
        found.append(finding("zero_gradient", f"on {zero.sum()} of {len(zero)} images at a random start", zero))
    usable = finite & ~lost & ~zero
    found += _reversed(network, inside, start_gradient, labels, threat, usable)
    found += _saturated(network, images, clean, labels)
    return found + _walk(network, judge, images, labels, threat.bounds)


def _margin_cotangent(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gradient of the margin by the logits; 0 in rows that are not finite."""
    total = lambda z: jnp.sum(margin(Output(z), jnp.asarray(labels)))
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
    size = float(threat.eps) * (np.sqrt(x[0].size) if threat.__class__.__name__ == "Linf" else 1)
    step = (0.01 * size * gradient / length[:, None, None, None]).astype(np.float32)
    step = np.where(usable[:, None, None, None], step, 0)
    up, down = (_margins(network(x + sign * step)[0], labels) for sign in (1, -1))
    promised = 2 * 0.01 * size * length
    ratio = np.where(usable, (up - down) / promised, 1)
    wrong = np.isfinite(ratio) & (ratio < -0.5)
    if not usable.any() or wrong.sum() <= usable.sum() / 2:
        return []
    median = float(np.median(ratio[wrong]))
    text = f"along the gradient the margin of {wrong.sum()} of {len(wrong)} images moves {median:.2g} times as promised"
    return [finding("reversed_gradient", text, wrong)]


def _saturated(network: _Network, images: jax.Array, logits: np.ndarray, labels: np.ndarray) -> list[Finding]:
    """Cross-entropy whose gradient has vanished in single precision while that of the margin has not."""
    finite = np.isfinite(logits).all(axis=1)
    total = lambda z: jnp.sum(cross_entropy(Output(z), jnp.asarray(labels)))
    of_loss = np.asarray(jax.grad(total)(jnp.asarray(np.where(finite[:, None], logits, 0))))
    right = np.argmax(logits, axis=1) == labels
    vanished = finite & right & indicators.unavailable_gradients(network(images, of_loss)[2])
    vanished &= ~indicators.unavailable_gradients(network(images, _margin_cotangent(logits, labels))[2])
    if not vanished.any():
        return []
    text = f"on {vanished.sum()} of {len(vanished)} images; their margins are {-_margins(logits, labels)[vanished].min():.3g}"
    return [finding("saturated_loss", f"{text} logits and more", vanished)]


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
        gradient = network(x, _margin_cotangent(logits, labels))[2]
        x = jnp.clip(x + size * jnp.sign(jnp.nan_to_num(gradient)), *bounds)
        logits = network(x)[0]
    if not survives.any():
        return []
    text = f"{survives.sum()} of {len(survives)} images survive {steps} sign steps of {size * 255:.3g}/255 without a bound"
    return [finding("unconstrained_failure", text, survives)]


def from_attack(
    success: jax.typing.ArrayLike,
    losses: jax.typing.ArrayLike | None = None,
    *,
    path_success: jax.typing.ArrayLike | None = None,
    surrogate_success: jax.typing.ArrayLike | None = None,
    unstable: jax.typing.ArrayLike | None = None,
) -> Reading:
    """Reads what one attack left behind, each indicator only on images that the attack FAILED on.

    Args:
      success: [example] bool, the verdict on what the attack returned (`AttackResult.success`).
      losses: [example, step], ascended (`AttackResult.steps.loss`).
      path_success: [example, step] bool, the verdict on every iterate.
      surrogate_success: [example] bool, the attacked network errs on what was returned.
      unstable: [example], of `indicators.unstable_predictions`.

    Returns:
      `Reading`: the findings, and the raw values of all images.

    Raises:
      ValueError, TypeError: flags that are no bools, shapes that do not fit.
    """
    success = np.asarray(_validate.rows("success", success, np.shape(success)[0]))
    raw: dict[str, np.ndarray] = {}
    bad: dict[str, np.ndarray] = {}
    if path_success is not None:
        raw["silent_success"] = bad["silent_success"] = indicators.silent_success(success, path_success)
    if losses is not None:
        raw["incomplete_optimization"] = indicators.incomplete_optimization(losses)
        bad["incomplete_optimization"] = raw["incomplete_optimization"] > SETTLED
    if unstable is not None:
        raw["unstable_predictions"] = np.asarray(unstable, float)
        bad["unstable_predictions"] = raw["unstable_predictions"] > STABLE
    if surrogate_success is not None:
        raw["transfer_failure"] = indicators.transfer_failure(success, surrogate_success)
        bad["transfer_failure"] = raw["transfer_failure"]
    found = []
    for code, flags in bad.items():
        if flags.shape != success.shape:
            raise ValueError(f"{code}: got {len(flags)} examples, expected {len(success)}")
        shown = flags & ~success
        if shown.any():
            text = f"on {shown.sum()} of the {np.sum(~success)} images that the attack failed on"
            found.append(finding(code, text, shown))
    return Reading(tuple(found), raw)


def from_ensemble(success: Mapping[str, Any], black_box: tuple[str, ...] = ("square",)) -> Reading:
    """Whether attacks without gradients broke images that no gradient attack broke (more than 0.2 % of all).

    Args:
      success: attack -> [example] bool; in a cascade, of the images that the attack broke first.
      black_box: names of the attacks without gradients.

    Raises:
      ValueError, TypeError: flags that are no bools, shapes that do not fit.
    """
    names = list(success)
    if not names:
        return Reading((), {})
    length = np.shape(success[names[0]])[0]
    rows = {name: np.asarray(_validate.rows(name, success[name], length)) for name in names}
    nothing = np.zeros(length, bool)
    by_gradient = np.logical_or.reduce([nothing, *(rows[n] for n in names if n not in black_box)])
    only = np.logical_or.reduce([nothing, *(rows[n] for n in names if n in black_box)]) & ~by_gradient
    raw = {"black_box_better": only}
    if len(set(names) - set(black_box)) == 0 or only.mean() <= BLACK_BOX_SHARE:
        return Reading((), raw)
    text = f"{only.sum()} of {length} images were broken without gradients only"
    return Reading((finding("black_box_better", text, only),), raw)
