"""The smallest architecture of every family of timm that has one below 26 million parameters: each condenses one step and is trained for an epoch.

Slow (`make slow`). `make architectures` writes what came of each into figures/architectures-32px.csv.
"""

import re
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from hmdc import Member, condense, evaluate
from hmdc.data import ImageData
from hmdc.matching import Gradients
from hmdc.models import probe
from hmdc.provenance import provenance
from hmdc.settings import Recipe

NAMES = (Path(__file__).parent / "fixtures" / "architectures.txt").read_text().split()
SIZE = 32  # px
ONE_STEP = Recipe("one_step", ("convnet3",), (Gradients(),)).replace(
    ipc=1, outer=1, inner=1, factor=1, packed=False, batch=4, pool_per_class=8, train_images=8, train_batch=4, init="real"
)


def noise() -> ImageData:
    """Three classes of noise: what is tried is whether an architecture runs, not what it learns."""
    images = torch.randint(256, (30, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    return ImageData("noise", ("a", "b", "c"), images[:24], labels[:24], images[24:], labels[24:])


def runs(member: Member, data: ImageData) -> None:
    syn = condense(ONE_STEP.replace(members=(member,)), data, device="cpu", progress=False)
    evaluate(syn, data, [member], [0], length=1, device="cpu", progress=False)


def outcome(name: str, data: ImageData) -> dict:
    """Whether an architecture runs as it is, or at its native size, and what is said where it does not.

    A refusal is a ValueError or TypeError before any work; a FloatingPointError stops the first step and names the member;
    any other error is raised.
    """
    begun, native = time.perf_counter(), probe(name).pretrained_cfg["input_size"][-1]
    row = {"architecture": name, "family": re.match(r"(test_)?[a-z]+(?:2|v2)?", name)[0], "input_size": SIZE, "said": ""}
    try:
        runs(Member(name), data)
        row["outcome"] = "runs"
    except (ValueError, TypeError) as error:
        row |= {"outcome": "refused", "said": str(error)}
        if f"input_size={native}" in row["said"]:
            runs(Member(name, input_size=native), data)
            row |= {"outcome": "runs at its native size", "input_size": native}
    except FloatingPointError as error:
        row |= {"outcome": "stopped at the first step", "said": str(error)}
    return row | {"seconds": round(time.perf_counter() - begun, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_architecture_runs_or_is_named_with_what_is_wrong(name: str):
    found = outcome(name, noise())
    assert found["outcome"].startswith("runs") or name in found["said"]


if __name__ == "__main__":
    out, data = Path("figures/architectures-32px.csv"), noise()
    rows = pd.read_csv(out).to_dict("records") if out.is_file() else []
    for name in [name for name in NAMES if name not in {row["architecture"] for row in rows}]:
        try:
            rows.append(outcome(name, data) | provenance())
        except Exception as error:  # the one place where it is data
            rows.append({"architecture": name, "outcome": f"failed: {type(error).__name__}", "said": str(error)} | provenance())
        print(*(rows[-1][column] for column in ("architecture", "outcome", "said")), flush=True)
        out.parent.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_csv(out, index=False)
    sys.exit(any(str(row["outcome"]).startswith("failed") for row in rows))
