"""The layers that let an image network see other frames; they work on frames folded into the batch.

The 2D network runs on (B*T, C, H, W), all frames of a clip next to each other. A layer of this file unfolds time, mixes
the frames and folds again, whatever the network does in between. In channels_last that costs no copy: a tensor
(B*T, C, H, W) in channels_last and a tensor (B, C, T, H, W) in channels_last_3d are the same memory.

A convolution is replaced by its inflated twin, which keeps the name of its weight. All else is attached to a layer of
the network by hooks (`attach`), so that no parameter of the 2D network changes its name. Sources: I3D (Carreira &
Zisserman 2017, arXiv:1705.07750, section 2.4: repeated filters, divided by their number), TSM (Lin et al. 2019,
arXiv:1811.08383), R(2+1)D (Tran et al. 2018, arXiv:1711.11248), divided space-time attention (Bertasius et al. 2021,
arXiv:2102.05095).

At the ends of a clip the first and the last frame are repeated (``replicate``): a still video then gives what its frame
gives in the 2D network. ``zeros`` is the padding of the published networks, which spoils that.

A causal layer sees no later frame, so it has an end at the first frame alone. Over a stream it keeps the last frames
that it needs (`TemporalLayer.look_back`), in the `StreamMemory` that `ClipTime` holds during a step.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.inflation.options import Init, Padding
from stvid.inflation.sites import Site
from stvid.models.blocks import Attention, Block, init_transformer_weights, resize_grid, run_blocks, taps
from stvid.models.convolution import conv3d
from stvid.models.streaming import StreamMemory

__all__ = [
    "ClipTime",
    "FrameAttention",
    "JointTime",
    "TemporalAttention",
    "TemporalConv",
    "TemporalFilter",
    "TemporalPool",
    "TemporalShift",
    "TemporalTransformer",
    "attach",
    "describe_kernels",
    "kernels",
]

FOCUS = 2.0  # what a score loses at the start for each frame beside the one that a head looks at


class _Current(threading.local):
    """The clips that this thread is working on, 0 before the first, and their frames; its stream, during a step."""

    clips = 0
    frames = 0
    memory: StreamMemory | None = None


class ClipTime:
    """Frames of the clips in the current batch, known to all temporal layers of a network.

    Each thread has a number of its own, so that a server can call one model from several threads with different clips.

    Args:
        frames: Frames of the clips that the network is made for.

    Attributes:
        clips: Clips that enter the network, in this thread.
        frames: Frames of each of them.
        stride: Product of the strides of the layers that have run, while `recording`; then of all.
        recording: Whether a trial run finds out after how many strides each layer comes.
        channels_last: Whether the network runs in channels_last; else every layer gives tensors in torch's usual
            layout, which networks that use `Tensor.view` need.
    """

    def __init__(self, frames: int) -> None:
        self.made_for = frames
        self._current = _Current()
        self.stride = 1
        self.recording = False
        self.channels_last = True

    @property
    def frames(self) -> int:
        """Frames of the clips that this thread is working on."""
        return self._current.frames or self.made_for

    @frames.setter
    def frames(self, frames: int) -> None:
        self._current.frames = frames

    @property
    def clips(self) -> int:
        """Clips that this thread is working on."""
        return self._current.clips

    @clips.setter
    def clips(self, clips: int) -> None:
        self._current.clips = clips

    @property
    def memory(self) -> StreamMemory | None:
        """The memory of the stream that this thread is working on; None for a clip."""
        return self._current.memory

    @contextlib.contextmanager
    def streaming(self, memory: StreamMemory) -> Iterator[None]:
        """Hands a stream's memory to the layers that run in this thread."""
        before, self._current.memory = self._current.memory, memory
        try:
            yield
        finally:
            self._current.memory = before

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_current"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _current=_Current())

    def at(self, layer: TemporalLayer) -> int:
        """Returns the frames of a clip where a layer is."""
        if self.recording:
            layer.strides_before = self.stride
            self.stride *= layer.time_stride
        return -(-self.frames // layer.strides_before)

    def at_end(self) -> int:
        """Returns the frames of a clip after all layers."""
        return -(-self.frames // self.stride)

    def laid_out(self, x: Tensor) -> Tensor:
        """Returns a tensor in the layout that the network needs."""
        return x if self.channels_last else x.contiguous()


class TemporalLayer(nn.Module):
    """Base of the layers that mix frames.

    Attributes:
        time: Frames of the clips, shared by all layers of the network.
        strides_before: By how much earlier layers have divided time.
        time_stride: By how much this one does.
    """

    time: ClipTime
    strides_before: int = 1
    time_stride: int = 1

    def unfold(self, x: Tensor) -> Tensor:
        """Maps (B*T, ...) to (B, T, ...).

        Raises:
            ConfigError: If these are not all frames of the clips, so that frames of two could be taken for one clip.
        """
        frames, clips = self.time.at(self), self.time.clips
        if clips and not torch.compiler.is_compiling() and not torch.jit.is_tracing() and len(x) != clips * frames:
            raise ConfigError(
                f"a layer that sees other frames gets {len(x)} images, not the {clips * frames} of {clips} clips: the "
                "network sends its images through in parts; leave the layer out (layers=), or take temporal=head"
            )
        return x.unflatten(0, (-1, frames))

    def look_back(self, clip: Tensor, frames: int, padding: Padding) -> Tensor:
        """Returns (B, frames + T, ...): a clip, or the next frames of a stream, behind those that came before.

        At the start nothing came before: `padding` says what stands there.
        """
        if not frames:
            return clip
        memory, first = self.time.memory, clip[:, :1]
        past = None if memory is None else memory.recall((clip.shape[0], frames, *clip.shape[2:]))
        if past is not None:
            before = past[0]
        else:
            before = (first if padding == "replicate" else torch.zeros_like(first)).expand(-1, frames, *first.shape[2:])
        clip = torch.cat((before, clip), dim=1)
        if memory is not None:
            memory.keep(clip[:, -frames:].clone())  # a view would hold on to all frames
        return clip


def kernels(weight: Tensor, frames: int, *, init: Init, causal: bool) -> Tensor:
    """Gives a 2D kernel an axis of time, as `stvid.models.blocks.taps` does.

    Args:
        weight: (out, in, kh, kw).
        frames: Frames that the new kernel sees.
        init: ``center`` or ``average``.
        causal: Whether the kernel ends with the current frame; its center is the last tap then.
    """
    inflated = taps(weight, frames, init=init)
    return inflated.roll(frames - 1 - frames // 2, dims=2) if causal and init == "center" else inflated


def describe_kernels(frames: int, *, init: Init, causal: bool) -> str:
    """Returns in words what `kernels` makes of a kernel."""
    if frames == 1:
        return "copied, with an axis of one frame"
    if init == "average":
        return f"repeated {frames} times in time, divided by {frames}"
    return f"in the {'last' if causal else 'central one'} of {frames} frames, zeros elsewhere"


def _repeat_ends(x: Tensor, amount: int) -> Tensor:
    """Repeats the first and last frame of (B, T, ...)."""
    return torch.cat((*[x[:, :1]] * amount, x, *[x[:, -1:]] * amount), dim=1) if amount else x


class _Ends:
    """The frames beyond the ends of a clip that a kernel in time sees.

    Args:
        kernel_size: Frames that the kernel sees.
        padding: Their values.
        causal: Whether all of them come before the clip.

    Attributes:
        padding: Their values.
        before: Frames that a causal kernel sees before the current one; else 0.
        repeated: How often the first and last frame are repeated, for other kernels.
        zeros: Zeros at both ends that the convolution itself adds, for other kernels.
    """

    def __init__(self, kernel_size: int, padding: Padding, causal: bool) -> None:
        beside = 0 if causal else kernel_size // 2
        self.padding: Padding = padding
        self.before = kernel_size - 1 if causal else 0
        self.repeated, self.zeros = (0, beside) if padding == "zeros" else (beside, 0)

    def add(self, layer: TemporalLayer, clip: Tensor) -> Tensor:
        """Adds them to the clip (B, T, ...) that a layer sees, but for zeros at both ends."""
        return _repeat_ends(layer.look_back(clip, self.before, self.padding), self.repeated)


class TemporalConv(nn.Conv2d, TemporalLayer):
    """The inflated twin of a 2D convolution; (B*T, C, H, W) to (B*ceil(T / time_stride), C', H', W').

    Its weight has the name of the 2D weight and an axis of time more. All else that code reads of it (``stride``,
    ``kernel_size``, hooks, what the user keeps there) is that of the 2D layer.

    Args:
        conv: A plain convolution; see `accepts`.
        time: Frames of the clips, shared by all layers of the network.
        kernel_size: Frames that it sees, odd.
        init: As in `taps`.
        padding: At the ends of the clip.
        time_stride: Step in time.
        causal: Whether it sees no later frame.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        time: ClipTime,
        *,
        kernel_size: int,
        init: Init,
        padding: Padding,
        time_stride: int = 1,
        causal: bool = False,
    ) -> None:
        from timm.layers import Conv2dSame

        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)
        self._parameters = dict(conv._parameters)
        self.pads_same = isinstance(conv, Conv2dSame)
        self.time = time
        self.time_stride = time_stride
        self.ends = _Ends(kernel_size, padding, causal)
        weight = kernels(conv.weight.detach(), kernel_size, init=init, causal=causal)
        self.weight = nn.Parameter(weight.contiguous())
        self.weight.requires_grad = conv.weight.requires_grad

    @staticmethod
    def accepts(conv: nn.Module) -> bool:
        """Returns whether a layer computes what its weight, padding, stride, dilation and groups say, and no more."""
        from timm.layers import Conv2dSame

        return (
            type(conv) in (nn.Conv2d, Conv2dSame)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
            and not hasattr(conv, "parametrizations")
            and isinstance(conv._parameters.get("weight"), nn.Parameter)
            and "forward" not in vars(conv)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolves over frames and space."""
        if self.pads_same:
            from timm.layers import pad_same

            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        clip = self.ends.add(self, self.unfold(x.permute(0, 2, 3, 1))).permute(0, 4, 1, 2, 3)
        stride, padding = (self.time_stride, *self.stride), (self.ends.zeros, *self.padding)
        out = conv3d(clip, self.weight, self.bias, (stride, padding, (1, *self.dilation)), self.groups)
        return self.time.laid_out(out.transpose(1, 2).flatten(0, 1))

    def extra_repr(self) -> str:
        """Returns the 2D settings, the frames that it sees, and whether they are earlier ones alone."""
        return f"{super().extra_repr()}, frames={self.weight.shape[2]}{', causal' * (self.ends.before > 0)}"


class TemporalFilter(TemporalLayer):
    """A convolution over time alone, the identity on a still video at the start; attached to a layer's output.

    Args:
        dim: Channels.
        time: Frames of the clips, shared by all layers of the network.
        kernel_size: Frames that it sees, odd.
        init: ``center``: the identity. ``average``: the mean of the frames.
        padding: At the ends of the clip.
        groups: 1, or `dim` for a filter per channel.
        time_stride: Step in time.
        causal: Whether it sees no later frame.
        channels_first: Whether the layer's output is (B*T, dim, ...); else it is (B*T, ..., dim).
    """

    def __init__(
        self,
        dim: int,
        time: ClipTime,
        *,
        kernel_size: int,
        init: Init,
        padding: Padding,
        groups: int = 1,
        time_stride: int = 1,
        causal: bool = False,
        channels_first: bool = True,
    ) -> None:
        super().__init__()
        self.time = time
        self.time_stride = time_stride
        self.groups = groups
        self.channels_first = channels_first
        self.ends = _Ends(kernel_size, padding, causal)
        identity = torch.eye(dim) if groups == 1 else torch.ones(dim, 1)
        weight = kernels(identity[:, :, None, None], kernel_size, init=init, causal=causal)
        self.weight = nn.Parameter(weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Filters over time."""
        if not self.channels_first:
            x = x.movedim(-1, 1)
        clip = self.ends.add(self, self.unfold(x.flatten(2).transpose(1, 2)))  # (B, T, pixels, dim)
        clip = clip.permute(0, 3, 1, 2).unsqueeze(4)
        stride, padding = (self.time_stride, 1, 1), (self.ends.zeros, 0, 0)
        y = conv3d(clip, self.weight, None, (stride, padding, (1, 1, 1)), self.groups)
        y = y.squeeze(4).transpose(1, 2).flatten(0, 1).unflatten(2, x.shape[2:])
        return y if self.channels_first else y.movedim(1, -1)


class TemporalShift(TemporalLayer):
    """Moves a part of the channels to the next frame and as many to the previous one (TSM); has no parameters.

    Args:
        time: Frames of the clips, shared by all layers of the network.
        channels_first: Whether the input is (B*T, C, ...); else it is (B*T, ..., C).
        shift_div: One part in so many goes each way; TSM takes 8.
        padding: The values that enter at the ends of the clip; TSM takes zeros.
        causal: Whether no channels move to the previous frame: TSM's shift for streams.
    """

    def __init__(
        self, time: ClipTime, *, channels_first: bool, shift_div: int, padding: Padding, causal: bool = False
    ) -> None:
        super().__init__()
        self.time = time
        self.channel_axis = 1 if channels_first else -1
        self.shift_div = shift_div
        self.padding: Padding = padding
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """Shifts; the shape stays."""
        part = max(1, x.shape[self.channel_axis] // self.shift_div)
        axis = self.channel_axis + 1 if self.channel_axis > 0 else self.channel_axis
        clip = self.unfold(x)
        if self.causal:
            moved = self.look_back(clip.narrow(axis, 0, part), 1, self.padding)[:, :-1]
            rest = clip.narrow(axis, part, x.shape[self.channel_axis] - part)
            return torch.cat((moved, rest), dim=axis).flatten(0, 1)
        ahead, behind = clip.narrow(axis, 0, part), clip.narrow(axis, part, part)
        rest = clip.narrow(axis, 2 * part, x.shape[self.channel_axis] - 2 * part)
        first, last = behind[:, :1], ahead[:, -1:]
        if self.padding == "zeros":
            first, last = torch.zeros_like(first), torch.zeros_like(last)
        parts = (torch.cat((ahead[:, 1:], last), dim=1), torch.cat((first, behind[:, :-1]), dim=1), rest)
        return torch.cat(parts, dim=axis).flatten(0, 1)


class TemporalPool(TemporalLayer):
    """The maximum of every `time_stride` frames; a rest at the end is pooled too."""

    def __init__(self, time: ClipTime, *, time_stride: int) -> None:
        super().__init__()
        self.time = time
        self.time_stride = time_stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B*T, ...) to (B*ceil(T / time_stride), ...)."""
        clip = self.unfold(x)
        if rest := -clip.shape[1] % self.time_stride:
            clip = torch.cat((clip, *[clip[:, -1:]] * rest), dim=1)
        steps = [clip[:, step :: self.time_stride] for step in range(self.time_stride)]
        return functools.reduce(torch.maximum, steps).flatten(0, 1)


class FrameAttention(Attention):
    """Attention over frames, with a learned bias of the scores for each distance in time; (B, T, dim) to the same.

    Queries, keys and times that start small give all frames equal shares whatever their order, and hardly a gradient
    that would tell them apart. So each head starts by looking at a neighbouring frame of its own, as a shift does: one
    before, one behind, two before.

    Args:
        dim: Channels.
        frames: Frames of the clips that the table of biases is made for; other clips are taken.
        num_heads: Heads.
    """

    def __init__(self, dim: int, *, frames: int, num_heads: int) -> None:
        super().__init__(dim, num_heads=num_heads)
        distances = torch.arange(1 - frames, frames)
        places = [(head // 2 + 1) * (-1 if head % 2 == 0 else 1) for head in range(num_heads)]
        starts = [-FOCUS * (distances - place).abs() for place in places]
        self.time_bias = nn.Parameter(torch.stack(starts))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the frames."""
        frames = x.shape[1]
        table: Tensor = self.time_bias
        if table.shape[1] != 2 * frames - 1:
            table = _times(table.t().unsqueeze(0), 2 * frames - 1).squeeze(0).t()
        order = torch.arange(frames, device=x.device)
        bias = table[:, order - order[:, None] + frames - 1].unsqueeze(0)
        q, k, v = self.queries_keys_values(x)
        return self.mix(q, k, v, bias=bias.to(q.dtype))


class TemporalAttention(TemporalLayer):
    """Attention over the frames at each place, added to a block's input; nothing is added at the start.

    The first half of divided space-time attention: norm, attention, residual. Its projection starts at zero. Frames are
    told apart by a table of times, and by their distances.

    Args:
        dim: Channels.
        time: Frames of the clips, shared by all layers of the network.
        num_heads: Heads.
        channels_first: Whether the block's input is (B*T, dim, ...); else it is (B*T, ..., dim).
    """

    def __init__(self, dim: int, time: ClipTime, *, num_heads: int, channels_first: bool) -> None:
        super().__init__()
        self.time = time
        self.channels_first = channels_first
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = FrameAttention(dim, frames=time.made_for, num_heads=num_heads)
        self.time_embed = nn.Parameter(torch.zeros(1, time.made_for, dim))
        nn.init.trunc_normal_(self.time_embed, std=0.02)
        self.attn.apply(init_transformer_weights)
        _zero(self.attn.proj)

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the frames see of each other; the shape stays."""
        clip = self.unfold(x)
        if self.channels_first:
            clip = clip.movedim(2, -1)
        columns = clip.flatten(2, -2).transpose(1, 2)  # (B, places, T, dim)
        columns = columns + _times(self.time_embed, columns.shape[2])
        mixed = self.attn(self.norm(columns).flatten(0, 1)).view(columns.shape)
        mixed = mixed.transpose(1, 2).reshape(clip.shape)
        if self.channels_first:
            mixed = mixed.movedim(-1, 2)
        return x + mixed.flatten(0, 1)


class JointTime(TemporalLayer):
    """Lets an attention layer see the tokens of all frames: `join` goes before it and `split` behind it.

    On a still video each token meets as many copies of all others as there are frames, which does not change a softmax.

    Args:
        dim: Channels of a token.
        time: Frames of the clips, shared by all layers of the network.
    """

    def __init__(self, dim: int, time: ClipTime) -> None:
        super().__init__()
        self.time = time
        self.time_embed = nn.Parameter(torch.zeros(1, time.made_for, dim))

    def join(self, tokens: Tensor) -> Tensor:
        """Maps (B*T, N, dim) to (B, T*N, dim), with the time of each token."""
        clip = self.unfold(tokens)
        return (clip + _times(self.time_embed, clip.shape[1]).transpose(0, 1)).flatten(1, 2)

    def split(self, tokens: Tensor) -> Tensor:
        """The inverse of `join`, but for the times."""
        return tokens.unflatten(1, (self.time.at(self), -1)).flatten(0, 1)


class TemporalTransformer(TemporalLayer):
    """A transformer over the features of the frames, whose blocks and times start as the identity, and their mean.

    After VTN (Neimark et al. 2021, arXiv:2102.00719), whose class token is replaced by the mean, so that a still video
    has the features of its frame at the start.

    Args:
        dim: Channels of the features.
        time: Frames of the clips, shared by all layers of the network.
        depth: Blocks.
        num_heads: Heads.
    """

    def __init__(self, dim: int, time: ClipTime, *, depth: int, num_heads: int) -> None:
        super().__init__()
        self.time = time
        self.time_embed = nn.Parameter(torch.zeros(1, time.made_for, dim))
        blocks = [
            Block(dim, attention=FrameAttention(dim, frames=time.made_for, num_heads=num_heads), mlp_ratio=4.0)
            for _ in range(depth)
        ]
        for block in blocks:
            block.apply(init_transformer_weights)
            _zero(block.attn.proj)
            _zero(block.mlp.fc2)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """Maps (B, T, dim) to (B, dim)."""
        return run_blocks(self.blocks, x + _times(self.time_embed, x.shape[1]), recompute=recompute).mean(1)


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def _times(table: Tensor, frames: int) -> Tensor:
    """Returns a table of times for a clip of so many frames."""
    return resize_grid(table, (table.shape[1],), (frames,), mode="linear")


def _along(change: Callable[[Tensor], Tensor], x: Tensor, site: Site, time: ClipTime) -> Tensor:
    """Changes a tensor that has the images on the axis of a site, or windows of images on its first axis."""
    if site.windows:
        images = x.unflatten(0, (time.clips * time.frames, -1))
        if site.channels_first:  # (images, channels, windows, ...)
            return time.laid_out(change(images.transpose(1, 2)).transpose(1, 2).flatten(0, 1))
        return time.laid_out(change(images).flatten(0, 1))
    axis = site.batch_axis or 0
    return time.laid_out(change(x.movedim(axis, 0)).movedim(0, axis) if axis else change(x))


class _OnInput:
    """A hook that can be copied and pickled."""

    def __init__(self, change: Callable[[Tensor], Tensor], site: Site, time: ClipTime) -> None:
        self.change, self.site, self.time = change, site, time

    def __call__(
        self, layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        place = self.site.argument
        given = inputs[place] if isinstance(place, int) else keywords[place]
        changed = _along(self.change, given, self.site, self.time)
        # It can come several times, as query, key and value.
        return (
            tuple(changed if value is given else value for value in inputs),
            {key: changed if value is given else value for key, value in keywords.items()},
        )


class _OnOutput:
    """A hook that can be copied and pickled."""

    def __init__(self, change: Callable[[Tensor], Tensor], site: Site, time: ClipTime) -> None:
        self.change, self.site, self.time = change, site, time

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # torch's attention returns its weights, too
            return (_along(self.change, output[0], self.site, self.time), *output[1:])
        return _along(self.change, output, self.site, self.time)


def attach(
    layer: nn.Module,
    site: Site,
    time: ClipTime,
    *,
    before: Callable[[Tensor], Tensor] | None = None,
    behind: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Lets temporal layers change the first tensor, or the first output, of a layer of the 2D network.

    Args:
        layer: The layer.
        site: Where it has the images; both functions see them on the first axis.
        time: Frames of the clips, shared by all layers of the network.
        before: What is done to the tensor that it takes.
        behind: What is done to its output.
    """
    if before is not None:
        layer.register_forward_pre_hook(_OnInput(before, site, time), with_kwargs=True)
    if behind is not None:
        layer.register_forward_hook(_OnOutput(behind, site, time))
