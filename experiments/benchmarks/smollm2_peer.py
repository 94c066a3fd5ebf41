"""The transformers side of ``experiments.benchmarks.smollm2`` (see ``peer_loop``).

``PYTHON smollm2_peer.py DIRECTORY THREADS``; ``seconds`` are those of the work alone.
"""

import sys
import time

import torch
import transformers
from peer_loop import serve


class Peer:
    """The float32 model of a directory, with a method for each work; ``ids`` are [rows][tokens]."""

    def __init__(self, directory: str):
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(directory, dtype=torch.float32)
        self.model.generation_config.eos_token_id = None  # a row never ends early
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)

    def versions(self) -> dict:
        """Returns the versions of the libraries."""
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def encode(self, text: str) -> dict:
        """Returns the ids of a text."""
        return {"ids": self.tokenizer.encode(text, add_special_tokens=False)}

    @torch.inference_mode()
    def prefill(self, ids: list) -> dict:
        """Computes keys and values of a prompt, and the most likely next token."""
        ids = torch.tensor(ids)
        start = time.perf_counter()
        logits = self.model(ids, use_cache=True, logits_to_keep=1).logits
        best = int(logits[0, -1].argmax())
        return {"seconds": time.perf_counter() - start, "ids": best}

    @torch.inference_mode()
    def decode(self, ids: list, tokens: int) -> dict:
        """Continues greedily by ``tokens``, prefill included."""
        ids = torch.tensor(ids)
        start = time.perf_counter()
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return {
            "seconds": time.perf_counter() - start,
            "ids": out[:, ids.shape[1] :].tolist(),
        }

    def gradient(self, ids: list) -> dict:
        """Computes the mean cross-entropy of every token but the first, and all its gradients."""
        ids = torch.tensor(ids)
        self.model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss = self.model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        seconds = time.perf_counter() - start
        total = sum(float(p.grad.double().square().sum()) for p in self.model.parameters())
        return {"seconds": seconds, "loss": float(loss.detach()), "norm": total**0.5}

    @torch.inference_mode()
    def loss(self, ids: list) -> dict:
        """Computes the mean cross-entropy of every token but the first."""
        ids = torch.tensor(ids)
        return {"loss": float(self.model(ids, labels=ids, use_cache=False).loss)}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    serve(lambda: Peer(sys.argv[1]))
