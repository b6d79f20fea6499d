"""The vision transformers of both levels, with DINO's state-dict keys.

One class serves both levels, which differ in how an input becomes tokens: level 256 cuts pixels, or the local maps of
a scattering stem, into square patches (``patch_embed.proj``); level 2k takes each cell of a grid of embeddings as a
token (``phi.0``).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridrad_cube.models.scattering import CELL, MAPS, LocalMaps, ScatteringStem, local_maps

#: Source of the embedding: the class token, the mean of the other tokens, their mean and standard deviation,
#: the class token and the mean, or the output of the head of the contrast for mean and standard deviation.
Pool = Literal["class", "mean", "mean+std", "class+mean", "projection"]
Stem = Literal["linear", "scattering"]
_Position = Literal["dino_v1", "exact"]

_EPS = 1e-6


_Input = Tensor | LocalMaps


class NetworkInput(NamedTuple):
    """One view of a batch: the arguments of a `VisionTransformer`."""

    x: _Input
    token_mask: Tensor | None = None
    attention_mask: Tensor | None = None

    @property
    def edges(self) -> tuple[int, int]:
        """Height and width in pixels, or cells of a grid."""
        return self.x.pixels if isinstance(self.x, LocalMaps) else (self.x.shape[2], self.x.shape[3])


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """The sizes of a named network. ``cells`` marks the networks that read grids of embeddings."""

    embed_dim: int
    depth: int
    heads: int
    patch_size: int = 16
    image_size: int = 224
    in_channels: int = 1
    stem: Stem = "linear"
    cells: bool = False


#: The networks that `build` knows. ``vit2k_xs`` and ``vit4k_xs`` differ in their reference grid only.
ARCHITECTURES: dict[str, _Architecture] = {
    "vit_base": _Architecture(embed_dim=768, depth=12, heads=12),
    "vit_demo": _Architecture(embed_dim=192, depth=6, heads=3, patch_size=8, image_size=64),
    "vit_mini": _Architecture(embed_dim=128, depth=4, heads=4, patch_size=8, image_size=64),
    "vit_small": _Architecture(embed_dim=384, depth=12, heads=6),
    "vit_tiny": _Architecture(embed_dim=192, depth=12, heads=3),
    "vit2k_xs": _Architecture(
        embed_dim=192, depth=6, heads=6, patch_size=1, image_size=28, in_channels=384, cells=True
    ),
    "vit4k_xs": _Architecture(
        embed_dim=192, depth=6, heads=6, patch_size=1, image_size=14, in_channels=384, cells=True
    ),
}


class _DropPath(nn.Module):
    """Drop a residual branch for whole samples in training, keeping its expected value."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, ...) with the branch of a share ``rate`` of the samples set to zero."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (len(x),) + (1,) * (x.ndim - 1)
        return x * (x.new_empty(shape).bernoulli_(keep) / keep)


class _Attention(nn.Module):
    """Multi-head self-attention with one linear map for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v  # each (B, heads, T, dim / heads)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Attend from every token of ``x`` (B, T, D) to those where ``keys`` (B, 1, 1, T) is true."""
        q, k, v = self._split(x)
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":
            # The backward pass of torch's fused attention is nine times slower there than these products.
            out = _attention_weights(q, k, keys) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.proj(out.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the attention weights themselves, (B, heads, T, T), rows summing to one."""
        q, k, _ = self._split(x)
        return _attention_weights(q, k, keys)


def _attention_weights(q: Tensor, k: Tensor, keys: Tensor | None) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if keys is not None:
        scores = scores.masked_fill(~keys, -torch.inf)
    return scores.softmax(-1)


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attn = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        fc1, fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))
        self.drop_path = _DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Apply the block to (B, T, D); ``keys`` as in `_Attention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), keys))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """A transformer over the patches of a field, or over the cells of a grid of embeddings.

    `build` makes it and documents the arguments. Inputs are (B, C, H, W) with H and W any multiples of
    ``patch_size``; tokens run row by row. ``image_size`` only sets how many positions are learned. A network with the
    scattering stem reads fields scaled to the typical range, NaN where missing, or their `local_maps`.

    Every method that reads an input takes two masks, (B, N) or (B, rows, columns), bool:

    - ``token_mask`` is true where a token is hidden: the learned ``mask_token`` replaces its content (zeros in a
      network built without one), and its position stays.
    - ``attention_mask`` is true where a token takes part. Attention ignores the others, and in grids of cells
      their input may hold anything, NaN included.
    """

    mask_token: nn.Parameter | None
    stem: ScatteringStem | None

    def __init__(
        self,
        name: str,
        architecture: _Architecture,
        *,
        drop_path_rate: float = 0.0,
        position: _Position = "dino_v1",
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        a = architecture
        self.name, self.architecture = name, a
        self.embed_dim, self.patch_size = a.embed_dim, a.patch_size
        self.drop_path_rate, self.position = drop_path_rate, position
        self.grid_size = a.image_size // a.patch_size

        self.cls_token = nn.Parameter(torch.zeros(1, 1, a.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid_size**2, a.embed_dim))
        token = nn.Parameter(torch.zeros(1, 1, a.embed_dim)) if mask_token else None
        self.register_parameter("mask_token", token)
        self.stem = None
        if a.cells:
            self.phi = nn.Sequential(nn.Linear(a.in_channels, a.embed_dim), nn.GELU())
        else:
            scattering = a.stem == "scattering"
            self.stem = ScatteringStem(a.in_channels) if scattering else None
            planes, edge = (
                (a.in_channels * MAPS, a.patch_size // CELL) if scattering else (a.in_channels, a.patch_size)
            )
            proj = nn.Conv2d(planes, a.embed_dim, edge, edge)
            self.patch_embed = nn.Sequential(OrderedDict(proj=proj))
        rates = [drop_path_rate * i / max(a.depth - 1, 1) for i in range(a.depth)]
        self.blocks = nn.ModuleList(_Block(a.embed_dim, a.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(a.embed_dim, eps=_EPS)

        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(initialize_linear)

    def config(self) -> dict[str, Any]:
        """Return a plain dict that rebuilds this network: ``build(**config)``.

        Returns
        -------
        Arguments of `build`.
        """
        sizes = asdict(self.architecture)
        del sizes["cells"]
        return sizes | {
            "name": self.name,
            "drop_path_rate": self.drop_path_rate,
            "position": self.position,
            "mask_token": self.mask_token is not None,
        }

    def forward(
        self, x: _Input, token_mask: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return the class token after the last norm.

        Parameters
        ----------
        x
            Input (B, C, H, W).
        token_mask
            Hidden tokens, (B, N) or (B, rows, columns), bool.
        attention_mask
            Tokens that take part, (B, N) or (B, rows, columns), bool.

        Returns
        -------
        Shape (B, D).
        """
        return self.forward_tokens(x, token_mask, attention_mask)[:, 0]

    def forward_tokens(
        self, x: _Input, token_mask: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return all tokens after the last norm, the class token first.

        Parameters
        ----------
        x
            Input (B, C, H, W).
        token_mask
            Hidden tokens, (B, N) or (B, rows, columns), bool.
        attention_mask
            Tokens that take part, (B, N) or (B, rows, columns), bool.

        Returns
        -------
        Shape (B, 1 + N, D).
        """
        return self.get_intermediate_layers(x, 1, token_mask, attention_mask)[0]

    def get_intermediate_layers(
        self,
        x: _Input,
        n: int = 1,
        token_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the normed tokens after each of the last blocks, earliest first.

        Parameters
        ----------
        x
            Input (B, C, H, W).
        n
            Number of blocks.
        token_mask
            Hidden tokens, (B, N) or (B, rows, columns), bool.
        attention_mask
            Tokens that take part, (B, N) or (B, rows, columns), bool.

        Returns
        -------
        List of arrays of shape (B, 1 + N, D).
        """
        tokens, keys = self._embed(x, token_mask, attention_mask)
        out = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, keys)
            if index >= len(self.blocks) - n:
                out.append(self.norm(tokens))
        return out

    def get_last_selfattention(
        self, x: _Input, token_mask: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return the attention weights of the last block. Row 0 is that of the class token.

        Parameters
        ----------
        x
            Input (B, C, H, W).
        token_mask
            Hidden tokens, (B, N) or (B, rows, columns), bool.
        attention_mask
            Tokens that take part, (B, N) or (B, rows, columns), bool.

        Returns
        -------
        Shape (B, heads, 1 + N, 1 + N).
        """
        tokens, keys = self._embed(x, token_mask, attention_mask)
        *before, last = self.blocks
        for block in before:
            tokens = block(tokens, keys)
        assert isinstance(last, _Block)
        return last.attn.weights(last.norm1(tokens), keys)

    def _embed(
        self, x: _Input, token_mask: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the tokens with their positions (B, 1 + N, D), and the keys that attention may use."""
        rows, columns = self._lattice(x)
        batch = len(x.maps) if isinstance(x, LocalMaps) else len(x)
        if attention_mask is not None:
            attention_mask = _flat(attention_mask, "attention_mask", batch, rows * columns)
        if self.stem is not None:
            local = x if isinstance(x, LocalMaps) else local_maps(x)
            tokens = self.patch_embed(self.stem(local)).flatten(2).mT
        elif isinstance(x, LocalMaps):
            raise ValueError(
                f"{self.name}: got local maps, but it has no scattering stem; expected pixels or cells"
            )
        elif self.architecture.cells:
            cells = x.flatten(2).mT
            if attention_mask is not None:
                # Before the first layer: a NaN times a zero gradient would still spoil its weights.
                cells = cells.masked_fill(~attention_mask[..., None], 0.0)
            tokens = self.phi(cells)
        else:
            tokens = self.patch_embed(x).flatten(2).mT
        if token_mask is not None:
            hidden = _flat(token_mask, "token_mask", batch, rows * columns)[..., None]
            filler = tokens.new_zeros(()) if self.mask_token is None else self.mask_token.to(tokens.dtype)
            tokens = torch.where(hidden, filler, tokens)
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1)
        tokens = tokens + self._positions(rows, columns)
        if attention_mask is None:
            return tokens, None
        # The class token is always a key, so that no row of the softmax is empty.
        return tokens, F.pad(attention_mask, (1, 0), value=True)[:, None, None]

    def _lattice(self, x: _Input) -> tuple[int, int]:
        """Return the rows and columns of tokens of an input; refuse an input of another shape."""
        patch, channels = self.patch_size, self.architecture.in_channels
        if isinstance(x, LocalMaps):
            height, width = x.pixels
            return height // patch, width // patch
        fits = x.ndim == 4 and x.shape[1] == channels
        if not fits or any(edge < 1 or edge % patch for edge in x.shape[2:]):
            raise ValueError(
                f"{self.name}: cannot read an input of shape {tuple(x.shape)}; expected (batch, {channels}, "
                f"height, width) with height and width multiples of {patch}. "
                f"Pad or cut the field, or build the network with in_channels=... or patch_size=..."
            )
        return x.shape[2] // patch, x.shape[3] // patch

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the learned positions, (1, 1 + rows * columns, D), resampled where the lattice differs."""
        edge = self.grid_size
        if (rows, columns) == (edge, edge):
            return self.pos_embed
        learned = self.pos_embed[:, 1:].unflatten(1, (edge, edge)).permute(0, 3, 1, 2)
        if self.position == "exact":
            resampled = F.interpolate(learned, size=(rows, columns), mode="bicubic")
        else:
            # DINO adds 0.1 against rounding and samples by the factor, not by the size: the step is
            # edge / (rows + 0.1). Published and predecessor's weights were trained with these positions.
            scale = ((rows + 0.1) / edge, (columns + 0.1) / edge)
            resampled = F.interpolate(learned, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resampled.flatten(2).mT], dim=1)


def build(
    name: str,
    in_channels: int | None = None,
    *,
    drop_path_rate: float = 0.0,
    position: _Position = "dino_v1",
    mask_token: bool = False,
    **sizes: Any,
) -> VisionTransformer:
    """Make a network by name, with fresh weights from torch's global generator.

    Parameters
    ----------
    name
        For fields ``vit_tiny``, ``vit_small``, ``vit_base`` (patches of 16 px), ``vit_demo``, ``vit_mini``
        (six layers
        of 192 features and four of 128, patches of 8 px); for grids of embeddings ``vit2k_xs``, ``vit4k_xs``.
    in_channels
        Channels of the field (default 1), or width of the embeddings of a grid (default 384).
    drop_path_rate
        Share of samples whose last residual branch is dropped in training; earlier blocks in proportion.
    position
        ``"dino_v1"`` interpolates positions as DINO does, ``"exact"`` onto the lattice itself.
    mask_token
        Whether there is a learned token for hidden tokens, starting at zero: one more key than DINO has.
        Then pass a ``token_mask`` with every training batch, or DDP sees an unused parameter.
    **sizes
        Sizes in place of those of the name: ``patch_size``, edge of a token in pixels (always 1 for grids);
        ``image_size``, edge of the field or grid for which positions are learned one by one (they are
        interpolated for other inputs); ``embed_dim``, ``depth``, ``heads``; ``stem``, the input of the linear
        map to tokens: pixels (``"linear"``), or local maps of 4 x 4 pixels (``"scattering"``, see
        `local_maps`).

    Returns
    -------
    The network.

    Raises
    ------
    ValueError
        If the name is unknown or the sizes do not match.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"build: unknown network {name!r}; expected one of {sorted(ARCHITECTURES)}")
    if in_channels is not None:
        sizes["in_channels"] = in_channels
    architecture = replace(ARCHITECTURES[name], **sizes)
    _check(name, architecture, position)
    return VisionTransformer(
        name, architecture, drop_path_rate=drop_path_rate, position=position, mask_token=mask_token
    )


def _check(name: str, a: _Architecture, position: str) -> None:
    fault = None
    if min(a.embed_dim, a.depth, a.heads, a.patch_size, a.image_size, a.in_channels) < 1:
        fault = f"every size must be at least 1, got {a}"
    elif a.cells and a.patch_size != 1:
        fault = f"patch_size={a.patch_size}, but each cell of a grid is a token. Leave it out."
    elif a.stem not in ("linear", "scattering") or (a.cells and a.stem != "linear"):
        fault = f"stem={a.stem!r}; expected 'linear', or for fields also 'scattering'"
    elif a.stem == "scattering" and a.patch_size % (2 * CELL):
        fault = f"patch_size={a.patch_size} with a scattering stem; expected a multiple of {2 * CELL}"
    elif a.embed_dim % a.heads:
        fault = f"embed_dim={a.embed_dim} is not divisible by heads={a.heads}"
    elif a.image_size % a.patch_size:
        fault = f"image_size={a.image_size} is not a multiple of patch_size={a.patch_size}"
    elif position not in ("dino_v1", "exact"):
        fault = f"position={position!r}; expected 'dino_v1' or 'exact'"
    if fault:
        raise ValueError(f"build({name!r}): {fault}")


def pool_tokens(tokens: Tensor, used: Tensor | None, pool: Pool, head: nn.Module | None = None) -> Tensor:
    """Return the embedding of each sample from its tokens.

    Parameters
    ----------
    tokens
        As `VisionTransformer.forward_tokens` gives them, the class token first, (B, 1 + N, D).
    used
        Tokens that hold data, bool, (B, N); None, or none of a sample: all of them count.
    pool
        ``"class"`` takes the class token, ``"mean"`` the mean of the other tokens that hold data, ``"mean+std"`` their
        mean and then their standard deviation, ``"class+mean"`` the class token and then the mean, ``"projection"``
        what ``head`` makes of the mean and the standard deviation.
    head
        A `ContrastHead`, for ``"projection"``.

    Returns
    -------
    (B, D), with two parts (B, 2 D), with ``"projection"`` unit vectors; float32.
    """
    if pool == "projection":
        assert head is not None
        return cast(Tensor, head(pool_tokens(tokens, used, "mean+std")))
    tokens = tokens.float()
    if pool == "class":
        return tokens[:, 0]
    rest = tokens[:, 1:]
    weight = (
        rest.new_ones(rest.shape[:2]) if used is None else torch.where(used.any(1, keepdim=True), used, True)
    )
    weight = (weight / weight.sum(1, keepdim=True))[..., None]
    mean = (rest * weight).sum(1)
    if pool == "mean":
        return mean
    if pool == "class+mean":
        return torch.cat([tokens[:, 0], mean], dim=1)
    variance = ((rest - mean[:, None]).square() * weight).sum(1)
    # The root has no gradient at zero, where all tokens are equal.
    return torch.cat([mean, (variance + _EPS).sqrt()], dim=1)


def initialize_linear(module: nn.Module) -> None:
    """Initialize linear maps as DINO does; convolutions keep the initialization of torch."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _flat(mask: Tensor, name: str, batch: int, tokens: int) -> Tensor:
    flat = mask.flatten(1)
    if flat.shape != (batch, tokens) or flat.dtype != torch.bool:
        raise ValueError(
            f"{name}: expected bool of shape ({batch}, {tokens}), got {mask.dtype} {tuple(mask.shape)}"
        )
    return flat
