"""EasyOcc in the sizes that lift by projection: shapes, three states, losses, presets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

from model_fixtures import camera  # noqa: E402
from rig_fixtures import rig_images_of  # noqa: E402
from tiny_models import EASYOCC as TINY  # noqa: E402

from occ_core.camera import Rig  # noqa: E402
from occ_core.errors import InvalidInput  # noqa: E402
from occ_core.models.config import parse  # noqa: E402
from occ_core.models.easyocc.heads import blocks_to_cells  # noqa: E402
from occ_core.models.easyocc.volume import EasyOccVolume  # noqa: E402
from occ_core.models.easyocc.volume_config import EasyOccVolumeConfig  # noqa: E402
from occ_core.network_input.projection import in_view  # noqa: E402
from occ_core.network_input.rig_images import Targets  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "config"
SHAPES = [
    {"head": "hourglass", "cells_per_feature": 1},
    {"head": "hourglass", "cells_per_feature": 2},
    {"head": "birds-eye", "cells_per_feature": 1},
    {"head": "birds-eye", "cells_per_feature": 2},
]
FREE = 17


def tiny(**fields) -> EasyOccVolumeConfig:
    return parse(EasyOccVolumeConfig, TINY | fields)


def rig_images(samples: int = 1):
    yaws_deg = {"f": 0, "l": 90, "b": 180, "r": -90}
    return rig_images_of(Rig(tuple(camera(n, yaw, (64, 32), focal_px=40.0) for n, yaw in yaws_deg.items())), samples)


def opinionated(**fields) -> EasyOccVolume:
    """A new network says almost the same of all cells; this one has large weights, and normalises by the batch."""
    torch.manual_seed(0)
    model = EasyOccVolume(tiny(**fields))
    for layer in model.head.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight)
    return model


def targets(samples: int = 1) -> Targets:
    """A wall 4 m ahead, nothing before it, hidden cells behind it; the rest is free."""
    labels = torch.full((samples, 16, 16, 4), FREE, dtype=torch.uint8)
    labels[:, 12] = 15
    labels[:, 13:] = 255
    return Targets(labels=labels, class_weights=torch.ones(18))


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_every_cell_in_one_of_three_states(shape):
    model, images = opinionated(**shape), rig_images(2)
    images.present[1, 0] = False
    labels, confidence, observed = model.answer(images)
    for field in (labels, confidence, observed):
        assert field.shape == (2, 16, 16, 4) and field.dtype == torch.uint8
    hidden = observed == 0
    assert (labels[hidden] == FREE).all() and not confidence[hidden].any()
    assert not observed[~in_view(model.centers_m, images).reshape(observed.shape)].any()
    assert hidden.any() and confidence[~hidden].any()


def test_answer_is_the_most_likely_class_with_its_probability():
    model, images = opinionated(), rig_images()
    labels, confidence, observed = model.answer(images)
    with torch.no_grad():
        cells = model.cells(images)
    p = cells.classes[0].movedim(0, -1).softmax(-1)
    for cell in observed[0].nonzero().tolist()[::37]:
        x, y, z = cell
        assert cells.observed[0, x, y, z] > model.observed_threshold
        row = p[x, y, z].tolist()
        assert labels[0, x, y, z] == row.index(max(row))
        free = labels[0, x, y, z] == FREE
        expected = row[FREE] if free else 1 - row[FREE]
        assert abs(int(confidence[0, x, y, z]) - 255 * expected) < 1.01
    assert len(labels[observed == 1].unique()) > 1


def test_labels_that_know_few_cells_do_not_hide_the_rest_of_what_they_know():
    """With 9 of 10 seen cells missing from the labels no logit passes zero; 98 of 100 known ones must still be seen."""
    model, images, truth = opinionated(), rig_images(), targets()
    truth.labels[torch.rand(truth.labels.shape) < 0.9] = 255
    with torch.no_grad():
        model.head.train(False)
        for _ in range(150):
            model(images, truth, 0.0)
    observed = model.answer(images).observed
    known = in_view(model.centers_m, images).reshape(observed.shape) & (truth.labels != 255)
    assert 0.95 < (observed[known] == 1).float().mean() < 1
    with torch.no_grad():
        logit = model.cells(images).observed[known].numpy()
    assert np.quantile(logit, 0.0) < float(model.observed_threshold) < np.quantile(logit, 0.05)


def test_without_the_observed_output_all_in_view_is_observed():
    model, images = EasyOccVolume(tiny(observed_output=False)).eval(), rig_images()
    expected = in_view(model.centers_m, images).reshape(1, 16, 16, 4)
    assert torch.equal(model.answer(images).observed == 1, expected)
    assert set(model(images, targets(), 0.0)) == {"cross_entropy", "lovasz"}


def test_blocks_come_out_of_the_channels_in_grid_order():
    block, outputs = (2, 2, 4), 3
    cells = torch.arange(4 * 6 * 8 * outputs).reshape(1, 4, 6, 8, outputs)
    rows = torch.empty(1, 2, 3, 2, 2 * 2 * 4 * outputs, dtype=cells.dtype)
    for x in range(2):
        for y in range(3):
            for z in range(2):
                rows[0, x, y, z] = cells[0, 2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 4 * z : 4 * z + 4].flatten()
    assert torch.equal(blocks_to_cells(rows, block, outputs), cells)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_parameters_are_taught(shape):
    model = EasyOccVolume(tiny(**shape))
    losses = model(rig_images(2), targets(2), 0.0)
    assert set(losses) == {"cross_entropy", "lovasz", "observed"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_few_steps_teach_one_sample():
    torch.manual_seed(0)
    model, images, truth = EasyOccVolume(tiny(loss={"observed": 1.0})), rig_images(), targets()
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(40):
        optimiser.zero_grad()
        sum(model(images, truth, 0.0).values()).backward()
        optimiser.step()
    model.train()  # means of one batch: the running ones lag behind after so few steps
    labels, _, observed = model.answer(images)
    visible = in_view(model.centers_m, images).reshape(labels.shape)
    known = visible & (truth.labels != 255)
    assert (labels[known] == truth.labels[known]).float().mean() > 0.97
    assert (labels[:, 12][visible[:, 12]] == 15).float().mean() > 0.8
    assert (observed[visible] == (truth.labels != 255)[visible]).float().mean() > 0.95


def test_depth_and_class_maps_alone_can_teach():
    torch.manual_seed(0)
    loss = {"labels": 0.0, "observed": 0.0, "query": 2.0, "query_rays": 2048}
    config = tiny(observed_output=False, loss=loss)
    assert config.needs == {"depth_m", "class_map"}
    model, images = EasyOccVolume(config), rig_images()
    truth = Targets(
        depth_m=torch.full((1, 4, 32, 64), 4.0), class_map=torch.full((1, 4, 32, 64), 15, dtype=torch.uint8)
    )
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    first = None
    for _ in range(40):
        optimiser.zero_grad()
        losses = model(images, truth, 0.0)
        first = first or {name: value.item() for name, value in losses.items()}
        sum(losses.values()).backward()
        optimiser.step()
    assert set(losses) == {"query_occupied", "query_class"}
    assert all(losses[name].item() < 0.5 * first[name] for name in losses)


def test_missing_and_foreign_targets_are_named():
    model, images = EasyOccVolume(tiny()), rig_images()
    with pytest.raises(InvalidInput, match="loss term 'labels' has a weight > 0, but the run has no labels"):
        model(images, Targets(), 0.0)
    labels = torch.full((1, 20, 16, 4), FREE, dtype=torch.uint8)
    with pytest.raises(InvalidInput, match=r"labels have \(20, 16, 4\) cells, the network's grid has \(16, 16, 4\)"):
        model(images, Targets(labels=labels, class_weights=torch.ones(18)), 0.0)
    with pytest.raises(InvalidInput, match="loss term 'query' has a weight > 0, but the run has no depth_m"):
        EasyOccVolume(tiny(loss={"query": 1.0}))(images, targets(), 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"cells_per_feature": 2, "grid_shape": (15, 16, 4)},
            r"cells_per_feature 2 must divide grid_shape \(15, 16, 4\)",
        ),
        ({"head": "birds-eye", "pillar_heights": 3}, "pillar_heights must divide the 4 cells along z, got 3"),
        ({"input_width": 100}, "multiple of 16 px, got 100 x 32"),
        ({"backbone": "resnet34"}, "backbone: Input should be"),
        ({"taxonomy": "cityscapes"}, "taxonomy 'cityscapes' is not one of"),
        ({"loss": {"labels": 0.0}}, "loss: .*nothing teaches the classes"),
        ({"loss": {"observed": 0.0}}, "observed_output needs loss.observed > 0"),
        ({"loss": {"label_terms": {"lovasz": math.nan}}}, "loss.label_terms.lovasz: "),
        ({"channels": 3}, "channels: Extra inputs are not permitted"),
    ],
)
def test_wrong_configs_are_named(fields, message):
    with pytest.raises(InvalidInput, match="^model config: .*" + message):
        tiny(**fields)


@pytest.mark.parametrize("size", ["paper", "base", "small"])
def test_presets_are_valid_and_give_the_grid_of_occ3d(size):
    config = parse(EasyOccVolumeConfig, yaml.safe_load((CONFIGS / f"easyocc_{size}.yaml").read_text())["model"])
    assert config.name == f"easyocc_{size}" and config.grid.shape == (200, 200, 16)
    with torch.device("meta"):
        model = EasyOccVolume(config)
    channels = config.feature_channels + 4
    assert model.head(torch.empty(1, channels, *config.lifted_shape, device="meta")).shape == (1, 200, 200, 16, 19)
