"""The run's configuration: one strict schema for every launcher, YAML files and dotted overrides.

``load(path, ["train.iterations=5", "engine=fsdp2"])`` reads a file, applies overrides in order and validates.
A key that the schema does not know, a value of the wrong type and a combination that cannot run are
`LaddError`s that name the key; nothing is guessed or ignored.
"""

from ladd_dist.config.drawing import EvaluationConfig, SamplingConfig, SynthesisConfig
from ladd_dist.config.engines import Fsdp2Config, MomentKind, OptimizerConfig, Zero3Config
from ladd_dist.config.guard import GuardConfig, RuleConfig
from ladd_dist.config.loading import load
from ladd_dist.config.method import DpoConfig, FlowMatchingConfig, LaddConfig, MethodSection
from ladd_dist.config.networks import DiscriminatorConfig, KernelsConfig, LoraConfig, StudentConfig, TeacherConfig
from ladd_dist.config.schema import Config
from ladd_dist.config.section import Section
from ladd_dist.config.training import DataConfig, ProfileConfig, TrackingConfig, TrainConfig
from ladd_dist.config.values import Recomputation

__all__ = [
    "Config",
    "DataConfig",
    "DiscriminatorConfig",
    "DpoConfig",
    "EvaluationConfig",
    "FlowMatchingConfig",
    "Fsdp2Config",
    "GuardConfig",
    "KernelsConfig",
    "LaddConfig",
    "LoraConfig",
    "MethodSection",
    "MomentKind",
    "OptimizerConfig",
    "ProfileConfig",
    "Recomputation",
    "RuleConfig",
    "SamplingConfig",
    "Section",
    "StudentConfig",
    "SynthesisConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "Zero3Config",
    "load",
]
