"""Trains the seed's network in PyTorch on a tar of pictures and writes its validation curve: the peer of a short engine run.

    python benches/torch_curve.py flowers64.tar --seed 1 --json curve-1.json
    python benches/torch_curve.py flowers64.tar --device cuda --bf16 --image-size 64 --steps 5120 --at 512 5120     # not run on a GPU yet

It does what `ddim-engine train --preset seed --set image_size=32 --data flowers64.tar --steps 500 --seed 1` does, with PyTorch's
random numbers: the curves of the two agree within the spread over seeds, not number by number. Pictures are cropped to their centre
and resized with Lanczos; a random fifth is kept for validation; the normaliser gathers its statistics over the first 55 batches
(each batch is counted before it is normalised) and is then frozen. Losses are mean absolute errors on normalised pictures, measured
in evaluation mode over a fixed draw of times and noise, no average of weights.

Needs torch, numpy and pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from peer_models import build_network, cosine_rates

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_pictures(path: Path, size: int) -> torch.Tensor:
    """Every picture of a tar, sorted by name -> bytes [N,3,size,size]."""
    found: dict[str, np.ndarray] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if not member.isfile() or not member.name.lower().endswith(PICTURES):
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            with Image.open(io.BytesIO(stream.read())) as picture:
                found[member.name] = centre(picture.convert("RGB"), size)
    if not found:
        raise SystemExit(f"{path}: no pictures in it")
    return torch.from_numpy(np.stack([found[name] for name in sorted(found)])).permute(0, 3, 1, 2).contiguous()


def centre(picture: Image.Image, size: int) -> np.ndarray:
    """The largest centred square, resized with the antialiasing Lanczos filter."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)))


class Normalizer:
    """Mean and unbiased deviation of each channel, merged batch by batch (Chan, Golub and LeVeque 1979), then frozen."""

    def __init__(self, channels: int, batches: int, device: torch.device) -> None:
        self.remaining = batches
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.squares = torch.zeros(channels, dtype=torch.float64, device=device)  # of the distances from the mean

    def gather(self, pictures: torch.Tensor) -> None:
        """Merges a batch [B,C,H,W] into the statistics, unless they are frozen."""
        if self.remaining == 0:
            return
        self.remaining -= 1
        values = pictures.double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        added, total = values.shape[1], self.count + values.shape[1]
        apart = mean - self.mean
        self.mean = self.mean + apart * (added / total)
        self.squares = self.squares + squares + apart.square() * (self.count * added / total)
        self.count = total

    @property
    def std(self) -> torch.Tensor:
        """Unbiased standard deviation [C]."""
        return (self.squares / (self.count - 1)).sqrt()

    def apply(self, pictures: torch.Tensor) -> torch.Tensor:
        """(x - mean) / std for each channel."""
        mean, std = (values.float()[:, None, None] for values in (self.mean, self.std))
        return (pictures - mean) / std


def batches(count: int, size: int, repeat: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices of full batches without end; an epoch shuffles `repeat` copies of every picture."""
    while True:
        order = torch.randperm(count * repeat, generator=generator) % count
        yield from order[: len(order) // size * size].split(size)


def noised(pictures: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """-> (noisy pictures, signal rates, noise rates), the rates as [B,1,1,1]."""
    signal, sigma = (rate[:, None, None, None] for rate in cosine_rates(times))
    return signal * pictures + sigma * noise, signal, sigma


@torch.no_grad()
def validate(network: torch.nn.Module, pictures: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> dict[str, float]:
    """Mean absolute errors of the predicted noise and picture, each with its standard error over the pictures.

    `pictures` are already normalised. The errors depend strongly on the time drawn, hence the standard error: it says how far
    another draw of pictures, times and noise would move the mean.
    """
    network.eval()
    noise_errors, image_errors = [], []
    for x, e, t in zip(pictures.split(128), noise.split(128), times.split(128)):
        noisy, signal, sigma = noised(x, e, t)
        predicted = network(noisy, sigma.flatten().square())
        noise_errors.append((predicted - e).abs().mean((1, 2, 3)))
        image_errors.append(((noisy - sigma * predicted) / signal - x).abs().mean((1, 2, 3)))
    network.train()
    result = {}
    for name, errors in (("noise_loss", torch.cat(noise_errors)), ("image_loss", torch.cat(image_errors))):
        result[name] = errors.mean().item()
        result[name + "_error"] = errors.std().item() / len(errors) ** 0.5
    return result


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and returns settings and curve."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    device = torch.device(args.device)
    generator = torch.Generator().manual_seed(args.seed)

    everything = load_pictures(args.data, args.image_size)
    order = torch.randperm(len(everything), generator=generator)
    kept = round(len(order) * args.valid_fraction)
    held_out, training = everything[order[:kept]], everything[order[kept:]].to(device)
    held_out = held_out[: args.valid_images].float() / 255
    valid_noise = torch.randn(held_out.shape, generator=generator).to(device)
    valid_times = torch.rand(len(held_out), generator=generator).to(device)
    held_out = held_out.to(device)

    network = build_network().train().to(device=device, memory_format=torch.channels_last)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    normalizer = Normalizer(channels=3, batches=55, device=device)
    feed = batches(len(training), args.batch, args.repeat, generator)
    curve, seconds, recent = [], [], []
    began = time.perf_counter()
    print(f"{len(training)} pictures to train on, {len(held_out)} of {kept} to validate; torch {torch.__version__}, seed {args.seed}", flush=True)
    for number in range(1, args.steps + 1):
        start = time.perf_counter()
        pictures = training[next(feed).to(device)].float() / 255
        normalizer.gather(pictures)
        x = normalizer.apply(pictures).contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(x)
        noisy, _, sigma = noised(x, noise, torch.rand(len(x), device=device))
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = F.l1_loss(network(noisy, sigma.flatten().square()).float(), noise)
        loss.backward()
        optimizer.step()
        recent.append(loss.detach() if device.type == "cuda" else loss.item())  # a GPU is not waited for
        seconds.append(time.perf_counter() - start)
        if number in args.at:
            point = {"step": number, "train_noise_loss": float(np.mean([float(value) for value in recent])), "seconds": time.perf_counter() - began,
                     **validate(network, normalizer.apply(held_out), valid_noise, valid_times)}
            curve.append(point)
            recent = []
            print(f"step {number:4d}  train {point['train_noise_loss']:.4f}  noise_loss {point['noise_loss']:.4f} +- "
                  f"{point['noise_loss_error']:.4f}  image_loss {point['image_loss']:.4f} +- {point['image_loss_error']:.4f}  {np.median(seconds):.2f} s/step", flush=True)
    return {
        "torch": torch.__version__,
        "seed": args.seed,
        "image_size": args.image_size,
        "batch": args.batch,
        "pictures": {"training": len(training), "validation": len(held_out)},
        "normalizer": {"mean": normalizer.mean.tolist(), "std": normalizer.std.tolist()},
        "seconds_per_step": {"min": min(seconds), "median": float(np.median(seconds))},  # of a GPU: until it is asked, not until it is done
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {args.threads} threads",
        "bf16": args.bf16,
        "curve": curve,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a .tar of pictures")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5, help="copies of every training picture in an epoch")
    parser.add_argument("--valid-fraction", type=float, default=0.2)
    parser.add_argument("--valid-images", type=int, default=1024, help="of those held out, how many to measure on")
    parser.add_argument("--at", type=int, nargs="+", default=[50, 100, 200, 300, 400, 500], help="steps to validate at")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="train under autocast to bfloat16; validation stays in fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and curve there")
    return parser.parse_args()


def main() -> int:
    """Trains as asked."""
    args = parse()
    result = train(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
