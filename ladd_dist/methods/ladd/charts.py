"""The report's figures of a run by LADD."""

import torch

from ladd_dist.methods.charts import Band, Chart, Curve, Panel
from ladd_dist.methods.ladd.losses import LOSSES


def ladd_charts(loss: str) -> tuple[Chart, ...]:
    """All of them; what the discriminator's loss is when heads say nothing depends on ``method.loss``."""
    blind = sum(LOSSES[loss](torch.zeros(()), role).item() for role in ("real", "fake"))
    student = "Student loss" if loss == "softplus" else "Student loss (minus mean logit of its pictures)"
    return (
        Chart(
            "losses",
            Panel(
                "Discriminator loss",
                (Curve("d_loss", "data"),),
                level=(blind, f"{blind:.3g}: heads cannot tell real from fake"),
                band=Band(
                    0.2,
                    1.05 * blind,
                    below="nearly all logits are far on the right side, so that the heads hardly learn any more",
                    above="the heads are worse than if they said nothing",
                ),
            ),
            Panel(student, (Curve("g_loss", "student"),)),
            "Curves of discriminator and student loss over iterations",
            f"Adversarial losses. A discriminator's that stays at {blind:.3g} means that the heads see nothing.",
        ),
        Chart(
            "logits",
            Panel(
                "Mean logit per head",
                (
                    Curve("real_logit", "data", "real"),
                    Curve("fake_logit", "student", "fake"),
                    Curve("mismatched_logit", "other", "mismatched prompt"),
                ),
                by_block=True,
            ),
            Panel(
                "Positions judged rightly, all heads (%)",
                (
                    Curve("real_right", "data", "real", 100),
                    Curve("fake_right", "student", "fake", 100),
                    Curve("mismatched_right", "other", "mismatched prompt", 100),
                ),
                band=Band(
                    15,
                    95,
                    below="the heads take one kind for the other",
                    above="the heads have won, and tell the student little of how to do better",
                ),
                percent=True,
            ),
            "Curves of the mean logit of real and fake pictures for every head",
            "What the heads say of real and of the student's pictures, by their depth in the teacher.",
        ),
        Chart(
            "gradients",
            Panel(
                "Gradient norm",
                (Curve("student_grad_norm", "student", "student"), Curve("head_grad_norm", "data", "heads")),
                log=True,
            ),
            Panel("Gradient penalty R1", (Curve("r1", "data"),), log=True),
            "Curves of the gradient norms of student and heads, and the R1 penalty",
            "Gradient norms of both networks and the gradient penalty on the heads, on logarithmic scales.",
        ),
        Chart(
            "heads",
            Panel(
                "Judged rightly, by head",
                (Curve("head_right", "other", "real and fake"),),
                level=(0.5, "chance"),
                by_block=True,
            ),
            Panel(
                "Beyond the hinge's margin (%)",
                (Curve("real_saturated", "data", "real", 100), Curve("fake_saturated", "student", "fake", 100)),
                percent=True,
            ),
            "Curves of every head's accuracy, and of the share of positions without a gradient",
            "Heads at chance see nothing; those whose positions are all beyond the margin learn nothing more.",
        ),
        Chart(
            "outputs",
            Panel(
                "Latents / data",
                (
                    Curve("x0_scale", "student", "scale"),
                    Curve("x0_detail", "data", "detail"),
                    Curve("x0_diversity", "other", "diversity"),
                ),
                level=(1, "equal"),
                band=Band(
                    0.7,
                    1.5,
                    below="the student's latents are washed out, blurred or alike",
                    above="the student's latents are noisy or too strong",
                ),
            ),
            Panel("Shift of the mean (standard deviations)", (Curve("x0_shift", "student"),)),
            "Curves of scale, detail and diversity of the student's latents over the data's, and of their shift",
            "Predictions against the latents that they were made from: a healthy student's are alike in all.",
        ),
        Chart(
            "weights",
            Panel(
                "Relative change of weights",
                (Curve("update_size", "student", "in a row"), Curve("ema_distance", "other", "from their average")),
                log=True,
            ),
            Panel("Gradient norm in the latents", (Curve("latent_grad_norm", "student"),), log=True),
            "Curves of how far the student's weights move, and of how far they are from their average",
            "How far the weights move between two rows and are from their average, which must follow them.",
        ),
    )
