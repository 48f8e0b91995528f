"""Late fusion joins models that look at the same videos, such as one of RGB frames and one of optical flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stvid.errors import ConfigError
from stvid.evaluation.result import EvaluationResult, ViewAccumulator

__all__ = ["late_fusion"]


def late_fusion(results: Sequence[EvaluationResult], *, weights: Sequence[float] | None = None) -> EvaluationResult:
    """Adds the logits that several models gave for the same videos, view by view.

    That is how the two streams of I3D are joined, one of RGB and one of optical flow (Carreira and Zisserman 2017,
    section 2.2; deepmind/kinetics-i3d, evaluate_sample.py adds the logits with equal weights):

        rgb = stvid.evaluate(rgb_model, "val.csv")
        flow = stvid.EvaluationResult.load("runs/flow")
        stvid.late_fusion([rgb, flow]).metrics

    Args:
        results: Results with the same classes, task, views and order of frames. Videos are matched by their row in the
            manifest, so the manifests must list the same videos in the same order; the files may differ.
        weights: One factor for each result; None takes 1 for each.

    Returns:
        A result with the protocol and the files of the first one. A video that one of the models could not read counts
        as unreadable.

    Raises:
        ConfigError: If the results do not fit together.
        EvaluationError: If no video was read by all models.
    """
    if len(results) < 2:
        raise ConfigError(f"late_fusion: {len(results)} results; two or more are joined")
    factors = [1.0] * len(results) if weights is None else list(weights)
    if len(factors) != len(results):
        raise ConfigError(f"late_fusion: {len(factors)} weights for {len(results)} results")
    first = results[0]
    for other in results[1:]:
        for name in ("class_names", "task", "views", "temporal"):
            if getattr(other, name) != getattr(first, name):
                raise ConfigError(f"late_fusion: the results differ in {name}")
    places = [{int(index): place for place, index in enumerate(result.indices)} for result in results]
    joined = ViewAccumulator(first.protocol, task=first.task, temporal=first.temporal, average=first.average)
    for index, place in places[0].items():
        label, path = first.labels[place], first.paths[place]
        if any(index not in other for other in places):
            joined.add_failure(index, path, "another of the joined models could not read it", labels=label)
            continue
        rows = [other[index] for other in places]
        for result, row in zip(results, rows, strict=True):
            if (result.labels[row] != label).any():
                raise ConfigError(
                    f"late_fusion: video {index} has different labels ({path}, {result.paths[row]}); the manifests "
                    "must list the same videos in the same order"
                )
        logits = sum(factor * result.logits[row] for factor, result, row in zip(factors, results, rows, strict=True))
        joined.add(index, np.asarray(logits), label, path=path)
    for number, (path, reason) in enumerate(first.failures):
        joined.add_failure(-1 - number, path, reason)  # its row is not known; no video has this one
    return joined.result()
