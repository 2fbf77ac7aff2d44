"""DeepSpeed with ZeRO stages 0 to 3.

From stage 1 it keeps float32 master weights and Adam's moments in partitions, one per rank; from stage 3 the
weights themselves. At stage 0 in half precision it keeps whole float32 masters beside the half weights.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
from filelock import FileLock
from torch import Tensor, nn

from awtpn.distributed.engines import base
from awtpn.distributed.engines.base import (
    STATES,
    Engine,
    MemoryUse,
    State,
    WeightSlice,
    saved_parameters,
    trained_parameters,
    unwrap,
    unwrap_optimizer,
)
from awtpn.distributed.engines.build_tools import check_build_tools, find_ninja
from awtpn.distributed.host_copies import HostCopies
from awtpn.learning.optimizer import set_grad_norm

WARNINGS_THAT_DO_NOT_APPLY = (
    "untested optimizer",  # torch's AdamW
    "unknown inputs or outputs type",  # ModelOutput is a dataclass
)
"""Parts of DeepSpeed's warnings. The tests of layouts show that each stage computes what one process does."""

# --- Start ---------------------------------------------------------------------------------------


def make_accelerator(
    precision: str, on_gpu: bool, ranks: int, wait: timedelta, settings: Mapping[str, Any] | None = None
) -> Accelerator:
    """Join the other ranks by Accelerate, with `settings` as DeepSpeed's configuration; see `base`."""
    assert settings is not None
    if find_spec("deepspeed") is None:
        raise ValueError(
            "ZeRO needs DeepSpeed, which is not installed (it exists for Linux only): pip install deepspeed, "
            "or train without it"
        )
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    if ranks == 1:
        _set_rendezvous_of_one()
    base.ignore_deprecations()
    _hide_warnings_that_do_not_apply()
    import_deepspeed()
    plugin = DeepSpeedPlugin(hf_ds_config=settings, zero3_init_flag=False)
    if not on_gpu:
        load_communication_op()
    # Accelerator(cpu=True) would drop DeepSpeed without a message; DS_ACCELERATOR names the device instead.
    accelerator = Accelerator(
        mixed_precision=precision, deepspeed_plugin=plugin, kwargs_handlers=base.handlers(on_gpu, wait)
    )
    # Not an assert: in some environments Accelerate drops DeepSpeed without a message.
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise ValueError("DeepSpeed was asked for, but Accelerate did not take it up")
    accelerator.gradient_accumulation_steps = settings["gradient_accumulation_steps"]
    return accelerator


def import_deepspeed() -> None:
    """Import DeepSpeed without MLflow, which its autotuner would import for 1.4 s where it is installed."""
    hides = "mlflow" not in sys.modules
    if hides:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # then its import fails, and DeepSpeed goes on
    try:
        importlib.import_module("deepspeed")
    finally:
        if hides:
            del sys.modules["mlflow"]
    _import_muon()


def _import_muon() -> None:
    """Import DeepSpeed's optimizer Muon without torch's compiler.

    ZeRO imports Muon to see that the optimizer is another one. torch.compile decorates Muon's functions, and
    imports the compiler, 1 to 4 s of each rank's start. Without it they compute the same.
    """
    with contextlib.suppress(ImportError, AttributeError):  # DeepSpeed may move them
        compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
        decorator = compiler.compile
        compiler.compile = lambda *_, **__: lambda function: function
        try:
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
        finally:
            compiler.compile = decorator


def _hide_warnings_that_do_not_apply() -> None:
    def applies(record: logging.LogRecord) -> bool:
        return not any(part in str(record.msg) for part in WARNINGS_THAT_DO_NOT_APPLY)

    logging.getLogger("DeepSpeed").addFilter(applies)


def _set_rendezvous_of_one() -> None:
    """DeepSpeed wants a process group even for one process that no launcher started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }.items():
        os.environ.setdefault(name, value)


def load_communication_op() -> None:
    """Compile (once per machine) or load DeepSpeed's CPU communication op, one process at a time.

    DeepSpeed would do so itself, under a lock file of torch's. A process killed meanwhile leaves that file
    behind, and every later run waits for it forever; our lock ends with its process.

    Raises:
        ValueError: what compiling needs is missing; names the package. Or the folder for compiled operators
            cannot be written; names the variable that moves it.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.comm.torch import build_shm_op
    from torch.utils.cpp_extension import _get_build_directory

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    try:
        folder = Path(_get_build_directory(builder.name, verbose=False))
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        root = os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions"
        raise ValueError(
            f"DeepSpeed's communication op cannot be compiled into {root} ({error.strerror}): set the "
            "environment variable TORCH_EXTENSIONS_DIR to a folder that can be written"
        ) from None
    with lock:
        lock.release()  # it was acquired twice, before the block and by it; the block still holds it
        (folder / "lock").unlink(missing_ok=True)
        # Torch also asks ninja whether an op that exists is of this version, but that needs no compiler.
        if (folder / f"{builder.name}.so").exists():
            find_ninja()
        else:
            check_build_tools()
            print("compiling DeepSpeed's communication op, once per machine: some minutes", file=sys.stderr)
        try:
            build_shm_op()
        except RuntimeError:
            check_build_tools()  # the op is of another version of torch, and a tool has gone since
            raise


def wrap(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """See `base`. Precision: `train.precision`."""
    wrapped, wrapped_optimizer = base.wrap(accelerator, model, optimizer, precision)
    engine: Any = wrapped
    if engine.zero_optimization_stage() == 0:
        _patch_zero0(engine, wrapped_optimizer, precision)
    return wrapped, wrapped_optimizer


def _patch_zero0(engine: Any, optimizer: torch.optim.Optimizer, precision: str) -> None:
    """Make stage 0 behave as all other stages do.

    In float32 it clips gradients as torch does, but does not keep their norm. In half precision its optimizer
    makes a trial step when it is made: weights have decayed, and Adam has counted a step.
    """
    if precision == "fp32":
        largest = engine.gradient_clipping() or math.inf  # infinity clips nothing and still yields the norm

        def clip() -> None:
            engine._global_grad_norm = nn.utils.clip_grad_norm_(engine.module.parameters(), largest)
            set_grad_norm(unwrap_optimizer(optimizer), engine._global_grad_norm)

        engine.gradient_clipping = lambda: largest
        engine.clip_fp32_gradients = clip
        return
    for half, master in _float32_masters(engine).items():
        master.data.copy_(half.data)
    unwrap_optimizer(optimizer).state.clear()


# --- Step ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def accumulate(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """See `Engine`. backward() of the last micro-batch also clips and updates."""
    # This alone tells DeepSpeed; its own no_sync refuses ZeRO.
    accelerator.sync_gradients = last
    yield


def clip_and_step(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
) -> Any:
    """The gradient norm before clipping.

    backward() of the last micro-batch has already clipped to `gradient_clipping` of DeepSpeed's settings
    (`deepspeed_config` sets it to `optim.grad_clip`), updated the weights and cleared the gradients.
    """
    # Under DeepSpeed, this method of Accelerate's only reads the norm; it ignores `max_norm`.
    return accelerator.clip_grad_norm_(model.parameters(), max_norm)


def weight_slices(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, WeightSlice]:
    """See `base`. From stage 1, the optimizer updates a flat float32 tensor for each group of parameters."""
    named, zero = trained_parameters(unwrap(model)), getattr(model, "optimizer", None)
    if not _partitions(model):
        masters = _float32_masters(model)
        return {name: WeightSlice(masters.get(p, p), 0, p.numel()) for name, p in named}
    if any(hasattr(parameter, "ds_id") for _, parameter in named):  # stage 3
        return {name: _slice_of_stage_3(zero, parameter) for name, parameter in named}
    flat = [t for group in unwrap_optimizer(optimizer).param_groups for t in group["params"]]
    by_storage = {t.untyped_storage().data_ptr(): t for t in flat}
    found = {}
    for name, parameter in named:
        own: Any = getattr(parameter, "_hp_mapping", None)
        if own is not None:  # else all of it is in the partitions of other ranks
            where, storage = own.hp_fragment_address, own.hp_fragment.untyped_storage()
            found[name] = WeightSlice(by_storage[storage.data_ptr()], where.start, where.numel)
    return found


def _slice_of_stage_3(zero: Any, parameter: Any) -> WeightSlice:
    group, start, size = zero.grad_position[zero.get_param_id(parameter)]
    # Where the ranks do not divide its elements, the last partitions are padded.
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    length = min(max(parameter.ds_numel - rank * size, 0), size)
    return WeightSlice(zero.fp32_partitioned_groups_flat[group], start, length)


# --- State ---------------------------------------------------------------------------------------


def gather_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool, copies: HostCopies | None = None
) -> State:
    """See `base`."""
    if _partitions(model):
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        _link_states(model)

        # Before the first step (fp16 skips some at the start) there are no moments, and asking is an error;
        # so it is for averages where there are none. All ranks have the same kinds.
        held = {kind for state in base.adam_states(optimizer) for kind in state}
        return base.collect_state(
            model,
            optimizer,
            keep,
            copies,
            safe_get_full_fp32_param,
            lambda p, kind: safe_get_full_optimizer_state(p, kind) if kind in held else None,
        )
    masters, state = _float32_masters(model), unwrap_optimizer(optimizer).state
    return base.collect_state(
        model,
        optimizer,
        keep,
        copies,
        lambda p: masters.get(p, p),
        lambda p, moment: state.get(masters.get(p, p), {}).get(moment),
    )


def set_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    adam_step: float,
) -> None:
    """See `base`. Float32 masters are set, too: they were made from half weights, without the low bits."""
    named = saved_parameters(unwrap(model))
    if not _partitions(model):
        masters = _float32_masters(model)
        for name, parameter in named:
            master = masters.get(parameter, parameter)
            if master is not parameter:
                master.data.copy_(weights[name])
            base.set_moments(optimizer, master, name, moments, adam_step)
        return

    # The setters fail as long as the optimizer has no state.
    _step_without_change(model, optimizer)
    _link_states(model)
    for name, parameter in named:
        _set_partition(parameter, weights[name])
        for kind in STATES:
            # None are saved of prototypes that were class means and are now learned by gradient.
            if f"{name}.{kind}" in moments:
                _set_partition(parameter, moments[f"{name}.{kind}"], kind)
    for state in base.adam_states(optimizer):
        is_tensor = isinstance(state["step"], Tensor)
        state["step"] = torch.full_like(state["step"], adam_step) if is_tensor else adam_step


def _link_states(model: nn.Module) -> None:
    """Let each parameter find its part of the optimizer's state (stages 1 and 2).

    DeepSpeed links them once, when it has updated the first group of parameters: those of other groups have
    no state then.
    """
    zero: Any = getattr(model, "optimizer", None)
    if getattr(zero, "_hp_optimizer_states_linked", False):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _partitions(model: nn.Module) -> bool:
    """Float32 weights and moments are partitioned (stages 1 to 3)."""
    return any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for p in model.parameters())


def _float32_masters(model: nn.Module) -> dict[Tensor, Tensor]:
    """Each parameter's whole float32 copy, which the optimizer updates: at stage 0 in half precision only."""
    wrapper = getattr(model, "optimizer", None)
    halves, masters = (getattr(wrapper, name, ()) for name in ("fp16_groups", "fp32_groups"))
    return {
        half: master
        for half_group, master_group in zip(halves, masters, strict=False)
        for half, master in zip(half_group, master_group, strict=True)
    }


def _set_partition(parameter: Any, full: Tensor, moment: str | None = None) -> None:
    """Set this rank's part of a parameter's float32 master, or of a moment or its average."""
    from deepspeed import utils

    full = full.to(parameter.device)
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        # DeepSpeed's setters of full tensors fail where the ranks do not divide their elements: the last
        # rank's partition is padded. So each rank cuts out its own part and sets that.
        size = parameter.ds_tensor.numel()
        first = torch.distributed.get_rank(parameter.ds_process_group) * size
        own = full.flatten()[first : first + size]
        own = torch.nn.functional.pad(own, (0, size - len(own)))
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, own)
        else:
            utils.safe_set_local_optimizer_state(parameter, own, moment)
    elif moment is None:
        utils.safe_set_full_fp32_param(parameter, full)
    else:
        utils.safe_set_full_optimizer_state(parameter, full, moment)


@torch.no_grad()
def swap_averages(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """See `base`. The optimizer's tensors are float32 masters; the model's own weights are set from them."""
    base.swap_averages(model, optimizer)
    zero: Any = getattr(model, "optimizer", None)
    if not _partitions(model):
        for half, master in _float32_masters(model).items():
            half.copy_(master)
    elif hasattr(zero, "update_lp_params"):  # stages 1 and 2
        zero.update_lp_params()
    else:
        # What DeepSpeed does at the end of a step, or when it has loaded partitions.
        zero.checkpoint_event_prologue()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero.checkpoint_event_epilogue()


def _step_without_change(engine: Any, optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer create its state: a step with zero gradients at learning rate 0."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    engine.set_gradient_accumulation_boundary(is_boundary=True)
    # An empty batch: every sum over it is 0, and reaches every parameter with gradient 0.
    output = engine(unwrap(engine).empty_features())
    streams = output.streams.values()
    engine.backward(output.logits.sum() + sum(s.distances.sum() + s.weights.sum() for s in streams))
    engine.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def loss_scale(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """See `base`; also "hysteresis": the overflows that DeepSpeed tolerates before it halves the scale."""
    scaler = _loss_scaler(model)
    if scaler is None:
        return {}
    steady = scaler.cur_iter - scaler.last_overflow_iter - 1
    return {"scale": scaler.cur_scale, "steady": steady, "hysteresis": scaler.cur_hysteresis}


def set_loss_scale(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, float]) -> None:
    """See `base`."""
    scaler = _loss_scaler(model)
    if saved and scaler is not None:
        scaler.cur_scale = saved["scale"]
        scaler.cur_iter, scaler.last_overflow_iter = int(saved["steady"]), -1
        scaler.cur_hysteresis = int(saved.get("hysteresis", scaler.cur_hysteresis))


def _loss_scaler(model: nn.Module) -> Any:
    """DeepSpeed's dynamic loss scaler (stages 1 to 3; `deepspeed_settings` refuses stage 0), or None."""
    scaler = getattr(getattr(model, "optimizer", None), "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None


# --- Replicas ------------------------------------------------------------------------------------


def replicated_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that must be the same on every rank: all but ZeRO-3's partitions."""
    return {name: t for name, t in base.replicated_tensors(model).items() if not _is_partitioned(t)}


def _is_partitioned(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id") and not getattr(tensor, "ds_persist", False)


@torch.no_grad()
def gather_parameter(parameter: Tensor) -> Tensor:
    """See `base`."""
    if hasattr(parameter, "ds_status"):
        from deepspeed.runtime.zero import GatheredParameters, ZeroParamStatus

        # Small tensors stay whole while the model trains, but before its first step they are partitioned too.
        if parameter.ds_status != ZeroParamStatus.AVAILABLE:
            with GatheredParameters([parameter]):
                return base.gather_parameter(parameter)
    return base.gather_parameter(parameter)


ZERO_STAGES = [
    Engine(
        accumulate,
        # DeepSpeed averages gradients over ranks and over micro-batches; our shares have to be summed.
        loss_factor=lambda ranks, accumulation: ranks * accumulation,
        memory=MemoryUse(
            stage=stage, half_weights=True, flat_buckets=True, libraries=65e6 if stage else 30e6
        ),
        make_accelerator=make_accelerator,
        wrap=wrap,
        clip_and_step=clip_and_step,
        weight_slices=weight_slices,
        partitions_weights=stage > 0,
        gather_state=gather_state,
        set_state=set_state,
        swap_averages=swap_averages,
        loss_scale=loss_scale,
        set_loss_scale=set_loss_scale,
        replicated_tensors=replicated_tensors,
        gather_parameter=gather_parameter,
        keeps_freed_memory=False,  # ZeRO is there to save memory
        fp16_on_cpu=True,
    )
    for stage in range(4)
]
"""By stage."""
