"""The components of a diffusers SD3 folder."""

from ladd_dist.models.family import Layout

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"

_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"

LAYOUT = Layout(
    networks={"transformer": _DIFFUSERS, "vae": _DIFFUSERS} | dict.fromkeys((*CLIPS, T5), _TRANSFORMERS),
    others={
        "scheduler": "scheduler_config.json",
        **dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"), "tokenizer_config.json"),
    },
    optional={T5: (T5, "tokenizer_3")},
)
