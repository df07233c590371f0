"""A student learns what teachers answer about the very view it hears; nothing of a teacher changes or is kept."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal
from test_train import last_state, tiny_config

from configs import distill_efficientat
from sousa_jax import checkpoint, distill, models, start, train
from sousa_jax.augment import features_and_targets
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError
from sousa_jax.step import TrainState, make_train_step

RATE = 32_000


def test_the_loss_by_hand():
    """Two classes, T = 2: student 0.5 / 0.5, teacher 0.75 / 0.25. KL = 0.75 ln 1.5 + 0.25 ln 0.5."""
    logits, teacher = jnp.zeros((1, 2)), jnp.array([[0.75, 0.25]])
    expected = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert distill.distillation_loss(logits, teacher, 2.0) == pytest.approx(expected, rel=1e-6)
    sure = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    assert distill.distillation_loss(jnp.zeros((2, 2)), sure, 1.0) == pytest.approx(np.log(2), rel=1e-6)
    agreed = jax.nn.softmax(jnp.array([[3.0, -1.0]]) / 4)
    assert distill.distillation_loss(jnp.array([[3.0, -1.0]]), agreed, 4.0) == pytest.approx(0, abs=1e-6)


def test_its_gradient_is_that_of_the_published_formula():
    """T² · ∂KL/∂z = T · (softmax(z / T) - p), by the mean over the batch."""
    logits = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.3, 9.0]])
    teacher = jax.nn.softmax(jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    found = jax.grad(distill.distillation_loss)(logits, teacher, 4.0)
    np.testing.assert_allclose(found, 4.0 * (jax.nn.softmax(logits / 4.0) - teacher) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rate", "wanted"), [(32_000, 16_000), (16_000, 32_000), (32_000, 22_050)])
def test_resampling_is_that_of_scipy_and_keeps_a_tone(rate, wanted):
    n = rate // 2
    tone = lambda r: np.sin(2 * np.pi * 440 * np.arange(r // 2) / r).astype(np.float32)  # noqa: E731
    noise = np.random.default_rng(0).normal(size=(2, n)).astype(np.float32)
    np.testing.assert_allclose(distill.resample(tone(rate)[None], rate, wanted)[0], tone(wanted), atol=1e-4)
    expected = scipy.signal.resample(noise, wanted // 2, axis=1)
    error = np.abs(np.asarray(distill.resample(noise, rate, wanted)) - expected)
    assert error.max() < 0.02, "the one bin in the middle is shared out otherwise"
    np.testing.assert_array_equal(distill.resample(noise, rate, rate), noise)


# ------------------------------------------------------------------------------------------------------ what is heard


@functools.cache
def random_model(name: str, seed: int = 0) -> checkpoint.Model:
    config = tiny_config(name)
    model_config = start.network(config)
    return checkpoint.Model(name, model_config, *models.init(name, model_config, seed), {})


def teacher(name, weight=1.0, seed=0):
    return distill.Teacher(f"{name}{seed}", random_model(name, seed), weight)


def batch(n=4, rate=RATE, seed=0):
    rng = np.random.default_rng(seed)
    waveform = rng.normal(0, 0.1, (n, rate // 2)).astype(np.float32)
    return {"waveform": jnp.asarray(waveform), "label": jnp.asarray(rng.integers(0, 40, n), jnp.int32)}


def said(teachers, config, given=None, key=3):
    answer = jax.jit(distill.taught(teachers, random_model("efficientat").config, config))
    return answer(distill.arrays(teachers), jax.random.key(key), given or batch())


def answers(teachers, config, given=None, key=3):
    return np.asarray(said(teachers, config, given, key).probabilities)


def test_a_teacher_hears_the_student_s_view_and_no_mask():
    """By its own frontend: the crop as it is, stretched and mixed by the same draws; neither masks nor another gain."""
    config = tiny_config("efficientat")
    config.augment.update(tempo_stretch=0.1, mixup_alpha=0.4, gain_db=6.0, freq_masks=2, time_masks=2)
    only = tiny_config("efficientat")
    only.augment.update(tempo_stretch=0.1, mixup_alpha=0.4, gain_db=0.0, freq_masks=0, time_masks=0, mel_jitter=False)
    model = random_model("efficientat")
    x, _ = features_and_targets(jax.random.key(3), batch(), 40, model.config.frontend, only)
    logits = models.apply_fn("efficientat", model.config)(model.params, model.stats, x)[0].logits
    expected = jax.nn.softmax(logits / config.distill.temperature)
    np.testing.assert_allclose(answers([teacher("efficientat")], config), expected, atol=1e-5)
    assert config.augment.freq_masks == 2, "the student's own settings stay"


def test_another_sample_rate_and_several_teachers():
    config = tiny_config("efficientat")
    one, two = (answers([t], config) for t in (teacher("efficientat"), teacher("ast")))
    both = answers([teacher("efficientat", 0.25), teacher("ast", 0.75)], config)
    np.testing.assert_allclose(both, 0.25 * one + 0.75 * two, atol=1e-6)
    assert np.abs(one - two).max() > 1e-4
    config.distill.mean = "logits"
    geometric = answers([teacher("efficientat", 0.25), teacher("ast", 0.75)], config)
    product = one**0.25 * two**0.75
    np.testing.assert_allclose(geometric, product / product.sum(1, keepdims=True), atol=1e-5)


def test_what_seems_alike_by_hand():
    """Two clips: one direction to the student, rows as (1, 2); at right angles to the teacher, the unit matrix."""
    alike, apart = jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    rows = np.array([[1, 2], [2, 4]]) / np.sqrt([[5], [20]])
    assert distill.embedding_loss(alike, apart) == pytest.approx(np.square(rows - np.eye(2)).mean(), rel=1e-6)
    turned = jnp.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    assert distill.embedding_loss(3 * turned, turned @ jnp.eye(3)[:, ::-1]) == pytest.approx(0, abs=1e-9)


def test_embeddings_are_asked_for_only_where_they_count():
    config, teachers = tiny_config("efficientat"), [teacher("efficientat", 0.25), teacher("ast", 0.75)]
    assert said(teachers, config).embeddings == []
    config.distill.embedding = 2.0
    found = said(teachers, config).embeddings
    assert [float(weight) for weight, _ in found] == [0.25, 0.75]
    _, told = step_with([teacher("ast")], 0.5, embedding=2.0)
    parts = 0.5 * told["distillation_loss"] + 0.5 * told["class_loss"] + 2 * told["embedding_loss"]
    assert told["loss"] == pytest.approx(float(parts), rel=1e-5)
    assert told["embedding_loss"] > 0


# --------------------------------------------------------------------------------------------------------- the step


def step_with(teachers, alpha, embedding=0.0, **changes):
    """The parameters and numbers after one step of a student from the same weights, by plain gradient descent."""
    config = tiny_config("ast", distill={"alpha": alpha, "embedding": embedding}, **changes)
    student = random_model("ast", 9)
    optimizer = optax.sgd(0.1)
    step = make_train_step("ast", student.config, optimizer, config, teachers=teachers)
    state = TrainState.create(jax.tree.map(jnp.copy, student.params), jax.tree.map(jnp.copy, student.stats), optimizer)
    state, found = step(state, distill.arrays(teachers), batch(rate=student.config.frontend.sample_rate))
    return jax.device_get(state.params), jax.device_get(found)


def assert_alike(a, b):
    for path in a:
        np.testing.assert_allclose(a[path], b[path], atol=1e-6, err_msg=path)


def test_alpha_0_is_plain_training_and_alpha_1_hears_only_the_teacher():
    plain, _ = step_with([], 0.7)
    same, found = step_with([teacher("ast")], 0.0)
    assert_alike(plain, same)
    assert found["loss"] == pytest.approx(found["class_loss"])
    taught, found = step_with([teacher("ast")], 1.0)
    assert found["loss"] == pytest.approx(found["distillation_loss"])
    assert any(np.abs(taught[path] - plain[path]).max() > 1e-6 for path in plain)
    smoothed, _ = step_with([teacher("ast")], 1.0, train={"label_smoothing": 0.5})
    assert_alike(taught, smoothed)


def test_both_parts_add_up():
    _, found = step_with([teacher("ast")], 0.7)
    expected = 0.7 * found["distillation_loss"] + 0.3 * found["class_loss"]
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_strokes_that_a_teacher_hears():
    """They take the place of those that fell as far as `config.distill.strokes` says: at 1, whatever the clip's own
    strokes are, the student learns the same."""
    model = random_model("strokes")
    spec, teachers = model.config.frontend, [distill.Teacher("strokes", random_model("strokes", 5), 1.0)]
    optimizer = optax.sgd(0.1)

    def step(share, struck):
        config = tiny_config("strokes", distill={"strokes": share})
        step = make_train_step("strokes", model.config, optimizer, config, teachers=teachers)
        n_frames = round(spec.window_s * model.config.strokes_per_second)
        fell = FrameTargets(*[jnp.full((4, n_frames), struck)] * 4)
        state = TrainState.create(jax.tree.map(jnp.copy, model.params), dict(model.stats), optimizer)
        rows = batch(rate=spec.sample_rate) | {"stroke_targets": fell}
        state, found = step(state, distill.arrays(teachers), rows)
        return jax.device_get(state.params), jax.device_get(found)

    (taught, found), (same, _), (true, _) = step(1.0, 0.0), step(1.0, 1.0), step(0.0, 1.0)
    assert_alike(taught, same)
    assert any(np.abs(taught[path] - true[path]).max() > 1e-6 for path in true)
    parts = 0.7 * found["distillation_loss"] + 0.3 * found["class_loss"] + found["taught_stroke_loss"]
    assert found["loss"] == pytest.approx(float(parts), rel=1e-5)


def test_no_gradient_reaches_a_teacher():
    config = tiny_config("efficientat")
    teachers = [teacher("ast")]
    answer = distill.taught(teachers, random_model("efficientat").config, config)
    loss = lambda given: answer(given, jax.random.key(0), batch()).probabilities[:, 0].sum()  # noqa: E731
    gradients = jax.grad(loss)(distill.arrays(teachers))
    assert gradients
    assert all(not np.any(g) for g in gradients.values())


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("teachers") / "ast"
    checkpoint.save_model(path, random_model("ast"))
    return path


def test_a_run_keeps_nothing_of_its_teachers(folder, tmp_path):
    assert train.run(tiny_config("ast", teachers=(str(folder),)), tmp_path / "run") == 0
    assert not [path for path in last_state(tmp_path / "run") if "teachers" in path]
    student = checkpoint.load_model(tmp_path / "run")
    assert set(student.params) == set(random_model("ast").params)
    cost = json.loads((tmp_path / "run" / "results" / "cost.json").read_text())
    assert cost["parameters"] == sum(p.size for p in student.params.values())
    noted = (tmp_path / "run" / "logs" / "scalars.jsonl").read_text()
    assert "train/distillation_loss" in noted


@pytest.mark.parametrize("preset", ["", "smoke", "small", "full"])
def test_its_config_wants_a_teacher(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = distill_efficientat.get_config(preset)
    with pytest.raises(InputError, match="there is no teacher in TEACHER"):
        distill.load(config, start.network(config))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("missing", "there is no teacher in"),
        ("empty", "holds no model.json"),
        ("classes", "knows 527 classes, not the 40 rudiments"),
        ("window", "hears windows of 0.5 s, the student of 2.5 s; --config.model.window_s=0.5"),
        ("stage", "it never learnt to name what sounds"),
        ("alpha", "alpha=1.5 must be 0 to 1"),
        ("mean", "mean='median' is unknown"),
        ("weights", "must be 1 numbers, not negative"),
        ("strokes alone", "names nothing from sound"),
        ("deaf student", "needs a student that hears strokes: --config.model.head=strokes"),
        ("deaf teacher", "no teacher hears strokes at the student's 200 frames a second (theirs: 0; 0 are none)"),
        ("embedding", "embedding=-1.0 must not be negative"),
    ],
)
def test_refusals(folder, tmp_path, wrong, says):
    config = tiny_config("efficientat", teachers=(str(folder),))
    if wrong == "window":
        config.model.window_s = 2.5
    if wrong == "missing":
        config.teachers = (str(tmp_path / "nowhere"),)
    elif wrong == "empty":
        config.teachers = (str(tmp_path),)
    elif wrong in ("classes", "stage"):
        made = tiny_config("ast")
        if wrong == "classes":
            model_config = models.make_config("ast", "ast", **{**made.model.settings, "num_classes": 527})
            model_config = model_config.for_window(0.5, "fill")
        else:
            model_config = start.network(made)
        config.teachers = (str(tmp_path / "other"),)
        other = checkpoint.Model("ast", model_config, *models.init("ast", model_config), {})
        checkpoint.save_model(tmp_path / "other", other)
        if wrong == "stage":
            (tmp_path / "other" / "config.json").write_text(json.dumps({"config": {"strokes": {"stage": "hearing"}}}))
    elif wrong == "alpha":
        config.distill.alpha = 1.5
    elif wrong == "mean":
        config.distill.mean = "median"
    elif wrong == "weights":
        config.distill.weights = (0.5, 0.5)
    elif wrong == "strokes alone":
        config.strokes.stage = "hearing"
    elif wrong == "embedding":
        config.distill.embedding = -1.0
    elif wrong.startswith("deaf"):
        config.distill.strokes = 0.5
        if wrong == "deaf teacher":
            config.model.head, config.strokes.stage = "strokes", "joint"
    with pytest.raises(InputError, match=re.escape(says)):
        distill.load(config, start.network(config))
