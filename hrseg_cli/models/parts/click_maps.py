"""Click maps: clicks drawn as two image-sized input channels, positive and negative.

points: (B, 2N, 3), rows are (row, col, order) in pixels of the map; the first N slots are positive, the last N
negative. A slot with negative row and col is padding. Fractional coordinates are not rounded.
Sofiiuk et al. 2021, section 3.2 (disks of radius 5 compared with distance maps). Memory does not grow with the number
of clicks.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor


def is_exporting() -> bool:
    """Whether the model is being exported to ONNX. Does not import the exporter, which takes 40 MB."""
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def valid_slots(points: Tensor) -> Tensor:
    """Bool (B, 2N): slots that hold a click. A slot with only one negative coordinate is a click outside the map."""
    return points[..., :2].amax(dim=-1) >= 0


def no_clicks(like: Tensor) -> Tensor:
    """(B, 2, 3): an empty slot of either sign for each image of a batch."""
    return torch.full((len(like), 2, 3), -1.0, device=like.device)


def disk_maps(points: Tensor, height: int, width: int, radius: float) -> Tensor:
    """(B, 2, H, W) float32: 1 within ``radius`` pixels of a click (boundary included), otherwise 0.

    Only a window of (2 ceil(r) + 3)^2 pixels around each click is computed.
    """
    if is_exporting():
        return _disk_maps_for_export(points, height, width, radius)
    index, inside = disk_pixels(points, height, width, radius)
    image, plane, rows, cols = index
    # All pixels outside the disks write to one spare cell at the end, so that shapes stay static.
    cells = len(points) * 2 * height * width
    cell = torch.where(inside, ((image * 2 + plane) * height + rows) * width + cols, cells)
    flat = torch.zeros(cells + 1, device=points.device)
    flat[cell.flatten()] = 1.0
    return flat[:cells].view(-1, 2, height, width)


def disk_pixels(
    points: Tensor, height: int, width: int, radius: float
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Candidate pixels of the disks, (B, 2N, K, K) each: indices (image, plane, row, col), and whether each lies in its
    disk and in the map."""
    batch, slots, _ = points.shape
    centre = points[..., :2].double()
    reach = math.ceil(radius) + 1
    offsets = torch.arange(-reach, reach + 1, device=points.device)
    near = torch.floor(centre).long().unsqueeze(-1) + offsets  # (B, 2N, 2, K): candidate rows and columns
    # Subtract in double, square in single precision: this decides borderline pixels as the reference does.
    squared = (near.double() - centre.unsqueeze(-1)).float().square()
    inside = squared[:, :, 0, :, None] + squared[:, :, 1, None, :] <= radius * radius
    image = torch.arange(batch, device=points.device)[:, None, None, None]
    plane = (torch.arange(slots, device=points.device) >= slots // 2).long()[None, :, None, None]
    shape = inside.shape
    rows, cols = near[:, :, 0, :, None].expand(shape), near[:, :, 1, None, :].expand(shape)
    inside &= (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    inside &= valid_slots(points)[..., None, None]
    return (image.expand(shape), plane.expand(shape), rows, cols), inside


def distance_maps(points: Tensor, height: int, width: int, norm_radius: float) -> Tensor:
    """(B, 2, H, W) float32: tanh(2 d / norm_radius), d the distance in pixels to the nearest click; 1 if none."""
    if is_exporting():
        return _distance_maps_for_export(points, height, width, norm_radius)
    batch, slots, _ = points.shape
    rows = torch.arange(height, dtype=torch.float64, device=points.device)
    cols = torch.arange(width, dtype=torch.float64, device=points.device)
    far = torch.tensor(1e6, device=points.device)
    nearest = far.repeat(batch, 2, height, width)
    valid = valid_slots(points)
    for slot in range(slots):
        down = ((rows - points[:, slot, 0, None].double()).float() / norm_radius).square()
        across = ((cols - points[:, slot, 1, None].double()).float() / norm_radius).square()
        squared = torch.where(valid[:, slot, None, None], down[:, :, None] + across[:, None, :], far)
        side = int(slot >= slots // 2)
        nearest[:, side] = torch.minimum(nearest[:, side], squared)
    return nearest.sqrt_().mul_(2).tanh_()


# The same maps for ONNX export: without value-dependent indices and without a loop over the number of clicks, which is
# dynamic. All runtimes support these operators.


def _disk_maps_for_export(points: Tensor, height: int, width: int, radius: float) -> Tensor:
    """:func:`disk_maps` for export: a disk is a stack of row segments; one matrix product draws those of all clicks."""
    centre = points[..., :2]
    reach = math.ceil(radius) + 1
    near = torch.floor(centre[..., 0, None]) + torch.arange(-reach, reach + 1, device=points.device)  # (B, 2N, K) rows
    down = (near - centre[..., 0, None]).float().square()
    across = (torch.arange(width, device=points.device) - centre[..., 1, None]).float().square()  # (B, 2N, W)
    in_piece = (down[..., None] + across[:, :, None] <= radius * radius) & valid_slots(points)[..., None, None]
    in_row = near[..., None] == torch.arange(height, device=points.device)  # (B, 2N, K, H)
    pieces = in_piece.float().view(points.shape[0], 2, -1, width)
    covered = in_row.float().view(points.shape[0], 2, -1, height).transpose(2, 3) @ pieces
    return (covered > 0).float()


def _distance_maps_for_export(points: Tensor, height: int, width: int, norm_radius: float) -> Tensor:
    """:func:`distance_maps` for export, over all clicks at once: memory grows with their number."""
    rows, cols = torch.arange(height, device=points.device), torch.arange(width, device=points.device)
    down = ((rows - points[..., 0, None]).float() / norm_radius).square()
    across = ((cols - points[..., 1, None]).float() / norm_radius).square()
    squared = down[..., None] + across[:, :, None]
    squared = torch.where(valid_slots(points)[..., None, None], squared, torch.full_like(squared, 1e6))
    nearest = squared.view(points.shape[0], 2, -1, height, width).amin(2)
    return torch.tanh(2 * torch.sqrt(nearest))
