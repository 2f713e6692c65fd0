"""Which attacks an evaluation makes, in which order, through which occupancies: names, and what they stand for."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence

import jax

from dyn_jax import _validate, attacks, objectives, occupancy
from dyn_jax.attacks import Attack
from dyn_jax.evaluation.subject import Subject
from dyn_jax.types import Occupancy, Output

ACCURACY, ENERGY, NORM = "accuracy", "energy", "norm"
SOFTENED = {"soft": occupancy.sigmoid, "straight-through": occupancy.straight_through}
"""Suffix of a name -> lambda -> the occupancy that is differentiated (LGM)."""
LAMBDAS = (1.0, 3.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Threat:
    """The ball of an evaluation: ``linf``, ``l2`` or ``l1``, radius in units of [0, 1] pixels."""

    norm: str
    eps: float


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long the attacks search. The defaults are AutoAttack's standard, and GradAuto's release.

    Attributes:
      steps: of all attacks by gradients but those of `energy_steps`, and of SPSA.
      targets: wrong classes that APGD-T and FAB-T try.
      queries: of Square and RayS.
      energy_steps: of GradAuto, ILFO, GradMDM; `steps` is that of the energy attack in the ball.
      lambdas: steepness of the softened gates, tried side by side; the worst counts.
    """

    steps: int = 100
    targets: int = 9
    queries: int = 5000
    energy_steps: int = 300
    lambdas: tuple[float, ...] = LAMBDAS

    def __post_init__(self) -> None:
        for name in ("steps", "targets", "queries", "energy_steps"):
            _validate.positive_int(name, getattr(self, name))
        if not isinstance(self.lambdas, Sequence) or not self.lambdas:
            raise ValueError(f"lambdas: got {self.lambdas!r}, expected at least one, e.g. (1.0, 10.0)")
        for lam in self.lambdas:
            _validate.positive("lambdas", lam)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One attack of an evaluation.

    Its kind is ``accuracy``: in the ball, over for an example once it is broken; ``energy``: of every example;
    ``norm``: the smallest perturbation, of every example, for the curve over eps.
    """

    name: str  # e.g. ``apgd-ce`` or ``apgd-ce@soft``
    kind: str
    attack: Attack
    # lambda -> the occupancy that is differentiated; None: the one that is judged
    soften: Callable[[jax.typing.ArrayLike], Occupancy] | None = None
    note: str = ""  # what the result says about it


RESTARTS = 5  # of the attacks ``NAME-5`` of AutoAttack's plus, and of APGD in its L1
L1_TARGETS, L1_RADII = 5, (3.0, 2.0, 1.0)  # what else AutoAttack changes in the L1 ball


def _course(t: Threat, b: Budget) -> attacks.Course:
    """So few steps that a radius would have none: the last radius alone."""
    return attacks.Course(L1_RADII if t.norm == "l1" and b.steps > 4 else (1.0,), keep="error")


def _apgd(t: Threat, b: Budget, objective: str, restarts: int = 1) -> Attack:
    count = RESTARTS if t.norm == "l1" else restarts
    return attacks.apgd(t.eps, b.steps, restarts=count, norm=t.norm, objective=objective, course=_course(t, b))


def _apgd_t(t: Threat, b: Budget, n: int) -> Attack:
    count = min(b.targets, n - 1, L1_TARGETS if t.norm == "l1" else n)
    return attacks.apgd_t(t.eps, b.steps, norm=t.norm, target_classes=count, course=_course(t, b))


ATTACKS: dict[str, tuple[str, Callable[[Threat, Budget, int], Attack]]] = {
    "apgd-ce": (ACCURACY, lambda t, b, n: _apgd(t, b, "ce")),
    "apgd-dlr": (ACCURACY, lambda t, b, n: _apgd(t, b, "dlr")),
    "apgd-ce-5": (ACCURACY, lambda t, b, n: _apgd(t, b, "ce", RESTARTS)),
    "apgd-dlr-5": (ACCURACY, lambda t, b, n: _apgd(t, b, "dlr", RESTARTS)),
    "apgd-t": (ACCURACY, _apgd_t),
    "fab-5": (ACCURACY, lambda t, b, n: attacks.fab(t.eps, b.steps, restarts=RESTARTS, norm=t.norm)),
    "fab-t": (
        ACCURACY,
        lambda t, b, n: attacks.fab_t(t.eps, b.steps, norm=t.norm, target_classes=min(b.targets, n - 1)),
    ),
    "square": (ACCURACY, lambda t, b, n: attacks.square(t.eps, b.queries, norm=t.norm)),
    "rays": (ACCURACY, lambda t, b, n: attacks.rays(t.eps, b.queries)),
    "spsa": (ACCURACY, lambda t, b, n: attacks.spsa(t.eps, b.steps, norm=t.norm)),
    "fgsm": (ACCURACY, lambda t, b, n: attacks.fgsm(t.eps, norm=t.norm)),
    "pgd": (ACCURACY, lambda t, b, n: attacks.pgd(t.eps, t.eps / 4, b.steps, norm=t.norm)),
    "bim": (ACCURACY, lambda t, b, n: attacks.bim(t.eps, t.eps / 4, b.steps, norm=t.norm)),
    "energy-apgd": (
        ENERGY,
        lambda t, b, n: attacks.apgd(t.eps, b.steps, norm=t.norm, objective=objectives.energy(), attack_all=True),
    ),
    "grad-auto": (ENERGY, lambda t, b, n: attacks.grad_auto(steps=b.energy_steps)),
    "ilfo": (ENERGY, lambda t, b, n: attacks.ilfo(steps=b.energy_steps, learning_rate=0.01)),
    "grad-mdm": (ENERGY, lambda t, b, n: attacks.grad_mdm(steps=b.energy_steps)),
    "fmn": (NORM, lambda t, b, n: attacks.fmn(b.steps, norm=t.norm)),
    "ddn": (NORM, lambda t, b, n: attacks.ddn(b.steps)),
}
"""Name -> (kind, (threat, budget, classes) -> attack)."""

LEADED = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "fgsm", "pgd", "bim", "energy-apgd", "fmn", "ddn")
"""Attacks by gradients, that LGM can lead: ``NAME@soft`` and ``NAME@straight-through``."""
_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
_LED = ("apgd-ce@straight-through", "apgd-ce@soft", "apgd-t@straight-through", "apgd-t@soft", "fab-t@straight-through")
PLANS: dict[str, tuple[str, ...]] = {
    "standard": _STANDARD,
    "plus": ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "dynamics": (*_STANDARD, *_LED),
    "energy": ("energy-apgd", "energy-apgd@straight-through", "grad-auto", "ilfo", "grad-mdm"),
    "curve": ("fmn",),
}
"""``standard``, ``plus``, ``rand`` (of networks that draw): AutoAttack's; ``dynamics``: the first, led by LGM too;
``energy``; ``curve``: accuracy at every eps."""
NEED_CLASSES = {"apgd-dlr": 3, "apgd-dlr-5": 3, "apgd-t": 4}
ONLY = {"rays": "linf", "ddn": "l2"}  # attacks of one norm


def names_of(wanted: str | Sequence[str]) -> tuple[str, ...]:
    """Names of attacks and of plans, separated by commas, -> names of attacks, each once.

    Raises:
      ValueError, TypeError: unknown, with the nearest names; no names.
    """
    if not isinstance(wanted, Sequence) or not all(isinstance(part, str) for part in wanted):
        raise TypeError(f"attacks: got {wanted!r}, expected names, e.g. 'standard,energy'")
    parts = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    names: list[str] = []
    for part in (p.strip() for p in parts):
        base, at, soft = part.partition("@")
        known = part in PLANS or (base in ATTACKS and (not at or (soft in SOFTENED and base in LEADED)))
        if not known:
            leaded = [f"{name}@{kind}" for name in LEADED for kind in SOFTENED]
            near = difflib.get_close_matches(part, [*PLANS, *ATTACKS, *leaded], 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"expected some of {', '.join([*PLANS, *ATTACKS])}"
            raise ValueError(f"attacks: got {part!r}, {hint}")
        names += [name for name in PLANS.get(part, (part,)) if name not in names]
    return tuple(names)


def plan(
    wanted: str | Sequence[str], threat: Threat, budget: Budget, subject: Subject, shape: Output
) -> tuple[Entry, ...]:
    """The entries of an evaluation.

    Args:
      wanted: see `names_of`.
      subject: says whether it takes an occupancy, and ``tap=``: GradMDM has its nodes there, where every unit is one
        gate, and its losses alone elsewhere.
      shape: of its output.

    Raises:
      ValueError: an unknown name; DLR with too few classes; energy, or LGM, of a network without adaptive units; an
        attack of another norm.
    """
    entries, classes, trace = [], shape.logits.shape[-1], shape.trace
    taps = "tap" in subject.takes and not subject.stochastic and all(unit.score.ndim == 1 for unit in trace.units)
    for name in names_of(wanted):
        base, _, soft = name.partition("@")
        kind, make = ATTACKS[base]
        if classes < (least := NEED_CLASSES.get(base, 2)):
            raise ValueError(
                f"attacks: got {name} for {classes} classes, expected at least {least} (its DLR loss compares "
                "that many); name others, e.g. --attacks apgd-ce,square"
            )
        if kind == ENERGY:
            try:
                objectives.check_adaptive(trace)
            except ValueError as error:
                raise ValueError(f"attacks: got {name}; {error}") from None
        if soft and not (trace.units and "occupancy" in subject.takes):
            raise ValueError(f"attacks: got {name}, but the network has no gates to soften; leave {name!r} out")
        if threat.norm != ONLY.get(base, threat.norm):
            raise ValueError(f"attacks: got {name} in the {threat.norm} norm, expected {ONLY[base]}, or leave it out")
        attack, note = make(threat, budget, classes), ""
        if base == "grad-mdm" and not taps:
            attack, note = attacks.grad_mdm(steps=budget.energy_steps, even=False), "its losses alone: no gate to tap"
        entries.append(Entry(name, kind, attack, SOFTENED[soft] if soft else None, note))
    if not entries:
        raise ValueError("attacks: got none, expected at least one")
    return tuple(entries)
