"""Energy attacks: weights, losses, rectified gradients, recovery and flags, by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_NETWORKS, some_images, tiny_forward, tiny_victim, variables_for

from dyn_jax import attacks, metrics, objectives, occupancy
from dyn_jax.attacks import Rectify, domains, rectify, released
from dyn_jax.attacks.energy import PAPER
from dyn_jax.attacks.grad_mdm import node, power_norm
from dyn_jax.types import Output, Trace, UnitTrace

HARD = occupancy.hard()
QUICK = {"xla_backend_optimization_level": 0}


LAST = PAPER.replace(keep="last")


def unit(score, macs=1, logit=False, **fields):
    score = jnp.asarray(score, jnp.float32)
    extras = {"probability": jax.nn.sigmoid(score)} if logit else {}
    return UnitTrace(score, HARD(score), macs, extras=extras, **fields)


def trace_of(*units, static=0):
    return Trace(tuple(units), static)


GATES = trace_of(
    unit([2.0, -1.0], 30, logit=True),  # one gate an example
    unit([[0.5, -0.25], [1.0, 1.0]], jnp.full((2, 1), 20.0), dense_macs=40),  # two channels of up to 40
    unit([[-0.5], [-3.0]], jnp.full((2, 1), 70.0), dense_macs=90),
)


def test_weights_are_shares_of_the_multiply_adds():
    got = objectives.complexity_weights(GATES)
    np.testing.assert_allclose([np.ravel(w)[0] for w in got], np.array([30, 40, 90]) / (30 + 80 + 90), rtol=1e-6)
    assert all((np.ravel(w) == 1).all() for w in objectives.complexity_weights(GATES, "equal"))


def test_losses_by_hand():
    sigma = jax.nn.sigmoid
    off = [0.4 * 0 + 0.2 * 0.25 + 0.45 * 0.5, 0.15 * (0.5 - sigma(-1.0)) + 0.45 * 3.0]
    on = [0.15 * (sigma(2.0) - 0.5) + 0.2 * 0.5, 0.2 * 2.0]
    np.testing.assert_allclose(objectives.complexity_loss(GATES), off, rtol=1e-6)
    np.testing.assert_allclose(objectives.finished_loss(GATES), [-v for v in on], rtol=1e-6)
    raised = objectives.complexity_loss(trace_of(GATES.units[0]), tau=0.9, weights="equal")
    np.testing.assert_allclose(raised, [0.9 - sigma(2.0), 0.9 - sigma(-1.0)], rtol=1e-6)


def test_voxels_weigh_by_their_neighbours():
    """Scores are occupancy - 1/2; a voxel with three neighbours weighs three times one with a single neighbour."""
    o = jnp.array([[0.2, 0.9]])
    trace = trace_of(UnitTrace(o - 0.5, o, 7 * jnp.array([[3.0, 1.0]])))
    np.testing.assert_allclose(objectives.complexity_loss(trace), [0.75 * 0.3], rtol=1e-6)
    np.testing.assert_allclose(objectives.finished_loss(trace), [-0.25 * 0.4], rtol=1e-6)


@pytest.fixture
def nan_allowed():
    """NaN is the documented answer where nothing was saved or nothing was right."""
    with jax.debug_nans(False):
        yield


def test_recovery_by_hand(nan_allowed):
    clean = trace_of(unit([1.0, -1.0, 1.0], 30), unit([-1.0, -1.0, 1.0], 70), static=100)
    after = trace_of(unit([1.0, 1.0, 1.0], 30), unit([1.0, -1.0, -1.0], 70), static=100)
    # saved 70, 100, 0; back 70, 30, -70 (the last example saved nothing: only the ratio counts it)
    assert float(metrics.recovery(clean, after)) == pytest.approx((1 + 0.3) / 2)
    assert float(metrics.recovery(clean, after, average="ratio")) == pytest.approx((70 + 30 - 70) / 170)
    assert float(metrics.recovery(clean, after, count="units")) == pytest.approx((1 + 0.5) / 2)
    assert float(metrics.recovery(clean, after, where=jnp.array([False, True, False]))) == pytest.approx(0.3)
    assert np.isnan(metrics.recovery(after, after, where=jnp.array([True, False, False])))
    np.testing.assert_allclose(metrics.increase(clean, after), [200 / 130 - 1, 0.3, -0.35], rtol=1e-6)


def test_release_s_recovery(nan_allowed):
    """saved = 1 - (sum of rates + 1) / (L + 1); recovery = 1 - saved after / saved before, of data-set means."""
    rng = np.random.default_rng(0)
    before, after = (trace_of(*(unit(rng.normal(size=5), 9) for _ in range(4))) for _ in range(2))
    saved = [1 - (float(metrics.occupancy_rate(t).sum()) + 1) / 5 for t in (before, after)]
    expected = (saved[0] - saved[1]) / saved[0]
    assert float(metrics.recovery(before, after, count="units", average="ratio")) == pytest.approx(expected, rel=1e-5)


def test_accuracy_kept(nan_allowed):
    clean, after = jnp.eye(4), jnp.eye(4)[jnp.array([0, 2, 2, 3])].at[3, 0].set(jnp.inf)
    labels = jnp.array([0, 1, 0, 3])
    assert float(metrics.accuracy_kept(clean, after, labels)) == pytest.approx(1 / 3)


def test_rectified_gradients_in_the_plane():
    g = jnp.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0]])
    f = jnp.array([[-2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(rectify.magnitude(g, 10.0), [[6, 8], [6, 8], [0, 0], [6, 8]], rtol=1e-6)
    turned = rectify.direction(g, f)
    np.testing.assert_allclose(turned.gradient, [[0, 4], [3, 4], [0, 0], [3, 4]], atol=1e-6)
    np.testing.assert_array_equal(turned.projected, [True, False, False, False])
    np.testing.assert_allclose(released.direction_first(g, f, 10.0).gradient[0], [0, 10], rtol=1e-6)  # full length
    np.testing.assert_allclose(rectify.direction(rectify.magnitude(g, 10.0), f).gradient[0], [0, 8], atol=1e-6)
    opposite = rectify.direction(g[:1] / 3, -7 * g[:1]).gradient
    np.testing.assert_array_equal(opposite, [[0, 0]])  # not a rounding error
    np.testing.assert_allclose(rectify.cosine(g, f), [-0.6, 0.6, 0, 0], rtol=1e-6)


def test_tiny_gradients_keep_their_direction():
    """Squares of 1e-25 underflow in float32; a saturated gate's gradient must not count as zero for that."""
    g = jnp.array([[3e-25, 4e-25]])
    np.testing.assert_allclose(rectify.magnitude(g, 1.0), [[0.6, 0.8]], rtol=1e-5)


def test_only_the_exact_change_starts_at_the_clean_image():
    images = some_images(8).at[0, 0].set(0.0).at[0, 1].set(1.0)
    zero = jnp.zeros_like(images)
    threat = attacks.Box()
    change = lambda images, delta: domains.Pixels(images, threat).perturbed(delta)
    np.testing.assert_array_equal(jax.jit(change)(images, zero), images)
    folded = jax.jit(lambda delta: change(images, delta))  # the compiler's own tanh of a constant rounds otherwise
    np.testing.assert_array_equal(folded(zero), images)
    slope = jax.grad(lambda d: change(images, d).sum())(zero)
    assert float(slope.min()) > 0.009  # black and white pixels move
    for far in (-5.0, 5.0):
        x = change(images, zero + far)
        assert float(x.min()) >= 0 and float(x.max()) <= 1 and float(jnp.abs(x - images).min()) < 0.011
    printed = released.printed().change(domains.Pixels(images, threat), zero)
    np.testing.assert_allclose(printed, (jnp.tanh(images) + 1) / 2, atol=1e-6)
    grey = domains.Pixels(jnp.full((1, 1, 1, 3), 0.5), threat)
    moved = released.form().change(grey, jnp.zeros((1, 1, 1, 3)))
    np.testing.assert_allclose(moved.ravel(), [0.524, 0.564, 0.646], atol=1e-3)


def gate_forward(x, sharp=1.0, bias=-1.0):
    """Two gates that see the mean brightness and its opposite; a logit for either."""
    mean = jnp.mean(x, axis=(1, 2, 3))
    scores = (sharp * (4 * mean + bias), sharp * (3 - 4 * mean))
    units = tuple(unit(s, 10, name=f"g{i}", logit=True) for i, s in enumerate(scores))
    return Output(jnp.stack([mean, 1 - mean], axis=1), Trace(units, 5))


DARK = jnp.full((2, 4, 4, 3), 0.1).at[1].set(0.5)  # the first example has gate 0 off, the second has both on


def test_one_step_moves_as_eq_7_says():
    """Adam's first step is rate * sign(gradient): here every pixel gets brighter by the same delta."""
    w = np.arctanh(0.99 * (2 * 0.1 - 1))
    moved = 0.1 + (np.tanh(w + 0.1) - np.tanh(w)) / 2
    attack = attacks.grad_auto(steps=1, learning_rate=0.1, rectify=Rectify(direction=False), form=LAST)
    last = jax.jit(lambda x: attack(gate_forward, x))(DARK)
    np.testing.assert_allclose(last.adversarial[0], np.full((4, 4, 3), moved), rtol=1e-5)
    np.testing.assert_array_equal(last.adversarial[1], DARK[1])  # every gate is on: nothing to do, nothing done


def test_record_and_flags(nan_allowed):
    attack = attacks.grad_auto(steps=40, learning_rate=0.05)
    result = jax.jit(lambda x: attack(partial(gate_forward, bias=-1.2), x))(DARK)
    record = result.record
    assert float(metrics.recovery(result.trace_clean, result.trace_adversarial)) == 1.0
    assert (record.complexity[1] == 0).all() and not record.zero_gradient.any()
    np.testing.assert_allclose(record.cosine[0, 20:][np.asarray(record.complexity[0, 20:]) > 0], -1, atol=1e-5)
    assert (record.cosine[:, :20] == 0).all()  # before the second half nothing is projected
    np.testing.assert_allclose(record.gating[0, 0, 0], jax.nn.sigmoid(4 * 0.1 - 1.2) - 0.5, rtol=1e-4)
    assert int(record.switched_on.sum()) >= 1
    count = np.asarray(record.on[0].sum(1))
    ups, downs = np.asarray(record.switched_on[0]), np.asarray(record.switched_off[0])
    np.testing.assert_array_equal(np.diff(count), (ups - downs)[1:])


def test_saturated_gates_are_flagged():
    result = attacks.grad_auto(steps=3)(partial(gate_forward, sharp=1e3), DARK)
    assert result.record.zero_gradient[0].all() and (result.record.complexity[0] > 0).all()
    np.testing.assert_array_equal(result.adversarial, DARK)


def test_scores_reach_saturated_gates():
    """tau=None compares the scores with 0: no sigmoid, so no derivative that vanishes."""
    forward = partial(gate_forward, sharp=1e3)
    result = jax.jit(lambda x: attacks.grad_auto(tau=None, steps=40, learning_rate=0.05)(forward, x))(DARK)
    assert float(metrics.recovery(result.trace_clean, result.trace_adversarial)) == 1.0
    assert not result.record.zero_gradient.any()


def test_weights_choose_the_unit():
    """One-hot weights: only that gate is served, here the one that darkness switches on."""
    images = jnp.full((1, 4, 4, 3), 0.9)  # gate 0 is on, gate 1 off
    run = jax.jit(lambda w: attacks.grad_auto(weights=w, steps=3, form=LAST)(gate_forward, images).record)
    assert (run(jnp.array([1.0, 0.0])).complexity == 0).all()
    assert (run(jnp.array([0.0, 1.0])).complexity > 0).all()
    with pytest.raises(ValueError, match=r"weights: got shape \(3,\), expected \(2,\)"):
        attacks.grad_auto(weights=jnp.ones(3))(gate_forward, images)


def test_squared_distance_pulls_back():
    """With a small K the square's pull, which grows, ends nearer to the clean image than the norm's, which does not."""
    far = {}
    for distance in (domains.l2, domains.squares):
        form = LAST.replace(distance=distance)
        attack = attacks.grad_auto(0.05, form=form, rectify=Rectify(direction=False), steps=60, learning_rate=0.05)
        result = jax.jit(lambda x, attack=attack: attack(partial(gate_forward, bias=-9.0), x))(DARK[:1])
        far[distance.__name__] = float(result.distance[0])
    assert far["squares"] < 0.7 * far["l2"]


def test_no_gate_on_means_no_projection():
    def forward(x):
        output = gate_forward(x)
        units = tuple(unit(u.score - 9, 10, logit=True) for u in output.trace.units)
        return output.replace(trace=output.trace.replace(units=units))

    record = attacks.grad_auto(steps=2, rectify=Rectify(begin=0))(forward, DARK).record
    assert (record.finished == 0).all() and not record.projected.any() and (record.cosine == 0).all()


def test_nan_stays_where_it_is(nan_allowed):
    def forward(x):
        output = gate_forward(x)
        broken = jnp.where(jnp.arange(2) == 0, jnp.nan, 1.0)
        units = tuple(unit(u.score * broken, 10, logit=True) for u in output.trace.units)
        return output.replace(trace=output.trace.replace(units=units))

    result = attacks.ilfo(steps=3, learning_rate=0.1)(forward, DARK.at[1].set(0.1))
    np.testing.assert_array_equal(result.steps.nonfinite.sum(1), [3, 0])
    np.testing.assert_array_equal(result.adversarial[0], DARK[0])
    assert float(jnp.abs(result.adversarial[1] - 0.1).max()) > 0.01


def test_sweep_over_k_is_a_vmap():
    def run(k):
        attack = attacks.grad_auto(k, steps=12, learning_rate=0.05, rectify=Rectify(direction=False), form=LAST)
        return attack(gate_forward, DARK).adversarial

    ks, single = jnp.array([0.02, 1.0]), jax.jit(run)
    swept = jax.jit(jax.vmap(run))(ks)
    for k, got in zip(ks, swept):
        np.testing.assert_allclose(got, single(k), atol=1e-5)
    assert float(jnp.abs(swept[0] - swept[1]).max()) > 1e-3


def test_keeps_the_logits_when_asked():
    @jax.jit
    def drift(weight):
        attack = attacks.grad_auto(steps=30, learning_rate=0.05, form=PAPER.replace(keep_logits=weight))
        result = attack(gate_forward, DARK)
        return objectives.logit_drift(Output(result.logits_adversarial), result.logits_clean).max()

    assert float(drift(1e5)) < 0.5 * float(drift(0.0))


def test_never_executes_less_than_the_clean_image():
    attack = attacks.grad_auto(steps=6, learning_rate=0.3)
    result = jax.jit(lambda x: attack(tiny_forward, x, victim=tiny_victim))(some_images(4, 8, seed=2))
    executed = [metrics.executed_macs(t) for t in (result.trace_clean, result.trace_adversarial)]
    assert (executed[1] >= executed[0]).all() and (executed[1] > executed[0]).any()


def test_labels_may_be_left_out():
    result = jax.jit(lambda x: attacks.bim(0.3, 0.1, 3)(tiny_forward, x))(some_images(4, 4))
    assert not result.clean_success.any() and result.success.any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: attacks.grad_auto(0.0), "lipschitz: got 0.0, expected a positive"),
        (lambda: attacks.grad_auto(float("nan")), "lipschitz: got nan"),
        (lambda: attacks.grad_auto(tau=1.0), r"tau: got 1.0, expected a number in \(0, 1\)"),
        (lambda: attacks.ilfo(learning_rate=-1.0), "learning_rate: got -1.0"),
        (lambda: attacks.grad_auto(weights="flops"), "weights: got 'flops'"),
        (lambda: PAPER.replace(keep="best"), "keep: got 'best'"),
        (lambda: attacks.grad_mdm(active=0.0), "active: got 0.0"),
        (lambda: objectives.energy(tau=-0.1), "tau: got -0.1"),
        (lambda: attacks.grad_auto(-1.0, eps=0.1), "lipschitz: got -1.0"),
        (lambda: attacks.grad_auto()(lambda x: x.sum((1, 2)), DARK), "without adaptive units"),
        (lambda: attacks.ilfo()(gate_forward, DARK, targets=jnp.zeros(2, int)), "targets: got"),
        (lambda: attacks.ilfo()(gate_forward, DARK, start=DARK), "start: got some"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_grad_mdm_needs_a_tap_for_its_nodes():
    with pytest.raises(TypeError, match="does not take tap=, expected a network that does"):
        attacks.grad_mdm(steps=1)(gate_forward, DARK)


def test_node_by_hand():
    """Trunk and gate gradients get unit length, the trunk's times the count; what runs against the kept one goes."""
    x, zero, one = jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.ones(())

    def total(x, token, against, working):
        trunk, gate = node(x, token, jnp.array([3.0]), against, working)
        return (trunk * jnp.array([[6.0, 8.0]])).sum() + (gate * jnp.array([[0.0, -5.0]])).sum()

    both = jax.grad(total, argnums=(0, 1))
    np.testing.assert_allclose(both(x, zero, zero, one)[0], [[1.8, 2.4 - 1]], rtol=1e-6)
    np.testing.assert_allclose(both(x, zero, zero, one)[1], [[1.8, 1.4]], rtol=1e-6)  # what the node passed on
    np.testing.assert_allclose(both(x, zero, jnp.array([[0.0, -7.0]]), one)[0], [[1.8, 0.0]], atol=1e-6)
    np.testing.assert_allclose(both(x, zero, zero, 0 * one)[0], [[6.0, 3.0]], rtol=1e-6)


def test_power_norm():
    x = jnp.array([[0.3, 0.4, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(power_norm(x, 2.0), [0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(power_norm(1e-3 * x, 50.0)[0], 4e-4, rtol=1e-5)  # 4e-4^50 underflows
    gradient = jax.grad(lambda x: power_norm(x, 2.0).sum())(x)
    np.testing.assert_allclose(gradient, [[0.6, 0.8, 0], [0, 0, 0]], rtol=1e-6)


def test_grad_mdm_on_skipnet():
    """The nodes change the gradient and nothing else: the first ten steps are the plain ones."""
    net = ALL_NETWORKS["skipnet rnn rl"]
    variables = variables_for(net, 16, seed=3)  # with these a gate is off

    def run(even):
        attack = attacks.grad_mdm(even=even, steps=14, form=LAST.replace(distance=domains.squares), learning_rate=0.02)
        forward = lambda x, **options: net.apply(variables, x, occupancy=HARD, **options)
        compiled = jax.jit(lambda x: attack(forward, x).record, compiler_options=QUICK)
        return compiled(some_images(16)).complexity_norm.T

    evened, plain = run(True), run(False)
    np.testing.assert_allclose(evened[:10], plain[:10], rtol=1e-3)
    assert (jnp.abs(evened[10:] / plain[10:] - 1) > 0.1).all()
