"""Synthetic latents: buckets, prompts, MDS shards with their manifest, and the reader."""
