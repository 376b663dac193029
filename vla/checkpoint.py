"""A checkpoint is a folder: `model.safetensors`, `checkpoint.json`, and `state.safetensors` where training saved state.

`checkpoint.json` names every file with size and sha256, every parameter with its shape, the config that builds the
model, the layout of its vocabulary, and itself (`vla.manifest`); so a changed, cut or exchanged file is found before it
is used, and so are weights whose tokens mean something else here. Nothing is ever unpickled, and `load` and `exists`
look for a replaced one too, so a crash at any instant leaves a whole one.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors

from sensors.errors import InputError
from vla.backbone import LanguageModel
from vla.config import BackboneConfig, ModelConfig
from vla.image_tokens import ImageTokenizer, ImageTokenizerConfig
from vla.manifest import (
    FORMAT,
    MANIFEST,
    entry_of,
    exchange,
    read_file,
    read_manifest,
    sealed,
    sha256_of,
    standing,
    sync_folder,
    write_file,
)
from vla.model import DrivingModel
from vla.text_tokens import SHIPPED

WEIGHTLESS = ("steps", "image_width", "image_height")  # of a config: no weight depends on them
SIZED_BY = {"text_tokens": "text", "accel_bins": "action", "curvature_bins": "action", "image_codes": "image"}
MODEL, STATE = "model.safetensors", "state.safetensors"


@dataclass(frozen=True)
class Loaded:
    """model on the CPU, in eval mode; state_tensors, state and extra as they were saved."""

    model: DrivingModel | ImageTokenizer
    state_tensors: dict[str, torch.Tensor]
    state: dict
    extra: dict


def exists(path: Path) -> bool:
    """Whether `load` finds a checkpoint at `path`."""
    return (standing(Path(path)) / MANIFEST).is_file()


def save(
    path: Path,
    model: DrivingModel | ImageTokenizer,
    state_tensors: dict[str, torch.Tensor] | None = None,
    state: dict | None = None,
    extra: dict | None = None,
) -> None:
    """Write or replace the checkpoint at `path`; `state` and `extra` (version, git commit) are JSON values.

    What can't be written (a full disk, no permission) is an InputError, and an existing checkpoint stays as it was.
    """
    path = Path(path)
    weights = _to_cpu(model.state_dict())
    blobs = {MODEL: bytes_from_tensors(weights)}
    if state_tensors:
        blobs[STATE] = bytes_from_tensors(_to_cpu(state_tensors))
    manifest = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        **({"vocabulary": _layout(model.config)} if isinstance(model, DrivingModel) else {}),
        "files": {name: entry_of(blob) for name, blob in blobs.items()},
        "parameters": {name: list(tensor.shape) for name, tensor in weights.items()},
        "state": state or {},
        "extra": extra or {},
    }
    blobs[MANIFEST] = sealed(manifest)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, blob in blobs.items():
            write_file(partial / name, blob)
        sync_folder(partial)
        exchange(partial, path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(
            path, "checkpoint", f"{error.strerror}", "a place that can be written", "Is the disk full?"
        ) from error


def load(path: Path, config: ModelConfig | None = None) -> Loaded:
    """The driving model at `path`; an InputError names the file and field if anything is not as saved.

    With `config`, a checkpoint of another config is an InputError too.
    """
    return _load(path, config, ModelConfig, DrivingModel)


def load_to_start_from(path: Path, config: ModelConfig) -> Loaded:
    """As `load` with a config, but the checkpoint may be of other WEIGHTLESS sizes."""
    return _load(path, config, ModelConfig, DrivingModel, WEIGHTLESS)


def is_image_tokenizer(path: Path) -> bool:
    """Whether the checkpoint at `path` is one of an image tokenizer; rules as `load`."""
    return "quantizer" in read_manifest(standing(Path(path)) / MANIFEST)["config"]


def state_of(path: Path) -> dict:
    """The state that the checkpoint at `path` was saved with; rules as `load`."""
    return read_manifest(standing(Path(path)) / MANIFEST)["state"]


def digest_of(path: Path) -> str:
    """sha256 of the weights of the checkpoint at `path`, as it says itself; rules as `load`."""
    return read_manifest(standing(Path(path)) / MANIFEST)["files"][MODEL]["sha256"]


def load_image_tokenizer(path: Path, config: ImageTokenizerConfig | None = None) -> Loaded:
    """As `load`, for an image tokenizer."""
    return _load(path, config, ImageTokenizerConfig, ImageTokenizer)


def _load(path: Path, config, config_type: type, model_type: type, free: tuple[str, ...] = ()) -> Loaded:
    place = standing(Path(path))
    manifest = read_manifest(place / MANIFEST)
    own = config_type.from_dict(manifest["config"], f"{place / MANIFEST} config")
    wanted, found = own.to_dict() if config is None else config.to_dict(), own.to_dict()
    others = [key for key in wanted if wanted[key] != found[key] and key not in free]
    if others:
        name = others[0]
        fix = "It is of another model."
        if name in SIZED_BY:
            fix = f"Its vocabulary has another layout: change {name} to {found[name]}, or train a new model."
        raise InputError(place / MANIFEST, f"config.{name}", found[name], wanted[name], fix)
    if config_type is ModelConfig:
        _check_layout(place / MANIFEST, manifest.get("vocabulary"), own)
    files = manifest["files"]
    blobs = {name: read_file(place / name, files[name]) for name in (MODEL, STATE) if name in files}
    model = model_type(own)
    weights = tensors_from_bytes(blobs[MODEL])
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        came = f"{weights[name].dtype} {list(weights[name].shape)}" if name in weights else "nothing"
        wants = f"{expected[name].dtype} {list(expected[name].shape)}" if name in expected else "no such parameter"
        if came != wants:
            raise InputError(place / MODEL, name, came, wants, "It is of another model, or of another version of it.")
    model.load_state_dict(weights)
    state_tensors = tensors_from_bytes(blobs[STATE]) if STATE in blobs else {}
    return Loaded(model.eval(), state_tensors, manifest["state"], manifest["extra"])


def _layout(config: ModelConfig) -> dict:
    """What the tokens of a model mean: the vocabulary, and which text its text tokens stand for."""
    text = sha256_of(SHIPPED.read_bytes()) if config.text_tokens else ""
    return config.vocabulary.to_dict() | {"text_sha256": text}


def _check_layout(path: Path, came: dict | None, config: ModelConfig) -> None:
    """An InputError if a checkpoint's tokens do not mean what they mean here."""
    expected, fix = _layout(config), "Train again: its tokens mean something else here."
    if not isinstance(came, dict):
        raise InputError(path, "vocabulary", came, f"the layout {expected}", fix)
    for name, value in expected.items():
        if came.get(name) != value:
            fields = " or ".join(f"config.{field}" for field, kind in SIZED_BY.items() if kind == name)
            raise InputError(path, f"vocabulary.{name}", came.get(name), value, f"Change {fields}." if fields else fix)


def _to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


# Weights of Hugging Face Qwen3-MoE ---------------------------------------------------------------

_HF_FIELDS = {  # ours: theirs
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "dense_hidden": "intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "expert_hidden": "moe_intermediate_size",
    "normalise_weights": "norm_topk_prob",
}
_HF_FIXED = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "use_sliding_window": False,
}


def config_from_hf_qwen3_moe(values: dict) -> BackboneConfig:
    """The config that a Hugging Face `config.json` of Qwen3-MoE describes; what we do not have is an InputError."""
    where = "Qwen3-MoE config"
    if "num_local_experts" in values:  # the name since Transformers 5
        values = {"num_experts": values["num_local_experts"], **values}
    for name, fixed in _HF_FIXED.items():
        if values.get(name, fixed) != fixed:
            raise InputError(where, name, values[name], fixed, "The backbone has no other.")
    dense = values.get("mlp_only_layers") or []
    if list(dense) != list(range(len(dense))):
        raise InputError(where, "mlp_only_layers", dense, "layers from the first on: 0, 1, ...")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise InputError(where, "rope_type", rope["rope_type"], "default", "The backbone has no other.")
    missing = [theirs for theirs in _HF_FIELDS.values() if values.get(theirs) is None]
    if missing:
        raise InputError(where, missing[0], "nothing", "a value")
    return BackboneConfig(
        **{ours: values[theirs] for ours, theirs in _HF_FIELDS.items()},
        dense_layers=len(dense),
        shared_experts=0,
        router="softmax",
        rope_base=float(rope.get("rope_theta", values.get("rope_theta", 10_000.0))),
    ).validate(where)


def from_hf_qwen3_moe(state_dict: dict[str, torch.Tensor], config: BackboneConfig | dict) -> LanguageModel:
    """A language model, in eval mode, with the weights of a Hugging Face `Qwen3MoeForCausalLM`.

    config: ours, or the content of their config.json. Experts may come one by one (as in files: `experts.3.up_proj`)
    or stacked (as in memory since Transformers 5: `experts.gate_up_proj`); a missing, left-over or misshapen tensor is
    an InputError. A `DrivingModel` of the same backbone takes the result's `backbone.state_dict()`.
    """
    config = config if isinstance(config, BackboneConfig) else config_from_hf_qwen3_moe(config)
    rest = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}

    def take(name: str) -> torch.Tensor:
        if name not in rest:
            raise InputError("Qwen3-MoE weights", name, "nothing", "a tensor", "Is the config that of these weights?")
        return rest.pop(name)

    embedding = take("embed_tokens.weight")
    ours = {"embedding.weight": embedding, "backbone.norm.weight": take("norm.weight")}
    ours["head.weight"] = rest.pop("lm_head.weight", embedding)  # absent where it is tied to the embedding
    for i in range(config.layers):
        block, layer = f"backbone.layers.{i}", f"layers.{i}"
        ours[f"{block}.attention_norm.weight"] = take(f"{layer}.input_layernorm.weight")
        ours[f"{block}.mlp_norm.weight"] = take(f"{layer}.post_attention_layernorm.weight")
        attention = f"{layer}.self_attn"
        ours[f"{block}.attention.qkv.weight"] = torch.cat([take(f"{attention}.{x}_proj.weight") for x in "qkv"])
        ours[f"{block}.attention.out.weight"] = take(f"{attention}.o_proj.weight")
        for norm in ("q_norm", "k_norm"):
            ours[f"{block}.attention.{norm}.weight"] = take(f"{attention}.{norm}.weight")
        mlp = f"{layer}.mlp"
        if i < config.dense_layers:
            pair = [take(f"{mlp}.{x}_proj.weight") for x in ("gate", "up")]
            ours[f"{block}.mlp.gate_up.weight"] = torch.cat(pair)
            ours[f"{block}.mlp.down.weight"] = take(f"{mlp}.down_proj.weight")
            continue
        ours[f"{block}.mlp.router.weight"] = take(f"{mlp}.gate.weight")
        if f"{mlp}.experts.gate_up_proj" in rest:
            ours[f"{block}.mlp.gate_up"] = take(f"{mlp}.experts.gate_up_proj")
            ours[f"{block}.mlp.down"] = take(f"{mlp}.experts.down_proj")
        else:
            experts = [f"{mlp}.experts.{e}" for e in range(config.experts)]
            pairs = [torch.cat([take(f"{e}.{x}_proj.weight") for x in ("gate", "up")]) for e in experts]
            ours[f"{block}.mlp.gate_up"] = torch.stack(pairs)
            ours[f"{block}.mlp.down"] = torch.stack([take(f"{e}.down_proj.weight") for e in experts])
        ours[f"{block}.mlp.bias"] = torch.zeros(config.experts)
    if rest:
        fix = "Is the config that of these weights?"
        raise InputError("Qwen3-MoE weights", sorted(rest)[0], "a tensor", "no such tensor", fix)
    model = LanguageModel(config, len(embedding))
    expected = model.state_dict()
    for name, tensor in ours.items():
        came, wants = list(tensor.shape), list(expected[name].shape)
        if came != wants:
            fix = "Is the config that of these weights?"
            raise InputError("Qwen3-MoE weights", f"{name} (our name)", came, wants, fix)
    model.load_state_dict(ours)
    return model.eval()
