"""The worker's view of `trainer.examples.dataset`, which the provider's tool shares."""

from trainer.examples.dataset import Dataset, RowCounts, build_dataset, split

__all__ = ["Dataset", "RowCounts", "build_dataset", "split"]
