"""A small tokenizer in the format of Qwen3's: byte-level BPE, its added tokens, a chat template."""

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer

from agenticrec_jax import strict_json
from agenticrec_jax.agent.chat import function_schemas, instructions, question, tools_section
from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.huggingface import HFTokenizer, read_hf_tokenizer

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end")),
    *(f"<|{name}|>" for name in ("vision_start", "vision_end", "vision_pad")),
    *(f"<|{name}|>" for name in ("image_pad", "video_pad")),
)
NOT_SPECIAL = (
    *("<tool_call>", "</tool_call>"),
    *(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")),
    *("<|repo_name|>", "<|file_sep|>"),
    *("<tool_response>", "</tool_response>", "<think>", "</think>"),
)
# Words with the blank or mark before them, single digits, marks with the end of a line, blanks.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# System turn, tools, user turns, calls and observations, as Qwen3's template renders them.
TEMPLATE = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if system or tools %}{{ '<|im_start|>system\n' + system }}
{%- if tools %}{{ '\n\n' if system }}
{{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}
{{- '\n</tools>\n\nFor each function call, return a json object with function name and ' }}
{{- 'arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' }}
{%- endif %}{{ '<|im_end|>\n' }}{% endif %}
{%- for message in messages if message.role != 'system' %}
{%- if message.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' }}
{{- message.content + '\n</tool_response>' }}
{%- else %}{{ '<|im_start|>' + message.role + '\n' + message.content }}
{%- for call in message.tool_calls or [] %}{{ '\n<tool_call>\n{"name": "' + call.function.name }}
{{- '", "arguments": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}
{%- endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def write_chat_tokenizer(directory: str | Path, lines: Iterable[str], vocab_size: int = 500) -> int:
    """Writes ``tokenizer.json`` and its config for a BPE trained on ``lines``; returns its size.

    Added tokens follow the pieces in Qwen3's order. transformers' ``AutoTokenizer`` loads it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(_SPLIT), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        lines, BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in NOT_SPECIAL])
    directory = Path(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(strict_json.dumps(config), encoding="utf-8")
    return tokenizer.get_vocab_size()


@functools.cache
def chat_tokenizer() -> HFTokenizer:
    """Returns a tokenizer that is trained once, on the titles of `tiny_world` and on prompts."""
    world = tiny_world()
    tools = tools_section(function_schemas(world.toolbox.schemas()))
    words = [instructions(RANK, 20, True), question(RANK), tools] * 4
    with tempfile.TemporaryDirectory() as directory:
        write_chat_tokenizer(directory, [*world.log.items.title, *words], 900)
        return read_hf_tokenizer(directory)
