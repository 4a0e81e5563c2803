"""Settings that only EasyOcc nano's training has: the field `nano` of a run's config. It imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from occ_core.losses.weights import Weight

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]


class NanoLossWeights(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    geometry: Weight = 1.0
    semantics: Weight = 0.5
    lovasz: Weight = 0.5
    depth: Weight = 0.5  # where each pixel's ray ends, ray-cast from the labels
    pixel_class: Weight = 0.25  # the class in which each pixel's ray ends
    observed: Weight = 0.25  # whether a cell is observed or hidden


class NanoTraining(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold_scenes: NotNegative = 6  # scenes of `data` that train no weight: class thresholds are fitted on them
    fit_on_learned: bool = False  # without such scenes: they are fitted on what the weights learned from
    image_steps: NotNegative = 0  # first steps, of the image network alone, on the ray losses; they are cheap
    image_batch: Positive = 8  # images in each of these steps
    # last part of `steps`: on sequences, for the memory to learn; the image network is frozen
    memory_steps: NotNegative = 0
    memory_frames: Annotated[int, Field(gt=0, le=100)] = 4  # at most so many frames before the one that is learned from
    columns: Positive = 8192  # grid columns of each sample on which the loss is computed
    lovasz_cells: Positive = 20000
    flip: Share = 0.5
    zoom: Share = 0.0  # share of images in `image_steps` of which a part is shown, as by a longer lens
    retexture: Share = 0.0  # share of images in `image_steps` whose colours and fine texture are changed; shapes stay
    # standard deviation, in degrees, by which rays lean and, in 3 %, cameras stand higher or lower in `image_steps`:
    # real ground is not as flat, and real cameras not as well measured, as simulated ones
    lean_deg: Annotated[float, Field(ge=0, le=10)] = 0.0
    freeze_images: bool = False  # the image network keeps its weights in the steps on whole samples
    turn: Share = 0.0  # share of samples turned by one to three quarters around the robot; needs a square grid
    loss: NanoLossWeights = NanoLossWeights()
