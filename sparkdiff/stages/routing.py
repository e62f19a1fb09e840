"""Stand-in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparkdiff.nodes import Nodes
from sparkdiff.sparse import SparseRows


class Router:
    def __init__(self, nodes: Nodes):
        self.trees, self.leaves = nodes.trees, int(nodes.leaf.sum())
        root = torch.from_numpy(nodes.roots())
        self.left = torch.from_numpy(nodes.leftChild.astype(np.int64)) + root
        self.right = torch.from_numpy(nodes.rightChild.astype(np.int64)) + root
        self.isleaf = torch.from_numpy(nodes.leaf)
        self.number = torch.from_numpy(np.cumsum(nodes.leaf) - 1)
        self.feature = torch.from_numpy(nodes.featureIndex.astype(np.int64)).clamp_min(0)
        self.cont = torch.from_numpy(nodes.continuous)
        self.roots = torch.from_numpy(nodes.offsets[:-1])
        self.nodes = nodes

    def leaf(self, x, thresholds):
        x = x.to_dense() if isinstance(x, SparseRows) else x
        h = torch.full((len(self.nodes),), torch.inf, dtype=torch.float64)
        h[self.cont] = thresholds.detach()
        k = self.roots.expand(len(x), -1)
        while not bool(self.isleaf[k].all()):
            v = x.gather(1, self.feature[k]) if x.shape[1] else x
            nxt = torch.where(v <= h[k], self.left[k], self.right[k])
            k = torch.where(self.isleaf[k], k, nxt)
        return self.number[k].int()

    def total(self, x, thresholds, table: Tensor) -> Tensor:
        return table[self.leaf(x, thresholds).long()].sum(1)
