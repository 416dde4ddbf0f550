"""The conv heads of the discriminator, all in one launch per stage: `op` is the public function.

    y1 = conv3x3(x) + b1           h1 = leaky(groupnorm(y1))
    y2 = conv3x3(h1) + b2          h2 = leaky(groupnorm(y2))
    logit = w . h2 + b             w differs by sample: it carries noise level and text

`convolution` and `pointwise` hold the Triton kernels, `launch` runs them in order, `reference` is the same in plain
PyTorch. Images stay channels-last from the teacher's tokens to the logits: nothing is ever permuted.

Names, here and in the kernels: I = heads * batch images, M positions of a tile, T tiles of an image, K and N
channels of a convolution's input and output. Pointers end in ``_ptr``; what they point to is contiguous unless
strides are given. ``image_offset`` is 64-bit, all offsets inside an image fit 32.
"""
