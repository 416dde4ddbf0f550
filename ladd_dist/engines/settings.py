"""The engine's name and settings, checked from the configuration alone."""

from ladd_dist.config import Config
from ladd_dist.engines.registry import engine_entry, engines
from ladd_dist.errors import LaddError


def check_settings(config: Config) -> None:
    """Check that the engine is registered and can run with these settings, before anything is started.

    A setting that the chosen engine or schedule does not read is an error, as any other key that nothing reads. Here,
    and not where a configuration is loaded: that of a checkpoint may be older than the rule.

    Raises:
        LaddError: naming the setting, or listing the known engines.
    """
    chosen = engine_entry(config.engine)
    for name, entry in engines().items():
        if entry.section and name != config.engine and (changed := _changed(config, entry.section)):
            key = f"{entry.section}.{changed}"
            raise LaddError(f"{key} is only read by engine={name}, but engine={config.engine}: leave it out")
    for section in ("student_optimizer", "head_optimizer"):
        rate = getattr(config, section)
        if rate and rate.final_lr_ratio and rate.decay != "cosine":
            raise LaddError(
                f"{section}.final_lr_ratio={rate.final_lr_ratio:g} is only read by decay=cosine, but {section}."
                f"decay={rate.decay}: leave it out"
            )
    chosen.check(config)


def check_ranks(config: Config, size: int) -> None:
    """Check that the engine can run on ``size`` ranks.

    Raises:
        LaddError: naming the setting that would let it.
    """
    entry = engine_entry(config.engine)
    if entry.launcher == "python" and size > 1:
        others = " or ".join(name for name, other in engines().items() if other.launcher != "python")
        raise LaddError(f"engine={config.engine} runs in one process, but {size} were started: set engine={others}")
    entry.check_ranks(config, size)


def _changed(config: Config, section: str) -> str | None:
    """The first key of a section that has not its default value."""
    settings = getattr(config, section)
    defaults = type(settings)()
    keys = type(settings).model_fields
    return next((key for key in keys if getattr(settings, key) != getattr(defaults, key)), None)
