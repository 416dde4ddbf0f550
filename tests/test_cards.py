"""What the guide says of the cards that SD3.5 Large fits, by the planner."""

import re

import pytest
from documented import ROOT

from ladd_dist.config import load
from ladd_dist.planning.cards import CARDS
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.needs import Needs, needs
from ladd_dist.planning.plan import WORKSPACE, largest_bucket

GUIDE = (ROOT / "docs/guides.md").read_text()
SMALLER = re.findall(
    r"^\| (\d+), (\S+?),? .*?\| (\d+) GB \| (?:`(.+?)`|none) \| (\d+) GB \| \d+ GB \|$", GUIDE, re.MULTILINE
)
"""GPUs, engine, GB as the commands are, overrides for 80 GB and GB with them, as the table has them."""
SPARE = 0.05
"""Of a card's memory that is left over."""


def planned(config_file: str, size: int, card: str, *overrides: str) -> Needs:
    config = load(config_file, ["teacher.path=tests/gpu/sd35_large", *overrides])
    costs = Costs(config, largest_bucket(config), CARDS[card].device)
    return needs(config, costs, size, config.micro_batch(size), WORKSPACE)


def billions(count: int) -> int:
    return round(count / 1e9)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "engine", "usual", "overrides", "smaller"), SMALLER)
def test_the_large_configuration_fits(ranks: str, engine: str, usual: str, overrides: str, smaller: str) -> None:
    size, keys = int(ranks), [f"engine={engine.lower().replace('-', '')}"]
    if size < 128:
        keys.append("method.fake_pass=two_pass")
    file = "configs/sd35_large.yaml"
    assert billions(planned(file, size, "H100", *keys).total) == int(usual)
    assert planned(file, size, "H200", *keys).total < (1 - SPARE) * CARDS["H200"].memory
    fits = planned(file, size, "H100", *keys, *overrides.split()).total
    assert billions(fits) == int(smaller) and fits < (1 - SPARE) * CARDS["H100"].memory


def test_the_table_was_read() -> None:
    assert len(SMALLER) == 5


@pytest.mark.slow
def test_the_whole_student_fits_80_gb_with_its_state_in_host_memory() -> None:
    keys = re.search(r"`(engine=zero3\szero3.offload[^`]*)`,\sstarted", GUIDE)
    said = re.search(r"is (\d+) GB by the\splanner, and (\d+) GB of the host", GUIDE)
    assert keys and said
    needed = planned("configs/sd35_large_141gb.yaml", 1, "H100", *keys[1].split())
    assert (billions(needed.total), billions(sum(needed.host.values()))) == (int(said[1]), int(said[2]))
    assert needed.total < (1 - SPARE) * CARDS["H100"].memory


@pytest.mark.slow
@pytest.mark.parametrize(("size", "card"), {"141gb": "H200", "80gb": "H100", "48gb": "L40S"}.items())
def test_host_memory_is_what_the_guide_says(size: str, card: str) -> None:
    said = re.search(rf"sd35_large_{size}\.yaml` \|.*\| (\d+) GB \|$", GUIDE, re.MULTILINE)
    assert said
    assert billions(sum(planned(f"configs/sd35_large_{size}.yaml", 1, card).host.values())) == int(said[1])
