"""The transformers side of ``experiments.benchmarks.rollout`` (see ``peer_loop``)."""

import json
import sys

import torch
import transformers
from peer_loop import Stopwatch, converse, serve


class Generate:
    """``generate`` on a random policy of a ``shape`` with our fields."""

    def __init__(self, shape: dict, threads: int):
        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        config = transformers.Qwen3Config(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["hidden_size"],
            intermediate_size=shape["intermediate_size"],
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=shape["num_kv_heads"],
            head_dim=shape["head_dim"],
            rms_norm_eps=shape["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
            tie_word_embeddings=shape["tie_word_embeddings"],
            max_position_embeddings=shape["max_position_embeddings"],
        )
        self.model = transformers.Qwen3ForCausalLM(config).float().eval()
        self.model.generation_config.eos_token_id = None  # a row never ends early

    def versions(self) -> dict:
        name = f"transformers {transformers.__version__} on torch {torch.__version__}"
        return {"name": name, "size": self.model.num_parameters()}

    @torch.inference_mode()
    def rollout(
        self, prompts: list, observations: list, new: int, top_p: float, seed: int, **cache
    ) -> dict:
        """Runs conversations of prompts of one length with ``new`` tokens a turn.

        See ``converse``. ``cache``, the sizes of a cache, is not used: the cache grows.
        """
        del cache
        torch.manual_seed(seed)

        def sample(rows: list, turn: int) -> tuple[list, int]:
            ids = torch.tensor(rows)
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=top_p,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
            logprobs = self.model.compute_transition_scores(
                out.sequences, out.logits, normalize_logits=True
            )
            return out.sequences[:, ids.shape[1] :].tolist(), logprobs.numel()

        with Stopwatch() as watch:
            sampled = converse(prompts, observations, sample)
        return watch.took | {"sampled": sampled}


if __name__ == "__main__":
    serve(lambda: Generate(json.loads(sys.argv[1]), int(sys.argv[2])))
