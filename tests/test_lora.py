"""A student of adapters on a frozen base that is also teacher and backbone of the discriminator."""

from pathlib import Path

import pytest
import torch
from conftest import ALONE, tiny_config
from ranks import ENGINES, ranks
from torch import Tensor, nn

from ladd_dist.checkpoints.reader import Checkpoint, open_newest
from ladd_dist.config import Config, LoraConfig
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.distributed.clock import Clock
from ladd_dist.distributed.world import World
from ladd_dist.engines.blueprint import cast, trainable
from ladd_dist.engines.casting import cast_in_passes
from ladd_dist.errors import LaddError
from ladd_dist.measuring.compare import compare_runs
from ladd_dist.methods.networks import meta_student
from ladd_dist.methods.registry import build_method
from ladd_dist.models.adapters import add_adapters
from ladd_dist.models.registry import family_of
from ladd_dist.planning.networks import check_networks
from ladd_dist.training.trainer import Trainer

LORA = ["student.lora={rank: 3, alpha: 6}", "student_optimizer.eps=1e-4", "head_optimizer.eps=1e-4"]
FP32 = 1e-5
"""As in test_parity."""


def lora_config(run_dir: Path, data: Path, teacher: Path, *overrides: str) -> Config:
    return tiny_config(run_dir, data, f"teacher.path={teacher}", *LORA, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, random_teacher: Path, random_dataset: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("lora")
    Trainer(lora_config(run_dir, random_dataset, random_teacher), ALONE).run()
    return run_dir


def checkpoint_of(run_dir: Path) -> Checkpoint:
    found = open_newest(run_dir, ALONE)
    assert found is not None
    return found


def test_a_checkpoint_holds_adapters_alone(run: Path) -> None:
    names = set(checkpoint_of(run).network("student"))
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)


def test_one_base_trains_as_a_teacher_of_its_own_does(
    run: Path, random_teacher: Path, random_dataset: Path, tmp_path: Path
) -> None:
    Trainer(lora_config(tmp_path, random_dataset, random_teacher, f"student.path={random_teacher}"), ALONE).run()
    assert compare_runs(run, tmp_path, steps=6, tolerance=0).accepted


def _train(world: World, config: Config) -> None:
    Trainer(config, world).run()


@pytest.mark.parametrize("recompute", ["false", "selective", "true"])
@pytest.mark.parametrize("order", ["shared", "two_pass"])
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_ranks_train_as_one_process_does(
    run: Path, random_teacher: Path, random_dataset: Path, tmp_path: Path, engine: str, order: str, recompute: bool
) -> None:
    settings = [
        "train.micro_batch=4" if order == "shared" else "train.micro_batch=2",
        f"method.fake_pass={order}",
        f"student.activation_checkpointing={recompute}",
    ]
    ranks(2)(_train, lora_config(tmp_path, random_dataset, random_teacher, *ENGINES[engine], *settings))
    found = compare_runs(run, tmp_path, steps=6, tolerance=FP32)
    assert found.accepted, found


def _weights_after_backward(world: World, config: Config) -> list[tuple[int, list[bool]]]:
    """Of one iteration under ZeRO-3: for each block, when its gradients are through, which blocks are whole."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    trainer = Trainer(config, world)
    blocks = trainer.method.student.module.wrap_points()  # type: ignore[operator]
    seen: list[tuple[int, list[bool]]] = []

    def whole(block: torch.nn.Module) -> bool:
        return any(p.ds_status == ZeroParamStatus.AVAILABLE for p in block.parameters() if not p.ds_persist)

    def look(index: int, image: Tensor) -> None:
        if image.requires_grad:
            image.register_hook(lambda _: seen.append((index, [whole(block) for block in blocks])))

    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda _, __, out, number=number: look(number, out[1]))
    next(trainer.iterations())
    return seen


def test_zero3_lets_the_weights_of_a_shared_base_go_in_both_backward_passes(dataset: Path, tmp_path: Path) -> None:
    """The teacher's pass runs between the student's forward and backward, through the same modules."""
    config = tiny_config(tmp_path, dataset, "student.lora.rank=3", "engine=zero3", "train.micro_batch=4")
    for seen in ranks(2)(_weights_after_backward, config):
        assert [index for index, _ in seen] == [3, 2, 1, 0] * 2
        assert not any(any(whole[index + 2 :]) for index, whole in seen)


def _inputs(g: torch.Generator) -> tuple[Tensor, Tensor, Conditioning]:
    cond = Conditioning(torch.randn(2, 5, 64, generator=g), torch.randn(2, 64, generator=g))
    return torch.randn(2, 8, 8, 8, generator=g), torch.tensor([0.3, 0.9]), cond


def test_a_pass_without_adapters_is_the_base(random_teacher: Path, random_dataset: Path, tmp_path: Path) -> None:
    method = build_method(lora_config(tmp_path, random_dataset, random_teacher), ALONE, Clock(ALONE))
    for p in trainable(method.student.module).values():
        p.data.fill_(0.1)
    base, inputs = family_of(random_teacher).load(random_teacher, torch.float32), _inputs(torch.Generator())
    with torch.no_grad():
        # Not bit for bit: the weights lie elsewhere in memory, and some kernels add in another order there.
        torch.testing.assert_close(method.student(*inputs, adapter=False), base(*inputs), rtol=0, atol=1e-5)
        assert not torch.allclose(method.student(*inputs), base(*inputs), atol=1e-2)


def test_training_starts_at_the_base(random_teacher: Path, random_dataset: Path, tmp_path: Path) -> None:
    method = build_method(lora_config(tmp_path, random_dataset, random_teacher), ALONE, Clock(ALONE))
    inputs = _inputs(torch.Generator())
    with torch.no_grad():
        assert torch.equal(method.student(*inputs), method.student(*inputs, adapter=False))
    downs = [p for name, p in trainable(method.student.module).items() if ".lora_A." in name]
    assert downs and all(0.5 < float(p.detach().std() * (3 * p.shape[1]) ** 0.5) < 1.5 for p in downs)


def test_recomputation_knows_which_pass_it_is_of(random_teacher: Path, random_dataset: Path, tmp_path: Path) -> None:
    """A pass with adapters and one without, of one module, both before any backward pass."""
    gradients = []
    for recompute in ("false", "selective", "true"):
        config = lora_config(
            tmp_path, random_dataset, random_teacher, f"student.activation_checkpointing={recompute}"
        )
        module = build_method(config, ALONE, Clock(ALONE)).student.module
        g = torch.Generator().manual_seed(0)
        for p in trainable(module).values():
            p.data.copy_(torch.randn(p.shape, generator=g) * 0.1)
        x, t, cond = _inputs(g)
        x.requires_grad_()
        with_, without = module(x, t, cond), module(x, t, cond, adapter=False)
        assert not torch.allclose(with_, without, atol=1e-2)
        (of_without,) = torch.autograd.grad(without.sum(), x, retain_graph=True)
        (of_with,) = torch.autograd.grad(with_.sum(), x)
        gradients.append((of_with, of_without))
    for recomputed in gradients[1:]:
        torch.testing.assert_close(recomputed, gradients[0], rtol=0, atol=0)
    assert not torch.allclose(*gradients[0], atol=1e-2)


def test_a_target_that_is_no_layer_is_named(random_teacher: Path, random_dataset: Path, tmp_path: Path) -> None:
    config = lora_config(tmp_path, random_dataset, random_teacher, "student.lora.targets=[attn.to_q, to_x]")
    with pytest.raises(LaddError, match=r"student\.lora\.targets: to_x is the end of no linear layer's name, such"):
        check_networks(config)


def test_targets_are_ends_of_names(random_teacher: Path, random_dataset: Path, tmp_path: Path) -> None:
    config = lora_config(tmp_path, random_dataset, random_teacher, "student.lora.targets=[attn.to_q]")
    names = list(trainable(meta_student(config)))
    assert names == [
        f"net.transformer_blocks.{block}.attn.to_q.lora_{part}.default.weight" for block in (0, 1) for part in "AB"
    ]


@pytest.mark.parametrize("setting", ["placement=shard", "compile=true", "activation_checkpointing=true"])
def test_a_teacher_that_is_the_base_has_no_settings_of_its_own(
    random_teacher: Path, random_dataset: Path, tmp_path: Path, setting: str
) -> None:
    with pytest.raises(LaddError, match=f"teacher.{setting.split('=')[0]}=.* is of no use"):
        lora_config(tmp_path, random_dataset, random_teacher, f"teacher.{setting}")


class Layers(nn.ModuleList):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self]

    def wrap_points(self) -> list[nn.Module]:
        return list(self)


def test_an_adapter_keeps_its_layers_input_and_no_copy_of_it() -> None:
    """With fp32 adapters on a bf16 base, as one process trains: most memory goes to inputs."""
    net = Layers(nn.Linear(64, 64) for _ in range(2))
    add_adapters(net, LoraConfig(rank=4))
    cast(net, torch.bfloat16)
    cast_in_passes(net, torch.bfloat16)
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(128, 64, dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = net(x)
    assert all(output.requires_grad for output in outputs)
    assert [tensor.data_ptr() for tensor in kept.values() if tensor.shape == x.shape] == [x.data_ptr()]
