"""Hinge losses of the logits with the statistics that the logs want, in one pass: `op` is the public function."""
