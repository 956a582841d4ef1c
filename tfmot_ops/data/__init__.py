"""Named data sets: from a name to training, validation, calibration and test sets."""

from tfmot_ops.data.sources.by_name import available_datasets
from tfmot_ops.data.splits import Dataset, load_dataset

__all__ = ["Dataset", "available_datasets", "load_dataset"]
