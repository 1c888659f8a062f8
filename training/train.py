"""The training loop: AdamW, warm-up and cosine, clipping, resumable checkpoints, the validation item picks the epoch.

Runs alone or under `torchrun` (DistributedDataParallel); metrics.csv then has the losses of the first process's share.
Everything random depends on (seed, epoch) or on the saved generator state, so a resumed run has the loss curve of an
uninterrupted one.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..foundation.model import FoundationModel, ModelConfig
from .batches import Batch, evaluated_members, trained_titles, trained_values, training_batches
from .data import Dataset
from .evaluate import ranking_metrics, ranks_of_targets
from .speed import matmul_rate, training_flops
from .warm_start import WarmStart


@dataclass(frozen=True)
class TrainConfig:
    """One run. patience: epochs in a row without a better validation NDCG@10 after which it stops. warmup_steps: no
    more than a fifth of all, so that a short run reaches its learning rate."""

    epochs: int = 24
    batch_tokens: int = 2000
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    clip: float = 1.0
    patience: int = 12
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_tokens", 1), ("patience", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")


@dataclass(frozen=True)
class Progress:
    """What a step reports: losses per head are means over the epoch so far, of this process's share of the batches, as
    are its tokens per second and the utilisation of its device, a share of what `matmul_rate` measured."""

    epoch: int
    step: int
    steps: int
    losses: Mapping[str, float]
    validation: Mapping[str, float] | None = None
    tokens_per_second: float = 0.0
    utilisation: float = 0.0


def build_model(data: Dataset, config: ModelConfig) -> FoundationModel:
    """An untrained model for a data set; titles that no training event is about use the unknown id's vector."""
    model = FoundationModel(data.schema, config, data.sizes, torch.from_numpy(data.title_ids))
    model.titles.known.copy_(torch.from_numpy(trained_titles(data)))
    return model


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 where matrix units have it (any recent GPU, CPUs with AMX); elsewhere it measured slower: None."""
    if device.type == "cuda":
        return torch.bfloat16
    try:
        return torch.bfloat16 if "amx_bf16" in Path("/proc/cpuinfo").read_text("utf-8") else None
    except OSError:
        return None


def autocast(device: torch.device) -> Any:
    """The context of a forward pass in mixed precision, or in float32."""
    dtype = mixed_precision(device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def train(
    data: Dataset,
    config: TrainConfig,
    run_dir: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    resume: bool = False,
    start: WarmStart | None = None,
    build: Callable[[Dataset, ModelConfig], FoundationModel] = build_model,
    batches_of: Callable[..., Iterator[Batch]] = training_batches,
) -> FoundationModel:
    """Train a model and return it with the weights of its best validation epoch.

    start: what it begins with, in place of random weights; kept, as epoch 0, if no epoch is better. build, batches_of:
    another model or other batches than the product's, to compare them.
    run_dir gets `metrics.csv` (a line per epoch), `checkpoint.pt` (for `resume`) and `best.pt`.
    Raises FloatingPointError when the loss is not finite, ValueError for data too small to train or validate on.
    """
    if not len(evaluated_members(data)):
        raise ValueError("no member has three events: there is nothing to validate on")
    if config.model.half_life_hours and not data.events.timestamp.any():
        raise ValueError(f"half_life_hours is {config.model.half_life_hours:g}, but the events have no times; give 0")
    rank, world, device = _processes()
    torch.manual_seed(config.seed)
    model = build(data, config.model)
    if start is not None:
        model.load_state_dict(start.weights)
    model.to(device)
    wrapped: nn.Module = DistributedDataParallel(model) if world > 1 else model
    torch.manual_seed(config.seed * 1000 + rank)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    carried = {} if start is None else start.trained
    trained = {name: torch.from_numpy(v | carried.get(name, False)) for name, v in trained_values(data).items()}
    rate_of_device = matmul_rate(device, mixed_precision(device) or torch.float32)
    if resume and (run_dir / "checkpoint.pt").is_file():
        state = _load_checkpoint(run_dir / "checkpoint.pt", model, optimizer, rank, world, config)
    elif start is not None:
        state = _before_any_step(_validate(model, data, rank, world))
    else:
        state = _State()
    while state.epoch < config.epochs and state.epoch - state.best_epoch < config.patience:
        started = time.monotonic()
        batches = list(
            batches_of(data, config.model.max_events, config.batch_tokens, config.seed, state.epoch, rank, world)
        )
        if not batches:
            raise ValueError(f"{world} processes share fewer batches than that; lower batch_tokens")
        model.train()
        sums: dict[str, float] = {}
        means: dict[str, float] = {}
        speed = (0.0, 0.0)
        rate, tokens, flops = 0.0, 0, 0.0
        for done, batch in enumerate(batches, start=1):
            total_steps = len(batches) * config.epochs
            rate = schedule(state.step, min(config.warmup_steps, total_steps // 5), total_steps)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            with autocast(device):
                of_batch = (batch.tokens, batch.offsets, batch.targets, batch.times)
                losses = wrapped(*(tensor.to(device) for tensor in of_batch))
            total = model.heads.total(losses)
            if not torch.isfinite(total):
                raise FloatingPointError(f"loss is {total.item()} at step {state.step}; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            state.step += 1
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.item()
            means = {name: s / done for name, s in sums.items()}
            tokens, flops = tokens + len(batch.tokens), flops + training_flops(model, batch.offsets)
            seconds = time.monotonic() - started
            speed = (tokens / seconds, flops / seconds / rate_of_device)
            on_progress(Progress(state.epoch, done, len(batches), means, None, *speed))
        model.events.fill_untrained(trained)
        validation = _validate(model, data, rank, world)
        state.epoch += 1
        if validation["ndcg@10"] > state.best:
            state.best, state.best_epoch = validation["ndcg@10"], state.epoch
            if rank == 0:
                _save(run_dir / "best.pt", model.state_dict())
        elif start is not None and state.epoch == 1 and rank == 0:
            _save(run_dir / "best.pt", start.weights)
        means = {name: s / len(batches) for name, s in sums.items()}
        seconds = time.monotonic() - started
        state.history.append(_line(state.epoch, seconds, speed, rate, means, validation))
        _save_checkpoint(run_dir, state, model, optimizer, config, rank, world)
        on_progress(Progress(state.epoch - 1, len(batches), len(batches), means, validation, *speed))
    if world > 1:
        dist.barrier()  # best.pt is written by the first process
    return load_best(model, run_dir)


def _line(
    epoch: int, seconds: float, speed: tuple[float, float], rate: float, losses: Mapping[str, float],
    validation: Mapping[str, float],
) -> dict[str, float]:  # fmt: skip
    """An epoch's line of metrics.csv."""
    return {
        "epoch": epoch,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(speed[0]),
        "utilisation": round(speed[1], 4),
        "learning_rate": rate,
        **{f"loss_{name}": loss for name, loss in losses.items()},
        **{f"validation_{name}": value for name, value in validation.items()},
    }


def _validate(model: FoundationModel, data: Dataset, rank: int, world: int) -> dict[str, float]:
    """Metrics of the validation items, measured by the first process and the same in all."""
    found = [ranking_metrics(ranks_of_targets(model, data, "validation")) if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def load_best(model: FoundationModel, run_dir: Path) -> FoundationModel:
    """The weights of a run's best epoch, in `model`. Raises ValueError if there are none or they do not fit."""
    file = run_dir / "best.pt"
    if not file.is_file():
        raise ValueError(f"{file} is missing; train first (`frontrow train`)")
    device = next(model.parameters()).device
    try:
        model.load_state_dict(torch.load(file, weights_only=True, map_location=device))
    except RuntimeError as error:
        raise ValueError(f"{file} was trained on other data or settings; train again") from error
    return model.eval()


def schedule(step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 5 %."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total)))))


@dataclass
class _State:
    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def _before_any_step(validation: Mapping[str, float]) -> _State:
    """Of a warm start, whose weights may be better than what training makes of them."""
    line = _line(0, 0.0, (0.0, 0.0), 0.0, {}, validation)
    return _State(best=validation["ndcg@10"], history=[line])


def is_first_process() -> bool:
    """Whether this is the process, of those that torchrun started, that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def _processes() -> tuple[int, int, torch.device]:
    """(rank, world, device); joins torchrun's process group if there is one."""
    cuda = torch.cuda.is_available()
    if "RANK" not in os.environ:
        return 0, 1, torch.device("cuda" if cuda else "cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)  # before NCCL starts, which else puts every process on the first GPU
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    return dist.get_rank(), dist.get_world_size(), device


def _save(path: Path, content: Any) -> None:
    """Written beside and renamed: a crash leaves the old file."""
    scratch = path.with_suffix(".tmp")
    torch.save(content, scratch)
    scratch.replace(path)


def _save_checkpoint(
    run_dir: Path,
    state: _State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    rank: int,
    world: int,
) -> None:
    generators: list[Any] = [None] * world
    own = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]
    if world > 1:
        dist.all_gather_object(generators, own)
    else:
        generators = [own]
    if rank:
        return
    content = {
        "state": asdict(state),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": generators,
        "config": asdict(config),
    }
    _save(run_dir / "checkpoint.pt", content)
    with (run_dir / "metrics.csv").open("w", newline="") as file:
        # Epochs of an older version, whose run this one goes on with, may lack columns.
        writer = csv.DictWriter(file, fieldnames=list(state.history[-1]), restval="")
        writer.writeheader()
        writer.writerows(state.history)


def changed_settings(old: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """What differs between the settings of a run and those asked for, with both values. A setting that is younger than
    the run had its default there."""
    new, usual = asdict(config), asdict(TrainConfig())
    model = usual["model"] | old.get("model", {})
    pairs = {k: (old.get(k, usual[k]), v) for k, v in new.items() if k != "model"}
    pairs |= {f"model {k}": (model[k], v) for k, v in new["model"].items()}
    return [f"{name} was {before}, now {after}" for name, (before, after) in pairs.items() if before != after]


def _load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int, config: TrainConfig
) -> _State:
    content = torch.load(path, weights_only=True, map_location="cpu")
    if changed := changed_settings(content["config"], config):
        raise ValueError(f"{path} was made with other settings: {', '.join(changed)}; train without --resume")
    if world != len(content["generators"]):
        raise ValueError(f"{path} was made by {len(content['generators'])} processes, not {world}; resume with as many")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    processor, *gpu = content["generators"][rank]
    torch.set_rng_state(processor)
    if gpu and torch.cuda.is_available():
        torch.cuda.set_rng_state(gpu[0])
    return _State(**content["state"])
