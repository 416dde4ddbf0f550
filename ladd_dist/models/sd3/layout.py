"""The components of a diffusers SD3 folder."""

from ladd_dist.models.family import Layout
from ladd_dist.models.shards import DIFFUSERS, TRANSFORMERS

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", T5: "tokenizer_3"}
"""Of each encoder."""

LAYOUT = Layout(
    networks={"transformer": DIFFUSERS, "vae": DIFFUSERS} | dict.fromkeys((*CLIPS, T5), TRANSFORMERS),
    others={
        "scheduler": "scheduler_config.json",
        **dict.fromkeys(TOKENIZERS.values(), "tokenizer_config.json"),
    },
    optional={T5: (T5, TOKENIZERS[T5])},
)
