"""Images as codes and back: a convolutional autoencoder around a quantiser.

    images [B, T, H, W, 3] -> squares of 4 px -> halvings up to 1/factor -> past frames -> z -> codes [B, T, h, w]
    codes -> z_q -> past frames -> doublings -> squares of 4 px -> images

With `temporal_layers` a frame's code also depends on the frames before it, never on later ones, so that codes can be
made while the car drives. Before a codebook is used for anything it has to pass `check_codebook`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensors.errors import InputError
from vla.config import build
from vla.quantizers import QUANTIZERS

STEM_PX = 4
GROUPS = 8
LEAST_USED, LEAST_PERPLEXITY, LEAST_PSNR_DB = 0.5, 0.1, 18.0  # a codebook below these has collapsed
PEAK = 255.0
SQUARED = 4.0  # weight of the squared error of pixels beside the absolute one


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """image_width, image_height  px, multiples of factor; factor 8 or 16: px a code; codes: how many there are;
    code_width: numbers of a code's vector; quantizer: a name in vla.quantizers.QUANTIZERS; channels: of the first
    stage, twice as many after each halving; blocks: residual blocks a stage; temporal_layers: 0 for single frames."""

    image_width: int = 160
    image_height: int = 96
    factor: int = 8
    codes: int = 512
    code_width: int = 8
    quantizer: str = "ibq"
    channels: int = 64
    blocks: int = 1
    temporal_layers: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_height // self.factor, self.image_width // self.factor

    def validate(self, where: object = "image tokenizer") -> "ImageTokenizerConfig":
        """Self, or an InputError that names the field to change."""
        for name, value in asdict(self).items():
            least = 0 if name == "temporal_layers" else 1
            if name != "quantizer" and (type(value) is not int or value < least):
                raise InputError(where, name, repr(value), f"a whole number of at least {least}")
        if self.factor not in (8, 16):
            raise InputError(where, "factor", self.factor, "8 or 16")
        for name in ("image_width", "image_height"):
            if getattr(self, name) % self.factor:
                raise InputError(where, name, getattr(self, name), f"a multiple of factor = {self.factor}")
        if self.channels % GROUPS:
            raise InputError(where, "channels", self.channels, f"a multiple of {GROUPS}")
        if self.codes < 2:
            raise InputError(where, "codes", self.codes, "at least 2")
        if self.quantizer not in QUANTIZERS:
            raise InputError(where, "quantizer", self.quantizer, f"one of {', '.join(QUANTIZERS)}")
        return self

    def to_dict(self) -> dict:
        """Plain numbers and strings, as they stand in JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict, where: object = "image tokenizer") -> "ImageTokenizerConfig":
        """The validated config of a dictionary; absent keys take the default, an unknown key is an InputError."""
        return build(cls, values, where).validate(where)


@dataclass(frozen=True)
class Reconstruction:
    """images float [B, T, H, W, 3] in 0..1; codes int64 [B, T, h, w]; z [N, D] before quantisation; named losses."""

    images: Tensor
    codes: Tensor
    z: Tensor
    losses: dict[str, Tensor]


class ImageTokenizer(nn.Module):
    """`encode` and `decode`, and a forward for training. Same config and seed: the same weights."""

    def __init__(self, config: ImageTokenizerConfig, seed: int = 0):
        super().__init__()
        self.config = c = config.validate()
        halvings = (c.factor // STEM_PX).bit_length() - 1
        widths = [c.channels * 2**k for k in range(halvings + 1)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            down = [nn.Conv2d(3, widths[0], STEM_PX, STEM_PX), *_blocks(widths[0], c.blocks)]
            for narrow, wide in pairwise(widths):
                down += [nn.Conv2d(narrow, wide, 4, 2, 1), *_blocks(wide, c.blocks)]
            self.down = nn.Sequential(*down)
            self.before = nn.ModuleList(_Past(widths[-1]) for _ in range(c.temporal_layers))
            self.to_code = nn.Conv2d(widths[-1], c.code_width, 1)
            self.quantizer = QUANTIZERS[c.quantizer](c.codes, c.code_width)
            self.from_code = nn.Conv2d(c.code_width, widths[-1], 1)
            self.after = nn.ModuleList(_Past(widths[-1]) for _ in range(c.temporal_layers))
            up = [*_blocks(widths[-1], c.blocks)]
            for narrow, wide in zip(widths[-2::-1], widths[:0:-1], strict=True):
                up += [nn.Conv2d(wide, 4 * narrow, 3, 1, 1), nn.PixelShuffle(2), *_blocks(narrow, c.blocks)]
            self.up = nn.Sequential(*up, nn.Conv2d(widths[0], 3 * STEM_PX**2, 3, 1, 1), nn.PixelShuffle(STEM_PX))

    def forward(self, images: Tensor) -> Reconstruction:
        """What becomes of uint8 images [B, T, H, W, 3], and what to minimise: errors of pixels, the codes' losses."""
        target = self._checked(images).movedim(-1, 2) / PEAK
        z = self._latents(target)
        quantized = self.quantizer(z)
        made = self._images(quantized.vectors)
        losses = {"pixels": F.l1_loss(made, target) + SQUARED * F.mse_loss(made, target), **quantized.losses}
        return Reconstruction(made.movedim(2, -1), quantized.indices, z.detach().flatten(0, -2), losses)

    @torch.no_grad()  # not inference_mode: a model that reads codes keeps them for its gradients
    def encode(self, images: Tensor) -> Tensor:
        """Codes int64 [B, T, h, w] of uint8 images [B, T, H, W, 3]."""
        return self.quantizer(self._latents(self._checked(images).movedim(-1, 2) / PEAK)).indices

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Images uint8 [B, T, H, W, 3] of codes [B, T, h, w]; a code that there is not is an InputError."""
        if codes.shape[2:] != self.config.grid:
            raise InputError("image tokenizer", "codes", f"shape {list(codes.shape)}", f"[B, T, {self.config.grid}]")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.codes:
            came = f"{int(codes.min())} .. {int(codes.max())}"
            raise InputError("image tokenizer", "codes", came, f"0 .. {self.config.codes - 1}")
        made = self._images(self.quantizer.lookup(codes)).movedim(2, -1)
        return (made.clamp(0, 1) * PEAK).round().to(torch.uint8)

    def _checked(self, images: Tensor) -> Tensor:
        c = self.config
        if images.ndim != 5 or images.shape[2:] != (c.image_height, c.image_width, 3) or images.dtype != torch.uint8:
            expected = f"uint8 [B, T, {c.image_height}, {c.image_width}, 3]"
            raise InputError("image tokenizer", "images", f"{images.dtype} {list(images.shape)}", expected)
        return images.to(self.to_code.weight.dtype)

    def _latents(self, images: Tensor) -> Tensor:
        """Vectors [B, T, h, w, D] of images [B, T, 3, H, W] in 0..1."""
        B, T = images.shape[:2]
        x = self.down((images * 2 - 1).flatten(0, 1)).unflatten(0, (B, T))
        for layer in self.before:
            x = layer(x)
        z = self.to_code(x.flatten(0, 1)).unflatten(0, (B, T)).movedim(2, -1)
        return F.rms_norm(z, z.shape[-1:], eps=1e-6)  # of the size of the codes, from the first step on

    def _images(self, vectors: Tensor) -> Tensor:
        B, T = vectors.shape[:2]
        x = self.from_code(vectors.movedim(-1, 2).flatten(0, 1)).unflatten(0, (B, T))
        for layer in self.after:
            x = layer(x)
        return (self.up(x.flatten(0, 1)).unflatten(0, (B, T)) + 1) / 2


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [_Block(width) for _ in range(count)]


class _Past(nn.Module):
    """x [B, T, C, h, w] plus what the two frames before it add, place by place; before the first there is nothing."""

    FRAMES = 3

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Conv3d(width, width, (self.FRAMES, 1, 1))
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        by_time = F.pad(x.movedim(1, 2), (0, 0, 0, 0, self.FRAMES - 1, 0))
        return x + F.silu(self.mix(by_time)).movedim(2, 1)


@dataclass(frozen=True)
class CodebookReport:
    """psnr_db of the reconstruction; used: share of codes that occur; perplexity: exp of the entropy of their use, the
    number of codes if all are used alike; dead: codes that never occur; of `images` images."""

    psnr_db: float
    used: float
    perplexity: float
    dead: int
    images: int
    codes: int

    @property
    def wrong(self) -> tuple[str, ...]:
        """What makes the codebook collapsed, in words; none if it is usable."""
        least = LEAST_PERPLEXITY * self.codes
        rules = (
            (self.used < LEAST_USED, f"{self.used:.0%} of {self.codes} codes used, of at least {LEAST_USED:.0%}"),
            (self.perplexity < least, f"perplexity {self.perplexity:.0f}, of at least {least:.0f}"),
            (self.psnr_db < LEAST_PSNR_DB, f"{self.psnr_db:.1f} dB, of at least {LEAST_PSNR_DB} dB"),
        )
        return tuple(words for broken, words in rules if broken)

    def require_usable(self, where: object) -> "CodebookReport":
        """Self, or an InputError: a collapsed codebook teaches a world model nothing."""
        if self.wrong:
            fix = "Train the tokenizer longer, on more varied images, or with fewer codes."
            raise InputError(where, "codebook", "; ".join(self.wrong), "one that has not collapsed", fix)
        return self


@torch.inference_mode()
def check_codebook(tokenizer: ImageTokenizer, batches: Iterable[Tensor]) -> CodebookReport:
    """What the codebook is worth on batches of uint8 images [B, T, H, W, 3] that it was not trained on."""
    counts = torch.zeros(tokenizer.config.codes, dtype=torch.int64)
    squares, numbers, images = 0.0, 0, 0
    for batch in batches:
        codes = tokenizer.encode(batch)
        made = tokenizer.decode(codes)
        squares += float((made.double() - batch.double()).square().sum())
        numbers, images = numbers + batch.numel(), images + batch.shape[0] * batch.shape[1]
        counts += torch.bincount(codes.flatten(), minlength=len(counts))
    if not images:
        raise InputError("check_codebook", "images", "none", "at least one")
    share = counts[counts > 0].double() / counts.sum()
    return CodebookReport(
        psnr_db=float(10 * torch.log10(torch.tensor(PEAK**2 / max(squares / numbers, 1e-12)))),
        used=float((counts > 0).double().mean()),
        perplexity=float(torch.exp(-(share * share.log()).sum())),
        dead=int((counts == 0).sum()),
        images=images,
        codes=len(counts),
    )
