"""Whether W&B has a key to log in with: asked before a job is submitted, or loads anything."""

from collections.abc import Mapping

from ladd_dist.config import Config
from ladd_dist.errors import LaddError

_REMEDY = "run `wandb login`, set WANDB_API_KEY, or set tracking.wandb=offline"


def check_key(config: Config, environment: Mapping[str, str] | None = None) -> None:
    """Check that ``tracking.wandb=online`` finds what W&B itself would log in with; nothing is sent or shown.

    Args:
        environment: variables that the job will have on top of this process's.

    Raises:
        LaddError: saying how to log in.
    """
    if config.tracking.wandb != "online":
        return
    from wandb.errors import AuthenticationError  # late: it takes a second to import
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    given = environment or {}
    if given.keys() & {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"}:
        return
    host = given.get("WANDB_BASE_URL", wandb_setup.singleton().settings.base_url)
    try:
        found = wbauth.authenticate_session(host=host, source="ladd_dist", prompt=False, update_session=False)
    except AuthenticationError as error:
        raise LaddError(f"tracking.wandb=online: {' '.join(str(error).split())} {_REMEDY}") from None
    if found is None:
        raise LaddError(f"tracking.wandb=online finds no key of W&B for {host}: {_REMEDY}")
