"""The import flow is one-way, and `kernels` is harmless to the libraries that probe for a package of its name."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).parent.parent

ROOMS = """
    errors versions
    config
    distributed
    log
    files diffusion
    models engines supervision
    methods
    data digits
    planning
    drawing checkpoints
    evaluation
    jobs training
    report measuring slurm kubernetes preflight
    human studies
    cli
"""
"""From the ground up: a room may use those of the lines above it, and rooms of one line do not know each other."""

LINE = {room: number for number, line in enumerate(ROOMS.strip().splitlines()) for room in line.split()}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file, packages by their own name."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return dict(zip(names, files, strict=True))


MODULES = modules("ladd_dist") | modules("kernels") | modules("launchers")


def imports(name: str) -> set[str]:
    """This project's modules that a module imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inner or {node.module}
    return found & set(MODULES)


def room(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("ladd_dist.")])
def test_rooms_use_only_rooms_above_them(name: str) -> None:
    here = room(name)
    assert here in LINE, f"{here} has no place: add it to ROOMS"
    for other in imports(name):
        assert not other.startswith("launchers"), f"{name} must not import {other}"
        if other.startswith("ladd_dist.") and (there := room(other)) != here:
            assert LINE[there] < LINE[here], f"{name} must not import {other}: {there} is not above {here} in ROOMS"


def test_kernels_know_nothing_of_the_trainer() -> None:
    assert not {other for n in MODULES if n.startswith("kernels") for other in imports(n) if "kernels" not in other}


def test_the_trainer_uses_only_what_kernels_exports() -> None:
    outside = {name: imports(name) for name in MODULES if not name.startswith("kernels")}
    inner = {name: found for name in outside if (found := {o for o in outside[name] if o.startswith("kernels.")})}
    assert not inner, "import it from kernels, and add it to its exports"


def test_types_of_what_kernels_exports_are_declared() -> None:
    """A name looked up on first use has no type of its own: the list for mypy has to be the list for Python."""
    tree = ast.parse(MODULES["kernels"].read_text())
    declared = {
        alias.name: node.module.removeprefix("kernels.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kernels.")
        for alias in node.names
    }
    assert declared == kernels._EXPORTS


def test_only_the_gate_imports_the_gate() -> None:
    assert not {n for n in MODULES if not n.startswith("kernels.gate") for o in imports(n) if "kernels.gate" in o}


def test_a_running_kernel_needs_neither_benchmarks_nor_what_the_gate_compiles() -> None:
    reached: set[str] = set()
    waiting = {f"kernels.{module}" for module in kernels._EXPORTS.values()}
    while waiting:
        reached |= waiting
        waiting = {other for name in waiting for other in imports(name)} - reached
    assert not {name for name in reached if name.split(".")[1] in ("bench", "gate") or name.endswith(".shipped")}


def test_a_family_is_used_through_its_contract() -> None:
    """The embedded teacher is built as the SD3 it is; all else asks `family_of`."""
    mine = ("ladd_dist.models.sd3", "ladd_dist.digits")
    found = {name for name in MODULES if not name.startswith(mine) for o in imports(name) if o.startswith(mine[0])}
    assert not found, "ask the family: models/family.py"


def test_imports_go_one_way_within_a_room() -> None:
    try:
        list(TopologicalSorter({name: imports(name) - {name} for name in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(f"these import one another: {' -> '.join(error.args[1])}")


def test_the_top_holds_a_handful_of_files() -> None:
    assert len(list((ROOT / "ladd_dist").glob("*.py"))) <= 5


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_kernels_loads_neither_torch_nor_triton():
    assert run("import sys, kernels; print({'torch', 'triton'} & set(sys.modules))").strip() == "set()"
    assert (
        run("import kernels; print(hasattr(kernels, '__version__'), hasattr(kernels, 'nope'))").split()
        == ["False"] * 2
    )


def test_public_functions_load_triton_no_sooner_than_a_kernel_is_launched():
    everything = "import sys, kernels; [getattr(kernels, name) for name in kernels._EXPORTS]"
    assert run(f"{everything}; print('torch' in sys.modules, 'triton' in sys.modules)").split() == ["True", "False"]


def test_what_submits_and_renders_jobs_loads_no_torch():
    rooms = "import sys, ladd_dist.slurm.submission, ladd_dist.slurm.script, ladd_dist.kubernetes.manifests"
    assert run(f"{rooms}; print('torch' in sys.modules)").strip() == "False"


def test_diffusers_and_transformers_import_beside_kernels():
    out = run(
        "import kernels\n"
        "from diffusers import StableDiffusion3Pipeline, SD3Transformer2DModel\n"
        "from transformers import CLIPTextModelWithProjection, T5EncoderModel, CLIPModel\n"
        "print(kernels.__file__)"
    )
    assert Path(out.strip()).parent == ROOT / "kernels"
