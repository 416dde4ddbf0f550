"""What one pass of a network costs, counted on the real modules without storage."""

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ladd_dist.config import Config, Recomputation
from ladd_dist.data.buckets import Bucket, LatentSpace
from ladd_dist.data.mds import REJECTED
from ladd_dist.diffusion.conditioning import Conditioning
from ladd_dist.engines.build import compute_dtype
from ladd_dist.engines.entry import Residency
from ladd_dist.methods.base import STUDENT
from ladd_dist.methods.ladd.losses import r1_penalty
from ladd_dist.methods.networks import meta_backbone
from ladd_dist.methods.passes import Pass
from ladd_dist.methods.registry import method_of
from ladd_dist.models.backbone import Backbone
from ladd_dist.models.registry import family_of
from ladd_dist.models.start import Start
from ladd_dist.planning.counting import Counter, Work, gradients_dropped, inputs_kept
from ladd_dist.planning.fakes import Fakes
from ladd_dist.planning.partitioned import partitioned
from ladd_dist.planning.repeats import Course, Repeats

_NONE = Work()
_DRAWING = "drawing"
T = TypeVar("T")


@dataclass(frozen=True)
class PassCost:
    """Of one forward pass, and of the backward pass of its graph, over some samples.

    Attributes:
        forward: work of the forward pass.
        backward: work of the backward pass, recomputed blocks included.
        kept: bytes alive between the two, without inputs and weights.
        forward_peak: most bytes alive in the forward pass.
        backward_peak: most bytes alive in the backward pass, what is kept included.
        between: most bytes alive between two blocks of a pass that keeps no graph, one block's features included.
    """

    forward: Work
    backward: Work = _NONE
    kept: int = 0
    forward_peak: int = 0
    backward_peak: int = 0
    between: int = 0

    def __mul__(self, samples: int) -> "PassCost":
        """Over so many times the samples, in as many launches."""
        return PassCost(
            replace(self.forward * samples, launches=self.forward.launches),
            replace(self.backward * samples, launches=self.backward.launches),
            self.kept * samples,
            self.forward_peak * samples,
            self.backward_peak * samples,
            self.between * samples,
        )


class Costs:
    """Costs of a configuration's passes over samples of a bucket. Each is counted when it is first asked for.

    A backbone is counted over one sample: all but one weight's gradient on its way grows with their number. In heads
    more does not, so they are counted over as many as there are.

    Tensors are a CPU's without storage: what CUDA's kernels keep for the backward pass has the same shapes.

    Attributes:
        networks: the method's, on the meta device.
        grid: rows and columns of image tokens.
        sample_bytes: of a sample as a dataset holds it, in bf16: latent, context and pooled text.

    Args:
        bucket: the picture's size.
        gpu: as PyTorch calls it: by its name kernels are chosen.
    """

    def __init__(self, config: Config, bucket: Bucket, gpu: str) -> None:
        self._config, self._dtype, self._gpu = config, compute_dtype(config), gpu
        self._mode = Fakes()
        self.networks = networks = method_of(config).networks(config)
        for frozen in networks.frozen.values():
            frozen.requires_grad_(False).eval()
        self._nets: dict[str, nn.Module] = deepcopy({**networks.trained, **networks.frozen})
        # `auto` compiles on a CPU alone.
        own, others = config.student.compile is True, config.teacher.compile is True
        self._compiled = {name: own if name == STUDENT else others for name in self._nets}
        with self._mode:
            for name, net in self._nets.items():
                self._place(name, net)
                self._choose_kernels(name, net, gpu)
            if config.teacher.float8:
                self._backbone_of("teacher").to_float8("teacher")
            if config.student.float8:
                self._backbone_of(STUDENT).to_float8("student")
        space = LatentSpace.of(config.teacher.path)
        self._shape = space.shape(bucket)
        self.grid = space.grid(*self._shape[1:])
        self._context = family_of(config.teacher.path).context_shape(config.teacher)
        student: Any = networks.trained[STUDENT]
        latents = 2 if REJECTED in method_of(config).FIELDS else 1
        self.sample_bytes: int = 2 * (latents * prod(self._shape) + prod(self._context) + student.pooled_width)
        self._made: dict[Hashable, Any] = {}
        self._known: dict[Hashable, PassCost] = {}

    @property
    def heads(self) -> int:
        """How many the discriminator has; 0 without one."""
        return len(self._taps)

    def once(self, what: str, config: Config, size: int, make: Callable[[], T]) -> T:
        """What follows from what ``size`` ranks hold, and how; many ways to run a configuration share that."""
        train, drawn = config.train, config.evaluation
        optimizers = [o and (o.state, o.moments) for o in (config.student_optimizer, config.head_optimizer)]
        held = (config.engine, config.fsdp2, config.zero3, config.teacher.placement, train.ema_device, *optimizers)
        beside = (train.preview_every, train.evaluate_every, drawn.judge, *drawn.scorers)
        key = what, size, held, beside
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def at_once(self, passed: Pass) -> int:
        """How many heads of a pass run together."""
        return min(passed.at_once or self.heads, self.heads)

    def feature_bytes(self, blocks: int) -> int:
        """Of so many tapped blocks of a sample."""
        return blocks * self.grid[0] * self.grid[1] * self._width * self._dtype.itemsize

    def of(
        self, passed: Pass, checkpointing: Recomputation, samples: int = 1, engine: Residency | None = None
    ) -> PassCost:
        """One pass over ``passed.samples`` latents of each sample; activations are recomputed or kept.

        Args:
            engine: what it makes of the pass; None makes nothing of it, which leaves arithmetic as it is.
        """
        if passed.network == "heads":
            return self._once(passed, False, False, samples)
        recomputes: Recomputation = passed.gradient != "none" and checkpointing
        # For the gradient of weights a layer's inputs are kept anyway.
        keeps = engine is not None and engine.keeps_inputs and passed.gradient == "inputs"
        return self._once(replace(passed, samples=1), recomputes, keeps, 1) * (samples * passed.samples)

    def drawing(self) -> Work:
        """One pass forward of the whole teacher, as data is drawn: to the velocity, uncompiled and without float8."""
        if _DRAWING not in self._nets:
            net = meta_backbone(self._config.teacher.path).requires_grad_(False).eval()
            self._nets[_DRAWING], self._compiled[_DRAWING] = net, False
            with self._mode:
                self._place(_DRAWING, net)
                self._choose_kernels(_DRAWING, net, self._gpu)
        return self.of(Pass(_DRAWING), False).forward

    def _once(self, passed: Pass, checkpointing: Recomputation, keeps_inputs: bool, samples: int) -> PassCost:
        key = passed, checkpointing, keeps_inputs, samples
        if key not in self._known:
            heads, kept = passed.network == "heads", inputs_kept() if keeps_inputs else nullcontext()
            with self._mode, kept:
                self._known[key] = self._heads(passed, samples) if heads else self._backbone(passed, checkpointing)
        return self._known[key]

    def _place(self, name: str, net: nn.Module) -> None:
        """On tensors without storage; heads are fp32, and what an engine computes with is in the compute dtype."""
        dtype = torch.float32 if name == "heads" else self._dtype
        net._apply(lambda t: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device="cpu"))
        if isinstance(net, Backbone):
            net.compute_dtype = self._dtype

    def _backbone_of(self, name: str) -> Backbone:
        net = self._nets[name]
        assert isinstance(net, Backbone)
        return net

    def _choose_kernels(self, name: str, net: nn.Module, gpu: str) -> None:
        if not isinstance(net, Backbone):
            return
        config = self._config
        folder = Start.of(config).folder if name == STUDENT else config.teacher.path
        family_of(folder).plan_attention(folder, config.kernels, gpu, self._dtype, self._compiled[name])(net)

    @property
    def _taps(self) -> tuple[int, ...]:
        return getattr(self._nets.get("heads"), "taps", ())

    @property
    def _width(self) -> int:
        return self._backbone_of("teacher" if "teacher" in self._nets else STUDENT).width

    def _inputs(self, samples: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
        tokens, channels = self._context
        net: Any = self._nets[STUDENT]
        context = torch.empty(samples, tokens, channels, dtype=self._dtype)
        pooled = torch.empty(samples, net.pooled_width, dtype=self._dtype)
        return torch.empty(samples, *self._shape), torch.empty(samples), Conditioning(context, pooled)

    def _backbone(self, passed: Pass, checkpointing: Recomputation) -> PassCost:
        """Operator by operator, and where blocks are compiled, with what the compiler has them keep."""
        net = self._backbone_of(passed.network)
        net.activation_checkpointing = checkpointing
        cost = self._counted(passed)
        if passed.gradient == "none" or checkpointing is True or not self._compiled[passed.network]:
            return cost
        with partitioned(net):
            more = self._counted(passed).kept - cost.kept
        return replace(
            cost,
            kept=cost.kept + more,
            forward_peak=cost.forward_peak + more,
            backward_peak=cost.backward_peak + more,
        )

    def _counted(self, passed: Pass) -> PassCost:
        net: Any = self._nets[passed.network]
        x, t, cond = self._inputs()
        x.requires_grad_(passed.gradient == "inputs")
        repeats = Repeats(net, self._taps if passed.features else None)
        with gradients_dropped(net), torch.set_grad_enabled(passed.gradient != "none"), Counter() as counter:
            between = [0]
            consume = (lambda _: between.append(counter.alive)) if passed.gradient == "none" else None
            repeats.course = Course(counter)
            with repeats.active():
                out = net(x, t, cond, repeats.taps, consume, adapter=passed.adapter)
            forward, kept, forward_peak = repeats.course.end()
            if passed.gradient == "none":
                return PassCost(forward, forward_peak=forward_peak, between=max(between))
            repeats.course = Course(counter, kept - counter.alive)
            given = out if isinstance(out, list) else [out]
            del out
            gradients = []
            for each, others in zip(given, repeats.outputs(), strict=True):
                repeats.course.section(others)
                gradients.append(torch.empty_like(each))
            if passed.gradient == "inputs":
                torch.autograd.grad(given, x, gradients)
            else:
                torch.autograd.backward(given, gradients)
            backward, _, backward_peak = repeats.course.end()
            return PassCost(forward, backward, kept, forward_peak, backward_peak)

    def _heads(self, passed: Pass, samples: int) -> PassCost:
        """All heads, of which as many run together as the pass says; bytes are of these alone."""
        net: Any = self._nets["heads"]
        count = self.at_once(passed)
        _, t, cond = self._inputs(samples)
        size = (samples, self.grid[0] * self.grid[1], self._width)
        features = [torch.empty(size, dtype=self._dtype) for _ in range(count)]
        by_inputs = passed.gradient == "inputs"
        for each in features:
            each.requires_grad_(by_inputs)
        gradients = "inputs" if by_inputs else "twice" if passed.twice else "once"
        learns = passed.gradient != "none"
        with gradients_dropped(net), self._autocast(), torch.set_grad_enabled(learns), Counter() as counter:
            logits = net(features, self.grid, t, cond.pooled, 0, gradients, t)
            if passed.twice:
                logits, slopes = logits
            forward, kept = counter.work, counter.alive
            forward_peak = counter.peak
            groups = self.heads / count
            if not learns:
                return PassCost(forward * groups, forward_peak=forward_peak)
            counter.section()
            if by_inputs:
                torch.autograd.grad(logits.sum(), features)
            else:
                loss = logits.sum() + r1_penalty(slopes, 1) if passed.twice else logits.sum()
                loss.backward()
            backward = counter.work + forward * -1
        return PassCost(forward * groups, backward * groups, kept, forward_peak, counter.peak)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", self._dtype, enabled=self._dtype != torch.float32)
