"""What is recorded of a scene beside its picture, depth and the camera's place, and the optical flow that follows.

Where ViZDoom tells both, the flow of everything that stands still is known to the pixel: train_motion.py learns from it
what photometric error alone hardly teaches, that what is near moves further (supervision by rendered depth and pose:
Dosovitskiy et al. 2015, "FlowNet"), and scene_memory.py the map. Nothing of it is needed to play. Written by
ViZDoomPPO/ (--record_depth), kept beside latents by encode_images.py.

A pose is (x, y, z in map units, angle in degrees counter-clockwise from east). A camera, as kept with latents, is a
pinhole in coordinates of the padded picture, -1 to 1 from edge to edge: x = focal_x * right / ahead, y = horizon -
focal_y * up / ahead.
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from command_line import BadInput
from episodes import POSE_COLUMNS, Episode
from model_folders import Geometry
from motion import places

GRID = 2  # depths per latent cell and direction
NEAREST_UNITS = 8.0  # nearer than this to the last camera, or behind it: not seen then
MOST_FLOW = 0.7  # in halves of the picture
MOST_UNITS_PER_TIC = 40.0  # further: not walked, which is 20 at most, but risen elsewhere
MOTION_UNITS = (16.0, 16.0, 4.0, 8.0)  # usual camera motions: ahead, right, up in map units, left turn in degrees


def has_scene(episode: Episode) -> bool:
    """Whether depth and camera were recorded."""
    return bool(episode.info.metadata.get("camera"))


def camera_of(recorded: dict[str, float], geometry: Geometry) -> dict[str, float]:
    """The camera of padded pictures from that of the recorded ones.

    recorded: `units_per_depth`, `focal_width` in picture widths, `focal_height` and `horizon` in heights."""
    horizon_pixels = recorded["horizon"] * geometry.frame_height + geometry.pad_above
    return {
        "units_per_depth": recorded["units_per_depth"],
        "focal_x": 2 * recorded["focal_width"] * geometry.frame_width / geometry.padded_width,
        "focal_y": 2 * recorded["focal_height"] * geometry.frame_height / geometry.padded_height,
        "horizon": 2 * horizon_pixels / geometry.padded_height - 1,
    }


def read_scene(episode: Episode, rows: np.ndarray, geometry: Geometry, cells: tuple[int, int]) -> dict[str, np.ndarray]:
    """`depth`, uint8 (N, GRID*h, GRID*w) over the padded picture, 0 in its padding, and `poses`, float32 (N, 4).

    cells: (h, w) of the latents.  rows: (N,) of the episode. Raises BadInput naming a row whose depth is broken."""
    columns = episode.columns(("depth", *POSE_COLUMNS))
    poses = np.stack([columns[name][rows] for name in POSE_COLUMNS], axis=1).astype(np.float32)
    pictures = np.stack([_decoded(episode, row, columns["depth"]) for row in rows])  # (N, H/4, W/4)
    high, wide = (GRID * count for count in cells)
    above = (np.arange(high) + 0.5) * geometry.padded_height / high - geometry.pad_above  # in pixels of the frame
    along = (np.arange(wide) + 0.5) * geometry.padded_width / wide
    stored_rows = np.floor(above * pictures.shape[1] / geometry.frame_height).astype(int)
    stored_columns = np.floor(along * pictures.shape[2] / geometry.frame_width).astype(int)
    is_row = (stored_rows >= 0) & (stored_rows < pictures.shape[1])
    is_column = stored_columns < pictures.shape[2]
    depth = np.zeros((len(rows), high, wide), np.uint8)
    seen = pictures[:, stored_rows[is_row]][:, :, stored_columns[is_column]]
    depth[(slice(None), *np.ix_(is_row, is_column))] = seen
    return {"depth": depth, "poses": poses}


def _decoded(episode: Episode, row: int, pictures: np.ndarray) -> np.ndarray:
    """A row's depth as recorded, uint8; of the size that the first row has."""
    try:
        with Image.open(io.BytesIO(pictures[row])) as picture:
            depth = np.asarray(picture)
        with Image.open(io.BytesIO(pictures[0])) as picture:
            size = picture.size
    except (OSError, SyntaxError, ValueError, TypeError):
        depth, size = None, None
    if depth is None or depth.dtype != np.uint8 or depth.shape != size[::-1]:
        raise BadInput(f"{episode.path}: the depth of row {row} is not a grey picture as the others; record it again")
    return depth


def scene_flow(depth: Tensor, poses: Tensor, camera: dict[str, Any], frame_stride: int) -> tuple[Tensor, Tensor]:
    """The flow of a scene in which only the camera moves.

    depth: uint8 (B, H, W) of the next frame, 0 where the picture does not move with the world.  poses: (B, 2, 4), of
    the last frame and the next one, `frame_stride` tics apart. Returns the flow as a MotionModel gives it, float32
    (B, 2, H, W), and where it is known, bool (B, 1, H, W): not where what is seen lay outside the last picture's
    sight."""
    ahead = torch.where(depth == 0, 0.0, camera["units_per_depth"] * (depth.float() + 0.5))
    flow, is_in_front = flow_of_views(ahead, poses, camera)
    is_known = is_in_front & (flow.abs().amax(dim=1) < MOST_FLOW)
    walked = (poses[:, 1, :2] - poses[:, 0, :2]).norm(dim=1) < MOST_UNITS_PER_TIC * frame_stride
    return flow, (is_known & walked[:, None, None])[:, None]


def flow_of_views(ahead: Tensor, poses: Tensor, camera: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The flow of a scene in which only the camera moves, from how far ahead in the next view everything is.

    ahead: (B, H, W) map units, 0 where the picture does not move with the world.  poses: (B, 2, 4), of the last view
    and the next one. Returns the flow as a MotionModel gives it, float32 (B, 2, H, W), and whether what is seen lay in
    front of the last camera, bool (B, H, W)."""
    x, y = places(*ahead.shape[-2:], poses).unbind(1)  # (1, H, W) each
    right = x / camera["focal_x"] * ahead
    up = (camera["horizon"] - y) / camera["focal_y"] * ahead
    step_ahead, step_right, step_up, turned = _motion(poses[:, 0], poses[:, 1])[:, :, None, None].unbind(1)
    cos, sin = torch.cos(turned), torch.sin(turned)
    # In the last camera's frame: turned back, and from where that one stood.
    was_ahead = ahead * cos + right * sin + step_ahead
    was_right = right * cos - ahead * sin + step_right
    was_up = up + step_up
    was_seen = was_ahead.clamp_min(NEAREST_UNITS)
    was_x = camera["focal_x"] * was_right / was_seen
    was_y = camera["horizon"] - camera["focal_y"] * was_up / was_seen
    is_still = ahead == 0
    flow = torch.where(is_still[:, None], 0.0, torch.stack([was_x - x, was_y - y], dim=1))
    return flow.float(), is_still | (was_ahead > NEAREST_UNITS)


def camera_motions(poses: Tensor, frame_stride: int) -> tuple[Tensor, Tensor]:
    """Poses (B, T, 4), `frame_stride` tics apart -> how the camera moved from each to the next, float32 (B, T - 1, 4),
    in MOTION_UNITS, and whether it was walked there, bool (B, T - 1, 1): where not, the motion is of no meaning."""
    motions = _motion(poses[:, :-1].flatten(0, 1), poses[:, 1:].flatten(0, 1))  # (B*(T-1), 4)
    motions = torch.cat([motions[:, :3], motions[:, 3:].rad2deg()], dim=1)
    is_walked = motions[:, :2].norm(dim=1, keepdim=True) < MOST_UNITS_PER_TIC * frame_stride
    motions = motions / torch.tensor(MOTION_UNITS, device=poses.device)
    return motions.unflatten(0, (len(poses), -1)), is_walked.unflatten(0, (len(poses), -1))


def after_motions(poses: Tensor, motions: Tensor) -> Tensor:
    """The poses (B, 4) that `camera_motions` (B, 4) of poses (B, 4) lead to; angles in [0, 360)."""
    ahead, right, up, turned = (motions * torch.tensor(MOTION_UNITS, device=poses.device)).unbind(1)
    angle = poses[:, 3].deg2rad()
    cos, sin = torch.cos(angle), torch.sin(angle)
    moved = torch.stack([ahead * cos + right * sin, ahead * sin - right * cos, up], dim=1)
    return torch.cat([poses[:, :3] + moved, (poses[:, 3:] + turned[:, None]).remainder(360)], dim=1)


def _motion(last: Tensor, following: Tensor) -> Tensor:
    """(B, 4) each -> (B, 4): ahead, right and up in map units as the last camera sees them, the turn in radians."""
    east, north, up = (following - last)[:, :3].unbind(1)
    angle = last[:, 3].deg2rad()
    cos, sin = torch.cos(angle), torch.sin(angle)
    turned = (following[:, 3] - last[:, 3] + 180).remainder(360) - 180
    return torch.stack([east * cos + north * sin, east * sin - north * cos, up, turned.deg2rad()], dim=1)
