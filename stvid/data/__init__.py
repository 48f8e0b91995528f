"""From videos to tensors; in order: manifest, decoding, sampling, transforms, mixing, dataset, datamodule, motion."""
