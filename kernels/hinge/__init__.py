"""Hinge losses per head with mean logit and accuracy, in one pass: `op` is the public function."""
