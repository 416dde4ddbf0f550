"""An iteration on a GPU that is not there: what a first real one would have stumbled over, and what is said of it.

Fake ranks need a process whose CUDA runtime is the stand-in, so cases that share one are run by `dry_runs`.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_configs import SD35_LARGE, SD35_VAE

from ladd_dist.config import Config, load
from ladd_dist.methods.registry import method_of
from ladd_dist.planning.activations import checkpointed
from ladd_dist.planning.cards import CARDS
from ladd_dist.planning.cluster import Cluster
from ladd_dist.planning.costs import Costs
from ladd_dist.planning.dry_run.card import KNOWN, fake_card
from ladd_dist.planning.dry_run.cuda import build, environment
from ladd_dist.planning.memory import on
from ladd_dist.planning.needs import needs
from ladd_dist.planning.onlookers import onlookers
from ladd_dist.planning.plan import largest_bucket
from ladd_dist.planning.timing import step_time

LARGE, DPO = "configs/sd35_large.yaml", "configs/sd35_large_dpo.yaml"
EIGHT_BIT = Path(sys.prefix) / "8bit"
KERNELS = {"own": ["kernels.attention=triton", "kernels.heads=triton"],
           "torch": ["kernels.attention=cudnn", "kernels.heads=torch"]}  # fmt: skip
BUCKETS = load(LARGE).synthesis.buckets
PAIRS = "method.loss=relativistic"

RUNNER = """
import json, sys
import torch
from ladd_dist.config import load
from ladd_dist.diffusion import flow
from ladd_dist.methods.ladd import step
from ladd_dist.planning.dry_run.run import dry_run

def meddling(line):
    def add_noise(x0, noise, t):
        x = flow.add_noise(x0, noise, t)
        exec(line, {"torch": torch, "x": x})
        return x
    return add_noise

for case in map(json.loads, sys.stdin):
    step.add_noise = meddling(case["line"])
    try:
        seen = dry_run(load(case["config"], case["overrides"]), case["size"], case["buckets"], 2)
        said = {
            "waits": [str(wait) for wait in seen.waits],
            "resident": seen.resident,
            "peaks": dict(seen.peaks),
            "launches": dict(seen.launches),
            "kernels": list(seen.kernels.values()),
            "moved": dict(seen.moved),
            "traffic": {kind: [sent.calls, sent.bytes] for kind, sent in seen.traffic.items()},
            "state": {f"{place} {kind}": size for (place, kind), size in seen.state.items()},
            "heads": seen.parameters.get("heads", 0),
            "micro_batches": [seen.micro_batches, seen.accumulation],
        }
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cuda"))


@dataclass(frozen=True)
class Case:
    """A dry run, in which the step does something more to each noised latents ``x``."""

    overrides: list[str]
    buckets: list[str]
    size: int = 8
    line: str = "pass"
    config: str = LARGE


@pytest.fixture
def dry_runs(stand_in):
    """One process for all cases."""

    def run(cases: list[Case], name: str = "H100", **environ: str) -> list[Any]:
        lines = "\n".join(json.dumps(asdict(case)) for case in cases)
        done = subprocess.run(
            [sys.executable, "-c", RUNNER], input=lines, capture_output=True, text=True, cwd=ROOT,
            env=environment(fake_card(name), stand_in) | environ, timeout=1200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(results) == len(cases)
        return results

    return run


def folder(path: Path, config: dict[str, Any]) -> Path:
    """A teacher's configs, without weights."""
    for name, content in {"transformer": config, "vae": SD35_VAE}.items():
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def large(tmp_path):
    return folder(tmp_path, SD35_LARGE)


@pytest.fixture
def two_blocks(tmp_path):
    """SD3.5 Large's kinds of shapes, narrow and of two blocks; buckets and patches are its own."""
    return folder(tmp_path, SD35_LARGE | {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128})


def test_every_bucket_and_order_and_kernel_runs_and_nothing_waits(dry_runs, two_blocks):
    """Tensors of two devices or dtypes, an operator without a fake and a wait for the device fail here."""
    cases = [
        Case([f"teacher.path={two_blocks}", *KERNELS[kernels], f"method.fake_pass={order}",
              f"train.global_batch={batch}", f"student.activation_checkpointing={again}", *more], buckets)
        for kernels, order, batch, again, more, buckets in (
            ("own", "shared", 32, "true", ["teacher.activation_checkpointing=true"], BUCKETS),
            ("torch", "two_pass", 64, "false", ["teacher.placement=replicate"], BUCKETS[::3]),
            ("torch", "shared", 32, "false", ["method.mismatched_weight=0.5", PAIRS], BUCKETS[1::3]),
            ("own", "two_pass", 64, "true",
             ["fsdp2.replicas=2", "method.r1_weight=0", PAIRS, "discriminator.student_time=true"], BUCKETS[2::3]),
            ("own", "shared", 32, "false",
             ["student.lora.rank=4", "teacher.placement=replicate", "method.distillation_weight=1"], BUCKETS[:2]),
        )
    ]  # fmt: skip
    cases.append(Case(["engine=local", *cases[0].overrides, "train.global_batch=4"], BUCKETS[:1], size=1))
    for result, case in zip(dry_runs(cases), cases, strict=True):
        assert result.get("error") is None, (case, result["error"])
        assert result["waits"] == [], case
        ran = 2 if "train.global_batch=64" in case.overrides else 1
        assert result["micro_batches"] == [ran, ran]


@pytest.mark.slow
def test_the_8b_step_runs_on_8_64_and_512_ranks_within_an_h200(dry_runs, large):
    """Both kernels, the largest bucket and an oblong one; what is there before the step is what the formula says."""
    common = [f"teacher.path={large}", "train.global_batch=32"]
    cases = [
        Case([*common, *KERNELS["own"]], ["1024x1024"]),
        Case([*common, *KERNELS["torch"], "method.fake_pass=two_pass"], ["704x1472"]),
        Case([common[0], "train.global_batch=64", "train.micro_batch=1"], ["1024x1024"], size=64),
        Case([common[0], "train.global_batch=512", "train.micro_batch=1"], ["1024x1024"], size=512),
    ]
    for result, case in zip(dry_runs(cases, name="H200"), cases, strict=True):
        assert result.get("error") is None, result["error"]
        assert result["waits"] == []
        state = result["state"]
        heads = result["heads"] * 4  # their gradients are not there yet
        expected = sum(state.values()) - state["device gradients"] - heads
        assert result["resident"] == pytest.approx(expected, rel=0.01)
        assert result["resident"] < max(result["peaks"].values()) < 141e9
        near = 0.01 if case.size == 8 else 0.05  # rows of each weight are padded to the number of ranks
        assert result["traffic"]["reduce_scatter"][1] == pytest.approx(4 * 8.057e9, rel=near)


MOSTLY = ["train.global_batch=32"]
RECOMPUTED = ["student.activation_checkpointing=false", "teacher.activation_checkpointing=true"]
SEVERAL = ["method.fake_pass=two_pass", "train.global_batch=64"]
PLANNED = [
    Case(MOSTLY, []),
    Case([*SEVERAL, *RECOMPUTED], []),
    Case([*MOSTLY, "teacher.placement=replicate", "kernels.attention=flash", "kernels.heads=torch"], []),
    Case([*MOSTLY, "student.lora.rank=16", "teacher.placement=replicate"], []),
    Case([*MOSTLY, "teacher.activation_checkpointing=true"], []),
    Case([*MOSTLY, "student.activation_checkpointing=selective", "teacher.activation_checkpointing=selective"], []),
    Case(["train.global_batch=512", "train.micro_batch=1"], [], size=512),
    Case(["train.global_batch=4", "engine=local"], [], size=1),
    Case(["train.global_batch=4", "engine=local", *RECOMPUTED], [], size=1),
    Case([*MOSTLY, "engine=zero3"], []),
]


def test_the_plans_memory_and_launches_are_what_a_dry_run_counts(dry_runs, tmp_path):
    """Four blocks of SD3.5 Large's: gathered ones, gradients on their way and kept graphs in a run's own proportions.

    The planner counts by its own run of the networks, the dry run what the trainer itself allocates and launches.
    """
    teacher = folder(tmp_path, SD35_LARGE | {"num_layers": 4})
    cases = [
        replace(case, overrides=[f"teacher.path={teacher}", "synthesis.buckets=[1024x1024]", *case.overrides],
                buckets=BUCKETS[:1])
        for case in PLANNED
    ]  # fmt: skip
    beside = []
    for result, case in zip(dry_runs(cases, name="H200"), cases, strict=True):
        assert result.get("error") is None, (case, result["error"])
        # Of 512 ranks each holds little but blocks on their way, whose number is a guess.
        most, near = max(result["peaks"].values()), 0.08 if case.size == 512 else 0.05
        config = load(LARGE, case.overrides)
        costs = Costs(config, largest_bucket(config), fake_card("H200").name)
        assert planned_bytes(case, costs) == pytest.approx(most, rel=near), f"{case.overrides} {result['peaks']}"
        passes = [phase for phase in result["launches"] if phase.startswith(("student", "teacher"))]
        counted = sum(result["launches"][phase] for phase in passes) - planned_launches(case, costs)
        beside.append(counted / config.accumulation(case.size))
    # Noise, losses and the record, for each micro-batch, whatever the engine; ZeRO-3's own are known about.
    sharded, *others, local, recomputed, zero3 = beside
    assert [local, recomputed] == pytest.approx([sharded] * 2, abs=5) and zero3 == pytest.approx(sharded, abs=100)
    assert min(sharded, *others) > 0 and max(others) < 200


def planned_bytes(case: Case, costs: Costs) -> int:
    """What the planner says of a case, without what looks on, of which a dry run has none."""
    config = load(LARGE, case.overrides)
    planned = needs(config, costs, case.size, config.micro_batch(case.size), workspace=0)
    return planned.total - on(onlookers(config, costs.networks, case.size), "device")


def planned_launches(case: Case, costs: Costs) -> float:
    """What it says of the passes of the student and the teacher."""
    config, cluster = load(LARGE, case.overrides), Cluster(CARDS["H200"], min(case.size, 8), max(1, case.size // 8))
    samples, micro_batches = config.micro_batch(case.size), config.accumulation(case.size)
    heads = (costs.of(each, False, samples) for each in method_of(config).passes(config) if each.network == "heads")
    launches = step_time(config, costs, cluster, samples, micro_batches).launches
    return launches - micro_batches * sum(cost.forward.launches + cost.backward.launches for cost in heads)


@pytest.mark.slow
def test_compiled_blocks_are_made_for_the_card_and_take_what_is_planned(dry_runs, tmp_path):
    """Generated programs run, allocations and all, but for their kernels, which are made and not launched."""
    teacher = folder(tmp_path, SD35_LARGE | {"num_layers": 4})
    settings = [f"teacher.path={teacher}", "synthesis.buckets=[1024x1024]", *MOSTLY]
    cases = [
        Case([*settings, f"student.compile={value}", f"teacher.compile={value}"], BUCKETS[:1])
        for value in ("true", "false")
    ]
    compiled, plain = dry_runs(cases, name="H200")
    # A block on its way takes less than planned where operators are fused: with four blocks 8%, with 38 under 1%.
    for result, case, near in zip((compiled, plain), cases, (0.1, 0.05), strict=True):
        assert (result.get("error"), result["waits"]) == (None, [])
        config = load(LARGE, case.overrides)
        costs = Costs(config, largest_bucket(config), fake_card("H200").name)
        assert planned_bytes(case, costs) == pytest.approx(max(result["peaks"].values()), rel=near), case
    # Of two kinds each: the student forward and backward; the teacher without gradient and, of three, with.
    assert (len(compiled["kernels"]), plain["kernels"]) == (4 + 2 + 6, [])
    assert min(compiled["kernels"]) > 0
    # Not of each: cuDNN's attention, which compiled blocks have, leaves more around it than this repository's.
    passes = "student forward", "student backward", "teacher forward", "teacher backward"
    launches, uncompiled = (sum(result["launches"][phase] for phase in passes) for result in (compiled, plain))
    assert launches < uncompiled
    assert compiled["traffic"] == plain["traffic"]
    moved = fused_bytes(load(LARGE, cases[0].overrides), cases[0].size)
    for phase, planned in moved.items():  # of a frozen network's backward pass most: compiled, it keeps less
        assert planned == pytest.approx(compiled["moved"][phase], rel=0.25), phase
    assert sum(moved.values()) == pytest.approx(sum(compiled["moved"][phase] for phase in moved), rel=0.05)


def fused_bytes(config: Config, size: int) -> dict[str, float]:
    """What compiled blocks are planned to read and write around products and attention, by phase."""
    costs, moved = Costs(config, largest_bucket(config), fake_card("H200").name), dict[str, float]()
    for passed in method_of(config).passes(config):
        cost = costs.of(passed, checkpointed(config, passed.network), config.micro_batch(size))
        for direction, work in (("forward", cost.forward), ("backward", cost.backward)):
            if passed.network != "heads" and work.fused:
                phase = f"{passed.network} {direction}"
                moved[phase] = moved.get(phase, 0) + work.fused * config.accumulation(size)
    return moved


def test_zero3_is_run_with_all_that_it_asks_of_other_ranks(dry_runs, two_blocks, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # as where there is no GPU, and DeepSpeed is told not to look for one
    common = [f"teacher.path={two_blocks}", "engine=zero3", *KERNELS["own"]]
    adapted = [*MOSTLY, "student.lora.rank=4", "teacher.placement=replicate"]
    cases = [Case([*common, *more], BUCKETS[:1]) for more in (SEVERAL, MOSTLY, adapted)]
    two, one, adapters = dry_runs(cases)
    for result in (two, one, adapters):
        assert result.get("error") is None, result["error"]
        assert any("engines/zero3.py" in wait for wait in result["waits"]), "it compares numbers between ranks"
        assert not any("methods/" in wait and "item" in wait for wait in result["waits"])
        # A buffer for a block's gradients is there, and those of the heads are not yet.
        expected = sum(result["state"].values()) - result["heads"] * 4
        assert expected <= result["resident"] <= 1.06 * expected
    assert two["micro_batches"] == [2, 2] and one["micro_batches"] == [1, 1]
    assert two["traffic"]["reduce_scatter"][1] == pytest.approx(2 * one["traffic"]["reduce_scatter"][1], rel=0.01)
    assert 0 < adapters["traffic"]["reduce_scatter"][1] < one["traffic"]["reduce_scatter"][1], "the base is frozen"


def test_other_methods_run_too(dry_runs, two_blocks):
    flow = ["method={name: flow_matching}", "head_optimizer=null", "discriminator={}", "teacher.placement=replicate"]
    cases = [
        Case([f"teacher.path={two_blocks}", *flow, "train.global_batch=64"], BUCKETS[:2]),
        Case([f"teacher.path={two_blocks}", "train.global_batch=32"], BUCKETS[:2], config=DPO),
    ]
    for result, case in zip(dry_runs(cases), cases, strict=True):
        assert (result.get("error"), result["waits"]) == (None, []), case


def test_eight_bit_moments_are_what_the_formula_says(dry_runs, two_blocks):
    """The host reads whether the gradient is finite, once for each optimizer and update."""
    if not EIGHT_BIT.is_dir():
        pytest.skip("torchao is not there: `make test` installs it")
    common = [f"teacher.path={two_blocks}", "student_optimizer.state=8bit", "head_optimizer.state=8bit"]
    cases = [
        Case([*common, "train.global_batch=32"], BUCKETS[:1]),
        Case([*common, "engine=local", "train.global_batch=4"], BUCKETS[:1], size=1),
    ]
    for result in dry_runs(cases, PYTHONPATH=str(EIGHT_BIT)):
        assert result.get("error") is None, result["error"]
        assert all("engines/eight_bit.py" in wait for wait in result["waits"])
        state = result["state"]
        gradients = state["device gradients"] + result["heads"] * 4
        assert result["resident"] == pytest.approx(sum(state.values()) - gradients, rel=0.03)


WAITS = {
    "float(x.sum())": "_local_scalar_dense",
    "bool(x.isfinite().all())": "_local_scalar_dense",
    "x.cpu()": "copy from cuda to cpu",
    "torch.tensor([1.0], device=x.device)": "copy from cpu to cuda",
    "torch.cuda.synchronize(); x.neg()": "is waited for",
}
FAILURES = {
    "x + torch.ones(128)": "two devices, cuda:0 and cpu",
    "x[0, 0] @ torch.ones(128, 1, dtype=torch.bfloat16, device=x.device)": "must have the same dtype",
    "x[x > 0]": "waits for the device and its result has no shape before",
    "torch.library.custom_op('tests::bare', lambda y: y.clone(), mutates_args=(), schema='(Tensor y) -> Tensor')(x)":
        "tests::bare",
}  # fmt: skip


def test_a_wait_is_told_with_its_line(dry_runs, two_blocks):
    cases = [meddled(two_blocks, line) for line in WAITS]
    for result, said in zip(dry_runs(cases), WAITS.values(), strict=True):
        first = result["waits"][0]
        assert said in first and first.startswith("ladd_dist/methods/ladd/step.py:"), first
        assert "student forward" in first


def test_what_would_fail_on_a_gpu_fails(dry_runs, two_blocks):
    cases = [meddled(two_blocks, line) for line in FAILURES]
    for result, said in zip(dry_runs(cases), FAILURES.values(), strict=True):
        assert said in result["error"]


def meddled(teacher: Path, line: str) -> Case:
    return Case([f"teacher.path={teacher}", "train.global_batch=32", *KERNELS["own"]], BUCKETS[:1], line=line)


def test_what_it_cannot_do_is_said_in_a_line(dry_runs, two_blocks):
    common = [f"teacher.path={two_blocks}", "train.global_batch=32"]
    (kernels,) = dry_runs([Case([*common, *KERNELS["own"]], BUCKETS[:1])], name="Tesla V100:7.0:32")
    assert "Tesla V100 has capability 7.0" in kernels["error"]


def launch(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "launchers/train.py", "--config", LARGE, *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | environ, timeout=600,
    )  # fmt: skip


def test_the_launcher_says_what_it_has_counted_and_writes_nothing(two_blocks, tmp_path):
    run_dir = tmp_path / "run"
    settings = [
        f"teacher.path={two_blocks}",
        f"run_dir={run_dir}",
        "method.fake_pass=two_pass",
        "student.layers=[0]",
        "student.compile=true",
        "kernels.attention=triton",
    ]
    done = launch("--dry-run", "4", "--gpu", "A100-80GB", *settings)
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 4, NVIDIA A100-SXM4-80GB, an iteration of 2 of 32 micro-batches of 1024x1024" in done.stdout
    # The student's block without gradient and, forward and backward, with.
    assert "compiled for capability 8.0: 3 programs of " in done.stdout
    assert "the host waits for the device nowhere" in done.stdout
    assert "its config alone is held against the rest" in done.stderr
    assert not run_dir.exists()


def test_state_in_host_memory_is_told_by_formula_and_by_deepspeeds_estimate(two_blocks):
    settings = [f"teacher.path={two_blocks}", "engine=zero3", "zero3.offload=optimizer", "train.global_batch=32"]
    done = launch("--dry-run", "8", *settings)
    assert done.returncode == 0, done.stderr
    assert "no iteration: zero3.offload=optimizer keeps state in this machine's own memory" in done.stdout
    assert "GB of host memory (gradients" in done.stdout
    # 16 bytes for each of the student's 2 million parameters, and half as much again for buffers.
    assert "by DeepSpeed's estimate, on nodes of 8: " in done.stdout and "0.045 GB of a node's memory" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--dry-run", "8", "--gpu", "H1000"], {}, f"choose one of {', '.join(KNOWN)}, or describe yours"),
        (["--dry-run", "8"], {"PATH": ""}, "finds no cc: apt-get install gcc"),
        (["--dry-run", "8"], {"RANK": "0"}, "start it with python"),
        (["--gpu", "H200"], {}, "--gpu is for a dry run alone: add --dry-run RANKS"),
    ],
)
def test_bad_input_ends_with_a_line(arguments, environ, said):
    done = launch(*arguments, **environ)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_a_card_of_ones_own():
    own = fake_card("NVIDIA GH200 480GB:9.0:96")
    assert (own.name, own.capability, own.gigabytes) == ("NVIDIA GH200 480GB", (9, 0), 96)
