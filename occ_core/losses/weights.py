"""Weights of loss terms, as configs hold them. Imports no torch, so that a deployment can read configs without."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LabelLossWeights(BaseModel):
    """Weights of the terms of `occ_core.losses.labels`; 0 leaves a term out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cross_entropy: Weight = 1.0
    lovasz: Weight = 1.0
    affinity: Weight = 0.0
    geometry_affinity: Weight = 0.0
    geometry: Weight = 0.0
    free_share: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the cross-entropy; the rest is that of occupied cells
    lovasz_cells: Annotated[int, Field(gt=0)] = 30_000  # random observed cells that the Lovasz term sorts

    @property
    def any(self) -> bool:
        return any((self.cross_entropy, self.lovasz, self.affinity, self.geometry_affinity, self.geometry))
