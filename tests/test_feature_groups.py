"""Heads trained group by group while the teacher runs: the same gradients, and few feature maps alive at a time."""

import weakref

import pytest
import torch
from test_ladd import CPU, LR, batch, config, gradients_of
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ladd_dist.config import DiscriminatorConfig
from ladd_dist.distributed.clock import Clock
from ladd_dist.engines.replicated import ReplicatedEngine
from ladd_dist.methods.ladd.heads import DiscriminatorHeads
from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.methods.ladd.sample import draw_sample
from ladd_dist.models.backbone import FeatureGroups
from ladd_dist.models.sd3.transformer import Sd3Backbone

BLOCKS = 12


class Teacher(Sd3Backbone):
    """Twelve blocks wide enough that features outweigh the heads' own activations, as at the real size."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(BLOCKS))
        self.enter = torch.nn.Linear(4, 256)
        self.alive = []

    def forward(self, x_t, t, cond, taps, consume=None):
        tokens, features = self.enter(x_t.flatten(2).mT), []
        for block in self.blocks:
            tokens = torch.tanh(block(tokens))
            self.alive.append(weakref.ref(tokens))
            self.most = max(getattr(self, "most", 0), sum(ref() is not None for ref in self.alive))
            (consume or features.append)(tokens)
        return features


def system(kept, *overrides):
    cfg = config(f"discriminator.kept_features={kept}", *overrides)
    torch.manual_seed(2)
    small = DiscriminatorConfig(width=16, out_width=16, groups=4, cond_width=8)
    heads = ReplicatedEngine(DiscriminatorHeads(small, BLOCKS, 256, 12), LR, torch.float32, CPU)
    ladd = Ladd(cfg, student=None, teacher=Teacher().requires_grad_(False), heads=heads, clock=Clock(CPU))
    ladd.denoise = lambda sample: 0.5 * sample.batch.latents
    return ladd, draw_sample(cfg.method, cfg.seed, 5, batch(), (8, 12))


class Peak(TorchDispatchMode):
    """The most bytes of new storages that were alive at once."""

    def __init__(self):
        super().__init__()
        self.bytes, self._seen = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._seen = {key: entry for key, entry in self._seen.items() if not entry[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._seen.values()))
        return out


@pytest.mark.parametrize("kept", [1, 5])
@pytest.mark.parametrize("r1", [0.0, 0.1])
def test_heads_trained_group_by_group_get_the_gradients_and_logs_of_all_heads_together(kept, r1):
    results = []
    for count in (BLOCKS, kept):
        ladd, sample = system(count, f"method.r1_weight={r1}")
        logs = {}
        gradients = gradients_of(ladd.heads, lambda: logs.update(ladd.train_heads(sample, None, 1.0)))  # noqa: B023
        results.append((gradients, logs))
    (whole, whole_logs), (parts, parts_logs) = results
    assert all(g.abs().max() > 0 for g in whole.values())
    assert all((parts[name] - g).norm() < 2e-6 * g.norm() for name, g in whole.items())
    torch.testing.assert_close(parts_logs, whole_logs, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("kept", [1, 3, BLOCKS])
def test_no_more_features_are_alive_than_asked_for(kept):
    ladd, sample = system(kept)
    ladd.train_heads(sample, None, 1.0)
    assert ladd.teacher.most == kept


def test_peak_memory_against_keeping_all_features():
    peaks = {}
    for kept in (2, BLOCKS):
        ladd, sample = system(kept)
        ladd.train_heads(sample, None, 1.0)  # gradients are there from now on
        with Peak() as peak:
            ladd.train_heads(sample, None, 1.0)
        peaks[kept] = peak.bytes
    features = BLOCKS * sample.batch.latents.shape[0] * 96 * 256 * 4
    print(
        f"peak {peaks[2] / 2**20:.2f} MiB, all at once {peaks[BLOCKS] / 2**20:.2f}, features {features / 2**20:.2f}"
    )
    assert peaks[BLOCKS] > features
    assert peaks[2] < 0.5 * peaks[BLOCKS]


def test_features_come_in_groups_and_a_smaller_last_one():
    runs = []
    groups = FeatureGroups(2, 5, lambda first, run: runs.append((first, [int(f) for f in run])))
    for value in range(5):
        groups(torch.tensor(value))
    assert runs == [(0, [0, 1]), (2, [2, 3]), (4, [4])]
