"""Brings a finished run to the Hugging Face Hub: weights that stand alone, results, and a model card.

    python -m sousa_jax.publish RUN --repo=USER/NAME [--tag=NAME] [--best] [--private]
    python -m sousa_jax.publish RUN --repo=USER/NAME --dry_run    # only writes the folder that would be uploaded

The token comes from HF_TOKEN in the environment and from nowhere else. Paths of this machine are left out, and so is
the training log, which is full of them. What another run left in the repository is replaced; a tag keeps each.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import string
import tempfile
from collections.abc import Iterator
from typing import Any

from sousa_jax.errors import InputError, one_line_errors

SECRETS = ("HF_TOKEN", "WANDB_API_KEY")  # environment variables whose values must be written nowhere
PRESETS = ("", "smoke", "small", "full")
CONFIG_JSON, README, RESULTS = "config.json", "README.md", "results"
TEST_METRICS = pathlib.PurePath(RESULTS, "test_metrics.json")
TIER_BREAKDOWN = pathlib.PurePath(RESULTS, "skill_tier_breakdown.json")

NAMES = {"htsat": "HTS-AT", "beats": "BEATs", "efficientat": "EfficientAT", "ast": "AST", "strokes": "Strokes"}
STRATEGIES = {
    "lora": "LoRA adapters and the class layer",
    "full": "all parameters, from given weights",
    "scratch": "all parameters, from random weights",
    "head": "the class layer alone",
}
SOURCES = {
    "htsat": "K. Chen et al., HTS-AT, ICASSP 2022, "
    "[official code](https://github.com/RetroCirce/HTS-Audio-Transformer) (MIT).",
    "beats": "S. Chen et al., BEATs, ICML 2023, "
    "[official code](https://github.com/microsoft/unilm/tree/master/beats) (MIT).",
    "efficientat": "F. Schmid, K. Koutini, G. Widmer, ICASSP 2023, "
    "[official code](https://github.com/fschmid56/EfficientAT) (MIT).",
    "ast": "Y. Gong, Y.-A. Chung, J. Glass, AST, Interspeech 2021, "
    "[official code](https://github.com/YuanGongND/ast) (BSD-3-Clause).",
    "strokes": "The network is this project's own: strokes first, then the name (`docs/strokes.md` there).",
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="a finished run's folder")
    parser.add_argument("--repo", required=True, help="USER/NAME on the Hub; made if it does not exist")
    parser.add_argument("--tag", help="given to what is uploaded, taken from what had it before")
    parser.add_argument(
        "--best", action="store_true", help="also tag it `best`, unless what has that tag scores higher"
    )
    parser.add_argument("--private", action="store_true", help="if the repository is made")
    parser.add_argument("--dry_run", action="store_true", help="write the folder, upload nothing; needs no token")
    parser.add_argument("--out", type=pathlib.Path, help="the folder to write, by default RUN/publish")
    args = parser.parse_args(argv)
    with one_line_errors():
        check_repo(args.repo)
        api = None if args.dry_run else hub()
        folder = assemble(args.run, args.out or args.run / "publish", args.repo)
        if api is None:
            print(f"{folder} is what would be uploaded to {args.repo}")
            return
        tags = [args.tag] if args.tag else []
        if args.best and is_best(folder, args.repo, api):
            tags.append("best")
        url = upload(folder, args.repo, api, *tags, private=args.private)
        print(f"published {url}" + (f", tagged {', '.join(tags)}" if tags else ""))


# ----------------------------------------------------------------------------------------------------------- a folder


def assemble(run: pathlib.Path, out: pathlib.Path, repo: str = "USER/NAME") -> pathlib.Path:
    """Writes the folder that is uploaded, as a whole or not at all, in the place of an earlier one; returns `out`.

    Args:
      run: a finished run's folder; its best checkpoint is taken.
      out: `arrays/`, `model.json`, `config.json`, `results/` and `README.md` will be in it.
      repo: what the model card says to download.

    Raises `InputError` if `run` is no finished run, if `out` is something else, or if a secret would be in it.
    """
    run, out = pathlib.Path(run).absolute(), pathlib.Path(out).absolute()
    record, summary = finished(run)
    if out.exists() and not (out / README).is_file():
        raise InputError(f"{out} exists and holds no model card; choose another --out")

    from sousa_jax import checkpoint  # late: errors in the arguments should not wait for JAX

    model = checkpoint.load_model(run)
    config = record["config"]
    provenance = {"run": run.name, "strategy": config["strategy"], "init_from": config["init_from"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    made = temporary / "new"
    try:
        whole = dataclasses.replace(model, provenance=without_paths(provenance))
        checkpoint.save_model(made, whole)
        # What teachers answered is theirs.
        left_out = shutil.ignore_patterns(".*", "*.tmp", "teachers", "baseline")
        shutil.copytree(run / RESULTS, made / RESULTS, ignore=left_out)
        for path in (made / RESULTS).rglob("*.json"):
            checkpoint.write_json(path, without_paths(json.loads(path.read_text("utf-8"))))
        # Orbax notes for people where it wrote, and a comparison names the folders of teachers.
        for path in (*(made / checkpoint.ARRAYS).rglob("*.txt"), *(made / RESULTS).rglob("*.md")):
            path.write_text(without_paths(path.read_text("utf-8")), "utf-8")
        record, summary = without_paths(record), without_paths(summary)
        checkpoint.write_json(made / CONFIG_JSON, record)
        (made / README).write_text(_card(run, record, summary, repo), "utf-8")
        refuse_secrets(made)
        if out.exists():
            os.replace(out, temporary / "old")  # a folder cannot be renamed onto one that is not empty
        os.replace(made, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def finished(run: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json` and `results/test_metrics.json` of a run; `InputError` if it is none, or not finished."""
    if not (run / CONFIG_JSON).is_file():
        raise InputError(f"{run} is no run: it holds no {CONFIG_JSON}; expected the folder that training left")
    if not (run / TEST_METRICS).is_file():
        raise InputError(f"{run} is not finished, it has no {TEST_METRICS}; the command that began it goes on with it")
    record, summary = (json.loads((run / name).read_text("utf-8")) for name in (CONFIG_JSON, TEST_METRICS))
    return record, summary


def without_paths(value: Any) -> Any:
    """JSON with every absolute path in it, also within a sentence, reduced to its last component."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    for path in (pathlib.PurePosixPath(value), pathlib.PureWindowsPath(value)):
        if path.is_absolute() and "\n" not in value:
            return path.name
    # What ends in a slash before the last component, where no word, scheme or relative path stands in front.
    return re.sub(r"(?<![\w.:/\\~])(?:[A-Za-z]:|~)?[/\\](?:[^\s/\\:;,'\"()]+[/\\])+", "", value)


def refuse_secrets(folder: pathlib.Path) -> None:
    """`InputError` if the value of one of `SECRETS` is in a file of the folder."""
    for name in SECRETS:
        value = os.environ.get(name, "").encode()
        for path in folder.rglob("*") if value else ():
            if path.is_file() and value in path.read_bytes():
                raise InputError(f"{path.relative_to(folder)} would hold the value of {name}; take it out of the run")


# ------------------------------------------------------------------------------------------------------ its model card


def _card(run: pathlib.Path, record: dict[str, Any], summary: dict[str, Any], repo: str) -> str:
    config = record["config"]
    model, data = config["model"], config["data"]
    synthetic = data["path"] == "synth"
    template = string.Template(pathlib.Path(__file__).with_name("model_card.md").read_text("utf-8"))
    text = template.substitute(
        title=f"{NAMES[model['name']]} for snare rudiments",
        model=f"{NAMES[model['name']]} `{model['variant']}`",
        window=f"{model['window_s']:g}",
        trained=STRATEGIES[config["strategy"]],
        run=run.name,
        data=_about_data(record),
        command=training_command(config),
        training=_about_training(record),
        results=_results_table(summary),
        tiers=_tier_table(run / TIER_BREAKDOWN),
        limits="\n".join(f"- {line}" for line in _limits(config, summary)),
        use=f"hf download {repo} --local-dir=rudiments\n"
        f"python -m sousa_jax.evaluate --workdir=rudiments --data={'synth' if synthetic else 'DATA'}\n"
        f"# train on from it:\n{training_command(config | {'strategy': 'full', 'init_from': 'rudiments'})}",
        source=SOURCES[model["name"]],
    )
    return f"---\n{_front_matter(run.name, record, summary)}\n---\n\n{text}"


def _front_matter(name: str, record: dict[str, Any], summary: dict[str, Any]) -> str:
    """YAML as the Hub reads it, `model-index` included."""
    from huggingface_hub import EvalResult, ModelCardData

    config = record["config"]
    path = config["data"]["path"]
    dataset = {
        "task_type": "audio-classification",
        "dataset_type": _hub_data_set(record) or ("synthetic" if path == "synth" else path),
        "dataset_name": "built-in synthesizer" if path == "synth" else path,
        "dataset_split": summary["split"],
        "dataset_revision": record["data"]["revision"],
    }
    first = summary["first_window"]
    metrics = (
        ("balanced_accuracy", "balanced accuracy, all windows", summary["balanced_accuracy"]),
        ("balanced_accuracy", "balanced accuracy, first window", first["balanced_accuracy"]),
        ("accuracy", "top-1", summary["top1"]),
        ("f1", "macro F1", summary["macro_f1"]),
    )
    return ModelCardData(
        license="mit",
        library_name="jax",
        pipeline_tag="audio-classification",
        tags=["snare-drum", "rudiments", "music", "flax", config["model"]["name"], config["strategy"]],
        datasets=[_hub_data_set(record)] if _hub_data_set(record) else None,
        metrics=["balanced_accuracy", "accuracy", "f1"],
        model_name=name,
        eval_results=[
            EvalResult(**dataset, metric_type=kind, metric_name=label, metric_value=round(value, 4))
            for kind, label, value in metrics
        ],
    ).to_yaml()


def _hub_data_set(record: dict[str, Any]) -> str | None:
    """The Hub's id of the training data, or None if they were a folder or made by the synthesizer."""
    return record["config"]["data"]["path"] if record["data"]["revision"] else None


def _about_data(record: dict[str, Any]) -> str:
    data, of_data = record["config"]["data"], record["data"]
    clips = ", ".join(f"{n:,} {split}" for split, n in of_data["clips"].items())
    if data["path"] == "synth":
        return f"The built-in synthesizer, dialect `{data['synth']['dialect']}`; clips: {clips}. Nothing was recorded."
    revision = f" at revision `{of_data['revision']}`" if of_data["revision"] else ""
    share = data["synth"]["share"]
    mixed = f" Of each training batch {share:.0%} came from the built-in synthesizer." if share else ""
    return f"`{data['path']}`{revision}; clips: {clips}.{mixed}"


def _about_training(record: dict[str, Any]) -> str:
    config, device, packages = record["config"], record["device"], record["packages"]
    begun = f"the weights of `{config['init_from']}`" if config["init_from"] else "random weights"
    several = f" ({device['count']} of them)" if device["count"] > 1 else ""
    commit = f", commit `{record['git_commit']}`" if record["git_commit"] else ""
    return (
        f"From {begun}, seed {record['seed']}, on {device['kind']}{several}, "
        f"JAX {packages['jax']}, Flax {packages['flax']}{commit}. The epoch was chosen on the validation split."
    )


def _results_table(summary: dict[str, Any]) -> str:
    first, (low, high) = summary["first_window"], summary["interval"]
    interval = "" if low is None else f" ({low:.3f} … {high:.3f}, 95 % by player)"
    shortcuts = (
        (f"balanced accuracy of {name} alone", "not known" if score is None else f"{score:.3f}")
        for name, score in summary["shortcuts"].items()
    )
    rows = (
        ("**balanced accuracy, all windows**", f"**{summary['balanced_accuracy']:.3f}**{interval}"),
        ("balanced accuracy, first window", f"{first['balanced_accuracy']:.3f}"),
        ("top-1", f"{summary['top1']:.3f}"),
        ("top-5", f"{summary['top5']:.3f}"),
        ("macro F1", f"{summary['macro_f1']:.3f}"),
        ("expected calibration error", f"{summary['calibration_error']:.3f}"),
        *shortcuts,
        ("chance", f"{summary['chance']:.3f}"),
    )
    return _table((f"{summary['split']}, {summary['n_clips']:,} clips", ""), rows)


def _tier_table(path: pathlib.Path) -> str:
    if not path.is_file():
        return ""
    tiers = json.loads(path.read_text("utf-8"))
    rows = [(tier, f"{s['balanced_accuracy']:.3f}", f"{s['n_clips']:,}") for tier, s in tiers.items()]
    return _table(("players' tier", "balanced accuracy", "clips"), rows) + "\n"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _limits(config: dict[str, Any], summary: dict[str, Any]) -> Iterator[str]:
    data = config["data"]
    if data["path"] == "synth":
        yield "Trained and tested on synthetic clips alone: the numbers say nothing about recorded drums."
    else:
        yield "Tested on other players of the same data set; other drums, rooms and microphones were not tried."
    if config["strategy"] != "scratch" and not config["init_from"]:
        yield "It began from random weights, which this strategy is not meant for: a test, not a result."
    yield f"One run, seed {config['seed']}; {summary['n_clips']:,} test clips."
    yield (
        f"It hears {config['model']['window_s']:g} s of one snare drum playing one rudiment over and over, and answers "
        "with one of 40 names whatever it hears: there is no class for something else."
    )


def training_command(config: dict[str, Any]) -> str:
    """The shortest command whose settings are those of a run: a config file, a preset, and what was changed.

    config: a run's settings as JSON. Without a fitting file, a line that says where all of them are.
    """
    from sousa_jax.record import leaves  # late: it imports JAX

    wanted = dict(leaves(config))
    best = None
    for path in sorted(pathlib.Path(__file__).parents[1].glob(f"configs/{config['model']['name']}*.py")):
        for preset in PRESETS:
            given = _settings_of(path, preset)
            if given.keys() == wanted.keys():
                changed = [key for key in wanted if wanted[key] != given[key]]
                if best is None or len(changed) < len(best[1]):
                    best = f"configs/{path.name}" + (f":{preset}" if preset else ""), changed
    if best is None:
        return "# with a config of its own: all settings are in config.json"
    arguments = [f"--config={best[0]}", *(setting(key, wanted[key]) for key in best[1])]
    return " \\\n    ".join(["python -m sousa_jax.main", *(shlex.quote(argument) for argument in arguments)])


def setting(key: str, value: Any) -> str:
    """`--config.train.learning_rate=0.0003`, as `sousa_jax.main` reads it back."""
    return f"--config.{key}={tuple(value) if isinstance(value, list) else value}"


def _settings_of(path: pathlib.Path, preset: str) -> dict[str, Any]:
    import runpy

    from sousa_jax.record import leaves

    try:
        get_config = runpy.run_path(str(path))["get_config"]
        return dict(leaves(json.loads((get_config(preset) if preset else get_config()).to_json())))
    except (InputError, ImportError):  # a preset that this file does not know, or no package of configs at hand
        return {}


# -------------------------------------------------------------------------------------------------------------- the Hub


def check_repo(repo: str) -> None:
    """`InputError` unless it is `USER/NAME` as the Hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--repo={repo} is no name of a repository: {' '.join(str(error).split())}") from None
    if repo.count("/") != 1:
        raise InputError(f"--repo={repo} should be USER/NAME")


def hub() -> Any:
    """`HfApi` with the token of the environment, `InputError` if there is none."""
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise InputError(
            "HF_TOKEN is not set; make a token that may write at https://huggingface.co/settings/tokens "
            "and put it into the environment (--dry_run needs none)"
        )
    from huggingface_hub import HfApi

    return HfApi(token=token)


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Whatever the Hub or the network refuses, as one line that begins with `what`."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (OSError, ValueError, *HfHubHTTPError.__bases__) as error:  # whose base is the HTTP client's own error
        raise InputError(f"{what}: {hidden(' '.join(str(error).split()))}") from None


def hidden(text: str) -> str:
    """`text` with names instead of the values of `SECRETS`."""
    for name in SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"${name}")
    return text


def upload(folder: pathlib.Path, repo: str, api: Any, *tags: str, private: bool = False) -> str:
    """Uploads what `assemble` wrote, as one commit, and moves the tags to it; returns its address.

    Raises `InputError` with the Hub's answer if it refuses.
    """
    with hub_errors(f"could not publish to {repo}"):
        api.create_repo(repo, private=private or None, exist_ok=True)
        run = json.loads((folder / "model.json").read_text("utf-8"))["provenance"]["run"]
        # Arrays are many small files with names of their own: those of another run would stay beside ours.
        replaced = ["arrays/*", f"{RESULTS}/*"]
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=run, delete_patterns=replaced)
        for tag in tags:
            _move_tag(api, repo, tag, commit.oid)
    return f"https://huggingface.co/{repo}/tree/{tags[0] if tags else commit.oid}"


def _move_tag(api: Any, repo: str, tag: str, revision: str) -> None:
    from huggingface_hub.errors import RevisionNotFoundError

    with contextlib.suppress(RevisionNotFoundError):
        api.delete_tag(repo, tag=tag)
    api.create_tag(repo, tag=tag, revision=revision)


def is_best(folder: pathlib.Path, repo: str, api: Any) -> bool:
    """Whether a folder scores higher than what the repository tags `best`; results on other data do not count."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    ours = json.loads((folder / TEST_METRICS).read_text("utf-8"))
    with hub_errors(f"could not ask {repo} for its best run"):
        try:
            path = api.hf_hub_download(repo, str(TEST_METRICS), revision="best")
        except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            return True
    theirs = json.loads(pathlib.Path(path).read_text("utf-8"))
    same_data = theirs["data_fingerprint"] == ours["data_fingerprint"]
    return not same_data or ours["balanced_accuracy"] > theirs["balanced_accuracy"]


if __name__ == "__main__":
    main()
