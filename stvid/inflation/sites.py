"""Where in a network which tensors are: what each module takes and gives, and on which axes images and channels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from stvid.inflation.watching import Call, Record, has_own_weights

__all__ = ["IMAGES", "MORE", "SAME", "Site", "find_sites"]

IMAGES = 2  # in the batch of the first run
MORE = 3  # in that of the second
SAME = (2, 0)  # places in it of the first run's images: whatever an image takes from others of its batch is another
ROUNDED = 1e-5  # by how much numbers may differ, relatively, that are the same but for rounding


@dataclass(frozen=True)
class Site:
    """A layer or block that ran, with its first tensor.

    Attributes:
        name: Dotted name in the network.
        shape: Shape of its first tensor, with the images on the first axis if it is known where they are.
        channels_first: Whether its channels are the tensor's axis 1, images first; else they are the last.
        batch_axis: The axis of the images, where it has one entry for each image, in all calls; else None.
        argument: Position or keyword of the tensor.
        output: Shape of what it returns, images first; None if that is no tensor with the images on the same axis.
        output_first: Whether the channels of the output are its axis 1.
        block: Name of the block that the site stands for; its own name, or that of the list that it is in.
        at_stem: Whether it takes the image, or what was made of it without any layer.
        heads: Heads of the attention that happens in it; None if there is no attention, 0 if their number is unknown.
        read: Whether others use its weights, or read their shape.
        windows: How many windows of each image follow each other on the first axis, where that has no images; else 0.
        of_image: Whether the tensor is made of the image, unlike learned queries that are repeated for each.
    """

    name: str
    shape: tuple[int, ...]
    channels_first: bool
    batch_axis: int | None = 0
    argument: int | str = 0
    output: tuple[int, ...] | None = None
    output_first: bool = True
    block: str = ""
    at_stem: bool = False
    heads: int | None = None
    read: bool = False
    windows: int = 0
    of_image: bool = True

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.shape[1 if self.channels_first else -1]

    @property
    def output_channels(self) -> int:
        """Channels of the output."""
        assert self.output is not None
        return self.output[1 if self.output_first else -1]

    @property
    def sees_frames(self) -> bool:
        """Whether the input is made of the frames, with one entry for each, and more than one place in it."""
        places = self.shape[2:] if self.channels_first else self.shape[1:-1]
        several = len(self.shape) > 2 and torch.Size(places).numel() > 1
        return self.batch_axis is not None and several and self.of_image


def find_sites(network: nn.Module, record: Record, again: Record, made: set[int] | None) -> dict[str, Site]:
    """Puts the two runs together; `made` are the tensors that are made of the image, None if that is not known."""
    sites = {}
    read = record.used_elsewhere | record.read_elsewhere
    heads: dict[str, int] = {}
    for attending in record.attending:
        for name in attending.inside:
            heads[name] = max(attending.heads, heads.get(name, 0))
    for name, calls in record.calls.items():
        first = calls[0]
        if first.argument is None or len(first.shape) < 2:
            continue
        module = network.get_submodule(name)
        axis = _common_axis(calls, again.calls.get(name, []))
        shape = _images_first(first.shape, axis)
        output, output_first = None, True
        out_axis = _output_axis(calls, again.calls.get(name, []))
        if axis is not None and axis == out_axis and first.output is not None:
            output = _images_first(first.output, axis)
            output_first = _channels_of_output(module, output)
        sites[name] = Site(
            name,
            shape,
            _channels_first(module, shape),
            batch_axis=axis,
            argument=first.argument,
            output=output,
            output_first=output_first,
            block=name,
            at_stem=all(call.at_stem for call in calls),
            heads=heads.get(name),
            read=name in read,
            windows=_windows(first, again.calls.get(name, [])) if len(calls) == 1 and axis is None else 0,
            of_image=made is None or any(call.took in made for call in calls),
        )
    return sites


def _images_first(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else (shape[axis], *shape[:axis], *shape[axis + 1 :])


def _axis_of_images(first: Sequence[int] | None, second: Sequence[int] | None) -> int | None:
    """Returns the axis on which a tensor has one entry for each image, judged by its shapes in both runs."""
    if first is None or second is None or len(first) != len(second):
        return None
    changing = [axis for axis, (before, after) in enumerate(zip(first, second, strict=True)) if before != after]
    fits = len(changing) == 1 and (first[changing[0]], second[changing[0]]) == (IMAGES, MORE)
    return changing[0] if fits else None


def _common_axis(calls: Sequence[Call], again: Sequence[Call]) -> int | None:
    """Returns the axis of the images that all calls of a module have in common, in the same argument."""
    if len(calls) != len(again):
        return None
    axes = {
        _axis_of_images(first.shape, None if first.argument is None else second.shapes.get(first.argument))
        for first, second in zip(calls, again, strict=True)
    }
    same = len({(call.argument, len(call.shape)) for call in calls}) == 1
    return axes.pop() if len(axes) == 1 and same else None


def _windows(first: Call, again: Sequence[Call]) -> int:
    """Returns how many windows of one image follow each other on the first axis, before those of the next; 0 if none.

    They are told by what is in them: in the second run the images have changed places.
    """
    if len(again) != 1 or not first.contents or first.shape[1:] != again[0].shape[1:]:
        return 0
    count = len(first.contents) // IMAGES
    if len(again[0].contents) != MORE * count:
        return 0
    few = torch.tensor(first.contents).unflatten(0, (IMAGES, count))
    moved = torch.tensor(again[0].contents).unflatten(0, (MORE, count))[list(SAME)]
    apart = (few[0] - few[1]).abs().max()
    alike = (few - moved).abs().max() < apart / 10
    return count if apart > ROUNDED * few.abs().max() and alike else 0


def _output_axis(calls: Sequence[Call], again: Sequence[Call]) -> int | None:
    if len(calls) != len(again):
        return None
    axes = {_axis_of_images(first.output, second.output) for first, second in zip(calls, again, strict=True)}
    return axes.pop() if len(axes) == 1 else None


def _channels_first(module: nn.Module, shape: Sequence[int]) -> bool:
    """Says which axis of an input holds the channels, by the first layer in a module that tells."""
    if len(shape) < 4:
        return False
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm):
            return True
        if isinstance(part, nn.Linear):  # an attention pool takes a map of channels apart before its first layer
            return part.in_features == shape[1] != shape[-1]
        if isinstance(part, nn.LayerNorm):  # timm's LayerNorm2d derives from it
            return part.normalized_shape[0] == shape[1] and not (
                part.normalized_shape[0] == shape[-1] and type(part) is nn.LayerNorm
            )
        if has_own_weights(part):
            sizes = {size for own in part.parameters(recurse=False) for size in own.shape}
            return shape[1] in sizes or shape[-1] not in sizes
    return True


def _channels_of_output(module: nn.Module, shape: Sequence[int]) -> bool:
    """Says which axis of an output holds the channels."""
    if isinstance(module, nn.Linear) or len(shape) < 4:
        return False
    if isinstance(module, nn.Conv2d):
        return True
    return _channels_first(module, shape)
