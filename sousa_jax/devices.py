"""Where arrays lie: one mesh of all devices of all processes, and one rule that places an array by its shape.

    layout = Layout(model=1, fully_sharded=False)
    state = layout.place(state)               # parameters, moments, averages: each by its shape
    batch = layout.batch(rows_of_this_process)  # split along the mesh's axis `data`

The rest is the compiler's: a step that is jitted over such arrays computes what one device would, and sends what has to
be sent (Y. Xu et al., GSPMD, arXiv:2105.04663).
"""

import math
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sousa_jax.errors import InputError

SMALLEST = 4096  # elements; to gather a smaller array costs more than to keep it everywhere


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several that train together; to be called before JAX touches a device.

    `coordinator` is `HOST:PORT` of process 0, or `auto` where the cluster tells (TPU pods, Slurm, Open MPI,
    Kubernetes). `InputError` for numbers that do not fit, or when the others are not found.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise InputError("--num_processes and --process_id need --coordinator=HOST:PORT")
        return
    if coordinator == "auto":
        coordinator = None
    elif num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise InputError(
            f"--coordinator={coordinator} needs --num_processes=N and --process_id=0…N-1, "
            f"not {num_processes} and {process_id} (or --coordinator=auto where the cluster tells)"
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes did not find each other: {' '.join(str(error).split())}") from error


def use_deterministic_operations() -> None:
    """Has GPUs add in a fixed order, slower; CPUs and TPUs do so anyway. To be called before JAX touches a device."""
    flag = "--xla_gpu_deterministic_ops=true"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


class Layout:
    """A mesh with axes `data` × `model` and the rule by which arrays lie on it.

    Batches are split along `data`. An array of parameters (or of their moments) of at least `SMALLEST` elements is
    split along `model` on its last axis (a kernel's outputs) and, if `fully_sharded`, along `data` on the longest axis
    that is left, each if the length can be divided; everything else is on every device.

    Args:
      model: devices that share one copy of the parameters; divides the devices of each process.
      fully_sharded: the devices of the axis `data` share one, too.
      devices: those to use, by default all.

    Raises:
      InputError: `model` does not divide the devices.
    """

    def __init__(self, model: int = 1, fully_sharded: bool = False, devices: list[jax.Device] | None = None):
        devices = jax.devices() if devices is None else devices
        per_process = len(devices) // jax.process_count()
        if model < 1 or per_process % model:
            raise InputError(f"config.devices.model={model} must divide the {per_process} devices of each process")
        shape = (len(devices) // model, model)
        self.mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
        self.fully_sharded = fully_sharded
        self.rows = NamedSharding(self.mesh, PartitionSpec("data"))
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())

    def of(self, shape: tuple[int, ...]) -> NamedSharding:
        """How an array of that shape lies."""
        axes: list[str | None] = [None] * len(shape)
        if math.prod(shape) >= SMALLEST:
            n_data, n_model = (self.mesh.shape[axis] for axis in ("data", "model"))
            if n_model > 1 and shape[-1] % n_model == 0:
                axes[-1] = "model"
            if self.fully_sharded and n_data > 1:
                free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % n_data == 0]
                if free:
                    axes[max(free, key=lambda i: shape[i])] = "data"
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def place(self, tree: Any) -> Any:
        """A tree of arrays, the same in all processes, as arrays of the mesh, each laid out by its shape."""
        return jax.tree.map(lambda leaf: self._put(leaf, self.of(np.shape(leaf))), tree)

    @staticmethod
    def _put(array: Any, sharding: NamedSharding) -> jax.Array:
        if jax.process_count() == 1 or (isinstance(array, jax.Array) and not array.is_fully_addressable):
            return jax.device_put(array, sharding)
        local = np.asarray(array)
        return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])

    def constrain(self, tree: Any) -> Any:
        """Inside a jitted function: the results lie as `place` lays them, so that they fit the next call."""
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, self.of(leaf.shape)), tree)

    def batch(self, tree: Any) -> Any:
        """The rows of this process, `(B / process_count, …)`, as rows of the batch `(B, …)` that all share.

        Arrays that are on the mesh already stay where they are. `InputError` if B does not divide among the devices.
        """
        return jax.tree.map(self._rows, tree)

    def _rows(self, array: Any) -> jax.Array:
        if isinstance(array, jax.Array):
            return jax.device_put(array, self.rows)
        self.check_rows(array.shape[0] * jax.process_count())
        return jax.make_array_from_process_local_data(self.rows, np.asarray(array))

    def check_rows(self, n_rows: int) -> None:
        """`InputError` if a batch of `n_rows` does not divide among the devices of the axis `data`."""
        if n_rows % self.mesh.shape["data"]:
            raise InputError(f"a batch of {n_rows} rows does not divide among {self.mesh.shape['data']} devices")

    def gather(self, tree: Any) -> Any:
        """A tree of the mesh's arrays as whole NumPy arrays, in every process."""
        if jax.process_count() > 1:
            tree = jax.jit(lambda t: t, out_shardings=self.everywhere)(tree)
        return jax.device_get(tree)


def is_main() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns when all processes have come here; `where` is a name for the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
