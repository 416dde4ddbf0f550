"""Whether the networks that a configuration names fit one another: checked in every program, before any is loaded."""

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.errors import LaddError
from ladd_dist.methods.ladd.heads import tapped_blocks
from ladd_dist.models.configs import load_config
from ladd_dist.models.fit import check_files, check_shapes
from ladd_dist.models.sd3.transformer import Backbone, meta_transformer
from ladd_dist.models.weights import FolderWeights


def check_networks(config: Config) -> LatentSpace:
    """Check that teacher, student, heads and buckets fit one another, by configs and headers of weights.

    Returns:
        The space in which all of them work.

    Raises:
        LaddError: naming the first file that is missing or not whole, or the first two things that do not fit.
    """
    check_files(config.teacher.path)
    check_shapes(config.teacher.path)
    check_student(config)
    tapped_blocks(config.discriminator, load_config(config.teacher.path)["num_layers"])
    space = LatentSpace.of(config.teacher.path, config.student.path)
    for bucket in config.synthesis.buckets:
        space.shape(Bucket.parse(bucket))
    check_weights(config)
    return space


def check_student(config: Config) -> None:
    """Check that a student of its own takes the teacher's latents and text.

    Raises:
        LaddError: naming the first shape in which their inputs or outputs differ.
    """
    if config.student.path is None:
        return
    student, teacher = load_config(config.student.path), load_config(config.teacher.path)
    for key in ("in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim"):
        if student[key] != teacher[key]:
            raise LaddError(
                f"student.path={config.student.path} has {key}={student[key]}, but the teacher has {teacher[key]}: "
                "choose a student that takes the teacher's latents and text, or null for a copy of the teacher"
            )


def check_weights(config: Config) -> None:
    """Check that the weights of teacher and student are those that their config.json describes.

    Raises:
        LaddError: naming the folder and the first tensor that is missing or of another shape.
    """
    for folder in dict.fromkeys((config.teacher.path, config.student.path or config.teacher.path)):
        FolderWeights(folder).check(Backbone(meta_transformer(folder)))
