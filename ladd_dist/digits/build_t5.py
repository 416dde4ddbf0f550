"""The digits teacher's third text encoder: a T5 that says nothing.

SD3 also runs without its T5, whose place is then taken by zeros, but diffusers loads a folder that lacks one
only if told so by arguments. This one-layer T5 has a zero final norm, so that it puts out those very zeros,
and a tokenizer that drops the text: the folder loads bare and draws as with ``text_encoder_3=None``.
"""

from tokenizers import Regex, Tokenizer, models, normalizers, processors
from torch import nn
from transformers import T5Config, T5EncoderModel, T5TokenizerFast


def silent_t5(width: int) -> tuple[T5EncoderModel, T5TokenizerFast]:
    """Encoder with outputs ``(B, L, width)`` of zeros, and its tokenizer."""
    rules = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], unk_id=2))
    rules.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    rules.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = T5TokenizerFast(tokenizer_object=rules, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1, use_cache=False
    )
    encoder = T5EncoderModel(config).eval()
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder, tokenizer
