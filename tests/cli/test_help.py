"""Help on terminals of any width: nothing is wider than the terminal."""

import sys

import pytest

from tests.runtime.terminal import cleared, on_terminal

CODE = '''"""{first}

    python -m counts --count=3
    python -m counts --count=3 {many}

{second}
"""
import sys
from absl import flags
from agenticrec_jax.cli import help
from agenticrec_jax.cli.configs import define_config
sys.argv = ["counts", "--help"]
flags.DEFINE_integer("count", 3, "How far. " * 12)
define_config("office")
print(help.help_text(sys.argv, full=False))
'''
FIRST = "Counts to a number of the user's choice, and says each number on the way aloud."
MANY = " ".join(f"--flag_{number}=FILE" for number in range(12))
SECOND = "It ends there. " * 9


@pytest.mark.parametrize("width", [80, 110])
def test_help_fits_the_terminal(width, tmp_path):
    program = tmp_path / "counts"
    program.write_text(CODE.format(first=FIRST, many=MANY, second=SECOND))
    text = on_terminal([sys.executable, "-c", f"exec(open({str(program)!r}).read())"], width)
    lines = cleared(text)
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    assert "    python -m counts --count=3" in lines and "How far. How far." in words
    # The long command is one for a shell: every line of it but the last ends in a backslash.
    start = next(i for i, line in enumerate(lines) if "--flag_0" in line)
    command = "\n".join(lines[start:]).replace("\\\n", " ").split("\n")[0]
    assert command.split()[4:] == MANY.split()
    assert "--config.rta.steps: Updates. (default: 15)" in words
