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
    pixel_class: Weight = 0.25  # in what it ends
    observed: Weight = 0.25  # is a cell seen or hidden


class NanoTraining(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold_scenes: NotNegative = 6  # of `data`: kept from the weights, to fit class thresholds on
    fit_on_learned: bool = False  # where no scene is kept for that: fit them on what the weights learned from
    image_steps: NotNegative = 0  # first, of the image network alone, on the losses of rays: cheap
    image_batch: Positive = 8  # images a step of these
    # of `steps`, the last: of all but the image network, which stands still, on frames in a row, for a memory to learn
    memory_steps: NotNegative = 0
    memory_frames: Annotated[int, Field(gt=0, le=100)] = 4  # up to so many before the one that is learned from
    columns: Positive = 8192  # of the grid, per sample, on which the loss is computed
    lovasz_cells: Positive = 20000
    flip: Share = 0.5
    zoom: Share = 0.0  # of the images of `image_steps`: a part of them, as a longer lens would have shown it
    retexture: Share = 0.0  # of the images of `image_steps`: shapes stay, colours and fine texture are other ones
    freeze_images: bool = False  # in the steps on frames the image network keeps its weights
    turn: Share = 0.0  # of the frames, by one to three quarters around the robot; needs a square grid
    loss: NanoLossWeights = NanoLossWeights()
