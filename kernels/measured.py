"""Measured times by GPU, for `kernels.choose`.

``measured.json`` beside this file is empty until a benchmark ran on a GPU. ``python -m kernels.measured FILE...``
makes it from the JSON that `kernels.bench` writes.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("measured.json")
Row = dict[str, Any]


def fastest(
    where: Mapping[str, Any],
    near: tuple[str, int],
    ours: Iterable[str],
    theirs: Iterable[str],
    table: Path = TABLE,
) -> tuple[str, Row] | None:
    """The fastest provider, forward and backward end to end, and the row of the table that says so.

    Args:
        where: keys and values that a row has to have, such as ``op``, ``gpu``, ``dtype`` and sizes that do not scale.
        near: name and value of the size by which the nearest of those rows is taken.
        ours: the benchmark's names of our providers.
        theirs: those of the providers to beat; a row counts that has one of them and another of all these names.

    Returns:
        None where nothing was measured.
    """
    others, (size, value) = set(theirs), near
    names = {*ours, *others}
    rows = [row for row in json.loads(table.read_text(encoding="utf-8")) if where.items() <= row.items()]
    rows = [row for row in rows if others & set(row["p50_ms"]) and len(names & set(row["p50_ms"])) > 1]
    if not rows:
        return None
    row = min(rows, key=lambda row: abs(math.log(row[size] / value)))
    return min(names & set(row["p50_ms"]), key=row["p50_ms"].__getitem__), row


def condense(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """A row per GPU, dtype and shape of batch 1: each provider's slower round, so that noise favours nobody."""
    table: dict[str, Row] = {}
    for row in rows:
        shape = row["shape"]
        if (row["scope"], row["direction"], shape.get("batch")) != ("end_to_end", "both", 1):
            continue
        key = {name: row[name] for name in ("op", "gpu", "dtype", "commit", "date")} | shape
        entry = table.setdefault(json.dumps(key, sort_keys=True), key | {"p50_ms": {}})
        times = entry["p50_ms"]
        times[row["provider"]] = max(row["p50_ms"], times.get(row["provider"], 0.0))
    return list(table.values())


def main() -> None:
    """Replace the table by what the given benchmark files say."""
    parser = argparse.ArgumentParser(prog="python -m kernels.measured", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="JSON rows of kernels.bench")
    rows = [
        row for file in parser.parse_args().files for row in json.loads(file.expanduser().read_text(encoding="utf-8"))
    ]
    TABLE.write_text(json.dumps(condense(rows), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
