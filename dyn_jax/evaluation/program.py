"""What only JAX can see: the traced program of a network as a graph, and questions about the gradient's way through it.

`trace` gives the program with every call, loop and branch laid open. All questions are then about paths: a *value* path
leads from a variable to all that is computed from it; a *gradient* path is one along which reverse-mode differentiation
passes something on: floating point throughout, and no equation whose derivative is zero by definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

CALLS = ("jit", "pjit", "closed_call", "core_call", "core_closed_call", "remat", "remat2", "checkpoint", "shard_map")
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin")
COMPARISONS = ("lt", "le", "gt", "ge")
CHOICES = ("argmax", "argmin")
STEPS = ("round", "floor", "ceil", "sign", *CHOICES)
RANDOM = ("random_bits", "random_gamma", "threefry2x32", "rng_uniform", "rng_bit_generator")
CALLBACKS = ("pure_callback", "io_callback")
_CUT = "stop_gradient"
_FLAT = (*COMPARISONS, *STEPS, "eq", "ne", "is_finite", _CUT)  # derivative zero by definition
_SHAPES = ("reshape", "squeeze", "broadcast_in_dim", "transpose", "convert_element_type", "copy", "link")
_ELEMENTWISE = (*_SHAPES, "abs", "neg", "add", "sub", "mul", "div", "integer_pow", "square")


class Equation(NamedTuple):
    """One equation; variables are numbers of the program."""

    name: str  # of the primitive; ``link`` only passes a value on (into and out of loops and branches)
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: Any = None  # the equation of the jaxpr, None for a link
    custom: bool = False  # it lies inside a function with a derivative of its own (``custom_vjp``, ``custom_jvp``)
    differentiated: bool = False  # it was made by a differentiation inside the network
    loop: bool = False  # it lies inside ``scan`` or ``while``


class Program:
    """A traced network, laid open; its arguments are the first variables.

    Variables are numbers: `avals` has one for each, `constants` the values of constants and literals. `images` and
    `key` (None where the network takes none) are the arguments, `logits` and `scores` what comes out.
    """

    def __init__(self, closed: Any, *, takes_key: bool = False) -> None:
        opener = _Opener()
        arguments = [opener.new(v.aval) for v in closed.jaxpr.invars]
        self.images, self.key = arguments[0], arguments[1] if takes_key else None
        self.logits, *self.scores = opener.inline(closed, arguments)
        self.equations, self.avals, self.constants = opener.equations, opener.avals, opener.constants
        self._makers: dict[int, list[Equation]] = {}
        self._users: dict[int, list[Equation]] = {}
        self._known: dict[tuple, set[int]] = {}
        for equation in self.equations:
            for variable in equation.outputs:
                self._makers.setdefault(variable, []).append(equation)
            for variable in set(equation.inputs):
                self._users.setdefault(variable, []).append(equation)

    def depending_on(self, *variables: int) -> set[int]:
        """Everything computed from one of them, themselves included."""
        return self._reach("depending", variables, self._users, lambda equation, _: equation.outputs)

    def used_for(self, variable: int, cut: bool = False) -> set[int]:
        """Everything that `variable` is computed from; `cut`: not through ``stop_gradient``."""
        follow = lambda equation, _: () if cut and equation.name == _CUT else equation.inputs
        return self._reach(f"used {cut}", (variable,), self._makers, follow)

    def differentiable_from(self, variable: int) -> set[int]:
        """Everything that has a gradient path to `variable`."""

        def follow(equation: Equation, of: int) -> Iterable[int]:
            if equation.name in _FLAT or equation.custom or not self._inexact(of):
                return ()
            if equation.name in CUSTOM and set(equation.inputs) & set(self.scores) and _is_flat(equation.source):
                return ()
            return filter(self._inexact, equation.inputs)

        return self._reach("differentiable", (variable,), self._makers, follow)

    def aliases(self, variable: int, names: tuple[str, ...] = _SHAPES) -> set[int]:
        """What `variable` is made of by the equations `names` alone (and constants); default: the same numbers."""
        depends = self.depending_on(self.images)
        found, stack = {variable}, [variable]
        while stack:
            for equation in self._makers.get(stack.pop(), ()):
                moving = {v for v in equation.inputs if v in depends and self._inexact(v)}
                if equation.name in names and (len(moving) == 1 or equation.name == "concatenate"):
                    stack += moving - found
                    found |= moving
        return found

    def value(self, variable: int) -> Any:
        """A variable's value where plain equations make it of constants; None where arguments or draws come in."""
        if variable in self.constants:
            return self.constants[variable]
        makers = self._makers.get(variable, ())
        if len(makers) != 1:
            return None
        (equation,) = makers
        values = [self.value(v) for v in equation.inputs]
        if any(v is None for v in values) or equation.name in (*CUSTOM, *RANDOM, *CALLBACKS):
            return None
        if equation.source is None:
            return values[0]
        made = equation.source.primitive.bind(*map(jnp.asarray, values), **equation.source.params)
        return (made if equation.source.primitive.multiple_results else [made])[equation.outputs.index(variable)]

    def _inexact(self, variable: int) -> bool:
        dtype = getattr(self.avals[variable], "dtype", None)
        return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)

    def _reach(self, what: str, start: tuple[int, ...], by: dict[int, list[Equation]], follow: Callable) -> set[int]:
        if (what, start) in self._known:
            return self._known[what, start]
        found = self._known[what, start] = set(start)
        stack = list(found)
        while stack:
            variable = stack.pop()
            for equation in by.get(variable, ()):
                new = set(follow(equation, variable)) - found
                found |= new
                stack += new
        return found


def trace(forward: Callable[..., tuple[jax.Array, tuple]], images: Any, key: Any = None) -> tuple[Any, Program]:
    """``forward(images)`` or ``forward(images, key)`` -> (logits, scores), traced: (closed jaxpr, `Program`)."""
    closed = jax.make_jaxpr(forward)(images, *(() if key is None else (key,)))
    return closed, Program(closed, takes_key=key is not None)


class _Opener:
    """Lays a jaxpr open: calls are inlined, loops and branches become links."""

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.avals: list[Any] = []
        self.constants: dict[int, Any] = {}

    def new(self, aval: Any, *constant: Any) -> int:
        self.avals.append(aval)
        if constant:
            self.constants[len(self.avals) - 1] = constant[0]
        return len(self.avals) - 1

    def link(self, sources: Iterable[int], targets: Iterable[int], **flags: bool) -> None:
        self.equations += [Equation("link", (a,), (b,), **flags) for a, b in zip(sources, targets, strict=True)]

    def inline(self, closed: Any, arguments: Iterable[int], **flags: bool) -> list[int]:
        """Adds the equations of a jaxpr called with these variables; returns those of its results."""
        jaxpr = getattr(closed, "jaxpr", closed)
        constants = getattr(closed, "consts", ())
        known = {var: self.new(var.aval, value) for var, value in zip(jaxpr.constvars, constants)}
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> int:
            return self.new(atom.aval, atom.val) if isinstance(atom, jex.Literal) else known[atom]

        for equation in jaxpr.eqns:
            inputs = tuple(read(atom) for atom in equation.invars)
            outputs = tuple(self.new(var.aval) for var in equation.outvars)
            known |= dict(zip(equation.outvars, outputs))
            within = dict(flags)
            if any(word in str(equation.source_info.name_stack) for word in ("transpose(", "jvp(")):
                within["differentiated"] = True
            self.add(equation, inputs, outputs, within)
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, equation: Any, inputs: tuple[int, ...], outputs: tuple[int, ...], flags: dict[str, bool]) -> None:
        name, params = equation.primitive.name, equation.params
        if name in CALLS and (inner := params.get("jaxpr", params.get("call_jaxpr"))) is not None:
            self.link(self.inline(inner, inputs, **flags), outputs, **flags)
        elif name == "scan":
            fixed, carried = _of_scan(params)
            body = params["jaxpr"].jaxpr.invars
            into = [self.new(var.aval) for var in body[fixed:]]
            self.link(inputs[fixed:], into, **flags)
            made = self.inline(params["jaxpr"], (*inputs[:fixed], *into), **{**flags, "loop": True})
            self.link(made[:carried], into[:carried], **flags)
            self.link(inputs[fixed : fixed + carried], outputs[:carried], **flags)
            self.link(made, outputs, **flags)
        elif name == "while":
            first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
            carry = [self.new(self.avals[v]) for v in inputs[second:]]
            self.link(inputs[second:], carry, **flags)
            inside = {**flags, "loop": True}
            made = self.inline(params["body_jaxpr"], (*inputs[first:second], *carry), **inside)
            (goes_on,) = self.inline(params["cond_jaxpr"], (*inputs[:first], *carry), **inside)
            self.link(made, carry, **flags)
            self.link(carry, outputs, **flags)
            self.equations += [Equation("link", (goes_on,), (out,), **flags) for out in outputs]
        elif name == "cond":
            for branch in params["branches"]:
                self.link(self.inline(branch, inputs[1:], **flags), outputs, **flags)
            self.equations += [Equation("link", inputs[:1], (out,), **flags) for out in outputs]
        else:
            self.equations.append(Equation(name, inputs, outputs, equation, **flags))
            inner = params.get("call_jaxpr", params.get("fun_jaxpr")) if name in CUSTOM else None
            if inner is not None:  # its derivative is its own; what it computes is looked at all the same
                self.link(self.inline(inner, inputs, **{**flags, "custom": True}), outputs, **{**flags, "custom": True})


def _of_scan(params: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()  # from jax 0.12 on
    return len(constants), len(carried)


def _is_flat(source: Any) -> bool:
    """Whether the derivative that a ``custom_vjp`` or ``custom_jvp`` states is zero whatever comes back: a step.

    Asked of what stands between a score and its unit only; to ask everywhere would trace every layer's backward pass.
    """
    params = source.primitive.get_bind_params(source.params)
    arguments = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in source.invars]

    def backward(arguments: list, cotangents: list) -> list:
        return jax.vjp(lambda *xs: source.primitive.bind(*xs, **params), *arguments)[1](cotangents)

    cotangents = [jnp.ones(v.aval.shape, v.aval.dtype) for v in source.outvars]
    jaxpr = jax.make_jaxpr(backward)(arguments, cotangents)
    derivative = Program(jaxpr)
    coming_back = range(len(arguments), len(jaxpr.jaxpr.invars))
    return not derivative.depending_on(*coming_back).intersection((derivative.logits, *derivative.scores))


def reaches_logits(program: Program) -> bool:
    """Whether there is a gradient path from the images to the logits at all."""
    return program.images in program.differentiable_from(program.logits)


def random_draws(program: Program) -> tuple[list[str], list[str]]:
    """Random numbers that the logits use but not the program's key: (under a constant key, under one of the input)."""
    used = program.used_for(program.logits)
    of_key = set() if program.key is None else program.depending_on(program.key)
    of_images = program.depending_on(program.images)
    frozen, seeded = [], []
    for equation in program.equations:
        if equation.name in RANDOM and used.intersection(equation.outputs) and not of_key.intersection(equation.inputs):
            text = f"{equation.name}{list(program.avals[equation.outputs[0]].shape)}"
            (seeded if of_images.intersection(equation.inputs) else frozen).append(text)
    return frozen, seeded


def noise_constants(program: Program) -> list[str]:
    """Constants of the image's size that are added to it or multiply it and look like noise: frozen draws.

    Looks like noise: neighbouring pixels are not correlated (a mean image, or a mask, is smooth).
    """
    shape = program.avals[program.images].shape
    depends = program.depending_on(program.images)
    used = program.used_for(program.logits)
    found = []
    for equation in program.equations:
        if equation.name not in ("add", "sub", "mul") or not used.intersection(equation.outputs):
            continue
        moving = [v for v in equation.inputs if v in depends and program.avals[v].shape == shape]
        fixed = [v for v in equation.inputs if v not in depends]
        if not moving or not fixed or np.prod(program.avals[fixed[0]].shape) < np.prod(shape[1:3]):
            continue
        value = program.value(fixed[0])
        if value is not None and _is_noise(np.broadcast_to(np.asarray(value), shape)[0]):
            found.append(f"constant{list(np.shape(value))}, standard deviation {np.std(np.asarray(value)):.3g}")
    return found


def _is_noise(image: np.ndarray) -> bool:
    image = image.astype(np.float64)
    image = image - image.mean((0, 1))
    power = np.mean(image**2)
    if min(image.shape[:2]) < 4 or not power > 1e-10:
        return False
    neighbours = (np.mean(image[1:] * image[:-1]), np.mean(image[:, 1:] * image[:, :-1]))
    return bool(np.max(np.abs(neighbours)) < 0.3 * power)


def gradients_inside(program: Program) -> tuple[int, bool]:
    """(equations, used for the logits, that a differentiation inside the network made; whether inside a loop)."""
    used = program.used_for(program.logits)
    made = [e for e in program.equations if e.differentiated and used.intersection(e.outputs)]
    return len(made), any(e.loop for e in made)


def hard_gates(program: Program) -> list[int]:
    """Units whose score decides about the logits but has no gradient path to them."""
    used, live = program.used_for(program.logits), program.differentiable_from(program.logits)
    depends = program.depending_on(program.images)
    return [
        i
        for i, score in enumerate(program.scores)
        if score in depends and not live & (same := program.aliases(score)) and used & same
    ]


def hard_operations(program: Program) -> list[str]:
    """Operations without derivative (`STEPS`, comparisons, casts to integers) that a gradient is lost in.

    Counted is one whose operand depends on the images and has no other gradient path to the logits: a ReLU written with
    ``where(x > 0, x, 0)``, a maximum, ``x * (x > t)`` pass x on themselves, and so does a straight-through step. Gates
    of the trace are left to `hard_gates`.
    """
    used, live = program.used_for(program.logits), program.differentiable_from(program.logits)
    used_uncut = program.used_for(program.logits, cut=True)
    depends = program.depending_on(program.images)
    gates = set().union(*map(program.aliases, program.scores))
    found = []
    for equation in program.equations:
        operands = [v for v in equation.inputs if v in depends and program._inexact(v)]
        if equation.custom or not operands or not used.intersection(equation.outputs):
            continue
        cast, made = equation.name == "convert_element_type", program.avals[equation.outputs[0]]
        if not (jnp.issubdtype(made.dtype, jnp.integer) if cast else equation.name in STEPS + COMPARISONS):
            continue
        # what is cut off on its way may have a surrogate beside it: x + stop_gradient(round(15 x) / 15 - x)
        through = equation.name in COMPARISONS or not used_uncut.intersection(equation.outputs)
        way = _ELEMENTWISE if through else (*_SHAPES, "concatenate") if equation.name in CHOICES else ()
        roots = set().union(*(program.aliases(v, way) for v in operands))
        shown = set().union(*map(program.aliases, operands))
        if not live & roots and not gates & shown:
            found.append(f"{equation.name}{list(program.avals[operands[0]].shape)}")
    return found
