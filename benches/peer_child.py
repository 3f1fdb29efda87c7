"""What runs in a child process of the peer scripts: one measurement of PyTorch, or the numbers that both sides are held to.

    python benches/peer_child.py OPTIONS    # a JSON object; see `main`

prints one JSON object. Not meant to be called by hand: `torch_peer.py` does it.

A reference file (`ddim-engine check` has its format) holds a network with random weights, a batch, and what PyTorch, eager and in
float32, makes of them. The engine replays it. So does every measurement here, in its own arithmetic and compiled as it is: its first
steps are those of the file, and where prediction or losses differ it ends without a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from peer_models import Diffusion, build_of, named_state, scheduler_options
from peer_process import LAUNCHED, busy_seconds

if TYPE_CHECKING:
    import resource

    import torch
    from torch import nn

REFERENCE_STEPS = 2  # of training, in a reference file
REFERENCE_SAMPLES = 4  # pictures that it draws
# Relative errors that a measurement may have. The engine's `check` has 5e-4 for fp32; the second loss follows a step of AdamW, which
# makes a step of full size of a gradient that is nearly rounding.
TOLERANCES = {"fp32": 2e-3, "bf16": 5e-2}
# A first step that takes longer than this is not repeated before the timing (bfloat16 on processors without instructions for it).
SLOW_STEP_S = 15.0


# ---- reference files -------------------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file; float32 and int32."""
    import torch

    kinds = {torch.float32: "F32", torch.int32: "I32"}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in plain.values():
            file.write(ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()))


def read_tensors(path: Path, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """Reads those tensors of a safetensors file whose name is wanted."""
    import torch

    kinds = {"F32": torch.float32, "I32": torch.int32}
    found = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, about in header.items():
            if name == "__metadata__" or not wanted(name):
                continue
            start, end = about["data_offsets"]
            file.seek(8 + length + start)
            found[name] = torch.frombuffer(bytearray(file.read(end - start)), dtype=kinds[about["dtype"]]).reshape(about["shape"])
    return found


def randomise(network: nn.Module, config: dict[str, Any], generator: torch.Generator) -> None:
    """Every parameter and running statistic away from its initial value, which may be 0 or 1.

    In the family seed the rates' last bit moves the fastest waves of the embedding by 4e-4, so that two right programs differ by about as
    much. Weights that read the embedding are therefore a twentieth of the rest, and those of the head a fifth, which sampling, at signal
    rates from 0.02 up, would magnify.
    """
    import torch

    with torch.no_grad():
        for name, tensor in named_state(network).items():
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name.endswith("running_mean"):
                tensor.copy_(0.1 * drawn)
            elif tensor.ndim > 1:
                tensor.copy_(drawn * tensor[0].numel() ** -0.5)
            else:
                tensor.copy_((1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.2 * drawn)
            if config["family"] == "seed" and name.startswith("param.conv_out."):
                tensor.mul_(0.2)
            if re.match(r"param\.unet\.down_blocks\.0\.resnet_blocks\.0\.conv(1|_res)\.weight", name):
                tensor[:, config["embedding_dim"]:].mul_(0.05)


def write_reference(options: dict[str, Any]) -> dict[str, Any]:
    """Writes the reference file of a job: its network and batch, as PyTorch computes them."""
    import torch

    torch.set_num_threads(options["threads"])
    config, batch = options["config"], options["config"]["batch_size"]
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    network = build_of(config)
    randomise(network, config, generator)
    diffusion = Diffusion(config)
    out = {name: tensor.detach().clone() for name, tensor in named_state(network).items()}
    shape = (batch, config["channels"], config["image_size"], config["image_size"])
    images, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    times = diffusion.draw(batch)
    signal, sigma = diffusion.rates(times)
    if config["family"] == "seed":
        out |= {"input.times": times, "expect.signal_rates": signal, "expect.noise_rates": sigma}
    else:
        out["input.timesteps"] = times.to(torch.int32)
    told = diffusion.told(times, sigma)
    signal, sigma = signal[:, None, None, None], sigma[:, None, None, None]
    noisy = signal * images + sigma * noise
    target = diffusion.target(images, noise, signal, sigma)
    out |= {"input.images": images, "input.noise": noise, "expect.noisy": noisy}
    network = network.to(memory_format=torch.channels_last)
    noisy = noisy.contiguous(memory_format=torch.channels_last)

    network.eval()
    with torch.no_grad():
        parts = diffusion.split(network(noisy, told), noisy, signal, sigma)
        out["expect.eval.pred_noise"], out["expect.eval.pred_image"] = parts
        initial = torch.randn((REFERENCE_SAMPLES, *shape[1:]), generator=generator)
        out |= {"sample.initial_noise": initial, "sample.images": sample(config, network, initial, options["sample_steps"])}
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    losses = []
    for step in range(REFERENCE_STEPS):
        optimizer.zero_grad()
        predicted = network(noisy, told)
        loss = loss_of(config)(predicted, target)
        loss.backward()
        if step == 0:
            parts = diffusion.split(predicted.detach(), noisy, signal, sigma)
            out["expect.train.pred_noise"], out["expect.train.pred_image"] = parts
            out |= {"grad." + name.removeprefix("param."): tensor.grad.clone()
                    for name, tensor in named_state(network).items() if name.startswith("param.")}
        optimizer.step()
        losses.append(loss.detach())
    out["expect.losses"] = torch.stack(losses)
    out |= {f"after.{name}": tensor.detach() for name, tensor in named_state(network).items()}
    write_tensors(Path(options["reference"]), out, {"format": "ddim-engine-reference/1", "config": json.dumps(file_config(options))})
    return {"parameters": sum(tensor.numel() for tensor in network.parameters()), "losses": [loss.item() for loss in losses],
            "torch": torch.__version__}


def file_config(options: dict[str, Any]) -> dict[str, Any]:
    """The `config` of a reference file."""
    config = options["config"]
    keys = ["family", "channels", "image_size", "loss", "lr", "weight_decay"]
    if config["family"] == "seed":
        keys += ["embedding_dim", "widths", "block_depth", "schedule", "min_signal_rate", "max_signal_rate", "predict"]
        family = {}
    else:
        family = {"unet": {key: value for key, value in config["unet"].items() if value != "none"}, "scheduler": scheduler_options(config)}
    return {key: config[key] for key in keys} | family | {
        "batch": config["batch_size"], "train_steps": REFERENCE_STEPS, "sample_steps": options["sample_steps"], "samples": REFERENCE_SAMPLES}


def sample(config: dict[str, Any], call: Callable[..., torch.Tensor], initial: torch.Tensor, steps: int) -> torch.Tensor:
    """DDIM from noise [N,C,H,W] to predicted pictures, as the family counts steps; the seed's `steps` points are `steps - 1` calls."""
    import torch

    count = initial.shape[0]
    x = initial.contiguous(memory_format=torch.channels_last)
    if config["family"] == "unet2d":
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(**scheduler_options(config))
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(call(x, t.expand(count)), t, x, eta=0.0).prev_sample
        return x
    diffusion = Diffusion(config, x.device)
    signal, sigma = diffusion.rates(torch.ones(count, device=x.device))
    picture = x
    for time_next in torch.linspace(1, 0, steps, device=x.device)[1:]:
        told = diffusion.told(time_next, sigma)
        wide = signal[:, None, None, None], sigma[:, None, None, None]
        noise, picture = diffusion.split(call(x, told), x, *wide)
        signal, sigma = diffusion.rates(time_next.expand(count))
        x = signal[:, None, None, None] * picture + sigma[:, None, None, None] * noise
    return picture


def loss_of(config: dict[str, Any]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The training loss."""
    import torch.nn.functional as F

    return {"mae": F.l1_loss, "mse": F.mse_loss}[config["loss"]]


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want|, Euclidean norms."""
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


class Held:
    """Relative errors of a measurement against the reference file."""

    def __init__(self, precision: str) -> None:
        self.tolerance = TOLERANCES[precision]
        self.errors: dict[str, float] = {}

    def compare(self, name: str, got: torch.Tensor, want: torch.Tensor) -> None:
        """Ends this process where the two differ; not-a-number differs from all."""
        error = relative_error(got, want)
        self.errors[name] = error
        if not error <= self.tolerance:
            raise SystemExit(f"not timed: {name} differs from the reference by {error:.1e} of its size, allowed {self.tolerance:.0e}")


# ---- measurements ----------------------------------------------------------------------------------------------------------------


def usage() -> resource.struct_rusage:
    """What this process has used so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF)


def repeat(run: Callable[[], float], options: dict[str, Any]) -> dict[str, Any]:
    """Times a function, `steps` times or until `budget_s` seconds have gone, once at least; what it returns must be finite."""
    busy, before, began = busy_seconds(), usage(), time.perf_counter()
    seconds: list[float] = []
    value = math.nan
    while len(seconds) < options["steps"] and (not seconds or time.perf_counter() - began < options["budget_s"]):
        start = time.perf_counter()
        value = run()
        seconds.append(time.perf_counter() - start)
        if not math.isfinite(value):
            raise SystemExit(f"the result is not finite: {value}")
    whole, busy_after, after, count = time.perf_counter() - began, busy_seconds(), usage(), len(seconds)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    others = None
    if busy is not None and busy_after is not None:
        others = max(0.0, busy_after - busy - own) / (whole * (os.cpu_count() or 1))
    return {"seconds": seconds, "seconds_min": min(seconds), "seconds_median": statistics.median(seconds), "timed": count, "value": value,
            "others_timed": others, "page_faults_per_run": (after.ru_minflt - before.ru_minflt) / count,
            "cpu_seconds_per_run": own / count}


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Trains or samples with PyTorch and returns the seconds of each repetition, with what is needed to judge them."""
    import torch

    imported = usage().ru_maxrss
    torch.set_num_threads(options["threads"])
    torch.manual_seed(1)
    config, variant = options["config"], options["variant"]
    memory_format = torch.channels_last if variant["channels_last"] else torch.contiguous_format
    network = build_of(config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    reference: dict[str, torch.Tensor] = {}
    if options.get("reference"):
        kept = ("param.", "buffer.", "input.", "expect.noisy", "expect.train.", "expect.losses", "sample.")
        reference = read_tensors(Path(options["reference"]), lambda name: name.startswith(kept))
        with torch.no_grad():
            for name, tensor in named_state(network).items():
                tensor.copy_(reference[name])
    network = network.to(memory_format=memory_format)
    network.train(options["what"] == "step")
    call = torch.compile(network) if variant["compile"] else network
    held = Held("bf16" if variant["bf16"] else "fp32")
    work = step_of if options["what"] == "step" else sampling_of
    with torch.inference_mode() if options["what"] == "sample" else contextlib.nullcontext():
        result = work(options, network, call, reference, held)
    return result | {
        "torch": torch.__version__, "onednn": onednn_version(), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(), "parameters": parameters, "errors": held.errors,
        "rss_after_import_mib": imported / 1024,
    }


def autocast(options: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """The network's arithmetic."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if options["variant"]["bf16"] else contextlib.nullcontext()


def step_of(options: dict[str, Any], network: nn.Module, call: Callable[..., torch.Tensor], reference: dict[str, torch.Tensor],
            held: Held) -> dict[str, Any]:
    """Times training steps on one resident batch: noise and times anew, forward, loss, backward, clipping where the preset has it, AdamW."""
    import torch

    config, batch = options["config"], options["config"]["batch_size"]
    diffusion, loss_function = Diffusion(config), loss_of(config)
    fused = options["variant"]["fused_adamw"] or None
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["lr"], weight_decay=config["weight_decay"], fused=fused)
    memory_format = torch.channels_last if options["variant"]["channels_last"] else torch.contiguous_format
    shape = (batch, config["channels"], config["image_size"], config["image_size"])
    images = reference.get("input.images", torch.randn(shape)).contiguous(memory_format=memory_format)
    predictions = []

    def step(given: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        noise, times = given or (torch.randn_like(images), diffusion.draw(batch))
        signal, sigma = diffusion.rates(times)
        told = diffusion.told(times, sigma)
        signal, sigma = signal[:, None, None, None], sigma[:, None, None, None]
        noisy = signal * images + sigma * noise
        target = diffusion.target(images, noise, signal, sigma)
        optimizer.zero_grad(set_to_none=True)
        with autocast(options):
            predicted = call(noisy, told).float()
            loss = loss_function(predicted, target)
        loss.backward()
        if given:
            predictions.append(torch.cat([part.detach() for part in diffusion.split(predicted, noisy, signal, sigma)]))
        elif config["grad_clip"] > 0:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config["grad_clip"])
        optimizer.step()
        return loss.detach()

    began = time.perf_counter()
    given = None
    if reference:
        times = reference["input.times"] if "input.times" in reference else reference["input.timesteps"].long()
        given = reference["input.noise"].contiguous(memory_format=memory_format), times
    losses = [step(given).item()]
    to_first = time.time() - float(os.environ[LAUNCHED])
    first = time.perf_counter() - began
    slow = first > SLOW_STEP_S and not options["variant"]["compile"]
    warmup = 1 if slow else max(options["warmup"], 1)
    for number in range(1, warmup):
        losses.append(step(given if number < REFERENCE_STEPS else None).item())
    if reference:
        wanted = torch.cat([reference["expect.train.pred_noise"], reference["expect.train.pred_image"]])
        held.compare("prediction", predictions[0], wanted)
        count = min(REFERENCE_STEPS, len(losses))
        held.compare("losses", torch.tensor(losses[:count]), reference["expect.losses"][:count])
    predictions.clear()
    del given
    reference.clear()
    return {"first_step_s": first, "launch_to_first_step_s": to_first, "warmup": warmup} | repeat(lambda: step().item(), options)


def sampling_of(options: dict[str, Any], _network: nn.Module, call: Callable[..., torch.Tensor], reference: dict[str, torch.Tensor],
                held: Held) -> dict[str, Any]:
    """Times sampling: noise anew, the network's calls and DDIM's updates."""
    import torch

    config, count, steps = options["config"], options["images"], options["sample_steps"]
    shape = (count, config["channels"], config["image_size"], config["image_size"])

    def draw(given: torch.Tensor | None = None) -> torch.Tensor:
        initial = torch.randn(shape)
        if given is not None:
            initial[: len(given)] = given[:count]
        with autocast(options):
            return sample(config, call, initial, steps).float()

    def timed() -> float:
        return draw().mean().item()

    began = time.perf_counter()
    got = draw(reference.get("sample.initial_noise"))
    first = time.perf_counter() - began
    if reference:
        held.compare("samples", got[:REFERENCE_SAMPLES], reference["sample.images"][:count])
    reference.clear()
    return {"first_step_s": first, "network_calls": steps if config["family"] == "unet2d" else steps - 1} | repeat(timed, options)


def onednn_version() -> str | None:
    """As PyTorch was built."""
    import torch

    words = torch.__config__.show().replace("(", " ").split()
    return next((after for word, after in zip(words, words[1:]) if word in ("MKL-DNN", "oneDNN") and after.startswith("v")), None)


def main() -> int:
    """Does what the options say; the result is one line of JSON.

    `what`: step, sample, reference, or gpu (torch_cuda.py); `config`: a preset as `train --print-config` gives it; `variant`: of
    peer_suite.py; `reference`: a file.
    """
    options = json.loads(sys.argv[1])
    if options["what"] == "gpu":
        import torch_cuda

        result = torch_cuda.measure(options)
    elif options["what"] == "reference":
        result = write_reference(options)
    else:
        result = measure(options)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
