"""The training loop, top to bottom: set up, resume, train, evaluate."""

import contextlib
import functools
import math
import pathlib
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sousa_jax import (
    answer_cache,
    checkpoint,
    cost,
    distill,
    lora,
    metrics,
    models,
    record,
    retention,
    start,
    strategies,
)
from sousa_jax.data import open_split, rows_from_clips, train_batches
from sousa_jax.data.frame_targets import FrameTargets, count_frames
from sousa_jax.data.pipeline import BadClips
from sousa_jax.devices import Layout, any_process, is_main
from sousa_jax.errors import InputError
from sousa_jax.evaluate import evaluate_split, hear_strokes, known_table, predict, report_line
from sousa_jax.logging import Progress, RunLog, logger, peak_flops
from sousa_jax.lora import is_adapter
from sousa_jax.optim import learning_rate, make_optimizer
from sousa_jax.step import TrainState, make_eval_step, make_train_step


def run(config: ConfigDict, workdir: pathlib.Path, overwrite: bool = False) -> int:
    """Trains, evaluates and writes everything under `workdir`; goes on where an earlier call stopped.

    `overwrite` deletes the run that is there instead. Returns the exit code: 0, also when a SIGTERM stopped it with its
    state saved.
    """
    # -------------------------------------------------------------------------------------------------- set up
    if not overwrite:
        record.refuse_other_config(workdir, config)
    _use_compilation_cache()
    start.check_stage(config)
    stage, errors = config.strokes.stage, start.hearing_errors(config)
    layout = Layout(config.devices.model, config.devices.fully_sharded)
    for rows in (config.train.batch_size, config.eval.batch_size):
        layout.check_rows(rows)
    model_config = start.network(config)
    spec = model_config.frontend
    teachers = distill.load(config, model_config)
    cached = bool(teachers and config.distill.cache)
    if cached:
        answer_cache.check(config)
    inputs = _inputs(stage) + (("teacher_logits",) if cached else ())
    train_clips, validation_clips, test_clips = (
        open_split(config.data, split, seed=config.seed, sample_rate=spec.sample_rate)
        for split in ("train", "validation", "test")
    )
    bad, validation_bad = (BadClips(c, config.data.max_bad_fraction) for c in (train_clips, validation_clips))
    adapters = strategies.adapters(config)
    params, stats = start.arrays(config, model_config, adapters)
    trained, frozen = strategies.split(config.strategy, config.train.head, params)
    n_per_epoch = _rows_per_epoch(train_clips, config)
    from_clips = config.train.batch_size if stage == "rhythm" else rows_from_clips(config.data, config.train.batch_size)
    steps_per_epoch = math.ceil(n_per_epoch / from_clips)
    total_steps = config.train.epochs * steps_per_epoch
    n_updates = total_steps // config.train.accumulate
    optimizer = make_optimizer(config, n_updates, strategies.paces(config, trained, n_updates))
    schedule = learning_rate(config, n_updates)
    step_fn = make_train_step(config.model.name, model_config, optimizer, config, adapters, layout, errors, teachers)
    state = layout.place(TrainState.create(trained, stats, optimizer, averaged=config.train.ema > 0))
    frozen = layout.place(frozen)
    constants = {**frozen, **layout.place(distill.arrays([] if cached else teachers))}
    del params, stats  # on the devices of `layout` now

    open_batches = functools.partial(
        train_batches,
        config,
        train_clips,
        sample_rate=spec.sample_rate,
        window_s=spec.window_s,
        bad=bad,
        layout=layout,
        strokes_per_second=model_config.strokes_per_second if stage else 0,
        sound=stage != "rhythm",
    )
    if overwrite:
        with open_batches(position=None):  # refuses what cannot be had, before anything is lost
            record.delete_run(workdir)
    record.begin(workdir, config, model_config, (train_clips, validation_clips, test_clips))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(RunLog(workdir, config, main=is_main()))
        stop = stack.enter_context(_StopSignal())
        checkpoints = checkpoint.RunCheckpoints(workdir)
        stack.callback(checkpoints.close)
        logger.info("%s: %s %s, %s", workdir, config.model.name, config.model.variant, _counts(trained, frozen))
        logger.info("%d training clips, %d steps an epoch", n_per_epoch, steps_per_epoch)

        # -------------------------------------------------------------------------------------------------- resume
        progress = {"position": None, "best": None, "best_step": 0, "stale_epochs": 0, "finished": False}
        restored = checkpoints.restore_last(state)
        if restored is not None:
            state, progress = restored
            logger.info("resumed at step %d of %d", state.step, total_steps)
        step = int(state.step)

        # -------------------------------------------------------------------------------------------------- train
        train_step, flops = None, 0.0
        if step < total_steps and not progress["finished"]:
            train_step, flops = _compiled_step(step_fn, config, model_config, layout, state, constants, inputs)
        eval_step = make_eval_step(
            config.model.name, model_config, config.train.compute_dtype, adapters, from_strokes=stage == "rhythm"
        )
        batches = stack.enter_context(open_batches(position=progress["position"]))
        peak = peak_flops(jax.devices()[0].device_kind, config.train.compute_dtype) * jax.device_count()
        if cached:
            answers = answer_cache.ask(config, teachers, train_clips, spec, bad, layout)
            batches = answer_cache.AnsweredBatches(batches, answers)
        bar = Progress(total_steps, step, config.train.batch_size, flops_per_step=flops, peak_flops=peak)
        stack.callback(bar.close)
        numbers = _Numbers(workdir, batches)
        watch = cost.Stopwatch(workdir / record.LOGS, fresh=restored is None)
        while step < total_steps and not progress["finished"]:
            batch, position = next(batches)
            arrays = layout.batch({name: batch[name] for name in inputs})
            state, found = train_step(state, constants, arrays)
            step += 1
            progress["position"] = position
            numbers.add(step, found, batch, position)
            bar.update(f"epoch {step / steps_per_epoch:.1f}" + (f", loss {numbers.loss:.3f}" if numbers.loss else ""))

            if step % config.train.log_every_steps == 0:
                scalars = {f"train/{name}": value for name, value in numbers.means().items()}
                scalars["train/learning_rate"] = float(schedule((step - 1) // config.train.accumulate))
                log.scalars(step, scalars | bar.speeds())

            if step % steps_per_epoch == 0:
                numbers.read()
                with bar.pause():
                    weights = state.evaluated()
                    score = _validate(
                        eval_step, frozen, weights, validation_clips, model_config, config, validation_bad, layout
                    )
                epoch = step // steps_per_epoch
                log.scalars(step, {f"validation/{name}": value for name, value in score.items()})
                shown = ", ".join(f"{name.replace('_', ' ')} {score[name]:.3f}" for name in list(score)[:2])
                logger.info("epoch %d: validation %s, %.1f min", epoch, shown, watch.seconds() / 60)
                first = next(iter(score.values()))
                if progress["best"] is None or first > progress["best"]:
                    progress |= {"best": first, "best_step": step, "stale_epochs": 0}
                    checkpoints.save_best(step, *weights, {"validation": score})
                else:
                    progress["stale_epochs"] += 1
                if progress["stale_epochs"] >= config.train.patience:
                    logger.info("no better score in %d epochs: stopping early", config.train.patience)
                    progress["finished"] = True

            stopping = stop.agreed(step, config.train.log_every_steps)
            if stopping or step % config.train.checkpoint_every_steps == 0 or step % steps_per_epoch == 0:
                numbers.read()  # a state that follows from numbers that are not finite is never saved
                if is_main():
                    watch.keep()
                checkpoints.save_last(step, state, progress)
            if stopping:
                checkpoints.wait()
                logger.info("stopped by %s; state saved at step %d. To go on: same command with --workdir=%s",
                            stop.requested or "another process", step, workdir)  # fmt: skip
                return 0

        # -------------------------------------------------------------------------------------------------- evaluate
        checkpoints.save_last(step, state, progress | {"finished": True})
        checkpoints.wait()
        for line in (bad.report(), validation_bad.report()):
            if line:
                logger.warning(line)
        best = checkpoints.restore_best({"params": state.params, "stats": state.stats})
        temperature = 1.0
        if stage not in ("hearing", "rhythm"):
            weights = best["params"], best["stats"]
            seen = (eval_step, frozen, weights, validation_clips, model_config, config, validation_bad, layout)
            temperature = metrics.fit_temperature(*_first_windows(*seen))
        if is_main():
            checkpoint.keep_temperature(workdir, temperature)
        best_params = {**frozen, **best["params"]}
        best_params = lora.merge(best_params, adapters) if adapters else best_params
        model = checkpoint.Model(config.model.name, model_config, best_params, best["stats"], {}, temperature)
        results = workdir / record.RESULTS
        summary = evaluate_split(model, config, "test", results, known_table(train_clips), layout)
        if is_main():
            _write_cost(results, model, config, trained, step, watch.kept)
        if teachers and jax.process_count() == 1:  # `python -m sousa_jax.retention` writes it of the others
            retention.write(workdir, config.distill.baseline)
        log.scalars(step, {"test/balanced_accuracy": summary["balanced_accuracy"]})
        log.checkpoint(checkpoints.best_folder(), f"{config.model.name}_{config.strategy}", {"step": step, **progress})
        logger.info("best validation score at step %d; %s", progress["best_step"], report_line(summary))
        logger.info("results in %s", results)
    return 0


# ------------------------------------------------------------------------------------------------------------- pieces


def _counts(trained: models.Arrays, frozen: models.Arrays) -> str:
    n_trained, n_frozen = (sum(p.size for p in part.values()) for part in (trained, frozen))
    if not n_frozen:
        return f"{n_trained:,} parameters"
    n_adapters = sum(p.size for path, p in trained.items() if is_adapter(path))
    share = n_adapters / (n_trained + n_frozen)
    return (
        f"{n_frozen:,} parameters frozen; trained are {n_adapters:,} in adapters ({share:.2%}) "
        f"and {n_trained - n_adapters:,} in the head"
    )


def _write_cost(
    results: pathlib.Path,
    model: checkpoint.Model,
    config: ConfigDict,
    trained: models.Arrays,
    step: int,
    seconds: float,
) -> None:
    eval_step = make_eval_step(model.name, model.config, config.train.compute_dtype)
    cost.write(
        results,
        parameters=sum(p.size for p in model.params.values()),
        trained_parameters=sum(p.size for p in trained.values()),
        multiply_adds=cost.multiply_adds(eval_step, model.params, model.stats, model.config.frontend),
        window_s=model.config.frontend.window_s,
        training_steps=step,
        training_minutes=seconds / 60,
        training_clips_per_second=step * config.train.batch_size / seconds if seconds else math.nan,
        device=jax.devices()[0].device_kind,
        devices=jax.device_count(),
    )


def _inputs(stage: str) -> tuple[str, ...]:
    """What a training step reads of a batch."""
    if stage == "rhythm":
        return ("stroke_targets", "label")
    return ("waveform", "label", "stroke_targets") if stage else ("waveform", "label")


def _rows_per_epoch(clips: Any, config: ConfigDict) -> int:
    if config.strokes.stage == "rhythm":
        return config.data.synth.clips[0]
    by_performance = config.data.by_performance and not config.data.streaming
    return clips.table["augmentation_group_id"].nunique() if by_performance else len(clips)


def _validate(eval_step, frozen, weights, clips, model_config, config, bad, layout) -> dict[str, float]:
    """The scores of the first windows; the first score is the one to be raised."""
    params, stats = weights
    if config.strokes.stage == "hearing":
        return hear_strokes(eval_step, {**frozen, **params}, stats, clips, model_config, config, bad, layout)
    return metrics.scores(*_first_windows(eval_step, frozen, weights, clips, model_config, config, bad, layout))


def _first_windows(
    eval_step, frozen, weights, clips, model_config, config, bad, layout
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of the first windows, `(n,)` and `(n, NUM_CLASSES)`."""
    params, stats = weights
    predictions = predict(
        eval_step,
        {**frozen, **params},
        stats,
        clips,
        model_config.frontend,
        batch_size=config.eval.batch_size,
        workers=config.data.workers,
        bad=bad,
        windows="first",
        layout=layout,
        strokes_per_second=model_config.strokes_per_second if config.strokes.stage == "rhythm" else 0,
    )
    return clips.table["label"].to_numpy()[predictions.clip], predictions.first


def _use_compilation_cache() -> None:
    """Compiling the step takes as long as a short epoch; the next run finds it on disk."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path("~/.cache/sousa_jax/jax").expanduser()))


def _compiled_step(
    step: Any,
    config: ConfigDict,
    model_config: Any,
    layout: Layout,
    state: TrainState,
    frozen: models.Arrays,
    inputs: tuple[str, ...],
) -> tuple[Any, float]:
    """The training step, compiled here and only here, and its floating-point operations: those of the program as it is
    written, on all devices, what `config.train.remat` computes again included. `inputs` are what it reads of a batch.
    """
    rows, spec = config.train.batch_size, model_config.frontend
    of_shape = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.float32, sharding=layout.rows)  # noqa: E731
    n_frames = count_frames(spec.window_s, model_config.strokes_per_second)
    shapes = {
        "waveform": of_shape(spec.window_samples),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=layout.rows),
        "stroke_targets": FrameTargets(*[of_shape(n_frames)] * len(FrameTargets._fields)),
        "teacher_logits": of_shape(len(config.teachers), model_config.num_classes),
    }
    batch = {name: shapes[name] for name in inputs}
    started = time.perf_counter()
    lowered = step.lower(state, frozen, batch)
    compiled = lowered.compile()
    logger.info("training step compiled in %.0f s", time.perf_counter() - started)
    return compiled, (lowered.cost_analysis() or {}).get("flops", 0.0)


class _Numbers:
    """What training steps return, read one step late so that the device need not wait for the host.

    A number that is not finite ends the run: `InputError`, after the batch's clips were written beside the checkpoints.
    """

    NAME = "non_finite_batch"

    def __init__(self, workdir: pathlib.Path, batches: Any):
        self._workdir, self._batches = workdir, batches
        self._unread: tuple | None = None
        self._since_means: list[dict[str, float]] = []
        self.loss = 0.0  # the last one read

    def add(self, step: int, found: dict[str, jax.Array], batch: dict[str, Any], position: dict[str, int]) -> None:
        """Takes the numbers of a step that may still be running, and reads those of the step before."""
        before, self._unread = self._unread, (step, found, batch, position)
        self._read(before)

    def read(self) -> None:
        """Reads all; when it returns, every number so far was finite."""
        before, self._unread = self._unread, None
        self._read(before)

    def means(self) -> dict[str, float]:
        """The mean of each number since the last call; norms are those of the last step."""
        self.read()
        losses = [found["loss"] for found in self._since_means]
        newest = self._since_means[-1]
        self._since_means = []
        return newest | {"loss": float(np.mean(losses))}

    def _read(self, unread: tuple | None) -> None:
        if unread is None:
            return
        step, found, batch, position = unread
        found = {name: float(value) for name, value in jax.device_get(found).items()}
        wrong = next((name for name in ("loss", *found) if not math.isfinite(found[name])), None)
        if wrong is None:
            self.loss = found["loss"]
            self._since_means.append(found)
            return
        process = "" if jax.process_count() == 1 else f"_{jax.process_index()}"
        path = self._workdir / f"{self.NAME}{process}.json"
        clips = self._batches.names(batch, position)
        numbers = {name: repr(value) for name, value in found.items()}
        checkpoint.write_json(path, {"step": step, "numbers": numbers, "position_behind": position, "clips": clips})
        raise InputError(
            f"the {wrong.replace('_', ' ')} is {found[wrong]} at step {step}; the clips of that batch are in {path}, "
            "the last checkpoint is from before. Try a smaller --config.train.learning_rate in a new --workdir"
        )


class _StopSignal:
    """Turns SIGTERM and Ctrl-C into a wish to stop after the current step. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = ""

    def __enter__(self) -> "_StopSignal":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop after this step. Several processes ask each other, each `every` steps."""
        if jax.process_count() == 1:
            return bool(self.requested)
        return step % every == 0 and any_process(bool(self.requested))
