"""Is run by `test_sharding.py` in two processes: trains tiny models whole and shared out, and compares the losses."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

import stvid
from stvid.config import OptimConfig
from stvid.engine.optim import build_optimizer, plan_parameters
from stvid.engine.sharding import precision_policy, shard, whole_weights
from stvid.models.base import VideoModel
from stvid.models.registry import family_of

STEPS, CLIPS, CLASSES = 20, 4, 5
SMALLEST = "videomae_vit_s"
OPTIM = OptimConfig(name="sgd", lr=0.02, momentum=0.9, weight_decay=0.01)


def tiny_model(name: str) -> tuple[VideoModel, tuple[int, ...]]:
    family, variant = family_of(name)
    frames, height, width = family.small_clip
    torch.manual_seed(0)
    options = {**family.tiny, **variant.tiny}
    size = {"num_frames": frames, "img_size": (height, width)}
    model = stvid.create_model(name, num_classes=CLASSES, **size, **options)
    return model.eval(), (3, frames, height, width)  # eval: batch norms of a smaller batch would differ


def losses(model: VideoModel, shape: tuple[int, ...], mine: slice) -> list[float]:
    """Trains on the rank's share of each batch; the losses are those of the whole batch."""
    optimizer = build_optimizer(model, OPTIM, lr=OPTIM.lr, plan=plan_parameters(model, OPTIM))
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(CLIPS, *shape, generator=generator)
    labels = torch.randint(CLASSES, (CLIPS,), generator=generator)
    found = []
    for _ in range(STEPS):
        loss = F.cross_entropy(model(clips[mine]).float(), labels[mine])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total = loss.detach().clone()
        if mine != slice(None):
            dist.all_reduce(total)
            total /= dist.get_world_size()
        found.append(total.item())
    return found


def compare(name: str, rank: int, ranks: int) -> None:
    whole, shape = tiny_model(name)
    expected = losses(whole, shape, slice(None))
    mine = slice(rank * CLIPS // ranks, (rank + 1) * CLIPS // ranks)
    for recompute in (False, True) if name == SMALLEST else (True,):
        model, _ = tiny_model(name)
        model.set_grad_checkpointing(recompute)
        shard(model)
        held = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
        assert held < 0.6 * sum(p.numel() for p in model.parameters()), f"{name}: rank {rank} holds {held}"
        found = losses(model, shape, mine)
        worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        assert worst < 1e-5, f"{name}, recompute {recompute}: the losses differ by {worst}"
    with whole_weights(model), torch.no_grad():
        for _ in range(1 + rank):  # one rank has more videos than the other
            scores = model(torch.ones(1, *shape))
    torch.testing.assert_close(scores, whole(torch.ones(1, *shape)).detach(), atol=1e-4, rtol=1e-4)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        assert state.keys() == whole.state_dict().keys()
        torch.testing.assert_close(state, dict(whole.state_dict()), atol=1e-4, rtol=1e-4)
    assert abs(expected[0] - expected[-1]) > 0.01, f"{name}: nothing was trained"


def compare_rounded(name: str, rank: int, ranks: int) -> None:
    """In bfloat16 the losses are about the same, and what a rank holds stays float32."""
    whole, shape = tiny_model(name)
    expected = losses(whole, shape, slice(None))
    model, _ = tiny_model(name)
    shard(model, policy=precision_policy(model, "bf16-mixed"))
    found = losses(model, shape, slice(rank * CLIPS // ranks, (rank + 1) * CLIPS // ranks))
    assert 0 < max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 0.1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for name in sys.argv[1:]:
        compare(name, rank, ranks)
    compare_rounded(SMALLEST, rank, ranks)
    dist.destroy_process_group()
    print(f"rank {os.environ['RANK']}: the same", flush=True)


if __name__ == "__main__":
    main()
