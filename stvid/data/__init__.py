"""Frames to batches: lists of videos, shards, sampling, views, transforms, mixing, data sets, loaders."""
