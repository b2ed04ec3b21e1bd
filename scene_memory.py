"""What a map looks like, remembered: a picture of what stands still from any place in it, and how the camera goes on.

A model that knows only its last frames forgets whatever leaves the view. The memory holds the map in its weights: how
high floor and ceiling are, in a grid of `CELL_UNITS`, and what colour each point of a surface has, in hash tables of
several resolutions (Müller et al. 2022, "Instant Neural Graphics Primitives", sec. 3). A ray from the camera goes ahead
until it meets floor, ceiling, or a wall, which is a floor too high to step on; its colour is looked up there (deferred
neural rendering, Thies et al. 2019). Both are learned from recorded depth, pose and frames alone: heights by which
points along a ray are free and which lie behind a surface (Mescheder et al. 2019, "Occupancy Networks"), colours by
their absolute error, whose best guess is the median, so that nobody who walks through the picture leaves a ghost.

How the camera moves next follows from its last motions, the keys, and the heights around it, so that walls are known
before they are seen. Where it is to begin with is recorded with every frame.

Poses, cameras and motions are those of scenes.py; actions pair with frames as data_loader.py says. Knows no diffusion.
Trained by train_scene_memory.py.
"""

import math
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, grid_sample, interpolate

from command_line import BadInput
from model_folders import Geometry
from motion import places
from scenes import MOST_UNITS_PER_TIC, after_motions, camera_motions, camera_of, flow_of_views

SCENE_MEMORY_VERSION = 1
CELL_UNITS = 8.0  # of the grid of heights, in map units
HEIGHT_UNITS = 2000.0  # in which heights are learned: a step of the optimizer is a few map units
SOFT_UNITS = 4.0  # from a surface: this far behind it a point is solid by e to 1
LEVELS = ((64, 11), (32, 13), (16, 15), (8, 17), (4, 18))  # of colours: map units of a cell, and log2 of the table
FEATURES = 4  # of each entry
FEATURE_UNITS = 50.0  # tables learn that much faster than the layers after them
PRIMES = (1, 2_654_435_761, 805_459_861)  # the spatial hash of Teschner et al. 2003
STILL_MOTION = 0.02  # in MOTION_UNITS; a camera that would move by less stands
SAME_CAMERA = 1e-3
VIEW_SHRINK = 2  # a view is drawn so much smaller and enlarged: a third of the time, and no worse
NEAREST_UNITS, FARTHEST_UNITS, RAY_STEPS = 4.0, 2200.0, 140
PAST_MOTIONS = 4
EYE_UNITS = 41.0  # of Doom's player above the floor
TALL_UNITS = 56.0  # Doom's player
STEP_UNITS = 24.0  # the highest it goes up
SLACK_UNITS = 8.0  # of what is learned, and of how the eye goes up and down in walking
FALL_UNITS = 1.0  # in a frame, at least
FEELERS = ((12.0, 20.0, 32.0, 56.0), 16)  # distances and directions in which heights around the camera are told
WIDTH = 48


class View(NamedTuple):
    """What is remembered from B poses. Rows below `view_rows` of the picture are zero in all of it."""

    pixels: Tensor  # (B, 3, H', W') in [-1, 1]
    ahead: Tensor  # (B, H', W'): how far ahead it lies, map units


class Ahead(NamedTuple):
    """What is remembered around a frame yet to be drawn, of B games: as `motion.Mover` takes it, float32.

    All over the padded picture; below `view_rows` nothing is seen and nothing flows."""

    flow: Tensor  # (B, 2, H', W'): where each place of the next view lay in the last one, as a MotionModel has it
    is_seen: Tensor  # (B, 1, H', W'): 0 where that was out of the last view, else 1
    last: Tensor  # (B, 3, H', W'): what is remembered of the last view, [-1, 1]
    following: Tensor  # (B, 3, H', W'): and of the next one


class Learned(NamedTuple):
    """What `SceneMemory.forward` gives to be compared with what was recorded."""

    solid: Tensor  # (N,) logits
    colours: Tensor  # (M, 3)
    motions: Tensor  # (B, U, 4) in MOTION_UNITS


class SceneMemory(ModelMixin, ConfigMixin):
    """A map's heights and colours, and the camera's dynamics in it."""

    @register_to_config
    def __init__(
        self,
        num_actions: int,
        padded_width: int,
        padded_height: int,
        view_rows: int,
        camera: dict[str, float],
        corner: tuple[float, float],
        grid: tuple[int, int],
        first_heights: tuple[float, float],
        levels: tuple[tuple[int, int], ...] = LEVELS,
        frame_stride: int | None = None,
        encoder_sha256: str | None = None,
        version: int = SCENE_MEMORY_VERSION,
    ) -> None:
        """view_rows: of the padded picture, from the top, that show the world.  camera: as in scenes.py.

        corner: lowest x and y of the map.  grid: (rows, columns) of CELL_UNITS.  first_heights: where floor and ceiling
        are before anything is learned.  frame_stride, encoder_sha256: of the data it learns from."""
        super().__init__()
        self.heights = nn.Parameter(torch.empty(1, 2, *grid))
        self.table = nn.Parameter(torch.empty(sum(2**bits for _, bits in levels), FEATURES))  # level by level
        self.colour = nn.Sequential(
            nn.Linear(FEATURES * len(levels) + 1, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, 3),
        )
        self.action_embedding = nn.Embedding(num_actions, WIDTH // 2)
        feelers = 2 * (len(FEELERS[0]) * FEELERS[1] + 1)
        known = 4 * PAST_MOTIONS + (PAST_MOTIONS + 1) * WIDTH // 2 + feelers
        self.drift = nn.Linear(4 * PAST_MOTIONS, 4)
        self.push = nn.Sequential(
            nn.Linear(known, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, 4)
        )
        with torch.no_grad():
            self.heights.copy_(torch.tensor(first_heights).view(1, 2, 1, 1).expand_as(self.heights) / HEIGHT_UNITS)
            nn.init.uniform_(self.table, -0.1 / FEATURE_UNITS, 0.1 / FEATURE_UNITS)
            nn.init.zeros_(self.push[-1].weight)
            nn.init.zeros_(self.push[-1].bias)

    def check(self, dataset: Any, geometry: Geometry) -> None:
        """Raises BadInput for a data_loader.WindowDataset that does not tell where it was seen from, or was seen by
        another camera, or of another game.  geometry: of its frames or latents."""
        dataset.need_poses()
        told = dataset.camera if dataset.kind == "latents" else camera_of(dataset.camera, geometry)
        if any(abs(self.config.camera[name] - value) > SAME_CAMERA for name, value in told.items()):
            raise BadInput(
                f"{dataset.paths[0]}: seen by another camera than the memory of its map; record in the same resolution"
            )
        if dataset.num_actions > self.config.num_actions:
            raise BadInput(
                f"{dataset.paths[0]}: has {dataset.num_actions} actions, the memory of the map knows "
                f"{self.config.num_actions}; use data of the same game"
            )
        size, own = ((each.padded_width, each.padded_height) for each in (geometry, self.config))
        if size != own:
            raise BadInput(f"the memory of the map has pictures of {own[0]}x{own[1]}, the data {size[0]}x{size[1]}")

    # ------------------------------------------------------------------ the map

    def height(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Of floor and ceiling at map places of any one shape: two such, map units."""
        rows, columns = self.heights.shape[2:]
        left, low = self.config.corner
        across = 2 * (x - left) / (CELL_UNITS * columns) - 1
        along = 2 * (y - low) / (CELL_UNITS * rows) - 1
        grid = torch.stack([across, along], dim=-1).reshape(1, 1, -1, 2)
        found = grid_sample(self.heights, grid, "bilinear", padding_mode="border", align_corners=False)
        floor, ceiling = (HEIGHT_UNITS * found[0, :, 0]).unflatten(1, x.shape)
        return floor, ceiling

    def solid(self, points: Tensor) -> Tensor:
        """How far in the solid points (..., 3) lie, map units (...); below zero where one can be."""
        floor, ceiling = self.height(points[..., 0], points[..., 1])
        return torch.maximum(floor - points[..., 2], points[..., 2] - ceiling)

    def colours(self, points: Tensor, ahead: Tensor) -> Tensor:
        """Colours (N, 3), about [-1, 1], of points (N, 3) on surfaces, seen from `ahead` (N,) map units."""
        primes = torch.tensor(PRIMES, device=points.device).to(torch.int32)  # wrapped: low bits are all that counts
        cells = torch.tensor([float(cell) for cell, _ in self.config.levels], device=points.device)
        sizes = [2**bits for _, bits in self.config.levels]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        masks, starts = (
            torch.tensor(each, dtype=torch.int32, device=points.device)[:, None, None, None]
            for each in ([size - 1 for size in sizes], starts)
        )
        at = points[:, None] / cells[:, None]  # (N, levels, 3), all levels at once: there are few points, many steps
        first = at.floor()
        between = at - first
        x, y, z = torch.stack([1 - between, between], dim=3).unbind(2)  # (N, levels, 2) each
        weights = x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]
        hashed = first.to(torch.int32) * primes
        x, y, z = torch.stack([hashed, hashed + primes], dim=3).unbind(2)
        number = ((x[..., :, None, None] ^ y[..., None, :, None] ^ z[..., None, None, :]) & masks) + starts
        weights = weights.flatten(0, 1).flatten(1).to(self.table.dtype)  # (N * levels, 8)
        found = embedding_bag(number.flatten(0, 1).flatten(1), self.table, per_sample_weights=weights, mode="sum")
        far = (ahead.clamp(NEAREST_UNITS, FARTHEST_UNITS).log() / 3 - 1.3)[:, None]  # it is darker there
        return self.colour(torch.cat([FEATURE_UNITS * found.view(len(points), -1), far], dim=1))

    # ------------------------------------------------------------------ what is seen

    def picture_places(self) -> tuple[Tensor, Tensor]:
        """x (W',) of the picture's columns and y (view_rows,) of its upper rows, -1 to 1 over the padded picture."""
        where = places(self.config.padded_height, self.config.padded_width, self.heights)[0]
        return where[0, 0], where[1, : self.config.view_rows, 0]

    @torch.no_grad()
    def cast(self, poses: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """How far ahead of poses (B, 4) the rays through x (W,) and y (H,) of the picture end, map units (B, H, W)."""
        steps = torch.logspace(math.log10(NEAREST_UNITS), math.log10(FARTHEST_UNITS), RAY_STEPS, device=poses.device)
        right, up = self.slopes(x, y)
        east, north = self.ground(poses, steps.expand(1, len(x), -1), right[None, :, None] * steps)  # (B, W, steps)
        floor, ceiling = self.height(east, north)
        # A ray is in the solid where it is less steep than a floor before it, or steeper than a ceiling: the steepest
        # so far only grows, so that each ray finds its first such step by halving.
        height = poses[:, 2, None, None]
        slopes = up.expand(*floor.shape[:2], -1).contiguous()  # (B, W, H)
        steepest = ((floor - height) / steps).cummax(dim=2).values
        lowest = ((height - ceiling) / steps).cummax(dim=2).values
        last = torch.minimum(
            torch.searchsorted(steepest, slopes, right=True), torch.searchsorted(lowest, -slopes, right=True)
        )
        is_solid, last = last < len(steps), last.clamp(1, len(steps) - 1)
        there, before = (
            torch.maximum(floor.gather(2, k) - z, z - ceiling.gather(2, k))
            for k in (last, last - 1)
            for z in (height + slopes * steps[k],)
        )
        share = (-before / (there - before).clamp_min(1e-6)).clamp(0, 1)
        end = steps[last - 1] + share * (steps[last] - steps[last - 1])
        return torch.where(is_solid, end, FARTHEST_UNITS).transpose(1, 2)

    def points(self, poses: Tensor, ahead: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The points (B, H, W, 3) of the map that lie `ahead` (B, H, W) units in the directions x (W,) and y (H,)."""
        right, up = self.slopes(x, y)
        east, north = self.ground(poses, ahead, right * ahead)
        return torch.stack([east, north, poses[:, 2, None, None] + up[:, None] * ahead], dim=-1)

    @torch.no_grad()
    def look(self, poses: Tensor) -> View:
        """What is remembered of the view from poses (B, 4)."""
        x, y = (along.unflatten(0, (-1, VIEW_SHRINK)).mean(dim=1) for along in self.picture_places())
        ahead = self.cast(poses, x, y)  # (B, view_rows / 2, W' / 2)
        seen = self.colours(self.points(poses, ahead, x, y).flatten(0, 2), ahead.flatten())
        seen = seen.float().unflatten(0, ahead.shape).movedim(3, 1)
        seen = interpolate(seen, scale_factor=float(VIEW_SHRINK), mode="bicubic").clamp(-1, 1)
        ahead = interpolate(ahead[:, None], scale_factor=float(VIEW_SHRINK))[:, 0]
        below = (0, 0, 0, self.config.padded_height - seen.shape[2])
        return View(nn.functional.pad(seen, below), nn.functional.pad(ahead, below))

    @torch.no_grad()
    def look_ahead(self, last: Tensor, following: Tensor, remembered: Tensor | None = None) -> Ahead:
        """What is remembered of the way from poses `last` (B, 4) to poses `following` (B, 4).

        remembered: the `following` pixels of the look ahead to `last`, where they are at hand."""
        view = self.look(following)
        remembered = self.look(last).pixels if remembered is None else remembered
        flow, _ = flow_of_views(view.ahead, torch.stack([last, following], dim=1), self.config.camera)
        walked = (following - last)[:, :2].norm(dim=1) < MOST_UNITS_PER_TIC * (self.config.frame_stride or 1)
        walked = walked[:, None, None, None]  # who has not walked has risen elsewhere, where nothing was seen before
        flow = torch.where(walked, flow, 0.0)
        source = places(*view.ahead.shape[-2:], flow) + flow
        lowest = 2 * self.config.view_rows / self.config.padded_height - 1
        is_seen = walked & (source[:, :1].abs() < 1) & (source[:, 1:] > -1) & (source[:, 1:] < lowest)
        is_seen |= (view.ahead == 0)[:, None]  # below the view nothing changes by itself
        return Ahead(flow, is_seen.float(), remembered, view.pixels)

    def slopes(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Right and up per unit ahead."""
        camera = self.config.camera
        return x / camera["focal_x"], (camera["horizon"] - y) / camera["focal_y"]

    @staticmethod
    def ground(poses: Tensor, ahead: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Map x and y of what lies (B, ., .) ahead and right of poses (B, 4)."""
        angle = poses[:, 3, None, None].deg2rad()
        cos, sin = torch.cos(angle), torch.sin(angle)
        east = poses[:, 0, None, None] + ahead * cos + right * sin
        return east, poses[:, 1, None, None] + ahead * sin - right * cos

    # ------------------------------------------------------------------ the camera

    def next_motion(self, motions: Tensor, actions: Tensor, poses: Tensor) -> Tensor:
        """How the camera moves next, (B, 4) in MOTION_UNITS.

        motions: (B, PAST_MOTIONS, 4), the last one led to `poses` (B, 4).  actions: (B, PAST_MOTIONS + 1) int64, the
        last one chosen there."""
        radii, directions = FEELERS
        angles = torch.arange(directions, device=poses.device) * (2 * math.pi / directions)
        distances = torch.tensor(radii, device=poses.device)[:, None]
        ahead = torch.cat([(distances * angles.cos()).flatten(), angles.new_zeros(1)])
        right = torch.cat([(distances * angles.sin()).flatten(), angles.new_zeros(1)])
        with torch.no_grad():  # the map is what was seen; else it would be bent to make ways easy to foresee
            floor, ceiling = self.height(*self.ground(poses, ahead[None, None], right[None, None]))  # (B, 1, feelers)
        feet = poses[:, 2, None] - EYE_UNITS
        steps = torch.cat([floor[:, 0] - feet, ceiling[:, 0] - feet - TALL_UNITS], dim=1) / STEP_UNITS
        past = motions.flatten(1)
        known = torch.cat([past, self.action_embedding(actions).flatten(1), steps.clamp(-3, 3)], dim=1)
        return self.drift(past) + self.push(known)

    @torch.no_grad()
    def next_pose(self, poses: Tensor, actions: Tensor) -> Tensor:
        """The pose (B, 4) after poses (B, L, 4), oldest first, and as many actions (B, L).

        Before the first of fewer than PAST_MOTIONS + 1 nothing moved."""
        missing = max(0, PAST_MOTIONS + 1 - poses.shape[1])
        poses = torch.cat([poses[:, :1].expand(-1, missing, -1), poses], dim=1)[:, -(PAST_MOTIONS + 1) :]
        actions = torch.cat([actions[:, :1].expand(-1, missing), actions], dim=1)[:, -(PAST_MOTIONS + 1) :]
        motions, is_walked = camera_motions(poses, self.config.frame_stride)
        following = self.next_motion(motions * is_walked, actions, poses[:, -1])
        is_still = following.abs().amax(dim=1, keepdim=True) < STILL_MOTION
        return torch.where(is_still, poses[:, -1], self._let(poses[:, -1], after_motions(poses[:, -1], following)))

    def _let(self, last: Tensor, following: Tensor) -> Tensor:
        """The poses (B, 4) nearest to `following` that the map lets be after `last`: nobody goes up more than a step or
        in where it is too low, along a wall one slides, and who is in the air falls. Else a long walk, a little wrong
        each time, ends in a wall or in the sky."""
        under, _ = self.height(last[:, 0], last[:, 1])
        stood = torch.maximum(last[:, 2] - EYE_UNITS, under)

        def is_open(x: Tensor, y: Tensor) -> Tensor:
            floor, ceiling = self.height(x, y)
            return (floor - stood < STEP_UNITS + SLACK_UNITS) & (ceiling - floor > TALL_UNITS - SLACK_UNITS)

        (was_x, was_y), (x, y) = last[:, :2].unbind(1), following[:, :2].unbind(1)
        both, along_x, along_y = is_open(x, y), is_open(x, was_y), is_open(was_x, y)
        x = torch.where(both | along_x, x, was_x)
        y = torch.where(both | (along_y & ~along_x), y, was_y)
        floor, _ = self.height(x, y)
        highest = torch.maximum(last[:, 2] - FALL_UNITS, floor + EYE_UNITS + SLACK_UNITS)
        z = torch.maximum(torch.minimum(following[:, 2], highest), floor + SLACK_UNITS)
        return torch.stack([x, y, z, following[:, 3]], dim=1)

    def walk(self, poses: Tensor, actions: Tensor) -> Tensor:
        """The motions (B, U, 4) of U frames in a row, each following from those before it.

        poses: (B, PAST_MOTIONS + 1, 4), oldest first.  actions: (B, PAST_MOTIONS + U)."""
        motions = camera_motions(poses, self.config.frame_stride)[0]
        pose = poses[:, -1]
        for first in range(actions.shape[1] - PAST_MOTIONS):
            played = actions[:, first : first + PAST_MOTIONS + 1]
            following = self.next_motion(motions[:, -PAST_MOTIONS:], played, pose)
            pose = after_motions(pose, following)
            motions = torch.cat([motions, following[:, None]], dim=1)
        return motions[:, PAST_MOTIONS:]

    def forward(self, points: Tensor, seen: Tensor, ahead: Tensor, poses: Tensor, actions: Tensor) -> Learned:
        """All that is learned, in one pass, as DDP wants it.

        points: (N, 3).  seen, ahead: (M, 3) and (M,), surfaces and how far they are.  poses, actions: as `walk` takes
        them."""
        return Learned(
            self.solid(points) / SOFT_UNITS,
            self.colours(seen, ahead),
            self.walk(poses, actions),
        )
