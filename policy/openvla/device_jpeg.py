"""What JPEG leaves of a frame, computed on the model's device: quality 95 with halved chroma, as `images` makes it.

On the host encoding and decoding take a millisecond or two, beside a GPU that waits. Entropy coding loses nothing, so
it is left out; all else is libjpeg's integer arithmetic (ITU T.81 with libjpeg 6b's roundings: accurate forward
transform, fast inverse transform, fancy upsampling), and the pixels are the same to the last bit. Linear steps are
matrix products in float64 of whole numbers, over powers of two, and so exact; between them numbers are rounded as
libjpeg rounds.

Knows only sides that are multiples of 16, as others need libjpeg's padding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from policy.openvla.images import JPEG_QUALITY

_MULTIPLE = 16
_BLOCK = 8
_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
# Fixed-point bits: of colours, of the forward transform, and of the inverse one's products. Where shifts of two passes
# follow each other, the first leaves two bits to the second.
_COLOUR_BITS, _FORWARD_BITS, _INVERSE_BITS = 16, 13, 8
_FORWARD_SHIFTS, _INVERSE_SHIFTS = (_FORWARD_BITS - 2, _FORWARD_BITS + 2), (0, 5)
_CENTER = 128
# What is added before rounding down, to even places and to odd ones.
_HALVING, _DOUBLING = np.array([1.0, 2.0]) / 4, np.array([8.0, 7.0]) / 16


def is_whole(height: int, width: int) -> bool:
    """Whether frames of these sides need no padding, so that `DeviceJPEG` takes them."""
    return height % _MULTIPLE == width % _MULTIPLE == 0


class DeviceJPEG:
    """Frames uint8 `[B, H, W, 3]` there and back, on a device. Samples are centred: 128 less than libjpeg's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._to_ycc, self._offset = self._move(_TO_YCC.T / _COLOUR), self._move(_TO_YCC_OFFSET / _COLOUR - _CENTER)
        self._from_chroma = self._move(_FROM_CHROMA.T / _COLOUR)
        forward, (multiplied, combined) = _forward_transform(), _inverse_transform()
        self._forward = [self._move(forward / 2**bits) for bits in _FORWARD_SHIFTS]
        self._multiplied = self._move(multiplied)
        self._combined = [self._move(combined / 2**bits) for bits in _INVERSE_SHIFTS]
        # Blocks lie transposed where these are used.
        self._divisors = [self._move(_quantiser(base).T * _BLOCK) for base in (_LUMINANCE, _CHROMINANCE)]
        self._scales = [self._move(_inverse_scale(_quantiser(base)).T) for base in (_LUMINANCE, _CHROMINANCE)]
        self._halves = [torch.div(divisor, 2, rounding_mode="floor") for divisor in self._divisors]
        self._halving, self._doubling = self._move(_HALVING), self._move(_DOUBLING)
        self._resampling: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, frames: Tensor) -> Tensor:
        """Raises ValueError for sides that are no multiples of 16."""
        batch, height, width, _ = frames.shape
        if not is_whole(height, width):
            raise ValueError(f"frames are {height}x{width}; sides must be multiples of {_MULTIPLE}")
        ycc = (frames.double() @ self._to_ycc + self._offset).floor()
        luminance = self._lossy(ycc[..., 0], 0)
        chroma = ycc[..., 1:].permute(0, 3, 1, 2).flatten(0, 1)  # [2 * B, H, W]
        coarse = self._lossy(self._halved(chroma), 1)
        fine = self._doubled(coarse).unflatten(0, (batch, 2)).permute(0, 2, 3, 1)  # [B, H, W, 2]
        shifts = (fine @ self._from_chroma + 0.5).floor()
        return (luminance[..., None] + shifts + _CENTER).clamp(0, 255).to(torch.uint8)

    def _halved(self, planes: Tensor) -> Tensor:
        """`[N, H, W]` to `[N, H / 2, W / 2]`: means of four, of which those halfway go down and up in turn."""
        (upright, _), (sideways, _) = map(self._between, planes.shape[1:])
        means = upright @ planes @ sideways.t()
        return (means.unflatten(2, (-1, 2)) + self._halving).floor().flatten(2)

    def _doubled(self, planes: Tensor) -> Tensor:
        """`[N, H, W]` to `[N, 2 * H, 2 * W]`: three quarters of the nearer sample and one of the other, either way."""
        (_, upright), (_, sideways) = (self._between(2 * side) for side in planes.shape[1:])
        means = upright @ planes @ sideways.t()
        return (means.unflatten(2, (-1, 2)) + self._doubling).floor().flatten(2)

    def _lossy(self, planes: Tensor, table: int) -> Tensor:
        """Planes `[N, H, W]` after transform, quantisation and back. table: 0 for luminance, 1 for chrominance."""
        blocks = planes.unflatten(1, (-1, _BLOCK)).unflatten(3, (-1, _BLOCK)).transpose(2, 3)
        rows = (blocks @ self._forward[0] + 0.5).floor()  # [N, H / 8, W / 8, 8, 8]
        both = (rows.transpose(3, 4) @ self._forward[1] + 0.5).floor()  # transposed from here on
        levels = ((both.abs() + self._halves[table]) / self._divisors[table]).floor() * both.sign()
        # libjpeg's inverse transform takes columns first: along the last axis here.
        columns = self._inverse(levels * self._scales[table], 0)
        samples = self._inverse(columns.transpose(3, 4), 1).floor()
        return samples.clamp(-_CENTER, _CENTER - 1).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _inverse(self, x: Tensor, step: int) -> Tensor:
        """One pass of the fast inverse transform along the last axis: sums, five products cut off, and sums again."""
        return torch.cat([x, (x @ self._multiplied).floor()], dim=-1) @ self._combined[step]

    def _between(self, side: int) -> tuple[Tensor, Tensor]:
        """Between `side` samples and half as many: `[side / 2, side]` that halves, `[side, side / 2]` that doubles."""
        if side not in self._resampling:
            places, half = np.arange(side), np.arange(side // 2)
            other = np.clip(places // 2 + np.where(places % 2, 1, -1), 0, side // 2 - 1)
            halving = (places // 2 == half[:, None]) / 2
            doubling = 0.75 * (places[:, None] // 2 == half) + 0.25 * (other[:, None] == half)
            self._resampling[side] = self._move(halving), self._move(doubling)
        return self._resampling[side]

    def _move(self, table: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(table, np.float64)).to(self._device)


def _fixed(value: float, bits: int) -> int:
    return math.floor(value * 2**bits + 0.5)


def _colour(value: float) -> int:
    return _fixed(value, _COLOUR_BITS)


_COLOUR = 2**_COLOUR_BITS
_HALF = _COLOUR // 2
_TO_YCC = np.array(
    [
        [_colour(0.29900), _colour(0.58700), _colour(0.11400)],
        [-_colour(0.16874), -_colour(0.33126), _colour(0.50000)],
        [_colour(0.50000), -_colour(0.41869), -_colour(0.08131)],
    ]
)
_TO_YCC_OFFSET = np.array([_HALF, *[_CENTER * 2**_COLOUR_BITS + _HALF - 1] * 2])
_FROM_CHROMA = np.array([[0, _colour(1.40200)], [-_colour(0.34414), -_colour(0.71414)], [_colour(1.77200), 0]])


def _quantiser(base: tuple[int, ...]) -> np.ndarray:
    """Divisors `[8, 8]` for the quality."""
    percent = 200 - 2 * JPEG_QUALITY
    return np.clip((np.array(base).reshape(_BLOCK, _BLOCK) * percent + 50) // 100, 1, 255)


def _inverse_scale(quantiser: np.ndarray) -> np.ndarray:
    """What levels are multiplied with before the fast inverse transform (Arai, Agui and Nakajima 1988): `[8, 8]`."""
    wave = [1.0, *(math.cos(k * math.pi / 16) * math.sqrt(2) for k in range(1, _BLOCK))]
    scales = np.array([[_fixed(row * column, 14) for column in wave] for row in wave])
    return (quantiser * scales + 2**11) >> 12


def _forward_transform() -> np.ndarray:
    """The accurate forward transform of a row (Loeffler, Ligtenberg and Moschytz 1989), whole numbers `[8, 8]`."""

    def fixed(value: float) -> int:
        return _fixed(value, _FORWARD_BITS)

    x = np.eye(_BLOCK, dtype=np.int64)  # each row an input, as a combination of inputs
    sums, differences = x[:4] + x[:3:-1], x[:4] - x[:3:-1]
    even, odd = (sums[0] + sums[3], sums[1] + sums[2]), (sums[1] - sums[2], sums[0] - sums[3])
    out = np.zeros((_BLOCK, _BLOCK), np.int64)
    out[0], out[4] = (even[0] + even[1]) << _FORWARD_BITS, (even[0] - even[1]) << _FORWARD_BITS
    shared = (odd[0] + odd[1]) * fixed(0.541196100)
    out[2], out[6] = shared + odd[1] * fixed(0.765366865), shared - odd[0] * fixed(1.847759065)
    d0, d1, d2, d3 = differences  # of inputs 0-7, 1-6, 2-5, 3-4
    z5 = (d3 + d1 + d2 + d0) * fixed(1.175875602)
    z1, z2 = -(d3 + d0) * fixed(0.899976223), -(d2 + d1) * fixed(2.562915447)
    z3, z4 = z5 - (d3 + d1) * fixed(1.961570560), z5 - (d2 + d0) * fixed(0.390180644)
    out[7] = d3 * fixed(0.298631336) + z1 + z3
    out[5] = d2 * fixed(2.053119869) + z2 + z4
    out[3] = d1 * fixed(3.072711026) + z2 + z3
    out[1] = d0 * fixed(1.501321110) + z1 + z4
    return out.T


def _inverse_transform() -> tuple[np.ndarray, np.ndarray]:
    """The fast inverse transform of a row: products of sums of the 8 inputs, `[8, 5]`, and how inputs and products make
    outputs, `[13, 8]`.
    """
    x, m = np.split(np.eye(_BLOCK + 5, dtype=np.int64), [_BLOCK])
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    multiplied = np.stack([x[2] - x[6], z11 - z13, z10 + z12, z12, z10])[:, :_BLOCK]
    constants = (1.414213562, 1.414213562, 1.847759065, 1.082392200, -2.613125930)
    factors = np.array([math.copysign(_fixed(abs(c), _INVERSE_BITS), c) / 2**_INVERSE_BITS for c in constants])
    t10, t11, t13 = x[0] + x[4], x[0] - x[4], x[2] + x[6]
    t12 = m[0] - t13
    even = (t10 + t13, t11 + t12, t11 - t12, t10 - t13)
    t7 = z11 + z13
    t6 = m[4] + m[2] - t7
    t5 = m[1] - t6
    t4 = m[3] - m[2] + t5
    first = [even[0] + t7, even[1] + t6, even[2] + t5, even[3] - t4]
    last = [even[3] + t4, even[2] - t5, even[1] - t6, even[0] - t7]
    return multiplied.T * factors, np.stack(first + last).T
