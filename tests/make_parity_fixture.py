"""Write fixtures/parity_small.safetensors: small inputs, and what HMDC as its authors released it makes of them.

tests/test_parity.py compares `hmdc` with that file, so nothing here comes from `hmdc`: every
quantity is computed once more, in float64, in the plainest way that states what it is. Names are those of the files
with outputs of the released code, that the same tests read where they are at hand. Run as

    python tests/make_parity_fixture.py
"""
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

FIXTURE = Path(__file__).parent / "fixtures" / "parity_small.safetensors"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of CIFAR-10's train images
FACTOR, HEADS = 2, 2
IMAGE_RATE, MOMENTUM = 5e-3, 0.5
NET_RATES = (1e-2, 1e-3)
SSD_RATE = 1e-2

Tensors = dict[str, torch.Tensor]


# --- networks -------------------------------------------------------------------------------------------------------


def numbers(tensors: Tensors, form: str) -> list[int]:
    """The n for which a tensor named form.format(n) is there."""
    return [n for n in range(100) if form.format(n) in tensors]


def convnet(p: Tensors, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and pooled maps, of which the released code lists the last one twice."""
    maps = []
    for n in numbers(p, "layer_{}.weight"):
        weight = p[f"layer_{n}.weight"]
        if weight.ndim == 4:
            x = F.conv2d(x, weight, p[f"layer_{n}.bias"], padding=1)
            continue
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt() * weight.view(-1, 1, 1) + p[f"layer_{n}.bias"].view(-1, 1, 1)
        x = F.avg_pool2d(x.clamp(min=0), 2)
        maps.append(x)
    return x.flatten(1) @ p["classifier.weight"].T + p["classifier.bias"], [*maps, maps[-1]]


def layer_norm(x: torch.Tensor, p: Tensors, name: str) -> torch.Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: torch.Tensor, p: Tensors, name: str) -> torch.Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def attention(x: torch.Tensor, p: Tensors, name: str) -> torch.Tensor:
    queries, keys, values = linear(x, p, f"{name}.qkv").chunk(3, dim=-1)
    heads = []
    for q, k, v in zip(queries.chunk(HEADS, -1), keys.chunk(HEADS, -1), values.chunk(HEADS, -1)):
        heads.append((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return linear(torch.cat(heads, -1), p, f"{name}.proj")


def vit(p: Tensors, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and the tokens after every block, class token first."""
    patch = p["patch_embed.proj.weight"].shape[-1]
    patches = []
    for row in range(0, x.shape[2], patch):
        for column in range(0, x.shape[3], patch):
            patches.append(x[:, :, row : row + patch, column : column + patch].flatten(1))
    tokens = torch.stack(patches, 1) @ p["patch_embed.proj.weight"].flatten(1).T + p["patch_embed.proj.bias"]
    x = torch.cat([p["cls_token"].expand(len(x), -1, -1), tokens], 1) + p["pos_embed"]
    outputs = []
    for n in numbers(p, "blocks.{}.norm1.weight"):
        x = x + attention(layer_norm(x, p, f"blocks.{n}.norm1"), p, f"blocks.{n}.attn")
        hidden = linear(layer_norm(x, p, f"blocks.{n}.norm2"), p, f"blocks.{n}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + linear(hidden, p, f"blocks.{n}.mlp.fc2")
        outputs.append(x)
    return linear(layer_norm(x, p, "norm")[:, 0], p, "head"), outputs


# --- images, features, losses ---------------------------------------------------------------------------------------


def resize(x: torch.Tensor, size: int) -> torch.Tensor:
    """Square maps at another size, bilinear, corners on corners."""
    weights = torch.zeros(size, x.shape[-1], dtype=x.dtype)
    for i in range(size):
        place = i * (x.shape[-1] - 1) / (size - 1)
        low = min(int(place), x.shape[-1] - 2)
        weights[i, low], weights[i, low + 1] = low + 1 - place, place - low
    return weights @ x @ weights.T


def unpack(stored: torch.Tensor) -> torch.Tensor:
    """Tiles at full size: column by column, in a column row by row, there one stored image after the other."""
    size = stored.shape[-1]
    tile = size // FACTOR
    tiles = []
    for column in range(FACTOR):
        for row in range(FACTOR):
            for image in stored:
                tiles.append(image[:, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile])
    return resize(torch.stack(tiles), size)


def align(maps: list[torch.Tensor], tokens: list[torch.Tensor], p: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """SSD: features of the ConvNet and of the ViT as [B, layers, 1 + size², width]."""
    parts = []
    for m in maps:
        parts.append((m.mean((2, 3)), m))
    for t in tokens:
        side = math.isqrt(t.shape[1] - 1)
        parts.append((t[:, 0], t[:, 1:].transpose(1, 2).unflatten(2, (side, side))))
    size = min(spatial.shape[-1] for _, spatial in parts)
    names = [f"match_layers_1.{i}" for i in range(len(maps))] + [f"match_layers_2.{i}" for i in range(len(tokens))]
    aligned = []
    for (semantic, spatial), name in zip(parts, names):
        sequence = [semantic]
        spatial = spatial if spatial.shape[-1] == size else resize(spatial, size)
        for row in range(size):
            for column in range(size):
                sequence.append(spatial[:, :, row, column])
        aligned.append(linear(torch.stack(sequence, 1), p, name))
    z1, z2 = aligned[: len(maps)], aligned[len(maps) :]
    scores = p["match_scale"].exp()  # [layers of 1, layers of 2]
    if len(z1) < len(z2):
        # a row of Sᵀ under its softmax: how one layer of 2 is spread over the layers of 1
        spread = scores / scores.sum(0, keepdim=True)
        z2 = [sum(spread[i, j] * z2[j] for j in range(len(z2))) for i in range(len(z1))]
    else:
        spread = scores / scores.sum(1, keepdim=True)
        z1 = [sum(spread[i, j] * z1[i] for i in range(len(z1))) for j in range(len(z2))]
    return torch.stack(z1, 1), torch.stack(z2, 1)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over the batch; targets are probabilities."""
    return -(targets * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()


def gradient_distance(real_loss: torch.Tensor, synthetic_loss: torch.Tensor, parameters: Tensors) -> torch.Tensor:
    """Sum of squares over all parameters that both losses depend on."""
    leaves = list(parameters.values())
    real = torch.autograd.grad(real_loss, leaves, retain_graph=True, allow_unused=True)
    synthetic = torch.autograd.grad(synthetic_loss, leaves, create_graph=True, allow_unused=True)
    total = 0
    for r, s in zip(real, synthetic):
        if r is not None and s is not None:
            total = total + ((r.detach() - s) ** 2).sum()
    return total


# --- the steps ------------------------------------------------------------------------------------------------------


def part(inputs: Tensors, prefix: str) -> Tensors:
    """Float64 leaves of the tensors below a prefix, in their order."""
    return {k.removeprefix(prefix): v.double().requires_grad_() for k, v in inputs.items() if k.startswith(prefix)}


def ssd_parameters(inputs: Tensors) -> Tensors:
    return {f"match_{k}": v for k, v in part(inputs, "in.match_").items()}


def image_step(inputs: Tensors) -> Tensors:
    """One step of gradient matching, balance and image update for one class."""
    net1, net2, ssd = part(inputs, "in.net1."), part(inputs, "in.net2.model."), ssd_parameters(inputs)
    images, label = inputs["in.synthetic_images"].double(), int(inputs["in.real_labels"][0])
    stored = images[label].clone().requires_grad_()
    unpacked = unpack(stored)
    out = {"unpacked_synthetic": unpacked}
    losses = {}
    for kind, x in (("real", inputs["in.real_images"].double()), ("syn", unpacked[inputs["in.syn_permutation"]])):
        targets = F.one_hot(torch.full((len(x),), label), len(images)).double()
        (logits1, maps), (logits2, tokens) = convnet(net1, x), vit(net2, x)
        z1, z2 = align(maps, tokens, ssd)
        losses[kind] = cross_entropy(logits1, targets), cross_entropy(logits2, targets), ((z1 - z2) ** 2).mean()
        out |= {f"{kind}_logits_1": logits1, f"{kind}_logits_2": logits2}
        out |= {f"{kind}_feature_1": z1, f"{kind}_feature_2": z2, f"{kind}_feature_loss": losses[kind][2].view(1)}
    both = {f"1.{k}": v for k, v in net1.items()} | {f"2.{k}": v for k, v in net2.items()}
    values = [gradient_distance(r, s, over) for r, s, over in zip(losses["real"], losses["syn"], (net1, net2, both))]
    grads = [torch.autograd.grad(value, stored, retain_graph=True)[0] for value in values]
    maxima = torch.stack([g.abs().max() for g in grads])
    accumulator = inputs["in.grad_accumulator_before"].double() + maxima
    weights = accumulator.min() / accumulator
    before = sum(w * g for w, g in zip(weights, grads))
    after = torch.zeros_like(before)
    for i in range(len(before)):
        for channel in range(3):
            after[i, channel] = before[i, channel] / (before[i, channel].abs().max() + 1e-6)
    momentum = MOMENTUM * inputs["in.momentum_buffer"].double()
    momentum[label] += after
    stepped = images - IMAGE_RATE * momentum
    for channel, (mean, std) in enumerate(zip(MEAN, STD)):
        stepped[:, :, channel] = stepped[:, :, channel].clamp((0 - mean) / std, (1 - mean) / std)
    out |= {"loss_1": values[0].view(1), "loss_2": values[1].view(1), "feature_loss": values[2].view(1)}
    out |= {"grad1": grads[0], "grad2": grads[1], "grad3": grads[2], "grad_max": maxima}
    out |= {"grad_accumulator": accumulator, "grad_scaler": weights}
    out |= {"image_grad_before_norm": before, "image_grad_after_norm": after}
    return out | {"momentum_buffer_after": momentum, "synthetic_images_after_step": stepped}


def train_step(inputs: Tensors) -> Tensors:
    """One step of plain gradient descent of both networks."""
    net1, net2 = part(inputs, "in.net1."), part(inputs, "in.net2.model.")
    x, targets = inputs["in.images_1"].double(), inputs["in.targets"].double()
    (logits1, maps), (logits2, tokens) = convnet(net1, x), vit(net2, x)
    z1, z2 = align(maps, tokens, ssd_parameters(inputs))
    total = cross_entropy(logits1, targets) + cross_entropy(logits2, targets) + ((z1 - z2) ** 2).mean()
    out = {"output_1": logits1, "output_2": logits2, "total_loss": total.view(1)}
    for net, name, rate in ((net1, "net1.", NET_RATES[0]), (net2, "net2.model.", NET_RATES[1])):
        for k, parameter in net.items():
            (g,) = torch.autograd.grad(total, parameter, retain_graph=True)
            out[f"intended_after.{name}{k}"] = parameter - rate * g
    return out


def ssd_step(inputs: Tensors) -> Tensors:
    """The first step of Adam: with both averages of one gradient, bias-corrected, x - rate g / (|g| + eps)."""
    ssd = ssd_parameters(inputs)
    maps = [inputs[f"in.features_1.{i}"].double() for i in numbers(inputs, "in.features_1.{}")]
    tokens = [inputs[f"in.features_2.{i}"].double() for i in numbers(inputs, "in.features_2.{}")]
    z1, z2 = align(maps, tokens, ssd)
    loss = ((z1 - z2) ** 2).mean()
    out = {"feature_1": z1, "feature_2": z2, "loss": loss.view(1)}
    for name, parameter in ssd.items():
        (g,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        out |= {f"grad.{name}": g, f"after.{name}": parameter - SSD_RATE * g / (g.abs() + 1e-8)}
    return out


def kmeans(inputs: Tensors) -> Tensors:
    """Lloyd's algorithm until no label changes, and the row nearest to each centroid."""
    rows, start = inputs["embedding"].double(), inputs["init_centroids"].double()
    centroids, labels, first = start.clone(), None, None
    while True:
        nearest = [min(range(len(start)), key=lambda c: float(((row - centroids[c]) ** 2).sum())) for row in rows]
        if nearest == labels:
            break
        labels = nearest
        for c in range(len(start)):
            centroids[c] = torch.stack([row for row, own in zip(rows, labels) if own == c]).mean(0)
        first = centroids.clone() if first is None else first
    query = [min(range(len(rows)), key=lambda i: float(((rows[i] - centroid) ** 2).sum())) for centroid in centroids]
    return {
        "centroids_after_iter1": first,
        "final_centroids": centroids,
        "final_labels": torch.tensor(labels),
        "query_indices": torch.tensor(query),
    }



# --- the file -------------------------------------------------------------------------------------------------------


def small_networks(draw) -> Tensors:
    """ConvNet of width 8 and depth 2, ViT of width 4 and depth 4 on patches of 3 px, both for 12 px and two classes."""
    p = {}
    for n, channels in ((0, 3), (4, 8)):
        p |= {f"in.net1.layer_{n}.weight": 0.3 * draw(8, channels, 3, 3), f"in.net1.layer_{n}.bias": 0.1 * draw(8)}
        p |= {f"in.net1.layer_{n + 1}.weight": 1 + 0.2 * draw(8), f"in.net1.layer_{n + 1}.bias": 0.1 * draw(8)}
    p |= {"in.net1.classifier.weight": 0.1 * draw(2, 72), "in.net1.classifier.bias": 0.1 * draw(2)}
    sizes = {"attn.qkv": (12, 4), "attn.proj": (4, 4), "mlp.fc1": (16, 4), "mlp.fc2": (4, 16)}
    vit_sizes = {f"blocks.{n}.{k}": size for n in range(4) for k, size in sizes.items()}
    for name, size in (vit_sizes | {"head": (2, 4)}).items():
        p |= {f"in.net2.model.{name}.weight": 0.4 * draw(*size), f"in.net2.model.{name}.bias": 0.1 * draw(size[0])}
    for name in [f"blocks.{n}.norm{i}" for n in range(4) for i in (1, 2)] + ["norm"]:
        p |= {f"in.net2.model.{name}.weight": 1 + 0.2 * draw(4), f"in.net2.model.{name}.bias": 0.1 * draw(4)}
    p |= {"in.net2.model.patch_embed.proj.weight": 0.2 * draw(4, 3, 3, 3)}
    p |= {"in.net2.model.patch_embed.proj.bias": 0.1 * draw(4)}
    return p | {"in.net2.model.cls_token": draw(1, 1, 4), "in.net2.model.pos_embed": 0.3 * draw(1, 17, 4)}


def small_ssd(draw) -> Tensors:
    """Maps to the width of the ViT for three layers (the last one twice) and four, and an uneven matrix."""
    p = {"in.match_scale": draw(3, 4)}
    for model, layers, channels in ((1, 3, 8), (2, 4, 4)):
        for i in range(layers):
            name = f"in.match_layers_{model}.{i}"
            p |= {f"{name}.weight": 0.4 * draw(4, channels), f"{name}.bias": 0.1 * draw(4)}
    return p


def inputs(seed: int = 0) -> dict[str, Tensors]:
    """Float32 inputs of every step. Unlike those of the released code they have momentum, a history of magnitudes,
    unequal depths and a matrix that is not all zeros; many pixels sit at the bounds."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    def images(*size):
        pixels = (0.5 + 0.35 * draw(*size, 3, 12, 12)).clamp(0, 1)
        return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    networks, ssd = small_networks(draw), small_ssd(draw)
    rows = 3 * draw(5, 4).repeat_interleave(8, 0) + draw(40, 4)
    return {
        "image_step": {
            "in.real_images": images(4),
            "in.real_labels": torch.ones(4, dtype=torch.int64),
            "in.synthetic_images": images(2, 2),
            "in.syn_permutation": torch.randperm(8, generator=generator),
            "in.momentum_buffer": draw(2, 2, 3, 12, 12),
            "in.grad_accumulator_before": torch.tensor([0.5, 0.2, 1e-3]),
        },
        "train_step": {"in.images_1": images(3), "in.targets": draw(3, 2).softmax(1)},
        "ssd_step": {f"in.features_1.{i}": draw(3, 8, side, side) for i, side in enumerate((6, 3, 3))}
        | {f"in.features_2.{i}": draw(3, 17, 4) for i in range(4)},
        "kmeans": {"embedding": rows, "init_centroids": rows[torch.randperm(40, generator=generator)[:5]]},
        "shared": networks | ssd,
    }


STEPS = {"image_step": image_step, "train_step": train_step, "ssd_step": ssd_step, "kmeans": kmeans}


def main() -> None:
    """Draw the inputs, compute the outputs, write both in float32."""
    given = inputs()
    tensors = {f"{place}/{k}": v for place, held in given.items() for k, v in held.items()}
    for step, compute in STEPS.items():
        for k, v in compute(given["shared"] | given[step]).items():
            name = f"{step}/{k if step == 'kmeans' else f'out.{k}'}"
            tensors[name] = v.detach().float() if v.is_floating_point() else v
    FIXTURE.parent.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, FIXTURE)
    print(f"{FIXTURE.name}: {len(tensors)} tensors, {FIXTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
