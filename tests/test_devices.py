"""Any number of devices and processes compute what one computes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_sousa import rows, write_hub

from sousa_jax import devices
from sousa_jax.devices import Layout
from sousa_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 10


def loss_curve(layout: Layout, name: str) -> list[float]:
    """The losses of ten steps of a small network on ten batches of noise, with all that a step does."""
    from test_train import tiny_config

    from sousa_jax import models, start
    from sousa_jax.optim import make_optimizer
    from sousa_jax.step import TrainState, make_train_step

    config = tiny_config(name, train={"ema": 0.9, "batch_size": 16, "learning_rate": 1e-3})
    network = start.network(config)
    optimizer = make_optimizer(config, STEPS // config.train.accumulate)
    params, stats = models.init(name, network, config.seed)
    state = layout.place(TrainState.create(params, stats, optimizer, averaged=True))
    step = make_train_step(name, network, optimizer, config, layout=layout)
    rng = np.random.default_rng(0)
    compiled, losses = None, []
    for _ in range(STEPS):
        waveform = rng.normal(scale=0.1, size=(16, network.frontend.window_samples)).astype(np.float32)
        batch = layout.batch({"waveform": waveform, "label": np.arange(16, dtype=np.int32)})
        compiled = compiled or step.lower(state, {}, batch).compile()
        state, found = compiled(state, {}, batch)  # refuses a state that does not lie as the first one did
        losses.append(float(found["loss"]))
    return losses


def recorded_config(folder: str) -> ConfigDict:
    """Ten steps on recorded clips, parameters and moments split among all devices."""
    from test_train import tiny_config

    config = tiny_config("ast", data={"path": folder}, train={"ema": 0.9})
    config.devices.fully_sharded = True
    config.eval.batch_size = 8
    return config


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """The loss of each step."""
    lines = map(json.loads, (workdir / "logs" / "scalars.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def split_arrays(layout: Layout, name: str) -> list[str]:
    """The paths of the parameters that are not whole on each device."""
    from test_train import tiny_config

    from sousa_jax import models, start

    placed = layout.place(models.init(name, start.network(tiny_config(name)))[0])
    return [path for path, array in placed.items() if array.addressable_shards[0].data.shape != array.shape]


def in_a_process(program: str, *, n_devices: int, **environment: str) -> subprocess.Popen:
    """Devices are counted when JAX starts: hence a process of its own."""
    head = f"""
        import json, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "data")!r}]
        import jax
        jax.config.update("jax_num_cpu_devices", {n_devices})
        jax.config.update("jax_compilation_cache_dir", {jax.config.jax_compilation_cache_dir!r})
        """
    code = textwrap.dedent(head) + textwrap.dedent(program)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    )


def answer(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ast", {"data": {}, "fully sharded": {"fully_sharded": True}, "all": {"fully_sharded": True, "model": 2}}),
        ("efficientat", {"fully sharded": {"fully_sharded": True}}),  # batch norm sees the whole batch
    ],
    ids=["ast", "efficientat"],
)
def test_eight_devices_learn_what_one_learns(name, wanted):
    """Data-parallel, fully sharded, and that with kernels split along the axis `model`: the same ten losses to 1e-5."""
    program = f"""
        from test_devices import Layout, loss_curve, split_arrays
        layouts = {{"one": Layout(devices=jax.devices()[:1])}}
        layouts |= {{key: Layout(**settings) for key, settings in {wanted!r}.items()}}
        curves = {{key: loss_curve(layout, {name!r}) for key, layout in layouts.items()}}
        n_split = {{key: len(split_arrays(layout, {name!r})) for key, layout in layouts.items()}}
        print(json.dumps([curves, n_split]))
        """
    curves, n_split = answer(in_a_process(program, n_devices=8))
    assert len({round(loss, 3) for loss in curves["one"]}) > 5  # a curve, not a line
    for key, settings in wanted.items():
        np.testing.assert_allclose(curves[key], curves["one"], atol=1e-5, err_msg=key)
        assert (n_split[key] > 0) == bool(settings), key
    assert n_split["one"] == 0


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_does(tmp_path):
    """Through `jax.distributed` on loopback, parameters fully sharded: each process reads its own rows of recorded
    clips, both see all predictions, what is written is written once. The result is that of one process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def trained(workdir: str, join: str, n_devices: int) -> subprocess.Popen:
        program = f"""
            import pathlib
            from sousa_jax import devices, train
            devices.join({join})
            from test_devices import recorded_config
            config = recorded_config({str(tmp_path / "clips")!r})
            assert train.run(config, pathlib.Path({str(tmp_path / workdir)!r})) == 0
            print(json.dumps(jax.device_count()))
            """
        return in_a_process(program, n_devices=n_devices)

    splits = {"train": 40, "validation": 12, "test": 12}
    write_hub(tmp_path / "clips", {split: [rows(split, n, 1)] for split, n in splits.items()})
    two = [trained("two", f"'localhost:{port}', 2, {i}", n_devices=2) for i in range(2)]
    assert [answer(process) for process in two] == [4, 4]
    assert answer(trained("one", "None, None, None", n_devices=1)) == 1
    curves = {name: losses(tmp_path / name) for name in ("one", "two")}
    assert curves["one"].keys() == curves["two"].keys()
    assert len(curves["one"]) == 10
    for step, loss in curves["one"].items():
        assert curves["two"][step] == pytest.approx(loss, abs=1e-5), step
    results = [json.loads((tmp_path / name / "results/test_metrics.json").read_text()) for name in ("one", "two")]
    assert results[0]["n_clips"] == results[1]["n_clips"] == 12
    assert results[0]["balanced_accuracy"] == results[1]["balanced_accuracy"]


# ------------------------------------------------------------------------------------------------------------- layout


def test_an_array_lies_by_its_shape():
    layout = Layout()
    assert layout.of((512, 512)).is_fully_replicated  # one device: nothing to split
    assert layout.of(()).spec == jax.sharding.PartitionSpec()


def test_place_and_gather_give_back_what_was_given():
    layout = Layout()
    tree = {"a": np.arange(12.0).reshape(3, 4), "b": np.int32(7)}
    again = layout.gather(layout.place(tree))
    np.testing.assert_array_equal(again["a"], tree["a"])
    assert again["b"] == 7


def test_devices_that_cannot_be_divided_are_refused():
    with pytest.raises(InputError, match=r"config\.devices\.model=3 must divide the 1 devices of each process"):
        Layout(model=3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, 2, None), "need --coordinator"),
        (("localhost:1", None, None), "needs --num_processes=N and --process_id"),
        (("localhost:1", 2, 2), "not 2 and 2"),
    ],
)
def test_processes_that_cannot_be_joined_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        devices.join(*given)


def test_one_process_needs_no_others():
    devices.join(None, None, None)
    devices.wait_for_all("nobody")
    assert devices.is_main()
    assert devices.any_process(True)
    assert not devices.any_process(False)


def test_deterministic_operations_are_asked_of_xla_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    for _ in range(2):
        devices.use_deterministic_operations()
    assert os.environ["XLA_FLAGS"].split() == [
        "--xla_force_host_platform_device_count=1",
        "--xla_gpu_deterministic_ops=true",
    ]
