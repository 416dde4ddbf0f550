"""Networks that several methods build from a teacher's folder."""

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.engines.blueprint import Blueprint
from ladd_dist.engines.build import compute_dtype
from ladd_dist.log import log
from ladd_dist.models.configs import load_config
from ladd_dist.models.sd3.attention import Attention, choose_attention, set_attention
from ladd_dist.models.sd3.transformer import Backbone, end_behind, make_transformer, meta_transformer
from ladd_dist.models.weights import FolderWeights


def student_blueprint(config: Config, world: World) -> Blueprint:
    """The student, a copy of the teacher unless ``student.path`` says otherwise. Its parameters are fp32."""
    start, dtype = config.student.path or config.teacher.path, compute_dtype(config)
    attention = pick_attention(config, "student", start, config.student.compile, world)

    def make() -> Backbone:
        net = make_transformer(start)
        set_attention(net, attention)
        return Backbone(net, dtype, config.student.activation_checkpointing).train()

    return Blueprint(make, FolderWeights(start), dtype, config.student.compile)


def teacher_blueprint(config: Config, world: World, last_block: int) -> Blueprint:
    """The frozen teacher up to a block, in the compute dtype: it gives features and no velocity."""
    dtype, folder = compute_dtype(config), config.teacher.path
    attention = pick_attention(config, "teacher", folder, config.teacher.compile, world)

    def make() -> Backbone:
        net = end_behind(make_transformer(folder), last_block)
        set_attention(net, attention)
        return Backbone(net, dtype, config.teacher.activation_checkpointing).requires_grad_(False).eval()

    return Blueprint(make, FolderWeights(folder), dtype, config.teacher.compile)


def meta_student(config: Config) -> Backbone:
    """The student's shapes."""
    return Backbone(meta_transformer(config.student.path or config.teacher.path))


def pick_attention(config: Config, network: str, folder: str, compiled: bool, world: World) -> Attention:
    """Choose a network's attention by device, shape and measurements, and log one line that says why.

    Raises:
        LaddError: if ``kernels.attention`` names one that cannot run.
    """
    attention = choose_attention(
        config.kernels.attention, load_config(folder), world.device, compute_dtype(config), compiled
    )
    log(f"attention of the {network}: {attention}")
    return attention
