"""Mismatched prompts for the samples of a dataset, chosen by the sample alone."""

from typing import Any

from ladd_dist.data.mds import MISMATCHED
from ladd_dist.data.shards import ShardDataset
from ladd_dist.errors import LaddError


class MismatchedPrompts(ShardDataset):
    """A local dataset whose samples also hold the next sample of their bucket with another prompt.

    Next in the order on disk, and after the bucket's last sample its first: the same one for any number of ranks,
    micro-batches and loader processes, and read without asking another rank. A sample costs one more read, or up to
    as many as its prompt has pictures in a row.

    Args:
        asked_by: the setting that asks for them, to be named in an error.
        settings: Streaming's own.

    Raises:
        LaddError: naming a bucket with a single prompt.
    """

    def __init__(self, asked_by: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._asked_by = asked_by
        for first in self.sample_offset_per_stream:  # where one sample of a bucket has another prompt, all have
            self.get_item(int(first))

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """A sample, and under `MISMATCHED` the next one of its bucket that has another prompt.

        Raises:
            LaddError: if there is none.
        """
        sample = super().get_item(sample_id, retry)
        stream = self.stream_per_shard[self.spanner[sample_id][0]]
        first, count = int(self.sample_offset_per_stream[stream]), int(self.samples_per_stream[stream])
        for step in range(1, count):
            other = super().get_item(first + (sample_id - first + step) % count, retry)
            if other["prompt"] != sample["prompt"]:
                return sample | {MISMATCHED: other}
        raise LaddError(
            f"all {count} samples in {self.streams[stream].local} have the prompt {sample['prompt']!r:.60}, but "
            f"{self._asked_by} needs others: synthesize some for this bucket, or leave {self._asked_by} out"
        )
