"""Where the picture moves to: an optical flow from past frames and keys, by which the last frame is moved ahead.

Most of a game's next frame is its last one, turned or walked into. A diffusion model that has to redraw that from codes
of 8x8 pixels spends its training on what one warp does exactly, so a world model may have a `MotionModel`: its
last context frame is decoded, moved by the predicted flow and encoded again before the UNet sees it. The flow comes
from the keys first (a turn shifts everything alike), then from the picture (what is near moves further; weapon and
status bar stay) and from how past frames moved, on which walking and its bob in Doom depend. So the network sees how
well past frames match when shifted (the cost volume of Sun et al. 2018, "PWC-Net", along rows and columns), and what is
known of the whole frame scales what is found in each place (FiLM, Perez et al. 2018).

It also says how far off the moved frame may be, cell by cell: next to nothing where a wall was only shifted, all where
something comes into view. That is the prior about which the world model draws. Where it is below `SURE_STD` the moved
frame stands, unless what the UNet draws differs from it by more than `NEWS`, as a muzzle flash does; the UNet makes up
the rest. Flow-warped prediction: Finn et al. 2016, "Unsupervised Learning for Physical Interaction through Video
Prediction". Its losses: motion_loss.py.

Over a memory of the map (scene_memory.py) the flow of what stands still is known, and so is what comes into view: the
model then tells which places are not of the world, and how much of what differs from the memory is to be believed. And
it draws what changes without moving, a weapon that fires, a digit that falls, as Doom does its own: pixel by pixel over
the moved picture or not at all (`Redrawn`), for the mean of a flash and none is neither.

Turning is learned from pictures alone; walking, whose flow depends on how far everything is, from the true flow of
recorded scenes (scenes.py), as a few fields over the picture of which the frame as a whole tells the amounts.

Knows no diffusion. Trained by train_motion.py; model.py loads it into a `WorldModel`.
"""

import math
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pixel_shuffle, silu

MOTION_VERSION = 2
MOVER_VERSION = 7  # of how a frame is moved, raised where the same weights move it differently
SEEN_FRAMES = 4
UNITS = 0.1  # of the picture's half size, in which networks speak of flow
LEAST_STD, MOST_STD = 0.03, 1.5  # of latents, whose own standard deviation is about 1
SURE_STD = 1.0  # below it the moved cell is kept: a network draws the mean of what it might be, a blur
SKETCH = 4  # a cell's grey sketch is SKETCH x SKETCH, in which past frames are compared
SHIFTS = (6, 12)  # farthest shift compared along columns and along rows, in the sketch's pixels, in SIDES steps a side
SIDES = 6
EVERY = 2  # of a sketch's pixels and rows so many are compared: half the time of a training step was comparing
MATCH_UNITS = 5.0  # by which differences of matches are brought to the size of latents
NEWS = 1.0  # root mean square of latents, by which what is drawn must differ from a kept cell to be taken
DRAWN_CHANNELS = 4  # a redrawn pixel's colour, and by what logit it is taken
MOVES_AT_FIRST = -2.0  # that logit's bias at random weights
MEMORY_CHANNELS = 5  # of what a memory of the map tells each cell, see `told_of`
GROUPS = 8
REGIONS = (2, 4)  # rows and columns of them, of whose matches the whole is told
FIELDS = 8  # flows over the picture, of which the frame as a whole says how much of each
CAMERA_NUMBERS = 4  # ahead, right, up and a left turn, see scenes.py
SINC_LOBES = 4  # on either side, of the kernel by which a picture is doubled before it is moved
STILL_PIXELS = 0.5  # a cell of which nothing moves further keeps its code as it is, a place on the screen its pixel
FIXED_BELOW = 0.1  # share of the world's motion with which a place is none of the world's
STILL_CHANGE = 0.01  # and over a memory one that changes by less, mean absolute of [-1, 1]


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the identity, on normalized features; the first one dilated, to see far at little
    cost, and scaled and shifted by what is known of the whole frame."""

    def __init__(self, width: int, dilation: int, known: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(known, 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, features: Tensor, known: Tensor) -> Tensor:
        """(B, width, h, w) and (B, known) -> (B, width, h, w)."""
        scale, shift = self.modulate(known)[:, :, None, None].chunk(2, dim=1)
        inner = self.first(silu(self.norm(features))) * (1 + scale) + shift
        return features + self.second(silu(inner))


class Redrawn(NamedTuple):
    """What is drawn anew over B moved pictures, float32."""

    pixels: Tensor  # (B, 3, H', W'), about [-1, 1]
    logit: Tensor  # (B, 1, H', W'): above zero a pixel is rather this one than the moved one

    def over(self, moved: Tensor) -> Tensor:
        """Moved pixels (B, 3, H', W') -> the next picture in [-1, 1]: either way's pixels, never a mixture."""
        return torch.where(self.logit > 0, self.pixels.clamp(-1, 1), moved)


class MotionModel(ModelMixin, ConfigMixin):
    """Optical flow of the next frame from the last `seen_frames` latents and the actions chosen on seeing them."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        latent_height: int,
        latent_width: int,
        num_actions: int,
        seen_frames: int = SEEN_FRAMES,
        width: int = 64,
        embedding_dim: int = 32,
        flow_per_cell: int = 2,
        has_memory: bool = False,
        pixels_per_cell: int | None = None,
        frame_stride: int | None = None,
        encoder_sha256: str | None = None,
        version: int = MOTION_VERSION,
    ) -> None:
        """has_memory: what stands still is moved as a memory of the map says (scene_memory.py); what is left to foresee
        is which places do not move with the world, and where those go.

        pixels_per_cell: along a side of a latent's cell, for a model with a memory that draws what changes without
        moving; None: draws nothing, as earlier ones.

        frame_stride, encoder_sha256: of the data it learns from, so that it is not taken for other data.

        version: of this architecture, so that weights of an earlier one are not tried."""
        super().__init__()
        if pixels_per_cell and not has_memory:
            raise ValueError("pixels_per_cell: only a model with a memory draws")
        known = 2 * width
        matches = 2 * (2 * SIDES + 1) * (seen_frames - 1)
        self.action_embedding = nn.Embedding(num_actions, embedding_dim)
        self.draw_sketch = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, SKETCH**2, 3, padding=1)
        )
        of_memory = MEMORY_CHANNELS if has_memory else 0
        self.conv_in = nn.Conv2d(seen_frames * latent_channels + matches + 2 + of_memory, width, 3, padding=1)
        self.norm_in, self.norm_out = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.look_around = nn.Conv2d(width, 2 * width, 1)  # what each place tells the whole, and how loudly
        self.encode_keys = nn.Sequential(
            nn.Linear(seen_frames * embedding_dim, known), nn.SiLU(), nn.Linear(known, known), nn.SiLU()
        )
        if not has_memory:
            self.flow_of_keys = nn.Linear(known, 2 * latent_height * latent_width)
            self.flow_of_known = nn.Linear(known, 2 * latent_height * latent_width)
            self.tell_camera = nn.Linear(known, CAMERA_NUMBERS * seen_frames)
        self.region = (max(1, latent_height // REGIONS[0]), max(1, latent_width // REGIONS[1]))
        regions = (latent_height // self.region[0]) * (latent_width // self.region[1]) * matches
        # Normalized each by itself: a large input would drown the others, and silence the activations for good.
        self.norm_told, self.norm_matches = nn.LayerNorm(width), nn.LayerNorm(regions)
        self.know = nn.Sequential(
            nn.Linear(known + width + regions, known), nn.SiLU(), nn.Linear(known, known), nn.SiLU()
        )
        self.amounts = nn.Linear(known, FIELDS)
        self.body = nn.ModuleList(_Residual(width, dilation, known) for dilation in (1, 2, 4, 1))
        maps = (2 if has_memory else 1) + 2 * FIELDS
        self.conv_out = nn.Conv2d(width, maps * flow_per_cell**2, 3, padding=1)
        self.conv_std = nn.Conv2d(width, 1, 3, padding=1)
        if pixels_per_cell:
            self.look_again = nn.Conv2d(seen_frames * latent_channels + of_memory, width, 3, padding=1)
            self.on_screen = nn.Parameter(torch.randn(width, latent_height, latent_width))  # what has its place there
            self.keys_drawn = nn.Linear(seen_frames * embedding_dim, width)  # straight: a lamp is lit by a key
            self.think_again = _Residual(width, 1, known)
            self.norm_again = nn.GroupNorm(GROUPS, width)
            self.conv_drawn = nn.Conv2d(width, DRAWN_CHANNELS * pixels_per_cell**2, 1)
            nn.init.zeros_(self.conv_drawn.weight)
            nn.init.zeros_(self.conv_drawn.bias)
            nn.init.constant_(self.conv_drawn.bias[-(pixels_per_cell**2) :], MOVES_AT_FIRST)
        of_flow = () if has_memory else (self.flow_of_keys, self.flow_of_known)
        for last in (*of_flow, self.conv_out, self.conv_std):  # nothing moves at first
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def sketch(self, latents: Tensor) -> Tensor:
        """Latents (B, T, C, h, w) -> small grey pictures (B, T, SKETCH*h, SKETCH*w), about [-1, 1]."""
        return pixel_shuffle(self.draw_sketch(latents.flatten(0, 1)), SKETCH).unflatten(0, latents.shape[:2])[:, :, 0]

    def forward(
        self, latents: Tensor, actions: Tensor, with_camera: bool = False, remembered: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """latents: (B, >= seen_frames, C, h, w), oldest first.  actions: (B, as many) int64.

        remembered: (B, MEMORY_CHANNELS, h, w), as `told_of` gives it, for a model with a memory, which returns how much
        of each place moves with the world, (B, 1, f*h, f*w); how much of what differs there from the memory is to stay,
        (B, 1, f*h, f*w); by how much else it moves, (B, 2, f*h, f*w); the standard deviation as below; and, with
        pixels_per_cell, what is `Redrawn`.

        Else the flow (B, 2, f*h, f*w) with f = flow_per_cell, x before y: how far from each place of the next frame
        that which is seen there lay in the last one, in halves of the padded picture's width and height; and the
        standard deviation (B, 1, h, w) of the next latents about the last ones so moved. All float32.
        with_camera: without a memory also how the camera moved from each seen frame to the one after it, (B,
        seen_frames, 4), in the units of scenes.py: asked for in training, so that what the flow depends on is
        learned."""
        config = self.config
        seen, h, w = config.seen_frames, config.latent_height, config.latent_width
        latents, actions = latents[:, -seen:], actions[:, -seen:]
        where = places(h, w, latents).expand(len(latents), -1, -1, -1)  # (B, 2, h, w)
        matches = _matches(self.sketch(latents))
        seen_here = [latents.flatten(1, 2), matches, where]
        if config.has_memory:
            seen_here.append(remembered.to(latents.dtype))
        features = self.norm_in(self.conv_in(torch.cat(seen_here, dim=1)))
        told, weight = self.look_around(silu(features)).flatten(2).chunk(2, dim=1)  # (B, width, h*w) each
        told = (told * weight.float().softmax(dim=2).to(told.dtype)).sum(dim=2)
        embedded = self.action_embedding(actions).flatten(1)  # (B, seen * embedding_dim)
        keys = self.encode_keys(embedded)  # (B, known)
        regions = self.norm_matches(avg_pool2d(matches, self.region).flatten(1))
        known = self.know(torch.cat([keys, self.norm_told(told), regions], dim=1))
        for block in self.body:
            features = block(features, known)
        features = silu(self.norm_out(features))
        here = pixel_shuffle(self.conv_out(features), config.flow_per_cell)  # (B, maps, f*h, f*w)
        fields = here[:, -2 * FIELDS :].unflatten(1, (FIELDS, 2))
        shares = torch.sigmoid(here[:, : -2 * FIELDS] + 3).split(1, dim=1)
        extra = (fields * self.amounts(known)[:, :, None, None, None]).sum(dim=1)
        between = torch.sigmoid(self.conv_std(features).float())
        std = LEAST_STD * (MOST_STD / LEAST_STD) ** between
        if config.has_memory:
            foreseen = (*(share.float() for share in shares), (UNITS * extra).float(), std)
            if not config.pixels_per_cell:
                return foreseen
            again = self.look_again(torch.cat([latents.flatten(1, 2), seen_here[-1]], dim=1)) + features
            again = again + self.on_screen.to(again.dtype) * (1 + self.keys_drawn(embedded))[:, :, None, None]
            again = silu(self.norm_again(self.think_again(again, known)))
            drawn = pixel_shuffle(self.conv_drawn(again), config.pixels_per_cell).float()  # (B, 4, H', W')
            return *foreseen, Redrawn(drawn[:, :-1], drawn[:, -1:])
        of_known = (self.flow_of_keys(keys) + self.flow_of_known(known)).unflatten(1, (2, h, w))
        of_known = interpolate(of_known, scale_factor=float(config.flow_per_cell), mode="bilinear")
        flow = (UNITS * (shares[0] * of_known + extra)).float()
        return (flow, std, self.tell_camera(known).unflatten(1, (seen, -1)).float()) if with_camera else (flow, std)


def _matches(sketches: Tensor) -> Tensor:
    """How badly each sketch but the first matches the one before, shifted, around each cell.

    sketches: (B, T, SKETCH*h, SKETCH*w), oldest first. Returns (B, (T - 1) * 2 * (2 * SIDES + 1), h, w): mean absolute
    differences over 3x3 cells less their mean over all shifts, first along columns, then along rows."""
    height, width = sketches.shape[-2:]
    later, earlier = sketches[:, 1:], sketches[:, :-1]
    down, right = SHIFTS
    # As pad(mode="replicate") would, whose gradient torch.compile of 2.13 gets the strides of wrong, channels last.
    for axis, more in ((-1, right), (-2, down)):
        first, last = (earlier.narrow(axis, at, 1) for at in (0, earlier.shape[axis] - 1))
        earlier = torch.cat([first] * more + [earlier] + [last] * more, dim=axis)
    steps = range(-SIDES, SIDES + 1)
    offsets = [[(down * step // SIDES, 0) for step in steps], [(0, right * step // SIDES) for step in steps]]
    costs = []
    for along in offsets:
        shifted = [
            earlier[..., down + y : down + y + height : EVERY, right + x : right + x + width : EVERY] for y, x in along
        ]
        cost = (torch.stack(shifted, dim=2) - later[:, :, None, ::EVERY, ::EVERY]).abs().flatten(1, 2)
        cost = avg_pool2d(avg_pool2d(cost, SKETCH // EVERY), 3, stride=1, padding=1, count_include_pad=False)
        cost = cost.unflatten(1, (-1, len(along)))
        costs.append((cost - cost.mean(dim=2, keepdim=True)).flatten(1, 2))
    return MATCH_UNITS * torch.cat(costs, dim=1)


def places(height: int, width: int, like: Tensor) -> Tensor:
    """(1, 2, height, width): x and y of each cell's middle, -1 to 1 from edge to edge."""
    rows = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * (2 / height) - 1
    columns = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    x, y = columns[None, :].expand(height, -1), rows[:, None].expand(-1, width)
    return torch.stack([x, y])[None].to(like.dtype)


def warp(pixels: Tensor, flow: Tensor, *, is_smooth: bool = False) -> Tensor:
    """Pixels (B, 3, H', W') in [-1, 1] as a flow (B, 2, *, *) moves them, mirrored beyond the edges. float32.

    Jaderberg et al. 2015, eq. 5, with a cubic kernel (Keys 1981) in a picture twice as large: a picture is moved once a
    frame, and what a shorter kernel blurs each time adds up. Mirrored: what comes into view is more like what is beside
    it than like a smear.  is_smooth: linear between pixels, for a picture without fine detail, and faster."""
    height, width = pixels.shape[-2:]
    flow = interpolate(flow.float(), (height, width), mode="bilinear")
    grid = (places(height, width, flow) + flow).permute(0, 2, 3, 1)  # (B, H', W', 2)
    if is_smooth:
        return grid_sample(pixels.float(), grid, "bilinear", padding_mode="reflection", align_corners=False)
    moved = grid_sample(_doubled(pixels.float()), grid, "bicubic", padding_mode="reflection", align_corners=True)
    return moved.clamp(-1, 1)  # such kernels overshoot


def _doubled(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H', W') -> (B, 3, 2H' + 1, 2W' + 1), from edge to edge: at 2i + 1 what stood at i, before it at 2i
    what lies halfway, by a windowed sinc (Duchon 1979, "Lanczos Filtering in One and Two Dimensions")."""
    away = [math.pi * (number + 0.5) for number in range(SINC_LOBES)]
    half = [math.sin(x) / x * math.sin(x / SINC_LOBES) / (x / SINC_LOBES) for x in away]
    weights = [weight / (2 * sum(half)) for weight in half[::-1] + half]
    for axis in (3, 2):
        size = pixels.shape[axis]
        first, last = (pixels.narrow(axis, at, SINC_LOBES).flip(axis) for at in (0, size - SINC_LOBES))
        beyond = torch.cat([first, pixels, last], dim=axis)
        # No convolution: autocast would take it to bfloat16, which has fewer steps than a picture has colours.
        between = sum(weight * beyond.narrow(axis, at, size + 1) for at, weight in enumerate(weights))
        pairs = torch.stack([between.narrow(axis, 0, size), pixels], dim=axis + 1).flatten(axis, axis + 1)
        pixels = torch.cat([pairs, between.narrow(axis, size, 1)], dim=axis)
    return pixels


def told_of(pixels: Tensor, flow: Tensor, is_seen: Tensor, last: Tensor, following: Tensor, cell: int) -> Tensor:
    """What a memory's `Ahead` tells each cell: (B, MEMORY_CHANNELS, h, w), where the world flows and whether it was
    seen before, how much of the last picture, pixels (B, 3, H', W'), is not as remembered, and how much will change."""
    differs = ((pixels - last).abs().mean(dim=1, keepdim=True), (following - last).abs().mean(dim=1, keepdim=True))
    return avg_pool2d(torch.cat([flow / UNITS, is_seen, *differs], dim=1), cell)


def _zero_where(is_zero: Tensor, values: Tensor) -> Tensor:
    """Values, but exactly zero where told; a gradient passes as if they were not."""
    return values + (torch.where(is_zero, 0.0, values) - values).detach()


def composed(
    pixels: Tensor,
    flow: Tensor,
    is_seen: Tensor,
    last: Tensor,
    following: Tensor,
    share: Tensor,
    stays: Tensor,
    extra: Tensor,
) -> tuple[Tensor, Tensor]:
    """The last picture, pixels (B, 3, H', W'), moved ahead over what is remembered, and the flow by which it moved.

    flow, is_seen, last, following: a memory's `Ahead`.  share, stays, extra: as a MotionModel gives them. What differs
    from the memory moves along with the world, as much of it as is to stay, and is not there where that was out of
    sight; what does not belong to the world is what it was: with S the share and V what was seen and stays,

        moved = (1 - S (1 - V)) warp(pixels) + S (following - V warp(last))

    So errors of a long dream fade: the map pulls it back, as an observation does a filter's state (Kalman 1960). What
    is on the screen and stands there, a status bar, is kept as it is, for a little of everything adds up.
    """
    size = pixels.shape[-2:]
    share, stays, extra = (interpolate(each, size, mode="bilinear") for each in (share, stays, extra))
    pixels_moved = extra * extra.new_tensor([size[1] / 2, size[0] / 2])[:, None, None]
    is_fixed = share < FIXED_BELOW
    is_still = is_fixed & (pixels_moved.abs().amax(dim=1, keepdim=True) < STILL_PIXELS)
    share, extra = _zero_where(is_fixed, share), _zero_where(is_still, extra)
    flow, kept = share * flow + extra, is_seen * stays
    was, was_remembered = warp(pixels, flow), warp(last, flow, is_smooth=True)
    moved = (1 - share * (1 - kept)) * was + share * (following - kept * was_remembered)
    return moved.clamp(-1, 1), flow


class Foreseen(NamedTuple):
    """What a MotionModel makes of the last picture over a memory of the map, of B games."""

    moved: Tensor  # (B, 3, H', W'): what is moved, see `composed`
    shown: Tensor  # (B, 3, H', W'): and what is drawn over it, if the model draws
    redrawn: Redrawn | None
    flow: Tensor  # (B, 2, H', W') by which it moved
    share: Tensor  # (B, 1, f*h, f*w), extra (B, 2, f*h, f*w) and std (B, 1, h, w) as the MotionModel gives them
    extra: Tensor
    std: Tensor


def foresee(motion: nn.Module, latents: Tensor, actions: Tensor, pixels: Tensor, ahead: tuple[Tensor, ...]) -> Foreseen:
    """The picture that follows on latents (B, T, C, h, w), the last of which shows pixels (B, 3, H', W').

    motion: a MotionModel with a memory, or what wraps it.  actions: (B, T).  ahead: the memory's `Ahead`."""
    told = told_of(pixels, *ahead, cell=pixels.shape[-1] // latents.shape[-1])
    share, stays, extra, std, *drawn = motion(latents, actions, remembered=told)
    moved, flow = composed(pixels, *ahead, share, stays, extra)
    redrawn = drawn[0] if drawn else None
    shown = redrawn.over(moved) if redrawn else moved
    return Foreseen(moved, shown, redrawn, flow, share, extra, std)


class Moved(NamedTuple):
    """What a world model draws about: B games, L frames of latents (C, h, w). The last two are None without a mover."""

    context: Tensor  # (B, L, C, h, w), oldest first, the last frame moved ahead
    std: Tensor | None  # (B, 1, h, w) of the next latents about that frame
    tolerance: Tensor | None  # (B, 1, h, w): root mean square by which a drawn cell must differ from it to be taken

    def settle(self, drawn: Tensor) -> Tensor:
        """Drawn latents (B, C, h, w) -> the next ones: the moved frame where they differ from it by less than its
        tolerance. A network draws the mean of what a frame might be; where it has no news to tell, that is a blur."""
        if self.tolerance is None:
            return drawn
        last = self.context[:, -1].to(drawn.dtype)
        difference = (drawn - last).square().mean(dim=1, keepdim=True).sqrt()
        return torch.where(difference < self.tolerance, last, drawn)


class Mover(nn.Module):
    """A world model's context with its last frame moved ahead by the actions; holds the networks that it takes."""

    def __init__(self, motion: MotionModel, autoencoder: nn.Module, memory: nn.Module | None = None) -> None:
        """autoencoder: a model.Autoencoder, shared with whoever else draws with it.  memory: a SceneMemory."""
        super().__init__()
        self.motion, self.autoencoder, self.memory = motion, autoencoder, memory

    def own_weights(self) -> dict[str, Tensor]:
        """Those of the motion model and of the memory, by name; the autoencoder's are not its own."""
        remembered = {} if self.memory is None else self.memory.state_dict()
        return {**self.motion.state_dict(), **{f"memory.{name}": weight for name, weight in remembered.items()}}

    @torch.no_grad()
    def forward(self, context: Tensor, actions: Tensor, pixels: Tensor, *ahead: Tensor) -> Moved:
        """context: (B, L, C, h, w), oldest first.  actions: (B, L) int64.  pixels: (B, 3, H', W') in [-1, 1], the
        picture of its last frame.  ahead: with a memory of the map its `Ahead`.

        The tolerance is NEWS where the standard deviation is below SURE_STD, else zero."""
        last, context_of_motion = context[:, -1], context.to(self.motion.dtype)
        pixels = pixels.float().clamp(-1, 1)
        if ahead:
            foreseen = foresee(self.motion, context_of_motion, actions, pixels, ahead)
            moved, std = self.moved_over(last, pixels, foreseen.shown), foreseen.std
        else:
            flow, std = self.motion(context_of_motion, actions)
            moved = self.moved(last, pixels, flow)
        tolerance = torch.where(std < SURE_STD, NEWS, 0.0)
        return Moved(torch.cat([context[:, :-1], moved[:, None]], dim=1), std, tolerance)

    @torch.no_grad()
    def rolled(self, latents: Tensor, actions: Tensor, count: int, poses: Tensor | None = None) -> Tensor:
        """The last `count` of latents (B, n, C, h, w) moved one from the other, none taken from the game: so training
        sees what becomes of a mistake (DAgger, Ross et al. 2011).

        n at least seen_frames + count.  actions: (B, >= n - 1) int64, the first chosen on seeing the first.  poses:
        (B, >= n, 4), with a memory, where the game went."""
        latents, remembered = latents.clone(), None
        for at in range(latents.shape[1] - count, latents.shape[1]):
            ahead = ()
            if self.memory is not None:
                ahead = self.memory.look_ahead(poses[:, at - 1], poses[:, at], remembered)
                remembered = ahead.following
            pixels = self.autoencoder.decode_latents(latents[:, at - 1])
            latents[:, at] = self(latents[:, :at], actions[:, :at], pixels, *ahead).context[:, -1]
        return latents

    @torch.no_grad()
    def moved(self, last: Tensor, pixels: Tensor, flow: Tensor) -> Tensor:
        """Latents (B, C, h, w) and their picture, pixels (B, 3, H', W'), as a flow moves them: latents.

        Cells in which nothing moves keep their codes, which a decoder and an encoder would wear down."""
        geometry = self.autoencoder.geometry
        size = flow.new_tensor([geometry.padded_width, geometry.padded_height])[:, None, None]
        is_moving = (flow.abs() * size > 2 * STILL_PIXELS).any(dim=1, keepdim=True)
        is_moving = nn.functional.adaptive_max_pool2d(is_moving.float(), last.shape[-2:]) > 0
        return self._encoded(last, warp(pixels, flow), is_moving)

    @torch.no_grad()
    def moved_over(self, last: Tensor, pixels: Tensor, moved: Tensor) -> Tensor:
        """Latents (B, C, h, w) of the picture that `composed` made, moved, of theirs, pixels (B, 3, H', W') each.

        Cells that look as before keep their codes; not for little flow, which adds up while the map goes on."""
        change = (moved - pixels).abs().mean(dim=1, keepdim=True)
        change = avg_pool2d(change, pixels.shape[-1] // last.shape[-1])
        return self._encoded(last, moved, change > STILL_CHANGE)

    def _encoded(self, last: Tensor, pixels: Tensor, is_new: Tensor) -> Tensor:
        """Pixels (B, 3, H', W') as latents (B, C, h, w), but those of `last` outside of is_new, bool (B, 1, h, w)."""
        pixels = pixels.to(self.autoencoder.vae.dtype)
        encoded = self.autoencoder.sample_latents(self.autoencoder.encode_pixels(pixels)).to(last.dtype)
        return torch.where(is_new, encoded, last)
