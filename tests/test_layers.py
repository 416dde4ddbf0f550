"""The import flow is one-way, and `kernels` is harmless to the libraries that probe for a package of its name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    {"kernels"},
    {"errors", "checksums", "signals", "disk", "holder", "console"},
    {"yaml_strict", "values", "tasks", "rendezvous"},
    {"arguments", "config", "flow", "losses", "conditioning", "draws", "distributed"},
    {"batch", "log", "schedule", "results", "clock", "control", "traffic", "verdict", "commits", "lock_file"},
    {"models", "engines", "profiler", "places", "folders", "lease", "mirror"},
    {"data", "ladd", "sampling", "digits", "metrics", "pictures", "watchdog", "teacher_schedule"},
    {"ema", "judges", "networks", "painter", "tracking", "student_schedule"},
    {"checkpoint", "model_card", "preview", "synthesis", "gallery", "window", "memory"},
    {"checkpoint_writer", "student", "report_charts"},
    {"trainer"},
    {"evaluation", "export", "report", "benchmark", "compare", "side"},
    {"supervisor"},
    {"cli"},
    {"launchers"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
NEVER = {"engines": {"models", "data", "ladd"}, "models": {"engines"}, "kernels": set(RANK) - {"kernels"}}


def unit(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] in ("kernels", "launchers") else parts[1]


def imports(path: Path) -> set[str]:
    """Units of this project that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "ladd_dist" else [f"ladd_dist.{a.name}" for a in node.names]
        for name in names:
            head, *rest = name.split(".")
            if head == "ladd_dist" and rest:
                found.add(rest[0])
            if head in ("kernels", "launchers"):
                found.add(head)
    return found


FILES = [p for d in ("ladd_dist", "kernels", "launchers") for p in sorted((ROOT / d).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_point_down(path):
    if path == ROOT / "ladd_dist/__init__.py":
        return
    here = unit(path)
    for other in imports(path) - {here}:
        assert other in RANK, f"{path.name} imports {other}, which has no layer: add it to LAYERS"
        assert RANK[other] < RANK[here], f"{here} must not import {other}"
        assert other not in NEVER.get(here, set()), f"{here} must not know {other}"


def test_every_module_has_a_layer():
    for path in FILES:
        if path != ROOT / "ladd_dist/__init__.py":
            assert unit(path) in RANK, path


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
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


def test_diffusers_and_transformers_import_beside_kernels():
    out = run(
        "import kernels\n"
        "from diffusers import StableDiffusion3Pipeline, SD3Transformer2DModel\n"
        "from transformers import CLIPTextModelWithProjection, T5EncoderModel, CLIPModel\n"
        "print(kernels.__file__)"
    )
    assert Path(out.strip()).parent == ROOT / "kernels"
