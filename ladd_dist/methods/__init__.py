"""What is minimised. How gradients and weights are held belongs to `engines`, the loop to `training`."""
