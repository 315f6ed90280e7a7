"""STAR, the memory of Flash-VStream: the present and key frames in full, clusters of the past, an abstract of all.

Source: Flash-VStream (arXiv 2406.08085), "Spatial, Temporal, Abstract, Retrieved" memory. From the paper: newest frames
at full size; weighted k-means centroids at a smaller size, weights carried; key frames at full size, one for each of
the heaviest clusters, nearest to its centroid; a few abstract tokens of everything. Our decisions:

- A frame that comes to full clusters makes one point too many. k-means of N + 1 weighted points into N clusters has an
  exact solution: the two points merge whose merging adds least to the squared distances, wa wb / (wa + wb) |a - b|^2.
  It is taken instead of Lloyd's iterations from random starts. Distances are those of mean tokens, in fp32.
- A cluster keeps one frame at full size, the one of its members whose mean is nearest to the centroid, as far as it
  still has them: of the two that a merge brings, the nearer (on a tie the newer) stays.
- In a reading a frame's index stands once: a key frame is shown instead of its centroid, not beside it.
- The abstract tokens come from trained attention in the paper; here they are a decaying average of a small grid. The
  abstract runs one frame ahead of the clusters, so that it has an index of its own: that of the newest frame that is
  no longer shown in full. This one frame is seen in the abstract alone until the next one comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge, Le

from videochat_online.errors import InputError
from videochat_online.memory.merging import MergingStore
from videochat_online.memory.options import HALF, QUARTER, MemoryOptions
from videochat_online.memory.pooling import pool_to_grid
from videochat_online.memory.schedule import Count, Grid, check_grids, coarser_grid
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
from videochat_online.types import FrameTokens

_CLEARLY = 1e-3
"""Part of the distance by which a key frame must be nearer to count as nearer."""


class StarMemoryBank(TieredMemoryBank):
    """Newest frames, key frames, clusters and an abstract of the stream.

    A centroid has its newest member's index and time; whatever is pooled, merged or averaged gets a new, negative
    content id, a key frame keeps its own.

    Budget: `newest_frames + key_frames` frames on the first grid, `cluster_frames - key_frames` on the second, and one
    on the third. Beyond the budget, which is about what is read, each cluster keeps a frame at full size.

    Raises:
        InputError: a number out of its range, more key frames than clusters, or grids that are not three from large to
            small.
    """

    kind = "star"

    @dataclass(frozen=True, kw_only=True)
    class Options(MemoryOptions):
        """Options of the memory."""

        newest_frames: Count = option(1, "newest frames, full size")
        key_frames: Annotated[int, Ge(0)] = option(3, "key frames, full size: of the heaviest clusters")
        cluster_frames: Count = option(25, "clusters")
        abstract_decay: Annotated[float, Ge(0), Le(1)] = option(
            0.9, "share of the abstract that stays when a frame joins it"
        )
        grids: tuple[Grid, Grid, Grid] | None = option(
            None,
            "token grid of newest and key frames, of centroids, and of the abstract; None: full, half, quarter",
            from_model=True,
        )

        @classmethod
        def sizes_within(cls, budget: float, given: Mapping[str, Any]) -> dict[str, int]:
            """Key frames as published, fewer where the budget is small; centroids of a quarter of the tokens."""
            newest = given.get("newest_frames", cls.newest_frames)
            keys = given.get("key_frames", max(0, min(cls.key_frames, int((budget - newest) / 2))))
            centroids = int((budget - newest - keys - QUARTER) / HALF)
            return {"newest_frames": newest, "key_frames": keys, "cluster_frames": keys + centroids}

    options: Options

    def _prepare(self) -> dict[str, Any]:
        options = self.options
        if options.key_frames > options.cluster_frames:
            raise InputError(
                f"key_frames of a star memory: expected at most one for each of the {options.cluster_frames} clusters, "
                f"got {options.key_frames}"
            )
        defaults = (self.full_grid, coarser_grid(self.full_grid, 2), coarser_grid(self.full_grid, 4))
        self._grids = defaults if options.grids is None else check_grids(options.grids, "grids of a star memory")
        if len(self._grids) != 3:
            raise InputError(f"grids of a star memory: expected three, got {self._grids}")
        return {"grids": self._grids}

    @property
    def max_tokens(self) -> int:
        """Hard budget of visual tokens that `read` never exceeds."""
        full, half, least = (rows * columns for rows, columns in self._grids)
        num_centroids = self.options.cluster_frames - self.options.key_frames
        return (self.options.newest_frames + self.options.key_frames) * full + num_centroids * half + least

    def read(self) -> tuple[FrameTokens, ...]:
        """Return copies in time order: newest frames, abstract, key frames, the other centroids."""
        newest, _, _, keys, abstract = self.stores
        weights = self._clusters.numbers
        by_weight = sorted(range(len(weights)), key=lambda cluster: (weights[cluster], cluster), reverse=True)
        heaviest = by_weight[: self.options.key_frames]
        with torch.no_grad():
            # Of the full-size frames only those that are shown are copied.
            past = [
                cast(MergingStore, keys if cluster in heaviest else self._clusters).frame(cluster)
                for cluster in range(len(weights))
            ]
            present = [*newest.frames(), *abstract.frames()]
        return tuple(sorted([*present, *past], key=lambda frame: frame.index))

    def _check_restored(self) -> None:
        num_clusters, num_keys = len(self._clusters), len(self.stores[3])
        if num_clusters != num_keys:
            raise InputError(f"memory state: expected a key frame for each cluster, got {num_keys} for {num_clusters}")
        super()._check_restored()

    def _stores_in_order(self) -> list[FrameStore]:
        return [*self.stores[:3], self.stores[4]]  # a key frame may be any of its cluster's

    @property
    def _clusters(self) -> MergingStore:
        return cast(MergingStore, self.stores[2])

    def _empty_stores(self) -> list[FrameStore]:
        full, half, least = self._grids
        return [
            FrameStore(self.options.newest_frames, full),
            FrameStore(1, full),  # on its way to the clusters
            MergingStore(self.options.cluster_frames, half),
            MergingStore(self.options.cluster_frames, full),  # the key frame of each cluster, in their order
            FrameStore(1, least),
        ]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        newest, passing = self.stores[:2]
        fitted = self._fit(frame, newest)
        if newest.is_full:
            if len(passing):
                self._cluster(passing.remove(0))
            past = newest.remove(0)
            self._summarize(past)
            passing.insert(0, past)
        newest.insert(len(newest), fitted)

    def _summarize(self, frame: FrameTokens) -> None:
        """Take a frame into the abstract."""
        store = self.stores[4]
        tokens_CHW = pool_to_grid(frame.tokens_CHW, store.grid)
        if len(store):
            old_CHW = store.remove(0).tokens_CHW.float()
            mixed_CHW = old_CHW + (tokens_CHW.to(old_CHW) - old_CHW) * (1 - self.options.abstract_decay)
            tokens_CHW = mixed_CHW.to(store.slots.dtype)
        store.insert(0, replace(frame, tokens_CHW=tokens_CHW, content_id=self._new_content_id()))

    def _cluster(self, frame: FrameTokens) -> None:
        """Make a frame a cluster of its own, and merge the two nearest clusters if that is one too many."""
        clusters, keys = self._clusters, cast(MergingStore, self.stores[3])
        small_CHW = pool_to_grid(frame.tokens_CHW, clusters.grid)
        clusters.insert(len(clusters), replace(frame, tokens_CHW=small_CHW, content_id=self._new_content_id()))
        keys.insert(len(keys), frame)
        if not clusters.is_overfull:
            return
        older, newer = self._nearest_pair()
        clusters.merge(older, newer, self._new_content_id())
        means_NC, centroid_C = keys.means(), clusters.means()[newer - 1]
        older_away, newer_away = ((means_NC[key] - centroid_C).square().sum() for key in (older, newer))
        # Two single frames are equally far from their average: rounding must not choose.
        if float(older_away) < float(newer_away) * (1 - _CLEARLY):
            keys.remove(newer)
            keys.insert(newer - 1, keys.remove(older))
        else:
            keys.remove(older)

    def _nearest_pair(self) -> tuple[int, int]:
        """The clusters whose merging adds least to the weighted squared distances; on a tie the earliest pair."""
        means_NC = self._clusters.means()
        weights_N = torch.tensor(self._clusters.numbers, dtype=torch.float32, device=means_NC.device)
        # Differences rather than products of the means, which cancel where clusters are close.
        distances_NN = torch.stack([(means_NC - mean_C).square().sum(1) for mean_C in means_NC])
        costs_NN = distances_NN * (weights_N * weights_N[:, None] / (weights_N + weights_N[:, None]))
        costs_NN = costs_NN.masked_fill(torch.ones_like(costs_NN).tril() > 0, torch.inf)
        return divmod(int(costs_NN.argmin()), len(means_NC))
