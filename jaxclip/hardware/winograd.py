"""3x3 convolution by Winograd's F(2x2, 3x3): 16 multiplications per 2x2 tile instead of 36.

Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308, section
4.1): the four places of a 2x2 square share one 4x4 tile of the input. Tile and kernel are both
taken to a basis in which the convolution is a product number by number; summed over the channels,
that is one matrix product for each of the 16 numbers, over all tiles of all images. The
transforms are sums and differences. Rounding, of 256 channels in float32 against float64: 5.4e-7 of
the largest value, the plain sum's 5.0e-7. With products of bfloat16 and all sums in float32, root
mean square: 3.4e-3, where bfloat16's own rounding of the result is 1.7e-3.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxclip.hardware.padded import CpuNumerics
from jaxclip.models.resnet import Convolution

Array = jax.Array
Grid = Sequence[Sequence[Array]]
LEAST_CHANNELS = 64  # with fewer, moving the tiles costs more than the products save
LEAST_PLACES = 512  # with fewer, transforming the kernel costs what the products save


def enough_channels(kernel: Array) -> bool:
    """Whether kernel [3, 3, i, o] has channels enough to gain by matrix products."""
    return min(kernel.shape[2:]) >= LEAST_CHANNELS


def pays(x: Array, kernel: Array) -> bool:
    """Whether a CPU is faster this way, for x [n, h, w, i] and kernel [3, 3, i, o].

    Measured in whole models (docs/log/).
    """
    n, h, w, _ = x.shape
    return enough_channels(kernel) and n * h * w >= LEAST_PLACES


def convolution(
    x: Array, kernel: Array, dot: Callable[[Array, Array], Array] = jnp.matmul
) -> Array:
    """x [n, h, w, i], kernel [3, 3, i, o] -> [n, h, w, o]: stride 1, a border of zeros.

    `dot` is the product of two matrices. It multiplies sums of x's numbers by sums of the kernel's,
    and its results are summed again: give x and kernel in a wide format, and let it answer in one,
    though it may round what it multiplies.
    """
    n, h, w, i = x.shape
    rows, columns = -(-h // 2), -(-w // 2)  # of squares of 2x2 places
    x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - h), (1, 2 * columns + 1 - w), (0, 0)))
    four, three = range(4), range(3)

    def tile(a: int, b: int) -> Array:  # number (a, b) of every tile
        return x[:, a : a + 2 * rows - 1 : 2, b : b + 2 * columns - 1 : 2]

    kernels = _both_ways(_kernel_to_basis, [[kernel[a, b] for b in three] for a in three])
    tiles = _both_ways(_tile_to_basis, [[tile(a, b) for b in four] for a in four])
    products = [[dot(tiles[a][b].reshape(-1, i), kernels[a][b]) for b in four] for a in four]
    square = _both_ways(_places, products)  # 2 x 2 of [n * rows * columns, o]
    y = jnp.stack([jnp.stack(each, axis=1) for each in square], axis=1)  # [.., 2, 2, o]
    y = y.reshape(n, rows, columns, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * rows, 2 * columns, -1)[:, :h, :w]


def _both_ways(change: Callable[..., Sequence[Array]], grid: Grid) -> Grid:
    """`change` along every row of the grid, then along every column."""
    rows = [change(*row) for row in grid]
    columns = [change(*column) for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))


def _tile_to_basis(d0: Array, d1: Array, d2: Array, d3: Array) -> Sequence[Array]:
    """The paper's B^T d."""
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _kernel_to_basis(g0: Array, g1: Array, g2: Array) -> Sequence[Array]:
    """The paper's G g."""
    return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2


def _places(m0: Array, m1: Array, m2: Array, m3: Array) -> Sequence[Array]:
    """The paper's A^T m."""
    return m0 + m1 + m2, m1 - m2 - m3


def with_neighbours(x: Array) -> Array:
    """Each place beside the eight around it, zeros outside: [n, h, w, c] -> [n, h, w, 9c]."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, a : a + h, b : b + w] for a in range(3) for b in range(3)], -1)


class WinogradConvolution(Convolution):
    """`Convolution` as matrix products, where XLA on a CPU is faster so.

    In float32 a ResNet gains a tenth, in bfloat16 two thirds (docs/log/).
    """

    def __call__(self, x: Array) -> Array:
        numerics, kernel = self.numerics, self.kernel[...]
        assert isinstance(numerics, CpuNumerics)
        x, kernel = x.astype(numerics.dtype), kernel.astype(numerics.dtype)
        wide = jnp.promote_types(numerics.dtype, jnp.float32)
        if self.stride == 1 and pays(x, kernel):
            y = convolution(x.astype(wide), kernel.astype(wide), numerics.product)
        elif self.stride == 1 and numerics.dtype != wide and enough_channels(kernel):
            # XLA:CPU multiplies matrices in bfloat16, but widens a convolution to float32
            y = numerics.product(with_neighbours(x), kernel.reshape(-1, kernel.shape[-1]))
        else:
            return super().__call__(x)
        return checkpoint_name(y.astype(numerics.dtype), "product")
