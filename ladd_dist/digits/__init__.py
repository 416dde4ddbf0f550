"""The embedded teacher and its world: handwritten digits drawn from prompts.

A diffusers folder small enough to ship, so that the whole method runs on a laptop in minutes. Importing
this package imports nothing heavy; the subjects are in its modules.
"""

from pathlib import Path

TEACHER = Path(__file__).parent / "teacher"
"""Folder for ``StableDiffusion3Pipeline.from_pretrained``; its T5 puts out zeros, as if there were none."""

TRAIN_PROMPTS = Path(__file__).parent / "prompts" / "train.jsonl"
"""Prompts to distil on; one JSON object ``{"prompt", "bucket"}`` per line, buckets equally frequent."""

EVAL_PROMPTS = Path(__file__).parent / "prompts" / "eval.jsonl"
"""Held-out prompts in the same format: none of them occurs in ``TRAIN_PROMPTS``."""
