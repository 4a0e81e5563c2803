"""Scale and offset of confidence against data whose best ones are known."""

import numpy as np
import pytest
from model_fixtures import SMALL
from nano_fixtures import hand_made, judged

torch = pytest.importorskip("torch")

from occ_core.models.checkpoint import describe, load_checkpoint, load_into, save_checkpoint  # noqa: E402
from occ_core.models.easyocc import confidence  # noqa: E402
from occ_core.models.easyocc.confidence import fit_confidence  # noqa: E402
from occ_core.models.easyocc.deployed import Deployed  # noqa: E402
from occ_core.models.easyocc.logits import Cells  # noqa: E402
from occ_core.models.easyocc.model import Answer, EasyOcc  # noqa: E402

torch.set_num_threads(1)  # small tensors: more threads only wait for each other
HEIGHTS = SMALL.grid_shape[2]


def test_the_fit_finds_what_made_the_cells_of_each_height_and_counts_observed_ones_alone(monkeypatch):
    """Cells are occupied with sigmoid(0.5 x logit + 1), at the lowest height 2 x logit - 1; where the network calls
    them hidden, with the opposite."""
    rng, model = np.random.default_rng(0), EasyOcc(SMALL).eval()
    shape = (120, 120, HEIGHTS)
    logit, hidden = rng.normal(0, 2, shape).astype(np.float32), rng.random(shape) < 0.3
    scale, offset = np.full(HEIGHTS, 0.5), np.full(HEIGHTS, 1.0)
    scale[0], offset[0] = 2.0, -1.0
    p = 1 / (1 + np.exp(-(scale * logit + offset)))
    occupied = rng.random(shape) < np.where(hidden, 1 - p, p)
    labels = np.where(occupied, 4, SMALL.classes.free_id)
    labels[:20] = 255  # nobody knows
    observed = torch.from_numpy(np.where(hidden, -5.0, 5.0))[None]
    cells = Cells(torch.from_numpy(logit)[None], torch.zeros(1, *shape, 17), observed)
    monkeypatch.setattr(confidence, "answers", lambda *_: [((None, None), labels, cells)])
    fit_confidence(model, [])
    np.testing.assert_allclose(model.confidence_fit.numpy(), np.stack([scale, offset]), atol=0.15)


def test_confidence_changes_and_nothing_else_here_and_as_deployed():
    torch.manual_seed(1)
    model, scene = EasyOcc(SMALL).eval(), hand_made("s")
    before = answer_of(Answer(model), scene)
    fit_confidence(model, judged(scene))
    after = answer_of(Answer(model), scene)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])
    for ours, theirs in zip(after, answer_of(Deployed(model), scene), strict=True):
        assert (ours.int() - theirs.int()).abs().max() <= 1 and (ours == theirs).float().mean() > 0.999
    fit_confidence(model, [])
    assert all(map(torch.equal, before, answer_of(Answer(model), scene)))


def test_a_checkpoint_of_before_answers_as_it_did(tmp_path):
    torch.manual_seed(1)
    model, scene = EasyOcc(SMALL).eval(), hand_made("s")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "confidence_fit"}
    save_checkpoint(tmp_path / "old.safetensors", tensors, describe(SMALL, {}))
    other = EasyOcc(SMALL).eval()
    other.confidence_fit.fill_(3.0)
    load_into(other, load_checkpoint(tmp_path / "old.safetensors")[0], tmp_path)
    assert all(map(torch.equal, answer_of(Answer(model), scene), answer_of(Answer(other), scene)))
    assert other.confidence_fit.tolist() == [[1.0] * HEIGHTS, [0.0] * HEIGHTS]


@torch.no_grad()
def answer_of(network: torch.nn.Module, scene) -> tuple[torch.Tensor, ...]:
    inputs = [scene["images"][0], *(scene[name][0] for name in ("voxel_index", "pillar_index", "rays"))]
    return network(*map(torch.from_numpy, inputs))
