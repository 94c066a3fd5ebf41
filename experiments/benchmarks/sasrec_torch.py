"""The PyTorch side of ``experiments.benchmarks.sasrec`` (see ``peer_loop``): SASRec in one file.

``PYTHON sasrec_torch.py THREADS`` needs torch only. The model is what one writes in an afternoon:
SASRec with PyTorch's encoder layers and a softmax over the catalog at the positions with a target,
Adam at 1e-3, dropout 0.2, 2 heads and batches of 64. Padding is an item of zeros that is attended
to.
"""

import sys

import torch
from peer_loop import Stopwatch, serve
from torch import nn

RATE = 1e-3
DROPOUT = 0.2
HEADS = 2
BATCH = 64


class Network(nn.Module):
    """Maps codes [B, T], right-aligned with -1 before them, to states [B, T, D]."""

    def __init__(self, items: int, length: int, width: int, blocks: int):
        super().__init__()
        self.items = nn.Embedding(items + 1, width, padding_idx=items)
        self.positions = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, HEADS, width, DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, blocks, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.register_buffer("causal", torch.ones(length, length, dtype=torch.bool).triu(1))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        padding = self.items.num_embeddings - 1
        embedded = self.items(torch.where(codes < 0, padding, codes)) + self.positions.weight
        return self.encoder(self.dropout(embedded), mask=self.causal)

    @property
    def table(self) -> torch.Tensor:
        return self.items.weight[:-1]


class Peer:
    """A network that is trained in passes and ranks items."""

    def versions(self) -> dict:
        """Returns the version of the library."""
        return {"torch": torch.__version__}

    def start(self, windows: list, items: int, width: int, blocks: int, seed: int) -> dict:
        """Makes a network for ``windows`` [U][T + 1] of codes, with -1 before the first."""
        torch.manual_seed(seed)
        self.windows = torch.tensor(windows)
        self.network = Network(items, self.windows.shape[1] - 1, width, blocks)
        self.optimizer = torch.optim.Adam(self.network.parameters(), RATE)
        return {}

    def train(self, passes: int) -> dict:
        """Runs passes over all windows in random order."""
        self.network.train()
        with Stopwatch() as watch:
            for _ in range(passes):
                for rows in torch.randperm(len(self.windows)).split(BATCH):
                    loss = self._step(self.windows[rows])
        return watch.took | {"loss": loss}

    def _step(self, windows: torch.Tensor) -> float:
        inputs = windows[:, :-1]
        targets = windows[:, 1:]
        mask = inputs >= 0
        logits = self.network(inputs)[mask] @ self.network.table.T
        loss = nn.functional.cross_entropy(logits, targets[mask])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @torch.inference_mode()
    def ranks(self, histories: list, targets: list, seen: list, negatives: list) -> dict:
        """Ranks ``targets`` after ``histories`` [U][T]: ``kept``, ``masked`` and ``sampled``.

        ``seconds`` are those of the states and of the ranks with the seen items kept.
        """
        self.network.eval()
        histories = torch.tensor(histories)
        targets = torch.tensor(targets)[:, None]
        with Stopwatch() as watch:
            scores = self.network(histories)[:, -1] @ self.network.table.T
            positive = scores.gather(1, targets)
            kept_ranks = scores.shape[1] - (positive > scores).sum(1)
        drawn = scores.gather(1, torch.tensor(negatives))
        for row, items in zip(scores, seen, strict=True):
            row[items] = -torch.inf
        masked_ranks = (scores >= positive).sum(1)  # counts the target, which was not seen
        sampled_ranks = 1 + (drawn >= positive).sum(1)
        return watch.took | {
            "kept": kept_ranks.tolist(),
            "masked": masked_ranks.tolist(),
            "sampled": sampled_ranks.tolist(),
        }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve(Peer)
