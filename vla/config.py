"""Every dial of the brain in one frozen dataclass. Its vocabulary is laid out in `vla.vocabulary`."""

import dataclasses
import types
import typing
from dataclasses import asdict, dataclass, fields

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError, nearest
from vla.sizes import SIZES
from vla.vocabulary import Vocabulary

ROUTERS = ("sigmoid", "softmax")
FUSION_REACHES = ("past", "step")
ACTION_DECODINGS = ("autoregressive", "parallel")
IMAGE_INPUTS = ("patches", "codes", "both")
OWN_MOTION = ("all", "speed")
TOKEN_PROJECTORS = ("linear", "mlp", "resampler", "q_former")  # of vla.projectors; "unshuffle" is for grids only


@dataclass(frozen=True)
class BackboneConfig:
    """Shapes of the decoder that all tokens share; the defaults are `tiny`'s.

    width, layers, heads, kv_heads, head_dim   kv_heads divides heads; head_dim is even
    dense_layers, dense_hidden   so many layers from the first on are dense, dense_hidden wide; the rest are routed
    experts, experts_per_token, expert_hidden, shared_experts   the routed layers
    router          "sigmoid": scores are independent, a bias evens the load; "softmax": Qwen3's, evened by a loss
    normalise_weights   whether the weights of a token's chosen experts sum to 1
    expert_dropout  chance that a training step does without an expert
    rope_base       of the rotary angles; order_pairs of each head's pairs turn with the order inside a time step
                    instead of with time
    """

    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    dense_layers: int = 1
    dense_hidden: int = 384
    experts: int = 8
    experts_per_token: int = 2
    expert_hidden: int = 128
    shared_experts: int = 1
    router: str = "sigmoid"
    normalise_weights: bool = True
    expert_dropout: float = 0.0
    rope_base: float = 10_000.0
    order_pairs: int = 0

    def validate(self, where: object = "backbone config") -> "BackboneConfig":
        """Self, or an InputError that names the field to change."""
        may_be_zero = ("dense_layers", "shared_experts", "order_pairs", "text_tokens", "image_codes", "deepstack")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in may_be_zero else 1
            if field.type is int and (type(value) is not int or value < least):
                raise InputError(where, field.name, repr(value), f"a whole number of at least {least}")
            if field.type is bool and type(value) is not bool:
                raise InputError(where, field.name, repr(value), "true or false")
            if field.type is float and (type(value) not in (int, float) or not abs(value) < float("inf")):
                raise InputError(where, field.name, repr(value), "a finite number")
        self._divides(where, "kv_heads", self.kv_heads, "heads")
        if self.head_dim % 2:
            raise InputError(where, "head_dim", self.head_dim, "an even number: rotary angles turn pairs")
        if self.experts_per_token > self.experts:
            raise InputError(where, "experts_per_token", self.experts_per_token, f"at most experts = {self.experts}")
        if self.dense_layers > self.layers:
            raise InputError(where, "dense_layers", self.dense_layers, f"at most layers = {self.layers}")
        if not 0 <= self.expert_dropout < 1:
            raise InputError(where, "expert_dropout", self.expert_dropout, "0 .. 1, 1 excluded")
        if not self.rope_base > 1:
            raise InputError(where, "rope_base", self.rope_base, "more than 1")
        if self.order_pairs >= self.head_dim // 2:
            raise InputError(where, "order_pairs", self.order_pairs, f"less than head_dim / 2 = {self.head_dim // 2}")
        self._one_of(where, "router", ROUTERS)
        return self

    def experts_per_rank(self, degree: int) -> int:
        """Experts that each of `degree` devices holds when they share them out evenly."""
        if degree < 1 or self.experts % degree:
            fix = "Change experts, or the expert-parallel degree."
            raise InputError("expert parallelism", "experts", self.experts, f"a multiple of the degree {degree}", fix)
        return self.experts // degree

    def _divides(self, where: object, divisor_name: str, divisor: int, name: str) -> None:
        value = getattr(self, name)
        if value % divisor:
            raise InputError(where, name, value, f"a multiple of {divisor_name} = {divisor}", f"Change {name}.")

    def _one_of(self, where: object, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise InputError(where, name, repr(value), f"one of {', '.join(allowed)}", nearest(value, allowed))


@dataclass(frozen=True)
class ModelConfig(BackboneConfig):
    """Shapes of the model around its backbone; the defaults are `tiny`, which trains and drives on two CPU cores.

    image_width, image_height, patch_px   every camera, px; a patch is a square of patch_px
    cameras, steps                        N and T of the clip; fovea: one of the cameras is the middle of the first at
                                          twice its scale, see `sensors.clip.Clip.with_fovea`
    image_input                           "patches" of pixels, "codes" of an image tokenizer, or "both"
    code_px                               px that a code stands for; image_codes says how many there are
    encoder_*                             local encoder (within one image) and fusion (into scene tokens), one width
    patch_rope                            rotary positions in two dimensions in the local encoder
    deepstack                             so many depths of the local encoder are added in the first backbone layers
    camera_identity_dropout               share of clips that are not told in training which camera is which; 1: none
                                          ever is, and cameras may change places, images and calibration together
    imu_projector, vehicle_projector      kinds of vla.projectors
    calibration_projector                 "none", or a kind: one more token a camera
    image_projector                       "none", or a kind, between the patches of an image and the scene tokens;
                                          "unshuffle", "resampler" and "q_former" leave a quarter of them
    scene_tokens                          S, scene tokens per time step
    fusion_reach                          "past": scene tokens read the images of all steps up to their own; "step": of
                                          their own only, so that a running car appends steps and computes none again
    own_motion                            what it is told of how the car moves: "all", or its "speed" alone: who knows
                                          how it turns and brakes learns to go on with that, and never looks
    imu_samples, imu_rate_hz, imu_tokens  IMU window of imu_samples / imu_rate_hz seconds, cut into imu_tokens tokens
    context                               tokens of a clip with its plan, at most
    action_decoding                       "autoregressive", or "parallel": all tokens of a plan from one forward pass
    plan_steps, plan_dt_s                 K intervals of plan_dt_s: one acceleration and one curvature each
    accel_*, curvature_*                  the bins, see `vla.action_tokens`
    text_tokens                           text in the vocabulary, 0: none, and the sequence has none either
    instruction_tokens, reason_tokens     places for the instruction before a plan, and for the reason after it
    image_codes                           codes of the image tokenizer, 0: none
    commands                              route commands that the embedding knows, in order
    """

    image_width: int = 160
    image_height: int = 96
    patch_px: int = 16
    cameras: int = 6
    fovea: bool = False
    steps: int = 2
    image_input: str = "patches"
    code_px: int = 8
    encoder_width: int = 128
    encoder_layers: int = 2
    encoder_heads: int = 4
    encoder_hidden: int = 256
    patch_rope: bool = False
    deepstack: int = 0
    camera_identity_dropout: float = 1.0
    imu_projector: str = "mlp"
    vehicle_projector: str = "linear"
    calibration_projector: str = "none"
    image_projector: str = "none"
    fusion_layers: int = 2
    scene_tokens: int = 32
    fusion_reach: str = "past"
    own_motion: str = "all"
    imu_samples: int = 100
    imu_rate_hz: int = 100
    imu_tokens: int = 4
    context: int = 4096
    action_decoding: str = "autoregressive"
    plan_steps: int = 8
    plan_dt_s: float = 0.5
    accel_min_mps2: float = -6.0
    accel_max_mps2: float = 3.0
    accel_fine_mps2: float = 0.5
    accel_bins: int = 33
    curvature_max_1pm: float = 0.2
    curvature_fine_1pm: float = 0.005
    curvature_bins: int = 65
    text_tokens: int = 640
    instruction_tokens: int = 24
    reason_tokens: int = 12
    image_codes: int = 0
    commands: tuple[str, ...] = ROUTE_COMMANDS

    @classmethod
    def tiny(cls) -> "ModelConfig":
        return cls()

    @classmethod
    def of_size(cls, name: str) -> "ModelConfig":
        """The config of one of SIZES."""
        if name not in SIZES:
            raise InputError("model config", "size", name, f"one of {', '.join(SIZES)}", nearest(name, SIZES))
        return cls(**SIZES[name]).validate()

    @property
    def vocabulary(self) -> Vocabulary:
        """Of all that the model reads and writes; actions are accelerations, then curvatures."""
        return Vocabulary(self.text_tokens, self.accel_bins + self.curvature_bins, self.image_codes)

    @property
    def action_slots(self) -> tuple[slice, slice]:
        """Tokens that may stand at even places of a plan (from braking to accelerating) and at odd (right to left)."""
        of = self.vocabulary.range_of("action")
        return slice(of.start, of.start + self.accel_bins), slice(of.start + self.accel_bins, of.stop)

    @property
    def action_tokens(self) -> int:
        """Tokens of one plan: acceleration and curvature of each interval, in turn."""
        return 2 * self.plan_steps

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return self.image_height // self.patch_px, self.image_width // self.patch_px

    @property
    def patches(self) -> int:
        """Patches per image, row by row."""
        return self.patch_grid[0] * self.patch_grid[1]

    @property
    def code_grid(self) -> tuple[int, int]:
        """Rows and columns of codes in an image."""
        return self.image_height // self.code_px, self.image_width // self.code_px

    @property
    def instruction_places(self) -> int:
        """Tokens of an instruction, its marker counted; 0 without text."""
        return self.instruction_tokens if self.text_tokens else 0

    @property
    def reason_places(self) -> int:
        """Tokens of a reason, its end counted; 0 without text."""
        return self.reason_tokens + 1 if self.text_tokens else 0

    @property
    def now_tokens(self) -> int:
        """Tokens that speak of now: IMU, three signals of the vehicle, calibration, route command, instruction."""
        calibration = self.cameras if self.calibration_projector != "none" else 0
        return self.imu_tokens + 3 + calibration + 1 + self.instruction_places

    def validate(self, where: object = "model config") -> "ModelConfig":
        """Self, or an InputError that names the field to change."""
        super().validate(where)
        for name in ("image_width", "image_height"):
            self._divides(where, "patch_px", self.patch_px, name)
        if self.patch_px.bit_count() != 1 or self.patch_px < 4:
            raise InputError(where, "patch_px", self.patch_px, "a power of 2, at least 4")
        self._divides(where, "encoder_heads", self.encoder_heads, "encoder_width")
        self._divides(where, "imu_tokens", self.imu_tokens, "imu_samples")
        self._check_encoder(where)
        tokens = self.steps * self.scene_tokens + self.now_tokens + self.action_tokens + self.reason_places
        if tokens > self.context:
            fix = "Change steps, scene_tokens, imu_tokens, instruction_tokens, plan_steps, reason_tokens, or context."
            expected = f"at least the {tokens} tokens of a clip, its plan and its reason"
            raise InputError(where, "context", self.context, expected, fix)
        self._one_of(where, "fusion_reach", FUSION_REACHES)
        self._one_of(where, "action_decoding", ACTION_DECODINGS)
        self._one_of(where, "own_motion", OWN_MOTION)
        if not self.plan_dt_s > 0:
            raise InputError(where, "plan_dt_s", self.plan_dt_s, "more than 0 s")
        if not self.accel_min_mps2 < 0 < self.accel_max_mps2:
            came = f"{self.accel_min_mps2} .. {self.accel_max_mps2}"
            raise InputError(where, "accel_min_mps2, accel_max_mps2", came, "a range with zero inside it")
        for name in ("accel_fine_mps2", "curvature_fine_1pm", "curvature_max_1pm"):
            if not getattr(self, name) > 0:
                raise InputError(where, name, getattr(self, name), "more than 0")
        if self.accel_bins < 3:
            raise InputError(where, "accel_bins", self.accel_bins, "at least 3: braking, nothing, accelerating")
        if self.curvature_bins < 3 or self.curvature_bins % 2 == 0:
            raise InputError(
                where, "curvature_bins", self.curvature_bins, "an odd number of at least 3: straight on is one"
            )
        if self.commands != ROUTE_COMMANDS:
            raise InputError(
                where, "commands", self.commands, ROUTE_COMMANDS, "The clip's command ids follow that order."
            )
        return self

    def _check_encoder(self, where: object) -> None:
        self._one_of(where, "image_input", IMAGE_INPUTS)
        for name in ("imu_projector", "vehicle_projector"):
            self._one_of(where, name, TOKEN_PROJECTORS)
        self._one_of(where, "calibration_projector", ("none", *TOKEN_PROJECTORS))
        self._one_of(where, "image_projector", ("none", "unshuffle", *TOKEN_PROJECTORS))
        if self.image_projector == "unshuffle" and (self.patch_grid[0] % 2 or self.patch_grid[1] % 2):
            grid = f"{self.patch_grid[0]} x {self.patch_grid[1]} patches"
            raise InputError(
                where, "image_projector", "unshuffle", f"an even grid, not {grid}", "Change the image size."
            )
        if self.image_input != "patches":
            self._divides(where, "code_px", self.code_px, "patch_px")
            if self.image_codes < 2:
                fix = "Change image_codes to what the tokenizer has, or image_input."
                raise InputError(where, "image_codes", self.image_codes, "at least 2", fix)
        if not 0 <= self.camera_identity_dropout <= 1:
            raise InputError(where, "camera_identity_dropout", self.camera_identity_dropout, "a share in [0, 1]")
        if self.deepstack > min(self.encoder_layers, self.layers - 1):
            expected = f"at most encoder_layers = {self.encoder_layers} and less than layers = {self.layers}"
            raise InputError(where, "deepstack", self.deepstack, expected)
        if self.patch_rope and self.encoder_width // self.encoder_heads % 4:
            came = f"{self.encoder_width // self.encoder_heads} numbers a head"
            raise InputError(where, "encoder_heads", came, "a multiple of 4, with patch_rope", "Change encoder_heads.")

    def to_dict(self) -> dict:
        """Plain numbers, strings and lists, as they stand in JSON."""
        return asdict(self) | {"commands": list(self.commands)}

    @classmethod
    def from_dict(cls, values: dict, where: object = "model config") -> "ModelConfig":
        """The validated config of a dictionary; absent keys take the default, an unknown key is an InputError."""
        return build(cls, values, where).validate(where)


def build(cls: type, values: dict, where: object, prefix: str = ""):
    """A (nested) dataclass from plain values; unknown, missing or mistyped keys are InputErrors."""
    if not isinstance(values, dict):
        raise InputError(where, prefix.rstrip("."), values, f"a mapping with the keys of {cls.__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types_of = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            expected = f"one of {', '.join(fields)}"
            raise InputError(where, f"{prefix}{key}", "an unknown key", expected, nearest(key, fields, prefix))
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(where, f"{prefix}{missing[0]}", "nothing", "a value; it has no default")
    return cls(**{key: _typed(types_of[key], value, where, f"{prefix}{key}") for key, value in values.items()})


def _typed(kind: object, value: object, where: object, key: str):
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where, f"{key}.")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(where, key, f"{value!r} ({type(value).__name__})", "a list, as in [a, b]")
        return tuple(_typed(typing.get_args(kind)[0], item, where, f"{key}[{k}]") for k, item in enumerate(value))
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 3e-4 as a string
        try:
            return float(value)
        except ValueError:
            raise InputError(where, key, repr(value), "a number") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(getattr(one, "__name__", str(one)) for one in allowed)
        raise InputError(where, key, f"{value!r} ({type(value).__name__})", names)
    return value
