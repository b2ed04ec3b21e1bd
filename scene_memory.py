"""What a map looks like, remembered: a picture of what stands still from any place in it, and how the camera goes on.

A model that knows only its last frames forgets whatever leaves the view. The memory holds the map in its weights: how
high floor and ceiling are, in a grid of `CELL_UNITS`, and what colour each point of a surface has, in hash tables of
several resolutions (Müller et al. 2022, "Instant Neural Graphics Primitives", sec. 3). A ray from the camera goes ahead
until it meets floor, ceiling, or a wall, which is a floor too high to step on; its colour is looked up there (deferred
neural rendering, Thies et al. 2019). Both are learned from recorded depth, pose and frames alone: heights by which
points along a ray are free and which lie behind a surface (Mescheder et al. 2019, "Occupancy Networks"), colours by
their absolute error, whose best guess is the median, so that nobody who walks through the picture leaves a ghost.

How the camera moves next follows from its last motions, the keys, and the heights around it, so that walls are known
before they are seen. Where it is to begin with, a network tells from one frame's latents.

Poses, cameras and motions are those of scenes.py; actions pair with frames as data_loader.py says. Knows no diffusion.
Trained by train_scene_memory.py.
"""

import math
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, grid_sample

from motion import places
from scenes import after_motions, camera_motions

SCENE_MEMORY_VERSION = 1
CELL_UNITS = 8.0  # of the grid of heights, in map units
HEIGHT_UNITS = 2000.0  # in which heights are learned: a step of the optimizer is a few map units
SOFT_UNITS = 4.0  # from a surface: this far behind it a point is solid by e to 1
LEVELS = ((64, 11), (32, 13), (16, 15), (8, 17), (4, 18))  # of colours: map units of a cell, and log2 of the table
FEATURES = 4  # of each entry
FEATURE_UNITS = 50.0  # tables learn that much faster than the layers after them
PRIMES = (1, 2_654_435_761, 805_459_861)  # the spatial hash of Teschner et al. 2003
NEAREST_UNITS, FARTHEST_UNITS, RAY_STEPS = 4.0, 2200.0, 140
PAST_MOTIONS = 4
EYE_UNITS = 41.0  # of Doom's player above the floor
TALL_UNITS = 56.0  # Doom's player
FEELERS = ((12.0, 20.0, 32.0, 56.0), 16)  # distances and directions in which heights around the camera are told
WIDTH = 48
PLACES = 64  # channels of the network that tells where a frame was taken


class View(NamedTuple):
    """What is remembered from B poses. Rows below `view_rows` of the picture are zero in all of it."""

    pixels: Tensor  # (B, 3, H', W') in [-1, 1]
    ahead: Tensor  # (B, H', W'): how far ahead it lies, map units


class Learned(NamedTuple):
    """What `SceneMemory.forward` gives to be compared with what was recorded."""

    solid: Tensor  # (N,) logits
    colours: Tensor  # (M, 3)
    motions: Tensor  # (B, U, 4) in MOTION_UNITS
    located: Tensor  # (B', 5), as `SceneMemory.told` gives them


class SceneMemory(ModelMixin, ConfigMixin):
    """A map's heights and colours, the camera's dynamics in it, and where a frame was taken."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        latent_height: int,
        latent_width: int,
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
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(2**bits, FEATURES)) for _, bits in levels)
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
        self.look_about = nn.Sequential(
            nn.Conv2d(latent_channels, PLACES, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(PLACES, PLACES, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(PLACES, PLACES, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(PLACES * math.ceil(latent_height / 4) * math.ceil(latent_width / 4), 2 * PLACES),
            nn.SiLU(),
            nn.Linear(2 * PLACES, 5),
        )
        with torch.no_grad():
            self.heights.copy_(torch.tensor(first_heights).view(1, 2, 1, 1).expand_as(self.heights) / HEIGHT_UNITS)
            for table in self.tables:
                nn.init.uniform_(table, -0.1 / FEATURE_UNITS, 0.1 / FEATURE_UNITS)
            nn.init.zeros_(self.push[-1].weight)
            nn.init.zeros_(self.push[-1].bias)

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
        corners = torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], device=points.device)
        primes = torch.tensor(PRIMES, device=points.device)
        found = []
        for (cell, bits), table in zip(self.config.levels, self.tables, strict=True):
            at = points / cell
            first = at.floor()
            between = (at - first)[:, None]  # (N, 1, 3)
            weights = torch.where(corners.bool(), between, 1 - between).prod(dim=2)  # (N, 8)
            hashed = (first.long()[:, None] + corners) * primes
            number = (hashed[..., 0] ^ hashed[..., 1] ^ hashed[..., 2]) & (2**bits - 1)
            found.append(embedding_bag(number, table, per_sample_weights=weights.to(table.dtype), mode="sum"))
        far = (ahead.clamp(NEAREST_UNITS, FARTHEST_UNITS).log() / 3 - 1.3)[:, None]  # it is darker there
        return self.colour(torch.cat([FEATURE_UNITS * torch.cat(found, dim=1), far], dim=1))

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
        ends = []
        for number, pose in enumerate(poses):  # one after the other: this is the largest array there is
            z = pose[2] + up[:, None, None] * steps  # (H, 1, steps)
            inside = torch.maximum(floor[number] - z, z - ceiling[number])  # (H, W, steps)
            is_solid = inside > 0
            last = is_solid.to(torch.uint8).argmax(dim=2, keepdim=True).clamp_min(1)  # the first such step
            there, before = inside.gather(2, last), inside.gather(2, last - 1)
            share = (-before / (there - before).clamp_min(1e-6)).clamp(0, 1)
            end = steps[last - 1] + share * (steps[last] - steps[last - 1])
            ends.append(torch.where(is_solid.any(dim=2), end[..., 0], FARTHEST_UNITS))
        return torch.stack(ends)

    def points(self, poses: Tensor, ahead: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The points (B, H, W, 3) of the map that lie `ahead` (B, H, W) units in the directions x (W,) and y (H,)."""
        right, up = self.slopes(x, y)
        east, north = self.ground(poses, ahead, right * ahead)
        return torch.stack([east, north, poses[:, 2, None, None] + up[:, None] * ahead], dim=-1)

    @torch.no_grad()
    def look(self, poses: Tensor) -> View:
        """What is remembered of the view from poses (B, 4)."""
        x, y = self.picture_places()
        ahead = self.cast(poses, x, y)  # (B, view_rows, W')
        seen = self.colours(self.points(poses, ahead, x, y).flatten(0, 2), ahead.flatten())
        seen = seen.float().clamp(-1, 1).unflatten(0, ahead.shape).movedim(3, 1)
        below = (0, 0, 0, self.config.padded_height - len(y))
        return View(nn.functional.pad(seen, below), nn.functional.pad(ahead, below))

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
        steps = torch.cat([floor[:, 0] - feet, ceiling[:, 0] - feet - TALL_UNITS], dim=1) / 24  # the highest step
        past = motions.flatten(1)
        known = torch.cat([past, self.action_embedding(actions).flatten(1), steps.clamp(-3, 3)], dim=1)
        return self.drift(past) + self.push(known)

    @torch.no_grad()
    def next_pose(self, poses: Tensor, actions: Tensor) -> Tensor:
        """The pose (B, 4) after poses (B, >= PAST_MOTIONS + 1, 4), oldest first, and as many actions (B, ...)."""
        poses, actions = poses[:, -(PAST_MOTIONS + 1) :], actions[:, -(PAST_MOTIONS + 1) :]
        motions, is_walked = camera_motions(poses, self.config.frame_stride)
        return after_motions(poses[:, -1], self.next_motion(motions * is_walked, actions, poses[:, -1]))

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

    @torch.no_grad()
    def locate(self, latents: Tensor) -> Tensor:
        """Where latents (B, C, h, w) were seen from: poses (B, 4)."""
        told = self.look_about(latents).float()
        rows, columns = self.config.grid
        size = told.new_tensor([columns, rows]) * CELL_UNITS / 2
        middle = size + told.new_tensor(self.config.corner)
        angle = torch.atan2(told[:, 4], told[:, 3]).rad2deg().remainder(360)
        return torch.cat([told[:, :2] * size + middle, told[:, 2:3] * TALL_UNITS, angle[:, None]], dim=1)

    def told(self, poses: Tensor) -> Tensor:
        """Poses (B, 4) as the network tells them, (B, 5): x and y, -1 to 1 over the map, height, and the direction."""
        rows, columns = self.config.grid
        size = poses.new_tensor([columns, rows]) * CELL_UNITS / 2
        middle = size + poses.new_tensor(self.config.corner)
        angle = poses[:, 3:].deg2rad()
        return torch.cat([(poses[:, :2] - middle) / size, poses[:, 2:3] / TALL_UNITS, angle.cos(), angle.sin()], dim=1)

    def forward(
        self, points: Tensor, seen: Tensor, ahead: Tensor, poses: Tensor, actions: Tensor, latents: Tensor
    ) -> Learned:
        """All that is learned, in one pass, as DDP wants it.

        points: (N, 3).  seen, ahead: (M, 3) and (M,), surfaces and how far they are.  poses, actions: as `walk` takes
        them.  latents: (B', C, h, w)."""
        return Learned(
            self.solid(points) / SOFT_UNITS,
            self.colours(seen, ahead),
            self.walk(poses, actions),
            self.look_about(latents),
        )
