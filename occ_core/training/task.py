"""The training task of any network: batches of the run's data, the network's losses, a score. The loop knows no
more."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from occ_core.errors import OccError
from occ_core.evaluation.voxel_iou import confusion_matrix
from occ_core.models.voxel_answer import VoxelAnswer
from occ_core.occupancy import Occupancy
from occ_core.taxonomy import UNLABELED
from occ_core.training.config import TrainingConfig
from occ_core.training.counts import count_classes
from occ_core.training.data_sets import data_record, needs_of, open_data
from occ_core.training.ranks import Ranks
from occ_core.training.sampler import BatchSampler
from occ_core.training.samples import Sample
from occ_core.training.tabulated import Samples
from occ_core.training.watch import shown_of

Keys = list[tuple[int, int]]  # of `Samples.batch`


class TrainingTask:
    """The data of one run, and how a network learns from it.

    Attributes:
        phases: steps of each phase of the run; the learning rate rises and falls in each, and only the last one's
            weights are validated and shipped.
        fitted: tensors of the averaged network that `fit` sets, and that are no averages.
        taxonomy: classes of the confusion matrix.
        record: what the json beside the checkpoint says of the data.
        answers: of the last `confusion`, to the held-out samples that the first process shows, by index.
    """

    def __init__(self, config: TrainingConfig, ranks: Ranks, on_progress: Callable[[str], None]) -> None:
        self.config, self.ranks, self.model = config, ranks, config.model
        self.taxonomy, self.fitted = self.model.classes, self.model.fitted
        self._parts = self.model.phases(config.steps, config.nano)
        self.phases = tuple(part.steps for part in self._parts)
        self.data = open_data(config, needs_of(config), on_progress, ranks)
        on_progress("how often each class occurs")
        counts = count_classes(self.data.training, self.model, ranks)
        self.record = data_record(self.data) | counts.record
        self.answers: dict[int, Occupancy] = {}
        self.weights = {name: tensor.to(ranks.device) for name, tensor in counts.weights.items()}

    def batches(self, first_step: int) -> Iterator[Sample]:
        """This process's share of the batches that are left, `accumulate` a step. They depend on seed, step and rank
        alone, and `workers` processes read them ahead of the steps."""
        c, (rank, world), begin = self.config, (self.ranks.rank, self.ranks.world), 0
        for part in self._parts:
            done, begin = max(0, first_step - begin), begin + part.steps
            if done >= part.steps:
                continue
            samples = self.data.training.of(part.samples)
            sizes = samples.batch_size, c.accumulate
            share = samples.labelled, c.labelled_share
            order = BatchSampler(len(samples), c.seed, *sizes, rank, world, done, *share, samples.order_stream)
            yield from islice(self._loader(samples, order), (part.steps - done) * c.accumulate)

    def losses(self, network: nn.Module, batch: Sample, progress: float, average: nn.Module) -> dict[str, Tensor]:
        """The network's own weighted loss terms by name.

        Args:
            network: the one that trains, perhaps wrapped.
            progress: 0..1 of the run.
            average: the averaged network, in eval mode; given to those that learn from it.
        """
        inputs, targets = batch.to(self.ranks.device)
        teacher = (average,) if self.model.mean_teacher else ()
        return network(inputs, replace(targets, **self.weights), progress, *teacher)

    def fit(self, average: nn.Module) -> None:
        """Let the averaged network fit itself, on the CPU, before it is validated and saved."""
        if not self.fitted:
            return
        network = copy.deepcopy(average).cpu().eval()
        cast(Any, network).fit(self.data.fitting, self.weights["class_weights"].cpu())
        for name in self.fitted:
            average.get_buffer(name).copy_(network.get_buffer(name))

    @torch.inference_mode()
    def confusion(self, average: nn.Module) -> np.ndarray | None:
        """The confusion matrix (truth, prediction) of cells that a camera observes, over this process's share of the
        held-out samples; None if nothing is held out."""
        held_out = self.data.validation
        if not len(held_out):
            return None
        network = cast(Any, average.eval())
        if self.model.remembers:
            network = network.sequential()
        matrix = np.zeros((len(self.taxonomy), len(self.taxonomy)), dtype=np.int64)
        share = self._share(held_out)
        shown = set(shown_of(share) if self.ranks.first else ())
        for index, batch in zip(share, self._loader(held_out, [[(0, index)] for index in share]), strict=True):
            answer = network.answer(batch.rig_images.to(self.ranks.device))
            if index in shown:
                self.answers[index] = self._occupancy(answer)
            truth = batch.targets.labels.numpy()
            matrix += confusion_matrix(truth, answer.labels.cpu().numpy(), truth != UNLABELED, len(self.taxonomy))
        return matrix

    def _occupancy(self, answer: VoxelAnswer) -> Occupancy:
        labels, confidence, observed = (
            part[0].cpu().numpy() for part in (answer.labels, answer.confidence, answer.observed)
        )
        share = confidence.astype(np.float32) / 255
        return Occupancy(self.model.grid, self.taxonomy, labels, observed.astype(bool), share)

    def _share(self, samples: Samples) -> list[int]:
        """Every `world`-th sample; for a network with memory, all samples of every `world`-th scene."""
        rank, world = self.ranks.rank, self.ranks.world
        if not self.model.remembers:
            return list(range(rank, len(samples), world))
        of = [samples.scene_of(index) for index in range(len(samples))]
        own = set(list(dict.fromkeys(of))[rank::world])
        return [index for index, scene in enumerate(of) if scene in own]

    def _loader(self, samples: Samples, order: Iterable[Keys]) -> Iterator[Sample]:
        """Batches in the given order.

        Raises:
            MissingInput, CorruptInput, InvalidInput: of a sample that cannot be read, wherever it was read.
        """
        loader = DataLoader(
            _Readable(samples),
            batch_sampler=cast(Any, order),
            collate_fn=cast(Any, _unchanged),
            num_workers=self.config.workers,
            worker_init_fn=_begin_worker,
            pin_memory=self.ranks.device.type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, OccError):
                raise batch
            yield batch


class _Readable(Dataset):
    """Reads batches; an error is returned as an object, since one raised in a worker process would arrive as a stack
    trace."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitems__(self, keys: Keys) -> Sample | OccError:
        try:
            return self.samples.batch(keys)
        except OccError as error:
            return error


def _unchanged(batch: Sample | OccError) -> Sample | OccError:
    return batch


def _begin_worker(_: int) -> None:
    """Give a worker one thread, because there are several workers, and let Ctrl-C reach only the training process,
    which ends them."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
