"""Writes a LoRA adapter of peft, and the results of transformers with it on its base.

No test runs this: the files beside it are committed. To make them again::

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 safetensors
    python tests/oracles/make_lora_oracle.py

``tiny_qwen3_lora`` gets what peft saves of a random adapter on ``tiny_qwen3_untied_hd24``, and
``oracle.safetensors``: input_ids [2, T], logits with the adapter, and of the mean of the logits'
squares the gradient of every factor under its name in the adapter's file.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
BASE = HERE / "tiny_qwen3_untied_hd24"
OUTPUT = HERE / "tiny_qwen3_lora"
TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]


def adapted() -> torch.nn.Module:
    """Returns the base with a random adapter whose B is not zero."""
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(
        BASE, dtype=torch.float32, attn_implementation="eager"
    )
    model = get_peft_model(
        base, LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS, task_type="CAUSAL_LM")
    ).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.05 * torch.randn_like(value))
    return model


def main() -> None:
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = BASE.name
    model.save_pretrained(OUTPUT)
    (OUTPUT / "README.md").unlink(missing_ok=True)  # a card without content
    ids = torch.randint(3, model.config.vocab_size, (2, 17), generator=torch.Generator())
    logits = model(input_ids=ids).logits
    logits.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients = get_peft_model_state_dict(model, state_dict=gradients)
    tensors = {"input_ids": ids, "logits": logits.detach()}
    tensors |= {f"grad.{name}": value.contiguous() for name, value in gradients.items()}
    save_file(tensors, OUTPUT / "oracle.safetensors")
    print(OUTPUT, *sorted(tensors)[:3], logits.abs().max().item())


if __name__ == "__main__":
    main()
