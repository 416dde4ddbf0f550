"""Networks that several methods build from a teacher's folder."""

from collections.abc import Callable

from torch import nn

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.engines.blueprint import Blueprint
from ladd_dist.engines.build import compute_dtype
from ladd_dist.log import log
from ladd_dist.methods.compiling import compiles
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start
from ladd_dist.models.weights import FolderWeights


def student_blueprint(config: Config, world: World) -> Blueprint:
    """The student as it starts, see `Start`. What is trained of it is fp32."""
    start, dtype = Start.of(config), compute_dtype(config)
    compiled = compiles(config, "student", start.on_meta(), world)
    put_attention = pick_attention(config, "student", start.folder, compiled, world)

    def make() -> Backbone:
        net = start.make(dtype, config.student.activation_checkpointing)
        put_attention(net)
        if config.student.float8:
            net.to_float8("student")
        return net.train()

    return Blueprint(make, start.weights(), dtype, compiled)


def teacher_blueprint(config: Config, world: World, last_block: int) -> Blueprint:
    """The frozen teacher up to a block, in the compute dtype: it gives features and no velocity."""
    dtype, folder = compute_dtype(config), config.teacher.path
    compiled = compiles(config, "teacher", meta_backbone(folder), world)
    put_attention = pick_attention(config, "teacher", folder, compiled, world)

    def make() -> Backbone:
        net = family_of(folder).make(folder, dtype, config.teacher.activation_checkpointing)
        net.truncate(last_block)
        put_attention(net)
        return net.requires_grad_(False).eval()

    finish = _to_float8 if config.teacher.float8 else None
    return Blueprint(make, FolderWeights(folder), dtype, compiled, finish)


def _to_float8(network: nn.Module) -> None:
    assert isinstance(network, Backbone)
    network.to_float8("teacher")


def meta_student(config: Config) -> Backbone:
    """The student's shapes."""
    return Start.of(config).on_meta()


def meta_backbone(folder: str) -> Backbone:
    """A folder's network without storage: shapes and parameter counts only.

    Raises:
        LaddError: if its config makes none.
    """
    return Start(folder).on_meta()


def pick_attention(
    config: Config, network: str, folder: str, compiled: bool, world: World
) -> Callable[[Backbone], None]:
    """Choose a network's attention by device, shape and measurements, and log one line that says why.

    Returns:
        What puts it into the network.

    Raises:
        LaddError: if ``kernels.attention`` names one that cannot run.
    """
    dtype = compute_dtype(config)
    put, choice = family_of(folder).choose_attention(folder, config.kernels, world.device, dtype, compiled)
    log(f"attention of the {network}: {choice}")
    return put
