"""A checkpoint as a function from inputs to vectors. Inputs are decoded, masked and magnified as in training."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gridrad_cube.datasets import Normalization, decode, decode_grids
from gridrad_cube.models import (
    Pool,
    fingerprint,
    load_backbone,
    load_checkpoint,
    load_contrast_head,
    pool_tokens,
    token_coverage,
    whole_view,
)
from gridrad_cube.schema import SchemaError

#: Values of a batch as the network reads them, tokens that hold data (B, N), and the mask to pass on by name.
_Input = tuple[Tensor, Tensor, dict[str, Tensor | None]]


class Network:
    """The trained network of a checkpoint, and how its inputs were treated in training.

    Parameters
    ----------
    path
        Path of the checkpoint: of this program, of the predecessor, or a bare state dict.
    key
        Which network: ``teacher`` or ``student``.
    pool
        See `gridrad_cube.embedding.embed`.

    Attributes
    ----------
    level
        ``"256"`` if it reads patches, ``"2k"`` if it reads grids of embeddings.
    fingerprint
        Identity of the weights.
    model
        Config of the network, which `gridrad_cube.models.build` takes.
    features
        Length of an embedding.
    trained
        How training treated the inputs, by name: ``path`` and ``level``; ``channels`` (labels; None in checkpoints of
        the predecessor, which do not say); ``stacked``, whether all channels are read at once; ``in_channels``;
        ``token``, edge of a token; ``coarsen``, edge of the blocks of pixels that are averaged first;
        ``magnification``, view pixels per pixel; ``view``; ``normalization`` (None if the checkpoint has none);
        ``reject``, the flags that were left out; ``store``, what the checkpoint says of the store; ``orientation``,
        how crops were turned (None of checkpoints that do not say, whose inputs were as stored).

    Raises
    ------
    FileNotFoundError, SchemaError
        If there is no such file, or its weights are not exactly those of the network that it describes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: str = "teacher",
        pool: Pool | Literal["auto"] = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        self.path, self.device = os.fspath(path), torch.device(device)
        checkpoint = load_checkpoint(path)
        self.pool: Pool = checkpoint.get("pool", "class") if pool == "auto" else pool
        if self.pool not in get_args(Pool):
            raise SchemaError(f"pool: got {self.pool!r}; expected auto or one of {get_args(Pool)}")
        try:
            backbone = load_backbone(checkpoint, key)
        except SchemaError as error:
            raise SchemaError(f"{self.path}: {str(error).removeprefix('checkpoint: ')}") from error
        self.level = "2k" if backbone.architecture.cells else "256"
        if str(checkpoint.get("level", self.level)) != self.level:
            raise SchemaError(
                f"{self.path}: says level {checkpoint['level']}, but its network {backbone.name} is one of level "
                f"{self.level}. The file was altered; take another checkpoint."
            )
        state, self.head = backbone.state_dict(), None
        self.features = backbone.embed_dim * (2 if "+" in self.pool else 1)
        if self.pool == "projection":
            self.head = load_contrast_head(checkpoint, key)
            if self.head is None:
                raise SchemaError(
                    f"{self.path}: pool 'projection' is the head of the contrast, and this network was trained without "
                    "it. Pass `pool='mean+std'`, or a checkpoint of `objective='contrast'`."
                )
            self.features = self.head.out_dim
            state |= {f"contrast_head.{name}": value for name, value in self.head.state_dict().items()}
            self.head.to(self.device)
        self.fingerprint = fingerprint(state)
        self.backbone, self.model = backbone.to(self.device), backbone.config()
        self.trained = self._describe(checkpoint)

    def _describe(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a checkpoint says of its inputs; checkpoints of the predecessor say nothing."""
        planes = self.backbone.architecture.in_channels
        view, config = checkpoint.get("view") or {}, checkpoint.get("config")
        zoomed = view.get("mode", "zoom") == "zoom"  # other views are resized at random
        return {
            "path": self.path, "level": self.level, "channels": checkpoint.get("channels"),
            "stacked": checkpoint.get("channel_mode", "each" if planes == 1 else "stack") == "stack",
            "in_channels": planes, "token": self.backbone.patch_size, "coarsen": int(checkpoint.get("coarsen", 1)),
            "magnification": float(view.get("magnification", 1.0)) if zoomed else 1.0, "view": dict(view),
            "normalization": checkpoint.get("normalization"),
            "reject": config.get("reject") if isinstance(config, Mapping) else None,
            "store": checkpoint.get("store") or {}, "orientation": checkpoint.get("orientation"),
        }  # fmt: skip

    def embed(self, *batch: Any) -> np.ndarray:
        """Embed a batch.

        Parameters
        ----------
        *batch
            As ``batches`` of `PatchInput` and `GridInput` give it. Level 256: packed patches (B, C, patch,
            patch),
            which of the rules each sample takes (B,), and the rules of normalization. Level 2k: grids of
            embeddings
            (B, rows, cols, D), cells that take part (B, rows, cols), and ``mean`` and ``std`` of the D
            features.

        Returns
        -------
        float32, (B, features).
        """
        with torch.inference_mode():
            return self._pool(*self._read(*batch))

    def attend(self, *batch: Any) -> np.ndarray:
        """Return the attention of the class token in the last block.

        Parameters
        ----------
        *batch
            As for `embed`.

        Returns
        -------
        float32, (B, heads, tokens down, tokens across).
        """
        with torch.inference_mode():
            values, _, mask = self._read(*batch)
            weights = self.backbone.get_last_selfattention(values, **mask)
        tokens = [edge // self.backbone.patch_size for edge in values.shape[-2:]]
        return np.asarray(weights[:, :, 0, 1:].unflatten(2, tokens).float().cpu().numpy())

    def _read(self, *batch: Any) -> _Input:
        return self._field(*batch) if self.level == "256" else self._grid(*batch)

    def _field(self, codes: np.ndarray, channel: np.ndarray, rules: Sequence[Normalization]) -> _Input:
        packed = torch.from_numpy(codes).to(self.device)
        which = torch.from_numpy(np.asarray(channel, np.int64)).to(self.device)
        values, valid = decode(packed, which, rules, coarsen=self.trained["coarsen"])
        fill: Any
        if self.backbone.stem is not None:
            fill = math.nan  # local maps leave missing pixels out
        elif values.shape[1] > 1:  # one for all channels of a stack, as in training
            fill = float(self.trained["view"].get("fill", rules[0].fill))
        else:
            fill = torch.tensor([rule.fill for rule in rules], device=values.device)[which]
        # The whole field as one view, without anything random.
        values, seen = whole_view(values, valid, self.trained["magnification"], fill)
        tokens = token_coverage(seen, self.backbone.patch_size) >= 0.5
        return values, tokens, {"token_mask": None if self.backbone.mask_token is None else ~tokens}

    def _grid(self, codes: np.ndarray, cells: np.ndarray, normalization: Mapping[str, Any]) -> _Input:
        grid = torch.from_numpy(codes).to(self.device).permute(0, 3, 1, 2)
        values, kept = decode_grids(grid, torch.from_numpy(cells).to(self.device), normalization)
        return values, kept.flatten(1), {"attention_mask": kept}

    def _pool(self, values: Tensor, used: Tensor, mask: dict[str, Tensor | None]) -> np.ndarray:
        """Return the embedding from the tokens."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            tokens = self.backbone.forward_tokens(values, **mask)
        vectors = pool_tokens(tokens, used, self.pool, self.head).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise SchemaError(
                f"{self.path}: its network gives values that are not finite for finite inputs; its weights are broken. "
                "Take another checkpoint."
            )
        return np.asarray(vectors)
