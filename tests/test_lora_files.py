"""Trained adapters: merged, scaled, stacked, written for other tools and read from theirs."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ALONE, tiny_config
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from ladd_dist.checkpoints.export import export, export_lora
from ladd_dist.checkpoints.lora import lora_of_checkpoint, open_loras
from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.checkpoints.student import load_student
from ladd_dist.config import Config
from ladd_dist.data.buckets import Bucket
from ladd_dist.data.prompts import PromptEntry
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.errors import LaddError
from ladd_dist.models.lora import Lora
from ladd_dist.models.lora_file import lora_of_file, save_lora
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start
from ladd_dist.training.trainer import Trainer

LORA = "student.lora={rank: 4, alpha: 2}"
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, random_teacher: Path, random_dataset: Path) -> dict[str, Config]:
    """A student of adapters, and one that is trained whole."""
    configs = {}
    for name, settings in {"lora": [LORA, "student_optimizer.lr=1e-2"], "whole": []}.items():
        run_dir, teacher = tmp_path_factory.mktemp(name), f"teacher.path={random_teacher}"
        configs[name] = tiny_config(run_dir, random_dataset, teacher, "train.iterations=2", *settings)
        Trainer(configs[name], ALONE).run()
    return configs


def checkpoint_of(config: Config) -> Checkpoint:
    found = open_newest(config.run_dir, ALONE)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def lora(runs: dict[str, Config]) -> Lora:
    return lora_of_checkpoint(checkpoint_of(runs["lora"]), "student")


Inputs = tuple[Tensor, Tensor, Conditioning]


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    g = torch.Generator().manual_seed(0)
    cond = Conditioning(torch.randn(2, 5, 64, generator=g), torch.randn(2, 64, generator=g))
    return torch.randn(2, 8, 8, 8, generator=g), torch.tensor([0.3, 0.9]), cond


@torch.no_grad()
def unmerged(config: Config, inputs: Inputs) -> Tensor:
    """The velocity as it is trained: base and adapters one beside the other."""
    network = Start.of(config).load(torch.float32)
    parameters = dict(network.named_parameters())
    for name, value in checkpoint_of(config).network("student").items():
        parameters[name].copy_(value)
    velocity: Tensor = network(*inputs)
    return velocity


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Within rounding: sums over 64 channels and fewer, of numbers near 1."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@torch.no_grad()
def test_merged_is_unmerged_within_rounding(
    runs: dict[str, Config], lora: Lora, inputs: Inputs, random_teacher: Path
) -> None:
    config, checkpoint = runs["lora"], checkpoint_of(runs["lora"])
    wanted = unmerged(config, inputs)
    assert_same(load_student(config, checkpoint, "student", torch.float32)(*inputs), wanted)
    base = family_of(random_teacher).load(random_teacher, torch.float32)(*inputs)
    assert float((wanted - base).abs().max()) > 1e-2 * float(base.abs().max())
    taken_off = load_student(config, checkpoint, "student", torch.float32, [(lora, -1.0)])
    assert_same(taken_off(*inputs), base)


def test_adapters_of_the_base_are_added_to_a_student_scaled_and_stacked(runs: dict[str, Config], lora: Lora) -> None:
    config, checkpoint = runs["whole"], checkpoint_of(runs["whole"])
    plain = load_student(config, checkpoint, "student", torch.float32).state_dict()
    both = load_student(config, checkpoint, "student", torch.float32, [(lora, 0.5), (lora, 0.25)]).state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], both[name])}
    assert changed and changed <= set(lora.downs)
    for name in changed:
        torch.testing.assert_close(both[name] - plain[name], 0.75 * lora.added(name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_diffusers_draws_with_the_file_as_it_was_trained(
    runs: dict[str, Config], inputs: Inputs, random_teacher: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Loaded, switched off, scaled, fused and unfused; ComfyUI knows the same names."""
    config = runs["lora"]
    folder = export_lora(config, checkpoint_of(config), tmp_path / "lora", "student", dtype).parent
    pipe = StableDiffusion3Pipeline.from_pretrained(random_teacher)
    x, t, cond = inputs

    def velocity() -> Tensor:
        given = {"hidden_states": x, "encoder_hidden_states": cond.context, "pooled_projections": cond.pooled}
        result: Tensor = pipe.transformer(**given, timestep=1000 * t).sample
        return result

    base = velocity()
    pipe.load_lora_weights(folder)
    wanted = unmerged(config, inputs)
    if dtype == torch.bfloat16:
        assert float((velocity() - wanted).norm() / (wanted - base).norm()) < 0.02  # 8 bits in downs and ups
        return
    assert_same(velocity(), wanted)
    pipe.fuse_lora()
    assert_same(velocity(), wanted)
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert_same(velocity(), base)


def test_an_export_has_them_merged(runs: dict[str, Config], lora: Lora, random_teacher: Path, tmp_path: Path) -> None:
    config, example = runs["lora"], PromptEntry(0, "a seven", Bucket(32, 32))
    folder = export(config, checkpoint_of(config), tmp_path / "out", "student", torch.float32, example)
    file = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(random_teacher / file), load_file(folder / file)
    assert before.keys() == after.keys()
    for name, value in before.items():
        key = f"net.{name}"
        torch.testing.assert_close(after[name], value + lora.added(key) if key in lora.downs else value)


def test_a_file_holds_what_the_checkpoint_does(lora: Lora, tmp_path: Path) -> None:
    save_lora(lora, tmp_path / FILE, torch.float32)
    read = lora_of_file(tmp_path / FILE)
    assert read.base == lora.base is not None and read.downs.keys() == lora.downs.keys()
    for name in lora.downs:
        torch.testing.assert_close(read.added(name), lora.added(name))


LAYER = "transformer.transformer_blocks.0.attn.to_q"
DOWN, UP = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
NAME = "net.transformer_blocks.0.attn.to_q.weight"


@pytest.mark.parametrize(
    ("more", "metadata", "scale"),
    [
        ({}, None, 1.0),
        ({f"{LAYER}.alpha": torch.tensor(8.0)}, None, 4.0),
        ({f"{LAYER}.alpha": torch.tensor(0.0)}, None, 0.0),
        ({}, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 1, "transformer.r": 2})}, 0.5),
        ({}, {"lora_adapter_metadata": json.dumps({"lora_alpha": 6})}, 3.0),
    ],
)
def test_other_tools_alphas_are_followed(
    tmp_path: Path, more: dict[str, Tensor], metadata: dict[str, str] | None, scale: float
) -> None:
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    save_file({DOWN: down, UP: up, **more}, tmp_path / FILE, metadata)
    read = lora_of_file(tmp_path / FILE)
    assert read.base is None
    torch.testing.assert_close(read.added(NAME), scale * (up @ down))


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 8},
        {"lora_alpha": 0},
        {"lora_alpha": 8, "use_rslora": True},
        {"alpha_pattern": {"attn.to_k": 64, "q": 100}},
        {"alpha_pattern": {"to_k": 3, r"^transformer_blocks\.0\.attn\.to_k": 64, "transformer_blocks.*to_q": 5}},
        {"rank_pattern": {"to_q": 2, "0.attn.to_k": 6}, "lora_alpha": 3},
        {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 1, "to_q": 7}, "use_rslora": True},
        {"fan_in_fan_out": True, "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_diffusers_files_are_merged_as_by_diffusers(
    random_teacher: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(random_teacher)
    base = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    layers = {"target_modules": ["attn.to_q", "attn.to_k"], "init_lora_weights": False}
    pipe.transformer.add_adapter(PeftConfig(**{"r": 4, "lora_alpha": 4, **layers, **settings}))
    tensors = get_peft_model_state_dict(pipe.transformer)
    told = _collate_lora_metadata({"transformer": pipe.transformer})
    pipe.save_lora_weights(tmp_path, {name: torch.randn_like(value) for name, value in tensors.items()}, **told)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, weight_name=FILE)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    ours, merged = lora_of_file(tmp_path / FILE), pipe.transformer.state_dict()
    assert len(ours.downs) == 4 and base.keys() == merged.keys()
    for name, value in base.items():
        key = f"net.{name}"
        wanted = value + ours.added(key) if key in ours.downs else value
        torch.testing.assert_close(wanted, merged[name], rtol=0, atol=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({DOWN: (2, 32)}, f"has no {UP}: adapters have transformer.LAYER.lora_A.weight and lora_B.weight"),
        ({UP: (32, 2)}, f"has {UP}: adapters have"),
        ({DOWN: (2, 32), UP: (32, 3)}, r"matrices of shapes \(2, 32\) and \(32, 3\), which are not of one rank"),
        ({DOWN: (2, 32), UP: (32, 2), "unet.a": (1,)}, "has unet.a: adapters have"),
        ({"net.proj_out.weight": (4, 4)}, "has net.proj_out.weight: adapters have"),
    ],
)
def test_what_is_no_file_of_adapters_is_said(tmp_path: Path, tensors: dict[str, tuple], message: str) -> None:
    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, tmp_path / FILE)
    with pytest.raises(LaddError, match=message):
        lora_of_file(tmp_path / FILE)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"lora_alpha": math.nan}, "its lora_adapter_metadata has lora_alpha=nan, which peft cannot have meant"),
        ({"lora_alpha": [8, 8]}, r"has lora_alpha=\[8, 8\], which"),
        ({"lora_alpha": None}, "has lora_alpha=None, which"),
        ({"r": 0}, "has r=0, which"),
        ({"r": 4}, f"{LAYER.partition('.')[2]} is of rank 2, and of 4 by its lora_adapter_metadata"),
        ({"r": 2, "rank_pattern": {"to_q": 3}}, "is of rank 2, and of 3 by"),
        ({"rank_pattern": {"to_q": 1.5}}, "has rank_pattern to_q=1.5, which"),
        ({"alpha_pattern": {"to_q": True}}, "has alpha_pattern to_q=True, which"),
        ({"alpha_pattern": {"(?i)to_q": 1}}, r"has alpha_pattern='\(\?i\)to_q', which"),
        ({"alpha_pattern": [4]}, r"has alpha_pattern=\[4\], which"),
        ({"use_rslora": "no"}, "has use_rslora='no', which"),
        ({"use_dora": True}, "its lora_adapter_metadata sets use_dora, with which adapters are more than scale"),
        ({"lora_bias": True}, "sets lora_bias, with"),
        ({"bias": "lora_only"}, "sets bias, with"),
        ({"init_lora_weights": "pissa_niter_4"}, "sets init_lora_weights, with"),
        ({"peft_type": "RANDLORA"}, "sets peft_type, with"),
        ({"modules_to_save": ["proj_out"]}, "sets modules_to_save, with"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "sets layer_replication, with"),
        ({"kasa_config": {"beta": 1}}, "sets kasa_config, with"),
        ({"a_later_one": 1}, "sets a_later_one, with"),
        ([], "has metadata lora_adapter_metadata that cannot be read: save it again by diffusers"),
    ],
    ids=str,
)
def test_metadata_that_is_not_followed_is_refused_by_its_key(tmp_path: Path, told: Any, message: str) -> None:
    metadata = {"lora_adapter_metadata": json.dumps(told)}
    save_file({DOWN: torch.zeros(2, 32), UP: torch.zeros(32, 2)}, tmp_path / FILE, metadata)
    with pytest.raises(LaddError, match=message) as error:
        lora_of_file(tmp_path / FILE)
    assert FILE in str(error.value)


@pytest.mark.parametrize(
    ("rank", "alpha", "metadata", "message"),
    [
        (2, [1.0, 2.0], None, rf"{LAYER}.alpha is \[1.0, 2.0\], but an alpha is one finite number"),
        (2, math.nan, None, f"{LAYER}.alpha is nan, but"),
        (2, -math.inf, None, f"{LAYER}.alpha is -inf, but"),
        (0, 1.0, None, f"{NAME} has matrices of rank 0, which add nothing"),
        (2, 1.0, {"lora_adapter_metadata": "{}"}, f"has both {LAYER}.alpha and lora_adapter_metadata"),
    ],
)
def test_a_scale_that_is_no_number_is_refused(
    tmp_path: Path, rank: int, alpha: float | list[float], metadata: dict[str, str] | None, message: str
) -> None:
    tensors = {DOWN: torch.zeros(rank, 32), UP: torch.zeros(32, rank), f"{LAYER}.alpha": torch.tensor(alpha)}
    save_file(tensors, tmp_path / FILE, metadata)
    with pytest.raises(LaddError, match=message) as error:
        lora_of_file(tmp_path / FILE)
    assert FILE in str(error.value)


def test_adapters_of_another_base_are_refused(
    runs: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, checkpoint = runs["whole"], checkpoint_of(runs["whole"])

    def refused(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
        save_file(tensors, tmp_path / FILE, metadata)
        with pytest.raises(LaddError) as error:
            load_student(config, checkpoint, "ema", torch.float32, open_loras([[str(tmp_path / FILE)]], ALONE, "ema"))
        return str(error.value)

    fits = {DOWN: torch.zeros(2, 32), UP: torch.zeros(32, 2)}
    assert f"{FILE} was trained on teacher 0123, which is not teacher.path=" in refused(fits, {"base": "0123"})
    wide = {DOWN: torch.zeros(2, 64), UP: torch.zeros(64, 2)}
    assert f"adds (64, 64) to {NAME}, which is of shape (32, 32) there: it was trained on" in refused(wide)
    deep = {key.replace("blocks.0", "blocks.7"): value for key, value in fits.items()}
    assert "which is not in it: it was trained on another base" in refused(deep)


def test_adapters_of_a_network_meet_no_other(
    random_teacher: Path, random_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By content: its folder may be another one by now."""
    base = shutil.copytree(random_teacher, tmp_path / "base")
    own = [f"teacher.path={random_teacher}", "train.iterations=1", LORA]
    config = tiny_config(tmp_path, random_dataset, *own, f"student.path={base}")
    Trainer(config, ALONE).run()
    checkpoint = checkpoint_of(config)
    moved = tiny_config(tmp_path, random_dataset, *own, f"student.path={base.rename(tmp_path / 'moved')}")
    load_student(moved, checkpoint, "ema", torch.float32)
    with pytest.raises(LaddError, match="holds adapters of network .*, which is not at student.path=None"):
        load_student(tiny_config(tmp_path, random_dataset, *own), checkpoint, "ema", torch.float32)
    (weights,) = (tmp_path / "moved/transformer").glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    weights.parent.parent.rename(base)
    for act in (lambda: load_student(config, checkpoint, "ema", torch.float32), lambda: Trainer(config, ALONE)):
        with pytest.raises(LaddError, match=f"which is not at student.path={base}: restore that folder"):
            act()


def test_adapters_of_other_layers_are_refused(
    runs: dict[str, Config], lora: Lora, random_teacher: Path, random_dataset: Path, tmp_path: Path
) -> None:
    """Their numbers are others in a student of some of the teacher's, and shapes do not tell."""
    teacher = f"teacher.path={random_teacher}"
    config = tiny_config(tmp_path, random_dataset, teacher, "train.iterations=1", "student.layers=[1]")
    Trainer(config, ALONE).run()
    save_lora(lora, tmp_path / FILE, torch.float32)
    for given in (runs["lora"].run_dir, str(tmp_path / FILE)):
        with pytest.raises(LaddError, match="was trained on all layers of its teacher, .* is made of layers 1:"):
            load_student(config, checkpoint_of(config), "ema", torch.float32, open_loras([[given]], ALONE, "ema"))


def test_what_the_command_line_may_name(runs: dict[str, Config], lora: Lora, tmp_path: Path) -> None:
    save_lora(lora, tmp_path / FILE, torch.float32)
    newest = str(checkpoint_of(runs["lora"]).path)
    given = [[str(tmp_path / FILE), "0.5"], [newest, "-2"], [runs["lora"].run_dir]]
    opened = open_loras(given, ALONE, "student")
    assert [scale for _, scale in opened] == [0.5, -2.0, 1.0]
    for found, _ in opened:
        assert found.downs.keys() == lora.downs.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{lora}", "much"], "much: give a path and, if it is not 1, one number"),
        (["{lora}", "1", "2"], "1 2: give a path and, if it is not 1, one number"),
        (["{lora}", "nan"], "nan is no scale"),
        (["nowhere"], "--lora nowhere is no safetensors file, and no folder of a checkpoint or a run"),
        (["{whole}"], r"\(method.name=ladd\) has no adapters: give one with student.lora"),
    ],
)
def test_what_it_may_not(runs: dict[str, Config], given: list[str], message: str) -> None:
    folders = {name: config.run_dir for name, config in runs.items()}
    with pytest.raises(LaddError, match=message):
        open_loras([[word.format(**folders) for word in given]], ALONE, "ema")


def test_adapters_are_not_drawn_at_another_scale_than_they_were_trained(
    runs: dict[str, Config], random_teacher: Path, random_dataset: Path
) -> None:
    teacher = f"teacher.path={random_teacher}"
    other = tiny_config(Path(runs["lora"].run_dir), random_dataset, teacher, "student.lora={rank: 4, alpha: 4}")
    with pytest.raises(LaddError, match="was trained with student.lora="):
        load_student(other, checkpoint_of(runs["lora"]), "ema", torch.float32)
