"""Engines: how one trainable network lives on the ranks. They know `nn.Module`, never LADD."""
