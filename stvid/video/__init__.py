"""Video files to frames: readers, indices, packets, pixels, streams. It knows nothing of clips, labels or models."""
