"""The engines on a GPU: `pytest -m cuda`, under three minutes on one card."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from test_engine import SEEN, SMOKE, Stage, apart, noise

from hmdc.engine import Batched, Loop
from hmdc.ranks import engine_for
from hmdc.trainer import condense

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
GPU = torch.device("cuda")
HMDC = SMOKE["hmdc"].replace(outer=3, inner=4)


class Compiled(Batched):
    compiled = True


@pytest.fixture(autouse=True)
def full_precision():
    """Products in float32 keep all their bits, so that two ways can be compared."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@pytest.mark.parametrize("name", SEEN.values())
def test_all_classes_at_once_give_what_each_gives(name, tmp_path):
    stage = Stage(name, 3, tmp_path, GPU)
    ours, theirs = (stage.engine(kind).match(stage.real, stage.synthetic) for kind in (Batched, Loop))
    for found, wanted in zip(*(torch.stack(list(slopes)).unbind(1) for slopes, _ in (ours, theirs))):
        assert apart(found, wanted) < 1e-4  # of every target
    assert apart(ours[1].nan_to_num(), theirs[1].nan_to_num()) < 1e-4


def test_a_gpu_takes_all_classes_at_once(tmp_path):
    assert type(Stage("hmdc", 3, tmp_path, GPU).engine(engine_for)) is Batched


@pytest.mark.parametrize("name", SEEN.values())
def test_no_step_waits_for_the_device(name, tmp_path):
    stage = Stage(name, 3, tmp_path, GPU)
    engine = stage.engine(Batched)
    stage.inner_step(engine, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for inner in (0, 1):
            stage.inner_step(engine, inner)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_is_compiled_holds_over_fresh_networks():
    data = noise(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="going on without the quick way")
        ours = condense(HMDC, data, device=GPU, progress=False, engine=Compiled)
    theirs = condense(HMDC, data, device=GPU, progress=False)
    assert (ours.images - theirs.images).abs().max() < 1e-2


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("hmdc.run.Progress.save_every", 0.0)
    data, steps = noise(3), []

    class Stopped(Batched):
        def train(self, *args):
            steps.append(0)
            if len(steps) == 7:
                raise KeyboardInterrupt
            return super().train(*args)

    whole = condense(HMDC, data, device=GPU, progress=False)
    with pytest.raises(KeyboardInterrupt):
        condense(HMDC, data, tmp_path / "run", device=GPU, progress=False, engine=Stopped)
    again = condense(HMDC, data, tmp_path / "run", device=GPU, progress=False)
    assert (again.images - whole.images).abs().max() < 1e-2


def test_half_as_many_classes_where_memory_does_not_hold_all(tmp_path):
    stage = Stage("hmdc", 7, tmp_path, GPU)
    real, synthetic = ([x.repeat(64, 1, 1, 1) for x in side] for side in (stage.real, stage.synthetic))
    engine = stage.engine(Batched)
    weights = stage.balance.weights()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    whole, _ = engine.match(real, synthetic, weights)
    needed = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * needed) / total)
    try:
        with pytest.warns(UserWarning, match="out of memory: going on with"):
            some, _ = engine.match(real, synthetic, weights)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.chunk < 7
    assert apart(torch.stack(some), torch.stack(whole)) < 1e-4


def test_half_the_bits_keep_the_direction(tmp_path):
    stage = Stage("hmdc", 3, tmp_path, GPU)
    full = torch.stack(stage.engine(Batched).match(stage.real, stage.synthetic)[0])
    stage.recipe = stage.recipe.replace(precision="bf16")
    half = torch.stack(stage.engine(Batched).match(stage.real, stage.synthetic)[0])
    direction = F.cosine_similarity(full.flatten(2), half.flatten(2), dim=2)  # of every class and target
    print(direction)
    assert direction.median() > 0.98
