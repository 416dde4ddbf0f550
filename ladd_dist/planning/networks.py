"""Whether the networks that a configuration names fit one another: checked in every program, before any is loaded."""

from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.errors import LaddError
from ladd_dist.methods.networks import meta_backbone, meta_student
from ladd_dist.methods.registry import method_of
from ladd_dist.models.folder import check_files
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start
from ladd_dist.models.weights import FolderWeights


def check_networks(config: Config) -> LatentSpace:
    """Check that teacher, student, method and buckets fit one another, by configs and headers of weights.

    Returns:
        The space in which all of them work.

    Raises:
        LaddError: naming the first file that is missing or not whole, or the first two things that do not fit.
    """
    check_files(config.teacher.path)
    family_of(config.teacher.path).check(config.teacher.path)
    check_student(config)
    method_of(config).check(config)
    space = LatentSpace.of(config.teacher.path, config.student.path)
    for bucket in config.synthesis.buckets:
        space.shape(Bucket.parse(bucket))
    if config.teacher.float8:
        meta_backbone(config.teacher.path).to_float8("teacher")
    if config.student.float8:
        meta_student(config).to_float8("student")
    check_weights(config)
    return space


def check_student(config: Config) -> None:
    """Check that a student of its own takes the teacher's latents and text, and that a smaller one can be made.

    Raises:
        LaddError: naming the first shape in which their inputs or outputs differ, or what the start does not have.
    """
    student, teacher = config.student.path, config.teacher.path
    if student is not None:
        if family_of(student) is not family_of(teacher):
            raise LaddError(
                f"student.path={student} is of another family than the teacher: choose one of the teacher's"
            )
        family_of(teacher).check_student(student, teacher)
    meta_student(config)


def check_weights(config: Config) -> None:
    """Check that the weights of teacher and student are those that their config.json describes.

    Raises:
        LaddError: naming the folder and the first tensor that is missing or of another shape.
    """
    for folder in dict.fromkeys((config.teacher.path, Start.of(config).folder)):
        FolderWeights(folder).check(meta_backbone(folder).net)
