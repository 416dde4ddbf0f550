"""What a rank keeps beside the networks that train, against the modules that draw, judge and score."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ALONE, ROOT, TEACHER, tiny_config
from counting import Alive
from diffusers import AutoencoderKL
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from ladd_dist.config import Config
from ladd_dist.digits.judge import DigitJudge
from ladd_dist.methods.registry import method_of
from ladd_dist.models.sd3 import vae
from ladd_dist.models.sd3.family import Sd3
from ladd_dist.models.sd3.vae import Vae
from ladd_dist.planning.cards import CARDS
from ladd_dist.planning.cluster import Cluster
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.needs import needs
from ladd_dist.planning.onlookers import onlookers, resident
from ladd_dist.planning.plan import WORKSPACE, largest_bucket, plan
from ladd_dist.training.trainer import Trainer

PREVIEWS, EVALUATES = "train.preview_every=2", "train.evaluate_every=2"
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def real(network: nn.Module) -> int:
    """Bytes of its storages."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def held(config: Config, rank: int = 0) -> Counter[str]:
    found = onlookers(config, method_of(config).networks(config), 2, rank)
    assert {place for place, kind in found if kind != "watched"} <= {"device"}
    return Counter({kind: size for (_, kind), size in found.items() if size and kind != "watched"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP in half precision."""
    folder = tmp_path_factory.mktemp("clip")
    sides = {**SMALL, "projection_dim": 12}
    vision, text = {**sides, "image_size": 32, "patch_size": 8}, {**sides, "vocab_size": 99}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).half().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "rank", "decoders", "judge"),
    [
        (["train.preview_every=0"], 0, 0, False),
        ([PREVIEWS], 0, 1, False),
        ([PREVIEWS], 1, 0, False),
        ([PREVIEWS, EVALUATES], 0, 2, True),
        ([PREVIEWS, EVALUATES], 1, 1, True),
        ([EVALUATES, "evaluation.judge=teacher", "evaluation.scorers=[stroke]"], 0, 1, False),
    ],
)
def test_networks_that_look_on_are_counted_where_they_are(
    tmp_path: Path, dataset: Path, settings: list[str], rank: int, decoders: int, judge: bool
) -> None:
    wanted = Counter(vae=decoders * real(Vae(TEACHER, ALONE.device).net), judge=judge * real(DigitJudge().net))
    assert held(tiny_config(tmp_path, dataset, *settings), rank) == +wanted


def test_a_clip_is_counted_as_it_is_loaded_by_its_config_alone(tmp_path: Path, dataset: Path, clip: Path) -> None:
    settings = [EVALUATES, f"evaluation.judge=clip:{clip}", f"evaluation.scorers=['clip:{clip}', stroke]"]
    config = tiny_config(tmp_path, dataset, *settings)
    tower, whole = (kind.from_pretrained(clip) for kind in (CLIPVisionModelWithProjection, CLIPModel))
    found = held(config)
    assert (found["judge"], found["scorers"]) == (real(tower), real(whole))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((clip / "config.json").read_bytes())
    elsewhere = tiny_config(tmp_path, dataset, EVALUATES, f"evaluation.judge=clip:{alone}")
    assert held(elsewhere)["judge"] == real(tower)
    missing = tiny_config(tmp_path, dataset, EVALUATES, "evaluation.judge=clip:/nowhere")
    assert "judge" not in held(missing), "the evaluation goes on without"


def test_a_batch_of_pictures_is_decoded_and_encoded_within_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "tests/gpu/sd35_large"
    with FakeTensorMode():
        net = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        monkeypatch.setattr(net, "to", lambda _: net)  # which fake parameters are not swapped for
        monkeypatch.setattr(vae, "saved", lambda *_: SimpleNamespace(load=lambda: net))
        decoder = Vae(folder, ALONE.device)
        latents = torch.empty(8, 16, 128, 128)
        with Alive() as alive:
            assert decoder.encode(decoder.decode(latents)).shape == latents.shape
    assert real(net) + alive.peak < WORKSPACE


def test_pictures_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, latents = Vae(TEACHER, ALONE.device), torch.randn(5, 4, 8, 16)
    whole = decoder.decode(latents)
    encoded = decoder.encode(whole)
    monkeypatch.setattr(vae, "_PIXELS", 2 * 32 * 64)
    torch.testing.assert_close(decoder.decode(latents), whole)
    torch.testing.assert_close(decoder.encode(whole), encoded)


def test_a_run_holds_what_is_said(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders are those that its hooks have loaded, each of them once."""
    loaded = list[int]()

    def counted(family: Sd3, folder: str, device: torch.device) -> Vae:
        found = Vae(folder, device)
        loaded.append(real(found.net))
        return found

    monkeypatch.setattr(Sd3, "decoder", counted)
    settings = [PREVIEWS, EVALUATES, "train.iterations=2", "evaluation.samples_in_training=4"]
    config = tiny_config(tmp_path, dataset, *settings)
    Trainer(config, ALONE).run()
    assert sum(loaded) == resident(config, 1)["device", "vae"]


def test_the_planner_counts_them_by_name(tmp_path: Path, dataset: Path) -> None:
    base = ["train.precision=bf16", "train.global_batch=64", "train.micro_batch=null", "engine=fsdp2"]
    configs = [tiny_config(tmp_path, dataset, *base, *more) for more in ([], [PREVIEWS, EVALUATES])]
    costs = Costs(configs[0], largest_bucket(configs[0]), "cpu")
    without, looking = (plan(config, Cluster(CARDS["H100"], 2), costs, 0).needs.device for config in configs)
    beside = held(configs[1])
    assert looking == {**without, **beside} and set(beside) == {"vae", "judge"}
    assert without["watched"] == looking["watched"] > 0
    assert needs(configs[1], costs, 2, 8, 0).total - needs(configs[0], costs, 2, 8, 0).total == beside.total()
