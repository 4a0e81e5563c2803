"""Features on planes of the ego frame; their cells attend to the images where they project to.

One ground plane ("bev", BEVFormer, arXiv 2203.17270) or three orthogonal planes ("tpv", TPVFormer, arXiv 2302.07817).
A plane is named by its normal axis: 0 = x (the plane spans y and z), 1 = y (x and z), 2 = z (x and y, the ground). Its
cells are vertices of the volume, from border to border of the grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from occ_core.models.deformable_attention import (
    DeformableAttention,
    SamplingPoints,
    cells_of,
    sample_and_sum,
    split_heads,
)
from occ_core.models.lifting import gather_rows
from occ_core.models.selfocc.config import SelfOccConfig
from occ_core.network_input.projection import project
from occ_core.network_input.rig_images import RigImages

PLANE_AXES = ((1, 2), (0, 2), (0, 1))  # by normal; the first is the rows of the plane


class SeenReferences(NamedTuple):
    """The reference points of a plane's cells that one camera sees, and where it sees them."""

    rows: Tensor  # [K] int64, cell * references + reference
    places: Tensor  # [K, 2], fractions of the image


class ImageAttention(nn.Module):
    """Cross-attention of a plane's cells to the images around the projections of points on the cell's normal.

    A soft-max over what is visible: points that no camera sees take no part, points that two cameras see count twice.
    Cells without a visible point get the bias alone. (Ours; BEVFormer and TPVFormer average over the cameras that see
    the cell.)
    """

    def __init__(self, channels: int, heads: int, levels: int, references: int):
        super().__init__()
        self.heads, self.references = heads, references
        self.places = SamplingPoints(channels, heads, levels, references, spread=False)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Linear(channels, channels)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        sights: list[list[SeenReferences]],  # [B][N]
        levels: list[Tensor],  # L of [B, N, C, h, w]
    ) -> Tensor:  # [B, Q, C]
        offsets, logits = self.places(query)  # [B, Q, heads, L, R, 2], [B, Q, heads, L, R]
        offsets = (offsets / cells_of(levels, query)).movedim(-2, 2)  # [B, Q, R, heads, L, 2]
        logits = logits.movedim(-1, 2)  # [B, Q, R, heads, L]
        values = [self.value(level.flatten(0, 1)).unflatten(0, level.shape[:2]) for level in levels]
        attended = [
            self._one_sample(offsets[b].flatten(0, 1), logits[b].flatten(0, 1), sight, [v[b] for v in values])
            for b, sight in enumerate(sights)
        ]
        return self.out(torch.stack(attended))

    def _one_sample(
        self,
        offsets: Tensor,  # [Q * R, heads, L, 2]
        logits: Tensor,  # [Q * R, heads, L]
        sights: list[SeenReferences],
        values: list[Tensor],  # L of [N, C, h, w]
    ) -> Tensor:  # [Q, C]
        heads, levels = logits.shape[1:]
        cells, channels = len(logits) // self.references, values[0].shape[1]
        total, norm = offsets.new_zeros(cells, channels), offsets.new_zeros(cells, heads)
        flat_offsets, flat_logits = offsets.flatten(1), logits.flatten(1)
        highest = self._highest(logits.detach(), sights)
        for camera, sight in enumerate(sights):
            if not len(sight.rows):
                continue
            offset = gather_rows(flat_offsets, sight.rows).view(-1, heads, levels, 2)
            cell = sight.rows // self.references
            score = (gather_rows(flat_logits, sight.rows).view(-1, heads, levels) - highest[cell].unsqueeze(-1)).exp()
            places = (sight.places[:, None, None] + offset)[None, :, :, :, None]
            views = [split_heads(value[camera][None], self.heads) for value in values]
            total = total.index_add(0, cell, sample_and_sum(views, places, score[None, ..., None])[0].to(total.dtype))
            norm = norm.index_add(0, cell, score.sum(dim=-1))
        return (total.unflatten(1, (heads, -1)) / norm.clamp(min=1e-6).unsqueeze(-1)).flatten(1)

    def _highest(self, logits: Tensor, sights: list[SeenReferences]) -> Tensor:
        """The highest logit among the cameras that see a cell, by cell and head, [Q, heads]; cameras that do not see it
        must not set the soft-max's scale."""
        rows = torch.cat([sight.rows for sight in sights]).long()
        peaks = logits.new_full((len(logits) // self.references, logits.shape[1]), -torch.inf)
        cells = (rows // self.references).unsqueeze(1).expand(-1, peaks.shape[1])
        return peaks.scatter_reduce(0, cells, logits[rows].amax(dim=-1), "amax")


class PlaneLayer(nn.Module):
    """Planes attend to each other, then to the images, then each cell passes a feed-forward layer; with residuals and
    layer norms after each."""

    def __init__(self, config: SelfOccConfig, normals: tuple[int, ...], levels: int):
        super().__init__()
        c, heads = config.channels, config.heads
        self.between = DeformableAttention(c, heads, len(normals), config.self_points)
        self.images = nn.ModuleList(ImageAttention(c, heads, levels, config.cross_points[n]) for n in normals)
        self.think = nn.Sequential(nn.Linear(c, 2 * c), nn.ReLU(), nn.Linear(2 * c, c))
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(3))

    def forward(
        self,
        query: Tensor,  # [B, Q of all planes, C]
        shapes: list[tuple[int, int]],  # of the planes
        references: Tensor,  # [Q, planes, P, 2]
        sights: list[list[list[SeenReferences]]],  # [planes][B][N]
        levels: list[Tensor],  # L of [B, N, C, h, w]
    ) -> Tensor:  # [B, Q, C]
        counts = [a * b for a, b in shapes]
        planes = [
            part.transpose(1, 2).unflatten(2, shape)
            for part, shape in zip(query.split(counts, dim=1), shapes, strict=True)
        ]
        query = self.norms[0](query + self.between(query, references, planes))
        parts = zip(self.images, query.split(counts, dim=1), sights, strict=True)
        query = self.norms[1](query + torch.cat([attend(part, sight, levels) for attend, part, sight in parts], dim=1))
        return self.norms[2](query + self.think(query))


class PlaneEncoder(nn.Module):
    """Maps image features to plane features."""

    def __init__(self, config: SelfOccConfig, levels: int):
        super().__init__()
        self.config = config
        self.normals = (0, 1, 2) if config.encoder == "tpv" else (2,)
        self.shapes = [tuple(config.vertices[a] for a in PLANE_AXES[n]) for n in self.normals]
        self.query = nn.Parameter(torch.randn(sum(a * b for a, b in self.shapes), config.channels))
        self.level_bias = nn.Parameter(torch.zeros(levels, config.channels))
        self.layers = nn.ModuleList(PlaneLayer(config, self.normals, levels) for _ in range(config.layers))
        self.references: Tensor
        self.register_buffer("references", self._plane_references(), persistent=False)
        for normal in self.normals:
            points_m = normal_points_m(config, normal).flatten(0, 1)
            self.register_buffer(f"points_{normal}_m", points_m, persistent=False)

    def _plane_references(self) -> Tensor:  # [Q, planes, P, 2]
        """The points at which a cell attends to each plane: itself on its own, points along its normal on the
        others."""
        points = self.config.self_points
        rows = []
        for normal, shape in zip(self.normals, self.shapes, strict=True):
            place = torch.full((*shape, points, 3), 0.5)  # along each axis, as a fraction of a plane that spans it
            for axis, size, view in zip(PLANE_AXES[normal], shape, ((-1, 1, 1), (1, -1, 1)), strict=True):
                place[..., axis] = ((torch.arange(size) + 0.5) / size).view(view)
            place[..., normal] = (torch.arange(points) + 0.5) / points
            place = place.flatten(0, 1)
            # grid_sample's x runs along a row, that is along the plane's second axis
            rows.append(torch.stack([place[..., list(PLANE_AXES[other][::-1])] for other in self.normals], dim=1))
        return torch.cat(rows)

    def forward(
        self,
        levels: tuple[Tensor, ...],  # of [B, N, C, h, w]
        rig_images: RigImages,
    ) -> dict[int, Tensor]:
        """Features [B, rows, columns, C] by the plane's normal."""
        biased = [level + bias[:, None, None] for level, bias in zip(levels, self.level_bias, strict=True)]
        sights = [self.sights(normal, rig_images) for normal in self.normals]
        query = self.query.expand(rig_images.images.shape[0], -1, -1)
        for layer in self.layers:
            args = (query, self.shapes, self.references, sights, biased)
            again = self.config.checkpoint and torch.is_grad_enabled()
            query = checkpoint(layer, *args, use_reentrant=False) if again else layer(*args)
        parts = query.split([a * b for a, b in self.shapes], dim=1)
        return {n: part.unflatten(1, shape) for n, part, shape in zip(self.normals, parts, self.shapes, strict=True)}

    @torch.no_grad()
    def sights(self, normal: int, rig_images: RigImages) -> list[list[SeenReferences]]:
        """The reference points of a plane that each camera sees: [B][N]."""
        height, width = rig_images.images.shape[2:4]
        pixels, _, visible = project(getattr(self, f"points_{normal}_m"), rig_images)
        size = pixels.new_tensor([width, height])
        out = []
        for pixels_of, visible_of in zip(pixels, visible, strict=True):
            rows = [seen.nonzero()[:, 0] for seen in visible_of]
            out.append([SeenReferences(r, (p[r] + 0.5) / size) for r, p in zip(rows, pixels_of, strict=True)])
        return out


def vertex_axes_m(config: SelfOccConfig) -> list[Tensor]:
    """Coordinates of the volume's vertices along x, y and z, metres in the ego frame."""
    grid = config.grid
    return [
        torch.linspace(low, high, n) for low, high, n in zip(grid.origin_m, grid.upper_m, config.vertices, strict=True)
    ]


def normal_points_m(config: SelfOccConfig, normal: int) -> Tensor:  # [cells, R, 3]
    """Points through each cell of a plane along its normal, metres in the ego frame: centres of R equal parts."""
    axes = vertex_axes_m(config)
    low, high = config.grid.origin_m[normal], config.grid.upper_m[normal]
    references = config.cross_points[normal]
    axes[normal] = low + (torch.arange(references) + 0.5) / references * (high - low)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return points.movedim(normal, 2).flatten(0, 1)
