"""A model too large for one worker: its weights in shards (FSDP2), its experts on different workers, or both.

Of W workers, each of which learns from its own share of a batch, on a mesh [across = W / experts, expert = experts]:

                 shard = False                       shard = True
    experts = 1  replicas (`vla.parallel`)           every parameter in W shards
    experts > 1  experts divided over `expert`,      the same, and each worker's experts in shards over `across`,
                 all else and `across` replicas      all else in W shards

Shards are gathered for the layer that is being computed and freed behind it; experts stay, tokens travel to them
(`vla.expert_parallel`). The gradient of the mean loss over the batch comes out in every arrangement, so each worker's
optimizer only has to move what the worker holds: AdamW treats every number by itself.
"""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from sensors.errors import InputError
from vla.config import ModelConfig
from vla.expert_parallel import Exchange, local
from vla.model import DrivingModel
from vla.parallel import Replicas

ACROSS, EXPERT = "across", "expert"


@dataclass(frozen=True)
class Division:
    """shard: whether weights are in shards; experts: over so many workers the experts of a layer are divided."""

    shard: bool = False
    experts: int = 1

    @property
    def divides(self) -> bool:
        return self.shard or self.experts > 1

    def require_fits(self, config: ModelConfig, workers: int) -> None:
        """An InputError if so many workers cannot divide a model of this config so."""
        if self.divides and workers == 1:
            raise InputError("vla train", "--workers", 1, "at least 2 to divide a model over")
        if workers % self.experts:
            fix = "Change one of them."
            expected = f"a number that divides {workers} workers"
            raise InputError("vla train", "--experts-over", self.experts, expected, fix)
        if config.experts % self.experts:
            expected = f"a number that divides {config.experts}, the experts of a layer (model.experts)"
            raise InputError("vla train", "--experts-over", self.experts, expected, "Change one of them.")
        across = workers // self.experts
        if self.shard and self.experts > 1 and (config.width % across or config.expert_hidden % across):
            came = f"width {config.width}, expert_hidden {config.expert_hidden}"
            expected = f"multiples of {across}, the workers that share an expert"
            raise InputError("vla train", "model", came, expected, "Raise --experts-over.")


@dataclass(frozen=True)
class Shards(Replicas):
    """Replicas that each hold a part of one model; see the module's docstring."""

    division: Division = field(default_factory=Division)
    mesh: DeviceMesh | None = None
    _placed: dict[str, DTensor] = field(default_factory=dict)  # by parameter's name: what its parts are parts of

    @classmethod
    def of(cls, replicas: Replicas, division: Division, device: str) -> "Shards":
        sizes = (replicas.count // division.experts, division.experts)
        mesh = init_device_mesh(device, sizes, mesh_dim_names=(ACROSS, EXPERT))
        return cls(replicas.rank, replicas.count, division, mesh)

    @property
    def divided(self) -> bool:
        return True

    @property
    def arrangement(self) -> dict:
        return {"workers": self.count, "shard": self.division.shard, "experts_over": self.division.experts}

    def divide(self, model: DrivingModel) -> None:
        routed = [layer.mlp for layer in model.backbone.layers if layer.routed]
        experts = []
        if self.division.experts > 1:
            mesh = self.mesh[EXPERT]
            for moe in routed:
                for name in ("gate_up", "down"):
                    whole = getattr(moe, name)
                    part = nn.Parameter(
                        distribute_tensor(whole.detach(), mesh, [Shard(0)], src_data_rank=None), whole.requires_grad
                    )
                    setattr(moe, name, part)
                    experts.append(part)
                moe.exchange = Exchange(mesh.get_group())
        if self.division.shard:
            self._shard(model, experts)

    def _shard(self, model: DrivingModel, experts: list[nn.Parameter]) -> None:
        """Each layer is gathered by itself; what stands around the layers, for as long as a loss takes."""
        known, whole = {id(p) for p in experts}, self.mesh._flatten()
        across = self.mesh[ACROSS]
        how = {"mesh": whole}
        if across.size() == 1:
            how["ignored_params"] = set(experts)
        elif experts:
            # Along the experts' units, of which there are many: few experts could not be divided any further.
            placed = _placed_over(across)
            how["shard_placement_fn"] = lambda p: placed if id(p) in known else None
        for layer in (*model.encoder.local, *model.encoder.fusion, *model.backbone.layers):
            fully_shard(layer, **how)
        fully_shard(model, **how)
        register_fsdp_forward_method(model, "loss")

    def own(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """This worker's part of each, in the memory of the model's."""
        own = {}
        for name, parameter in parameters.items():
            own[name] = parameter
            if isinstance(parameter, DTensor):
                self._placed[name] = parameter
                own[name] = nn.Parameter(parameter.detach().to_local(), parameter.requires_grad)
        return own

    def settle(self, parameters: dict[str, nn.Parameter], own: dict[str, nn.Parameter]) -> None:
        alike, experts = [], []
        for name, parameter in parameters.items():
            if parameter.grad is None:
                continue
            if not isinstance(parameter, DTensor):
                alike.append(parameter.grad)
                continue
            gradient = local(parameter.grad)
            if EXPERT in parameter.device_mesh.mesh_dim_names:
                experts.append(gradient)  # a sum over the tokens of `expert` workers
            parameter.grad, own[name].grad = None, gradient
        self.average(alike)
        if self.division.shard:  # FSDP has made it the mean over `across`
            for gradient in experts:
                gradient /= self.division.experts
        else:
            self._over_all(experts, distributed.ReduceOp.SUM, 1.0 / self.count, self.mesh.get_group(ACROSS))

    def norms(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        if not gradients:
            return {}
        squares = torch.stack([g.square().sum() / self._copies(name) for name, g in gradients.items()])
        self.total([squares])
        return dict(zip(gradients, squares.sqrt().unbind(), strict=True))

    def _copies(self, name: str) -> float:
        """How many workers hold the same part."""
        if name not in self._placed:
            return self.count
        placed = self._placed[name]
        return self.count / prod(
            placed.device_mesh.size(dim) for dim, place in enumerate(placed.placements) if place.is_shard()
        )

    def as_whole(self, name: str, part: Tensor) -> Tensor:
        if name not in self._placed:
            return part
        p = self._placed[name]
        return DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())

    def fill(self, tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        super().fill(
            tensors,
            {
                name: distribute_tensor(values[name].to(t.device), t.device_mesh, t.placements, src_data_rank=None)
                if isinstance(t, DTensor)
                else values[name]
                for name, t in tensors.items()
            },
        )

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors, on the CPU of the first worker; all have to call. Elsewhere: none."""
        gathered = {}
        for name, tensor in tensors.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.rank == 0:
                gathered[name] = whole.detach().cpu()
        return gathered


def _placed_over(across: DeviceMesh) -> object:
    """What tells FSDP2 to divide a parameter along its second dimension over a mesh of its own."""
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
    except ImportError as error:
        came, fix = f"torch {torch.__version__}", "Install it, or leave out --shard or --experts-over."
        raise InputError("vla train", "--shard with --experts-over", came, "torch 2.13 or later", fix) from error
    return ShardPlacementResult(Shard(1), FSDPMeshInfo(across, shard_mesh_dim=0))
