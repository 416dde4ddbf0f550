"""Prompts to latents to pictures, by the teacher or by the student; the training data among them."""
