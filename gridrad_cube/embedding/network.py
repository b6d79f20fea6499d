"""A checkpoint as a function from inputs to vectors: decoded, masked and magnified as in training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gridrad_cube.datasets import Normalization, decode, decode_grids
from gridrad_cube.models import (
    fingerprint,
    load_backbone,
    load_checkpoint,
    token_coverage,
    whole_view,
)
from gridrad_cube.schema import SchemaError

#: What becomes the embedding: the class token, the mean of the observed tokens, or one after the other.
Pool = Literal["class", "mean", "class_mean"]


def choose_device(device: str) -> torch.device:
    """The device of this name; ``auto`` takes CUDA where there is one.

    Raises
    ------
    SchemaError
        If there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SchemaError(
            f"device: got {device!r}, which torch cannot use here. Pass device='auto' or 'cpu'."
        ) from error
    return torch.device(device)


class Network:
    """The trained network of a checkpoint, and how its inputs were treated in training.

    Parameters
    ----------
    path
        Of the checkpoint: of this program, of the predecessor, or a bare state dict.
    key
        Which network: ``teacher`` or ``student``.

    Attributes
    ----------
    level
        ``"256"`` if it reads patches, ``"2k"`` if it reads grids of embeddings.
    fingerprint
        Identity of the weights.
    features
        Length of an embedding.

    Raises
    ------
    FileNotFoundError, SchemaError
        If there is no such file, or its weights are not exactly those of the network it describes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: str = "teacher",
        pool: Pool = "class",
        device: str = "auto",
    ) -> None:
        if pool not in get_args(Pool):
            raise SchemaError(f"pool: got {pool!r}; expected one of {get_args(Pool)}")
        self.path, self.key, self.pool = os.fspath(path), key, pool
        self.device = choose_device(device)
        self.checkpoint: dict[str, Any] = load_checkpoint(path)
        try:
            backbone = load_backbone(self.checkpoint, key)
        except SchemaError as error:
            raise SchemaError(f"{self.path}: {str(error).removeprefix('checkpoint: ')}") from error
        self.level = "2k" if backbone.architecture.cells else "256"
        if str(self.checkpoint.get("level", self.level)) != self.level:
            raise SchemaError(
                f"{self.path}: says level {self.checkpoint['level']}, but its network {backbone.name} is one of "
                f"level {self.level}. The file was altered; take another checkpoint."
            )
        self.fingerprint = fingerprint(backbone.state_dict())
        self.backbone = backbone.to(self.device)
        self.features = backbone.embed_dim * (2 if pool == "class_mean" else 1)
        self.in_channels = backbone.architecture.in_channels

    @property
    def channels(self) -> list[str] | None:
        """Labels that the network was trained on; None in the predecessor's checkpoints, which do not say."""
        return self.checkpoint.get("channels")

    @property
    def stacked(self) -> bool:
        """Whether it reads all of its channels at once."""
        return bool(
            self.checkpoint.get("channel_mode", "each" if self.in_channels == 1 else "stack") == "stack"
        )

    @property
    def coarsen(self) -> int:
        """Edge of the blocks of pixels that are averaged first."""
        return int(self.checkpoint.get("coarsen", 1))

    @property
    def view(self) -> Mapping[str, Any]:
        """How views were drawn in training; empty in the predecessor's checkpoints."""
        return self.checkpoint.get("view") or {}

    @property
    def magnification(self) -> float:
        """View pixels per pixel of a field; 1 where training resized at random."""
        return float(self.view.get("magnification", 1.0)) if self.view.get("mode", "zoom") == "zoom" else 1.0

    @property
    def normalization(self) -> dict[str, Any] | None:
        """As the checkpoint keeps it: label -> dict at level 256, ``mean`` and ``std`` at level 2k."""
        return self.checkpoint.get("normalization")

    def patches(self, codes: np.ndarray, channel: np.ndarray, rules: Sequence[Normalization]) -> np.ndarray:
        """Embed packed patches.

        Parameters
        ----------
        codes
            Shape (B, C, patch, patch).
        channel
            Which of ``rules`` each sample takes, (B,); not used where C is their number.
        rules
            Normalisation of each label.

        Returns
        -------
        float32, (B, features).
        """
        with torch.inference_mode():
            values, tokens, hidden = self._field(codes, channel, rules)
            with self._autocast():
                out = self.backbone.forward_tokens(values, token_mask=hidden)
            return self._pooled(out.float(), tokens)

    def patch_attention(
        self, codes: np.ndarray, channel: np.ndarray, rules: Sequence[Normalization]
    ) -> np.ndarray:
        """What the class token of the last block attends to in packed patches, as `patches` takes them.

        Returns
        -------
        float32, (B, heads, tokens down, tokens across).
        """
        with torch.inference_mode():
            values, _, hidden = self._field(codes, channel, rules)
            weights = self.backbone.get_last_selfattention(values, token_mask=hidden)
            rows, cols = (edge // self.backbone.patch_size for edge in values.shape[-2:])
            return np.asarray(weights[:, :, 0, 1:].unflatten(2, (rows, cols)).float().cpu().numpy())

    def _field(
        self, codes: np.ndarray, channel: np.ndarray, rules: Sequence[Normalization]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Packed patches as the network reads them, which tokens hold data, and which are hidden."""
        packed = torch.from_numpy(codes).to(self.device)
        which = torch.from_numpy(np.asarray(channel, np.int64)).to(self.device)
        values, valid = decode(packed, which, rules, coarsen=self.coarsen)
        values, seen = self._as_seen(values, valid, which, rules)
        tokens = token_coverage(seen, self.backbone.patch_size) >= 0.5
        return values, tokens, None if self.backbone.mask_token is None else ~tokens

    def grids(self, codes: np.ndarray, cells: np.ndarray, normalization: Mapping[str, Any]) -> np.ndarray:
        """Embed grids of embeddings.

        Parameters
        ----------
        codes
            Shape (B, rows, cols, D).
        cells
            Cells that take part, bool, (B, rows, cols).
        normalization
            ``mean`` and ``std`` of the D features.

        Returns
        -------
        float32, (B, features).
        """
        with torch.inference_mode():
            grid = torch.from_numpy(codes).to(self.device).permute(0, 3, 1, 2)
            values, kept = decode_grids(grid, torch.from_numpy(cells).to(self.device), normalization)
            with self._autocast():
                out = self.backbone.forward_tokens(values, attention_mask=kept)
            return self._pooled(out.float(), kept.flatten(1))

    def grid_attention(
        self, codes: np.ndarray, cells: np.ndarray, normalization: Mapping[str, Any]
    ) -> np.ndarray:
        """What the class token of the last block attends to in grids, as `grids` takes them: (B, heads, rows, cols)."""
        with torch.inference_mode():
            grid = torch.from_numpy(codes).to(self.device).permute(0, 3, 1, 2)
            values, kept = decode_grids(grid, torch.from_numpy(cells).to(self.device), normalization)
            weights = self.backbone.get_last_selfattention(values, attention_mask=kept)
            return np.asarray(weights[:, :, 0, 1:].unflatten(2, cells.shape[1:]).float().cpu().numpy())

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)

    def _as_seen(
        self, values: Tensor, valid: Tensor, which: Tensor, rules: Sequence[Normalization]
    ) -> tuple[Tensor, Tensor]:
        """The whole field as one view without anything random, and where it was observed (B, 1, h, w)."""
        if values.shape[1] > 1:  # one for all channels of a stack, as in training
            return whole_view(values, valid, self.magnification, float(self.view.get("fill", rules[0].fill)))
        own = torch.tensor([rule.fill for rule in rules], device=values.device)[which]
        return whole_view(values, valid, self.magnification, own)

    def _pooled(self, tokens: Tensor, used: Tensor) -> np.ndarray:
        """The embedding from all tokens (B, 1 + N, D) and those that hold data (B, N)."""
        parts = [tokens[:, 0]] if self.pool != "mean" else []
        if self.pool != "class":
            weight = torch.where(used.any(1, keepdim=True), used, True).float()[..., None]
            parts.append((tokens[:, 1:] * weight).sum(1) / weight.sum(1))
        vectors = torch.cat(parts, dim=1).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise SchemaError(
                f"{self.path}: its network gives values that are not finite for finite inputs; its weights are broken. "
                "Take another checkpoint."
            )
        return vectors
