"""The training loop, top to bottom: set up, resume, train, evaluate."""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sousa_jax import checkpoint, lora, metrics, models, strategies
from sousa_jax.data import open_split, rows_from_clips, train_batches
from sousa_jax.data.pipeline import BadClips
from sousa_jax.errors import InputError
from sousa_jax.evaluate import evaluate_split, known_table, predict, report_line
from sousa_jax.logging import Progress, RunLog, environment, logger
from sousa_jax.lora import LoRA, is_adapter
from sousa_jax.models.layers import LENGTHS
from sousa_jax.optim import learning_rate, make_optimizer
from sousa_jax.rudiments import NUM_CLASSES
from sousa_jax.step import TrainState, make_eval_step, make_train_step

CONFIG_JSON = "config.json"


def run(config: ConfigDict, workdir: pathlib.Path) -> int:
    """Trains, evaluates and writes everything under `workdir`; goes on where an earlier call stopped.

    Returns the exit code: 0, also when a SIGTERM stopped it with its state saved.
    """
    # -------------------------------------------------------------------------------------------------- set up
    _refuse_other_config(workdir, config)
    _use_compilation_cache()
    model_config = _model_config(config)
    spec = model_config.frontend
    train_clips, validation_clips, test_clips = (
        open_split(config.data, split, seed=config.seed, sample_rate=spec.sample_rate)
        for split in ("train", "validation", "test")
    )
    bad, validation_bad = (BadClips(c, config.data.max_bad_fraction) for c in (train_clips, validation_clips))
    adapters = strategies.adapters(config)
    params, stats = _initial_arrays(config, model_config, adapters)
    trained, frozen = strategies.split(config.strategy, config.train.head, params)
    n_per_epoch = _rows_per_epoch(train_clips, config)
    steps_per_epoch = math.ceil(n_per_epoch / rows_from_clips(config.data, config.train.batch_size))
    total_steps = config.train.epochs * steps_per_epoch
    n_updates = total_steps // config.train.accumulate
    optimizer = make_optimizer(config, n_updates, strategies.paces(config, trained, n_updates))
    schedule = learning_rate(config, n_updates)
    state = TrainState.create(trained, stats, optimizer)

    train_step = make_train_step(config.model.name, model_config, optimizer, config, adapters)
    eval_step = make_eval_step(config.model.name, model_config, config.train.compute_dtype, adapters)
    data_sharding, replicated = _shardings()

    _record(workdir, config, model_config, (train_clips, validation_clips, test_clips))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(RunLog(workdir, config))
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
        state, frozen = jax.device_put((state, frozen), replicated)

        # -------------------------------------------------------------------------------------------------- train
        batches = stack.enter_context(
            train_batches(
                config,
                train_clips,
                sample_rate=spec.sample_rate,
                window_s=spec.window_s,
                bad=bad,
                position=progress["position"],
                sharding=data_sharding,
            )
        )
        bar = Progress(total_steps, step, config.train.batch_size)
        stack.callback(bar.close)
        started = time.perf_counter()
        recent: list[jax.Array] = []  # losses since the last log line, on the device
        while step < total_steps and not progress["finished"]:
            batch, position = next(batches)
            arrays = {"waveform": batch["waveform"], "label": batch["label"]}
            state, step_metrics = train_step(state, frozen, jax.device_put(arrays, data_sharding))
            step += 1
            progress["position"] = position
            recent.append(step_metrics["loss"])
            bar.update(f"epoch {step / steps_per_epoch:.1f}, loss {float(recent[max(0, len(recent) - 2)]):.3f}")

            if step % config.train.log_every_steps == 0:
                losses = jax.device_get(recent)
                recent.clear()
                log.scalars(step, {
                    "train/loss": float(np.mean(losses)),
                    "train/gradient_norm": float(step_metrics["gradient_norm"]),
                    "train/learning_rate": float(schedule((step - 1) // config.train.accumulate)),
                    "train/clips_per_second": bar.clips_per_second(),
                })  # fmt: skip

            if step % steps_per_epoch == 0:
                _refuse_if_not_finite(float(step_metrics["loss"]), step, checkpoints)
                score = _validate(
                    eval_step, {**frozen, **state.params}, state.stats, validation_clips, spec, config, validation_bad
                )
                epoch = step // steps_per_epoch
                log.scalars(step, {f"validation/{name}": value for name, value in score.items()})
                logger.info(
                    "epoch %d: validation balanced accuracy %.3f, top-1 %.3f, %.1f min",
                    epoch, score["balanced_accuracy"], score["top1"], (time.perf_counter() - started) / 60,
                )  # fmt: skip
                if progress["best"] is None or score["balanced_accuracy"] > progress["best"]:
                    progress |= {"best": score["balanced_accuracy"], "best_step": step, "stale_epochs": 0}
                    checkpoints.save_best(step, state.params, state.stats, {"validation": score})
                else:
                    progress["stale_epochs"] += 1
                if progress["stale_epochs"] >= config.train.patience:
                    logger.info("no better score in %d epochs: stopping early", config.train.patience)
                    progress["finished"] = True

            if stop.requested or step % config.train.checkpoint_every_steps == 0 or step % steps_per_epoch == 0:
                _refuse_if_not_finite(float(step_metrics["loss"]), step, checkpoints)
                checkpoints.save_last(step, state, progress)
            if stop.requested:
                checkpoints.wait()
                logger.info("stopped by %s; state saved at step %d. To go on: same command with --workdir=%s",
                            stop.requested, step, workdir)  # fmt: skip
                return 0

        # -------------------------------------------------------------------------------------------------- evaluate
        checkpoints.save_last(step, state, progress | {"finished": True})
        checkpoints.wait()
        for line in (bad.report(), validation_bad.report()):
            if line:
                logger.warning(line)
        best = checkpoints.restore_best({"params": state.params, "stats": state.stats})
        best_params = {**frozen, **best["params"]}
        best_params = lora.merge(best_params, adapters) if adapters else best_params
        model = checkpoint.Model(config.model.name, model_config, best_params, best["stats"], {})
        summary = evaluate_split(model, config, "test", workdir / "results", known_table(train_clips))
        log.scalars(step, {"test/balanced_accuracy": summary["balanced_accuracy"]})
        logger.info("best validation score at step %d; %s", progress["best_step"], report_line(summary))
        logger.info("results in %s", workdir / "results")
    return 0


# ------------------------------------------------------------------------------------------------------------- pieces


def _model_config(config: ConfigDict) -> Any:
    settings = config.model
    if settings.length not in LENGTHS:
        raise InputError(f"config.model.length={settings.length!r} is unknown, expected one of {LENGTHS}")
    released = models.make_config(settings.name, settings.variant).frontend
    changes = {"window_s": settings.window_s}
    if settings.hop_ms:
        changes["hop_length"] = settings.hop_ms * released.sample_rate // 1000
    if settings.n_mels:
        changes["n_mels"] = settings.n_mels
    frontend = dataclasses.replace(released, **changes)
    fields = {"num_classes": NUM_CLASSES, "frontend": frontend, **settings.settings}
    return models.make_config(settings.name, settings.variant, **fields).for_window(settings.window_s, settings.length)


def _initial_arrays(
    config: ConfigDict, model_config: Any, adapters: LoRA | None
) -> tuple[models.Arrays, models.Arrays]:
    """Random weights, or those of `config.init_from`, which must fit entirely; and fresh adapters."""
    name, variant = config.model.name, config.model.variant
    convert = f"python -m ports.convert --model={name} --checkpoint=OFFICIAL_FILE --out={config.init_from or 'DIR'}"
    if not config.init_from and config.strategy in strategies.NEEDS_WEIGHTS and not config.allow_random_init:
        raise InputError(
            f"strategy {config.strategy!r} needs trained weights: give --config.init_from=DIR, which a run leaves or "
            f"`{convert}` writes (--config.allow_random_init=True starts from random ones all the same)"
        )
    params, stats = models.init(name, model_config, config.seed, adapters=adapters)
    if config.init_from:
        if not pathlib.Path(config.init_from).is_dir():
            raise InputError(f"there is no folder {config.init_from}; `{convert}` writes one")
        given = checkpoint.load_model(config.init_from)
        base = {path: array for path, array in params.items() if not is_adapter(path)}
        differences = checkpoint.tree_differences(given.params, base)
        if differences:
            raise InputError(f"{config.init_from} ({given.name}) does not fit {name} {variant}: {differences}")
        params, stats = {**params, **given.params}, given.stats
    return params, stats


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


def _rows_per_epoch(clips: Any, config: ConfigDict) -> int:
    by_performance = config.data.by_performance and not config.data.streaming
    return clips.table["augmentation_group_id"].nunique() if by_performance else len(clips)


def _validate(eval_step, params, stats, clips, spec, config, bad) -> dict[str, float]:
    predictions = predict(
        eval_step,
        params,
        stats,
        clips,
        spec,
        batch_size=config.eval.batch_size,
        workers=config.data.workers,
        bad=bad,
        windows="first",
    )
    return metrics.scores(clips.table["label"].to_numpy()[predictions.clip], predictions.first)


def _shardings():
    """Batches are split over all devices, parameters are on each."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    named = jax.sharding.NamedSharding
    return named(mesh, jax.sharding.PartitionSpec("data")), named(mesh, jax.sharding.PartitionSpec())


def _use_compilation_cache() -> None:
    """Compiling the step takes as long as a short epoch; the next run finds it on disk."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path("~/.cache/sousa_jax/jax").expanduser()))


def _refuse_if_not_finite(loss: float, step: int, checkpoints: checkpoint.RunCheckpoints) -> None:
    if not math.isfinite(loss):
        checkpoints.wait()
        raise InputError(
            f"the loss is {loss} at step {step}; the last checkpoint is from before. "
            "Try a smaller --config.train.learning_rate in a new --workdir"
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


# ------------------------------------------------------------------------------------------------------ a run's record


def _stored(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json())


def _refuse_other_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    if not (workdir / CONFIG_JSON).exists():
        return
    before = json.loads((workdir / CONFIG_JSON).read_text("utf-8"))["config"]
    flat = [dict(_leaves(c)) for c in (before, _stored(config))]
    changed = [key for key in flat[0] | flat[1] if flat[0].get(key) != flat[1].get(key)]
    if changed:
        shown = ", ".join(f"{key} was {flat[0].get(key)!r}, is {flat[1].get(key)!r}" for key in sorted(changed)[:5])
        raise InputError(f"{workdir} holds a run with another config ({shown}); choose another --workdir")


def _leaves(tree: dict[str, Any], prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _record(workdir: pathlib.Path, config: ConfigDict, model_config: Any, splits: tuple) -> None:
    """Writes `config.json` and `model.json` when the run begins; later, refuses to go on with other data."""
    fingerprints = {clips.split: clips.fingerprint for clips in splits}
    if (workdir / CONFIG_JSON).exists():
        before = json.loads((workdir / CONFIG_JSON).read_text("utf-8"))["data"]["fingerprints"]
        if before != fingerprints:
            raise InputError(
                f"{workdir} was trained on data {before}, {config.data.path} now is {fingerprints}; "
                "choose another --workdir"
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    model = models.config_to_json(config.model.name, model_config)
    if config.strategy in ("lora", "head"):
        settings = (config.train.head, strategies.adapters(config), config.init_from, config.seed)
        model["partly"] = checkpoint.partly_trained(config.strategy, *settings)
    checkpoint.write_json(workdir / checkpoint.MODEL_JSON, model)
    record = {
        "config": _stored(config),
        "seed": config.seed,
        **environment(),
        "data": {
            "path": config.data.path,
            "revision": getattr(splits[0], "resolved_revision", None),
            "fingerprints": fingerprints,
            "clips": {clips.split: len(clips) for clips in splits},
        },
    }
    checkpoint.write_json(workdir / CONFIG_JSON, record)
