"""`trainer.parallel`: a network that each process has whole, or one whose weights are spread over all of them (FSDP2).

torch's `fully_shard` keeps of each parameter the rows of one process, and brings a part of the network together when it
is called (Zhao et al. 2023, PyTorch FSDP). Around it everything works on a process's own rows as plain tensors: the
optimizer, its fused kernels, clipping, the average of weights. What is saved is whole, so that checkpoints are those of
any other run.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvtrain.config.errors import ConfigError
from cvtrain.distributed.process_group import ProcessGroup


class WholeWeights:
    """Each process has all weights. `ShardedWeights` is the same for a part of each."""

    is_sharded = False

    def __init__(self, world: ProcessGroup) -> None:
        self.world = world

    def spread(self, module: nn.Module, units: Sequence[str]) -> None:
        """Leave this process's part of the parameters in `module`, and put it onto the device."""

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Let `optimizer` work on what this process has of its parameters."""

    def take_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Give `optimizer` the gradients that the last backward passes left."""

    def build_scaler(self, device: torch.device, *, enabled: bool) -> torch.amp.GradScaler:
        """What scales losses in fp16."""
        return torch.amp.GradScaler(device.type, enabled=enabled)

    def clip(self, parameters: Sequence[Tensor], limit: float) -> Tensor:
        """Scale the gradient down to an L2 norm of `limit` at most; gives the norm that it had."""
        return nn.utils.clip_grad_norm_(parameters, limit)

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The state of `module`, whole; of a network in parts on rank 0 alone, on the host."""
        return module.state_dict()

    def load(self, module: nn.Module, state: dict[str, Any]) -> None:
        """Take over a whole state, which all processes have."""
        module.load_state_dict(state)

    def load_from_main(self, module: nn.Module, state: dict[str, Any] | None) -> None:
        """Take over the whole state that rank 0 has; None: the weights that `module` has there."""
        if state is not None:
            module.load_state_dict(state)
        self.world.broadcast_([*module.parameters(), *module.buffers()])

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """As `state`, of the optimizer."""
        return optimizer.state_dict()

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """As `load`, of the optimizer."""
        optimizer.load_state_dict(state)


class ShardedWeights(WholeWeights):
    """Each process has its rows of each parameter: of n rows, ceil(n / processes), the last ones fewer or none.

    Optimizers get plain parameters that share memory with these rows (`adopt`), and before each update their gradients
    (`take_gradients`). DTensor, in which torch wraps the rows, would cost its detour in every operation, and not every
    optimizer's operations know it.

    Raises:
        ConfigError: this torch cannot add gradients without dividing them, which gloo needs.
    """

    is_sharded = True

    def __init__(self, world: ProcessGroup, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule

        super().__init__(world)
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise ConfigError(
                key="trainer.parallel",
                value="fsdp",
                rule=f"torch {torch.__version__} can only average gradients over processes, over gloo wrongly",
                remedy="install torch 2.9 or later, or use trainer.parallel=data",
            )
        self.device = device
        self.mesh = init_device_mesh(device.type, (world.world_size,))
        self._whole_of: dict[Tensor, Tensor] = {}  # from an optimizer's parameter to the network's

    def spread(self, module: nn.Module, units: Sequence[str]) -> None:
        """As above; `units` are the submodules to be spread by themselves, inner ones first, see `choose_units`.

        A unit lies on the device whole for the moment in which it is cut.

        Raises:
            ConfigError: a parameter has no rows.
        """
        from torch.distributed.fsdp import fully_shard

        for name, parameter in module.named_parameters():
            if parameter.ndim == 0:
                raise ConfigError(
                    key="trainer.parallel",
                    value="fsdp",
                    rule=f"the network's parameter {name} is a single number without a dimension to be cut",
                    remedy="give it one, as in nn.Parameter(torch.zeros(1)), or use trainer.parallel=data",
                )
            parameter.data = parameter.data.contiguous()
        for part in (*(module.get_submodule(name) for name in units), module):
            # The root too gives its rest away after a pass, so that what lies in the module between passes is a part.
            spread = fully_shard(part, mesh=self.mesh, reshard_after_forward=True)
            spread.set_gradient_divide_factor(1.0)
            spread.set_force_sum_reduction_for_comms(True)

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            own = [nn.Parameter(own_part(parameter), parameter.requires_grad) for parameter in group["params"]]
            self._whole_of.update(zip(own, group["params"], strict=True))
            group["params"] = own

    @torch.no_grad()
    def take_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for own in group["params"]:
                whole = self._whole_of[own]
                own.data = own_part(whole)  # torch may have moved it in the first pass
                own.grad = None if whole.grad is None else own_part(whole.grad)
                whole.grad = None

    def build_scaler(self, device: torch.device, *, enabled: bool) -> torch.amp.GradScaler:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type, enabled=enabled)  # all skip an update if one finds an infinite gradient

    @torch.no_grad()
    def clip(self, parameters: Sequence[Tensor], limit: float) -> Tensor:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = [gradient.norm(dtype=torch.float64) for gradient in gradients]
        squares = torch.stack([norm.square() for norm in norms]).sum() if norms else torch.zeros((), device=self.device)
        norm = self.world.all_reduce_(squares.double()).sqrt().float()
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))  # as nn.utils.clip_grad_norm_
        return norm

    def state(self, module: nn.Module) -> dict[str, Any]:
        return self._kept({name: self._gathered(value) for name, value in module.state_dict().items()})

    def load(self, module: nn.Module, state: dict[str, Any]) -> None:
        own = module.state_dict()
        module.load_state_dict({name: self._cut(name, value, own.get(name)) for name, value in state.items()})

    def load_from_main(self, module: nn.Module, state: dict[str, Any] | None) -> None:
        if not self.world.broadcast(state is not None):
            return
        for name, value in module.state_dict().items():  # one after another: no process but rank 0 has them all
            if isinstance(value, Tensor):
                whole = torch.empty(value.shape, dtype=value.dtype) if state is None else state[name].contiguous()
                self.world.broadcast_([whole])
                own_part(value).copy_(own_part(self._cut(name, whole, value)))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        wholes = self._parameters(optimizer)
        gathered = {
            index: {key: self._gathered(value, wholes[index]) for key, value in entries.items()}
            for index, entries in state["state"].items()
        }
        return self._kept({**state, "state": gathered})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        wholes = self._parameters(optimizer)
        cut = {
            index: {key: self._cut_like(value, wholes[index]) for key, value in entries.items()}
            for index, entries in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": cut})

    def _parameters(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """The network's parameters in the order in which an optimizer's state counts them."""
        return [self._whole_of[own] for group in optimizer.param_groups for own in group["params"]]

    def _kept(self, state: dict[str, Any]) -> dict[str, Any]:
        return state if self.world.is_main_process else {}

    def _gathered(self, value: Any, whole: Tensor | None = None) -> Any:
        """The whole of a DTensor, or of the rows that belong to those of `whole`; on rank 0, on the host."""
        from torch.distributed.tensor import DTensor

        if whole is not None and isinstance(value, Tensor) and value.shape == own_part(whole).shape:
            value = self._as_part(value, whole)
        if not isinstance(value, DTensor):
            return value
        full: Tensor = value.detach().full_tensor()  # type: ignore[attr-defined]
        return full.cpu() if self.world.is_main_process else None

    def _as_part(self, rows: Tensor, whole: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Shard

        return DTensor.from_local(
            rows, self.mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
        )

    def _cut(self, name: str, value: Any, own: Any) -> Any:
        """This process's rows of a whole tensor that is to be loaded into `own`, as a DTensor; what is none stays."""
        if not is_part(own):
            return value
        if value.shape != own.shape:
            raise RuntimeError(
                f"size mismatch for {name}: {tuple(value.shape)} saved, {tuple(own.shape)} in the network"
            )
        return self._as_part(self._cut_like(value, own), own)

    def _cut_like(self, value: Any, whole: Tensor) -> Any:
        """A copy of the rows that this process has of `whole`; what is not of its shape stays."""
        if not isinstance(value, Tensor) or value.shape != whole.shape:
            return value
        rows = -(-whole.shape[0] // self.world.world_size)
        first = min(self.world.rank * rows, whole.shape[0])
        return value[first : first + rows].to(self.device, memory_format=torch.contiguous_format, copy=True)


def is_part(tensor: Any) -> bool:
    """True for a tensor whose rows are spread over the processes."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory: all of it if it is not spread."""
    return tensor.to_local() if is_part(tensor) else tensor.detach()  # type: ignore[attr-defined]


def num_own_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of what this process has of `tensors`."""
    parts = [own_part(tensor) for tensor in tensors if tensor is not None]
    return sum(part.numel() * part.element_size() for part in parts)


def build_weights(world: ProcessGroup, device: torch.device, *, sharded: bool) -> WholeWeights:
    return ShardedWeights(world, device) if sharded else WholeWeights(world)
