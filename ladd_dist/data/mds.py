"""The schema of a latent dataset on disk: MDS streams, one folder per bucket, and a manifest beside them.

Of a dataset of preference pairs ``latent`` is the chosen picture's, and samples have a column more: `REJECTED`.

PATH/manifest.json           provenance: teacher, guidance, steps, counts, versions
PATH/empty.safetensors       conditioning of the empty prompt, which guidance led away from
PATH/SHA256SUMS              checksums of these two and of the streams' indices, which have those of the shards
PATH/512x1024/index.json     one stream per bucket, merged from its parts
PATH/512x1024/part-00000/    MDS shards written by one rank, whole or not there at all
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ladd_dist.data.damage import AGAIN, named
from ladd_dist.diffusion.batch import Batch
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.errors import LaddError
from ladd_dist.files.checksums import SUMS, check_sum, read_sums, sha256, write_sums

MANIFEST, INDEX, EMPTY = "manifest.json", "index.json", "empty.safetensors"
MISMATCHED = "mismatched"
"""Under this key a sample that was read holds another one, which has another prompt; no column of a shard."""
REJECTED = "rejected"
"""The column that pairs have: bf16 bits of the rejected picture's latent, of the chosen one's shape."""


@dataclass(frozen=True)
class Provenance:
    """What the samples were made from. Two runs with equal provenance write equal samples.

    Seed, guidance and steps are 0, and the scheduler is empty, where pictures were given and not drawn.
    """

    teacher: str
    """`fingerprint` of the teacher's folder."""
    precision: str
    """Compute precision of the teacher."""
    prompts: str
    """SHA-256 prefix of the prompt file, or of a table and its pictures."""
    seed: int
    guidance: float
    steps: int
    scheduler: dict[str, Any]
    buckets: list[str]
    images_per_prompt: int
    part_samples: int
    latent_channels: int
    max_t5_tokens: int
    pairs: str | None = None
    """Where preference pairs are from: ``table:FILE``, given pictures, or ``rank:SCORER``, the teacher's own, ranked.
    None for latents without a rejected one."""


@dataclass(frozen=True)
class Manifest:
    """A finished dataset: provenance, samples per bucket, the versions that wrote it, and whose noise it is of."""

    provenance: Provenance
    counts: Annotated[dict[str, int], Field(min_length=1)]
    versions: dict[str, str]
    device: str | None = None
    """The kind whose noise it was, by PyTorch's name; None, or ``cuda``, in datasets of older versions."""

    def write(self, root: Path) -> None:
        """Write it in one move, so that a manifest is whole or absent, behind the checksums that seal the dataset."""
        temporary = root / f".{MANIFEST}"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        sealed = [*root.glob(EMPTY), *root.glob(f"*/{INDEX}")]
        sums = {str(file.relative_to(root)): sha256(file) for file in sealed}
        write_sums(root, {MANIFEST: sha256(temporary)} | sums)
        temporary.replace(root / MANIFEST)

    @staticmethod
    def read(root: str | Path) -> "Manifest":
        """Read a dataset's manifest.

        Raises:
            LaddError: if the dataset or its manifest is missing or damaged.
        """
        path = Path(root) / MANIFEST
        if not path.is_file():
            raise LaddError(
                f"no dataset at data.path={root} ({MANIFEST} is missing): run launchers/synthesize.py, or "
                "launchers/pairs.py for preference pairs"
            )
        _check_sums(path.parent)
        with named(path, AGAIN):
            return TypeAdapter(Manifest).validate_json(path.read_bytes(), strict=True)


def write_empty(root: Path, empty: Conditioning) -> None:
    """Keep the empty prompt's conditioning, one row, whole or not at all, for `Manifest.write` to seal."""
    temporary = root / f".{EMPTY}"
    save_file({name: part.contiguous().cpu() for name, part in empty._asdict().items()}, temporary)
    temporary.replace(root / EMPTY)


def read_empty(root: str | Path) -> Conditioning | None:
    """The empty prompt's conditioning, one row, fp32; None if the dataset is of a version that kept none.

    Raises:
        LaddError: if it is damaged.
    """
    path = Path(root) / EMPTY
    if not path.exists():
        return None
    with named(path, AGAIN):
        try:
            parts = load_file(path)
        except SafetensorError as error:
            raise ValueError(error) from None
        return Conditioning(parts["context"].float(), parts["pooled"].float())


def _check_sums(root: Path) -> None:
    """Datasets that were written before there were checksums have none, and stay valid."""
    if not (root / SUMS).exists():
        return
    with named(root / SUMS, AGAIN):
        sums = read_sums(root)
    for name in (MANIFEST, *sums):
        with named(root / name, AGAIN):
            check_sum(root, name, sums)


def columns(
    latent: tuple[int, ...], context: tuple[int, ...], pooled: tuple[int, ...], pairs: bool = False
) -> dict[str, str]:
    """MDS columns of a bucket, given the shapes of one sample. bf16 travels as int16 bit patterns.

    ``seed``, ``guidance`` and ``steps`` are 0 of a picture that was given and not drawn.
    """

    def bits(shape: tuple[int, ...]) -> str:
        return f"ndarray:int16:{','.join(map(str, shape))}"

    return {
        "id": "int64",
        "latent": bits(latent),
        "context": bits(context),
        "pooled": bits(pooled),
        "prompt": "str",
        "bucket": "str",
        "seed": "int64",
        "guidance": "float64",
        "steps": "int64",
        "teacher": "str",
        **({REJECTED: bits(latent)} if pairs else {}),
    }


def row(
    number: int,
    prompt: str,
    bucket: str,
    latent: Tensor,
    context: Tensor,
    pooled: Tensor,
    rejected: Tensor | None = None,
    *,
    seed: int = 0,
    guidance: float = 0.0,
    steps: int = 0,
) -> dict[str, Any]:
    """One sample as it is written, less the teacher's fingerprint; the defaults are those of a picture not drawn."""
    return {
        "id": number,
        "latent": to_bits(latent),
        "context": to_bits(context),
        "pooled": to_bits(pooled),
        "prompt": prompt,
        "bucket": bucket,
        "seed": seed,
        "guidance": guidance,
        "steps": steps,
        **({} if rejected is None else {REJECTED: to_bits(rejected)}),
    }


def to_bits(tensor: Tensor) -> np.ndarray:
    """Round to bf16 and view as int16."""
    return tensor.to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy()


def from_bits(array: np.ndarray) -> Tensor:
    """Read bf16 bit patterns back as fp32."""
    return torch.from_numpy(array).view(torch.bfloat16).float()


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Samples of one bucket to a batch on the CPU."""
    others = [s[MISMATCHED] for s in samples if MISMATCHED in s]
    return Batch(
        _stacked(samples, "latent"),
        _conditioning(samples),
        [int(s["id"]) for s in samples],
        samples[0]["bucket"],
        _conditioning(others) if others else None,
        _stacked(samples, REJECTED) if REJECTED in samples[0] else None,
    )


def _conditioning(samples: list[dict[str, Any]]) -> Conditioning:
    return Conditioning(_stacked(samples, "context"), _stacked(samples, "pooled"))


def _stacked(samples: list[dict[str, Any]], key: str) -> Tensor:
    return from_bits(np.stack([s[key] for s in samples]))
