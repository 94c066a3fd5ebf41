"""The PyTorch side of ``experiments.benchmarks.sasrec`` (see ``peer_loop``): SASRec in one file.

``PYTHON sasrec_torch.py THREADS``; needs torch alone. The model is SASRec with PyTorch's own
encoder layers and a softmax over the catalog at the places that have a target, Adam at 1e-3,
dropout 0.2, 2 heads and batches of 64: what one writes who has an afternoon. Padding is an item of
zeros that is attended to.
"""

import sys

import torch
from peer_loop import Stopwatch, serve
from torch import nn

RATE, DROPOUT, HEADS, BATCH = 1e-3, 0.2, 2, 64


class Network(nn.Module):
    """Codes [B, L], right-aligned with -1 before them, to states [B, L, width]."""

    def __init__(self, items: int, length: int, width: int, blocks: int):
        super().__init__()
        self.items = nn.Embedding(items + 1, width, padding_idx=items)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, HEADS, width, DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, blocks, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        self.register_buffer("causal", torch.ones(length, length, dtype=torch.bool).triu(1))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        padding = self.items.num_embeddings - 1
        embedded = self.items(torch.where(codes < 0, padding, codes)) + self.places.weight
        return self.encoder(self.dropout(embedded), mask=self.causal)

    @property
    def table(self) -> torch.Tensor:
        return self.items.weight[:-1]


class Peer:
    """A network that is made, trained pass by pass and asked for ranks."""

    def versions(self) -> dict:
        """Who is compared with."""
        return {"torch": torch.__version__}

    def start(self, windows: list, items: int, width: int, blocks: int, seed: int) -> dict:
        """A network for ``windows`` [W][L + 1] of codes, with -1 before the first."""
        torch.manual_seed(seed)
        self.windows = torch.tensor(windows)
        self.network = Network(items, self.windows.shape[1] - 1, width, blocks)
        self.optimizer = torch.optim.Adam(self.network.parameters(), RATE)
        return {}

    def train(self, passes: int) -> dict:
        """Passes over all windows in random order."""
        self.network.train()
        with Stopwatch() as watch:
            for _ in range(passes):
                for rows in torch.randperm(len(self.windows)).split(BATCH):
                    loss = self._step(self.windows[rows])
        return watch.took | {"loss": loss}

    def _step(self, windows: torch.Tensor) -> float:
        inputs, targets = windows[:, :-1], windows[:, 1:]
        found = inputs >= 0
        logits = self.network(inputs)[found] @ self.network.table.T
        loss = nn.functional.cross_entropy(logits, targets[found])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @torch.inference_mode()
    def ranks(self, histories: list, targets: list, seen: list, negatives: list) -> dict:
        """Ranks of ``targets`` after ``histories`` [U][L]: ``kept``, ``masked``, ``sampled``.

        ``seconds`` are those of the states and the ranks with the seen items kept.
        """
        self.network.eval()
        histories, targets = torch.tensor(histories), torch.tensor(targets)[:, None]
        with Stopwatch() as watch:
            scores = self.network(histories)[:, -1] @ self.network.table.T
            own = scores.gather(1, targets)
            kept = scores.shape[1] - (own > scores).sum(1)
        drawn = scores.gather(1, torch.tensor(negatives))
        for row, items in zip(scores, seen, strict=True):
            row[items] = -torch.inf
        masked = (scores >= own).sum(1)  # the target too, which nobody took before
        sampled = 1 + (drawn >= own).sum(1)
        found = {"kept": kept, "masked": masked, "sampled": sampled}
        return watch.took | {name: ranks.tolist() for name, ranks in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve(Peer)
