"""What training lowers: by hand on small cases, lowest at the targets, and blind where nothing falls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.losses import class_loss, stroke_loss

N_FRAMES = 6


def logit(p):
    return np.log(p) - np.log1p(-np.asarray(p))


def entropy(p, target):
    """Cross-entropy of a probability, in nats."""
    return -(target * np.log(p) + (1 - target) * np.log1p(-p))


def two_strokes() -> FrameTargets:
    """At frames 1 and 4 of one clip; the second is a grace note."""
    zeros = np.zeros((1, N_FRAMES), np.float32)
    onset, velocity, grace, density = zeros.copy(), zeros.copy(), zeros.copy(), zeros + np.float32(0.05)
    onset[0, [1, 4]], velocity[0, [1, 4]], grace[0, 4] = 1, (0.8, 0.3), 1
    return FrameTargets(onset, velocity, grace, density)


def test_class_loss_by_hand():
    """ln 2 of a pair that is not told apart; a soft target costs its share of each."""
    logits = jnp.log(jnp.array([[0.5, 0.5, 1e-20], [0.7, 0.2, 0.1]]))
    targets = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    expected = (np.log(2) - 0.5 * (np.log(0.7) + np.log(0.2))) / 2
    assert float(class_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)


def test_stroke_loss_by_hand():
    """Onset and density of every frame, velocity and grace of the two that are struck, over three."""
    targets, rng = two_strokes(), np.random.default_rng(0)
    heard = FrameTargets(*rng.uniform(0.05, 0.95, (4, 1, N_FRAMES)))
    everywhere = entropy(heard.onset, targets.onset) + entropy(heard.density, targets.density)
    where_struck = entropy(heard.velocity, targets.velocity) + entropy(heard.grace, targets.grace)
    expected = (everywhere.sum() + where_struck[0, 1] + where_struck[0, 4]) / 3
    logits = FrameTargets(*(jnp.asarray(logit(x), jnp.float32) for x in heard))
    assert float(stroke_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)


def test_silence_heard_as_silence_costs_hardly_anything():
    """And is divided by one, not by zero."""
    silence = FrameTargets(*jnp.zeros((4, 2, 50)))
    assert float(stroke_loss(FrameTargets(*jnp.full((4, 2, 50), -12.0)), silence)) < 2e-3
    assert float(stroke_loss(FrameTargets(*jnp.zeros((4, 2, 50))), silence)) == pytest.approx(200 * np.log(2), rel=1e-5)


def test_the_targets_themselves_cost_least():
    """Any step away from the targets' own logits costs more, for each of the four alone."""
    targets = two_strokes()
    best = FrameTargets(*(jnp.asarray(logit(np.clip(x, 1e-4, 1 - 1e-4)), jnp.float32) for x in targets))
    least = float(stroke_loss(best, targets))
    struck = np.asarray(targets.onset)
    for name in FrameTargets._fields:
        for step in (-0.5, 0.5):
            # Beyond a target of 0 or 1 it would still fall by the last 1e-4: only steps towards the other side.
            target = np.asarray(getattr(targets, name))
            towards = np.where((target == 0) == (step < 0), 0, step) if name != "velocity" else step * struck
            if not np.any(towards) or (not np.any(towards * struck) and name == "grace"):
                continue
            moved = best._replace(**{name: getattr(best, name) + towards})
            assert float(stroke_loss(moved, targets)) > least, (name, step)


@pytest.mark.parametrize("name", ["velocity", "grace"])
def test_where_nothing_is_struck_velocity_and_grace_do_not_count(name):
    targets = two_strokes()
    rng = np.random.default_rng(1)
    logits = FrameTargets(*jnp.asarray(rng.normal(size=(4, 1, N_FRAMES)), jnp.float32))
    elsewhere = jnp.asarray(5 * rng.normal(size=(1, N_FRAMES)) * (targets.onset == 0), jnp.float32)
    changed = logits._replace(**{name: getattr(logits, name) + elsewhere})
    assert float(stroke_loss(changed, targets)) == float(stroke_loss(logits, targets))
    slope = getattr(jax.grad(stroke_loss)(logits, targets), name)
    assert (np.asarray(slope)[targets.onset == 0] == 0).all()
    assert (np.asarray(slope)[targets.onset == 1] != 0).all()


def test_the_gradient_leads_to_the_targets():
    """Going down it from silence, what is heard becomes what fell, where it counts."""
    targets = two_strokes()
    logits = FrameTargets(*jnp.zeros((4, 1, N_FRAMES)))
    descend = jax.jit(
        lambda x: jax.tree.map(
            lambda a, g: a - 3.0 * g, x, jax.grad(functools.partial(stroke_loss, targets=targets))(x)
        )
    )
    for _ in range(300):
        logits = descend(logits)
    heard, struck = FrameTargets(*map(jax.nn.sigmoid, logits)), targets.onset == 1
    np.testing.assert_allclose(heard.onset, targets.onset, atol=0.01)
    np.testing.assert_allclose(heard.density, targets.density, atol=0.01)
    np.testing.assert_allclose(heard.velocity[struck], targets.velocity[struck], atol=0.01)
    np.testing.assert_allclose(heard.grace[struck], targets.grace[struck], atol=0.01)


def test_a_stroke_costs_the_same_among_few_frames_and_many():
    """Silence around a stroke that is heard as such adds nothing."""
    targets = two_strokes()
    rng = np.random.default_rng(2)
    logits = FrameTargets(*jnp.asarray(rng.normal(size=(4, 1, N_FRAMES)), jnp.float32))
    longer = FrameTargets(*(jnp.pad(x, ((0, 0), (0, 500)), constant_values=-30.0) for x in logits))
    padded = FrameTargets(*(np.pad(x, ((0, 0), (0, 500))) for x in targets))
    assert float(stroke_loss(longer, padded)) == pytest.approx(float(stroke_loss(logits, targets)), rel=1e-6)
