"""Programs started as a person starts them: bad input, exit statuses, help, cache, phases."""

import os
import pathlib
import resource
import subprocess
import sys
import time

import pytest

from agenticrec_jax.cli import app
from agenticrec_jax.errors import InputError
from agenticrec_jax.runs.plugins import import_path
from agenticrec_jax.runtime.phases import phase, phase_records
from agenticrec_jax.testing.errors import refused

ROOT = pathlib.Path(app.__file__).parents[2]
PROGRAM = '''
"""Counts to a number."""
from absl import flags
from ml_collections import config_flags
from agenticrec_jax.errors import InputError, Terminated
from agenticrec_jax.cli import app

PRESET = flags.DEFINE_enum("preset", "quick", ["quick", "full"], "How long.")
COUNT = flags.DEFINE_integer("count", 3, "How far.", lower_bound=1)
CONFIG = config_flags.DEFINE_config_file("config", None, "Settings.")

def main(argv):
    if COUNT.value == 7:
        raise InputError("items.csv, line 3, field item_id: found nothing, expected an id.")
    if COUNT.value == 8:
        raise KeyboardInterrupt
    if COUNT.value == 11:
        raise Terminated("stage rta: stopped by SIGTERM, step 3 is saved; the same command goes on")
    if COUNT.value == 9:
        raise RuntimeError("a fault of ours")
    if COUNT.value == 12:
        print("caf\\xe9 \\udcff", len(argv))
        return
    import jax
    print("cache", jax.config.jax_compilation_cache_dir)
    if COUNT.value == 10:
        def slow_to_compile(x):
            for _ in range(200):
                x = jax.lax.sort(x @ x + 1)
            return x
        jax.jit(slow_to_compile)(jax.numpy.ones((8, 8)))

if __name__ == "__main__":
    app.run(main)
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    directory = tmp_path_factory.mktemp("program")
    (directory / "counts.py").write_text(PROGRAM)
    (directory / "good.py").write_text(
        "from ml_collections import config_dict\n"
        "def get_config():\n    return config_dict.ConfigDict({'rate': 1.0})\n"
    )
    (directory / "bad.py").write_text("def get_config():\n    raise ValueError('rate below 0')\n")
    return directory


def start(program, *arguments, **variables):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables
    return subprocess.run(
        [sys.executable, "counts.py", *arguments],
        cwd=program,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count=7"], "items.csv, line 3, field item_id"),
        (["--preset=fulll"], "--preset=fulll: value should be one of <quick|full>"),
        (["--count=0"], "--count=0: 0 is not a positive integer"),
        (["--presett=full"], "'presett'. Did you mean: preset ?"),
        (["full"], "'full'"),
        (["--config=none.py"], "--config: found no file 'none.py'"),
        (
            ["--config=bad.py"],
            "--config=bad.py: Error whilst parsing config file: ValueError: rate",
        ),
        (["--config=good.py", "--config.ratee=2"], "--config: no setting 'ratee' Did you mean"),
        (["--config=good.py", "--config.rate=x"], "--config.rate=x: could not convert"),
        (["--compilation_cache=/proc/no"], "--compilation_cache: found '/proc/no'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_status_2(program, arguments, said):
    ended = start(program, *arguments)
    assert ended.returncode == app.BAD_INPUT
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("error: ")
    assert said in ended.stderr


def test_an_interrupt_ends_quietly_and_a_fault_of_ours_keeps_its_traceback(program):
    ended = start(program, "--count=8")
    assert (ended.returncode, ended.stderr) == (app.INTERRUPTED, "error: interrupted.\n")
    fault = start(program, "--count=9")
    assert fault.returncode == 1 and "Traceback" in fault.stderr


def test_a_run_that_sigterm_ended_says_where_it_stands_and_asks_to_be_started_again(program):
    ended = start(program, "--count=11")
    assert (ended.returncode, ended.stderr) == (app.TERMINATED, "")
    assert ended.stdout.endswith("stopped by SIGTERM, step 3 is saved; the same command goes on\n")


@pytest.mark.parametrize(("output", "status"), [("> /dev/full", 2), ("| true", 2), (">&-", 0)])
def test_an_output_that_cannot_be_written_is_one_sentence(program, output, status):
    command = f"set -o pipefail; {sys.executable} counts.py --count=12 {output}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", "-c", command], cwd=program, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == status and len(ended.stderr.splitlines()) == (status == 2)


def test_text_of_any_script_is_printed_on_a_terminal_of_ascii(program):
    ended = start(program, "--count=12", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "caf\\xe9 \\udcff 1\n"


def test_help_says_what_the_program_does_and_succeeds(program):
    ended = start(program, "--help")
    assert ended.returncode == 0
    assert "Counts to a number." in ended.stdout and "--preset" in ended.stdout


def test_a_default_cache_that_cannot_be_made_only_slows_a_run(program):
    """As in a container, whose home may be read only; a directory that the flag names is needed."""
    ended = start(program, HOME="/proc")
    assert ended.returncode == 0 and "no cache" in ended.stderr and "/proc" in ended.stderr
    ended = start(program, "--compilation_cache=/proc/none")
    assert ended.returncode == 2 and "--compilation_cache" in ended.stderr


def test_the_compilation_cache_is_filled(program, tmp_path):
    ended = start(program, "--count=10", f"--compilation_cache={tmp_path / 'xla'}")
    assert ended.returncode == 0, ended.stderr
    assert f"cache {tmp_path / 'xla'}" in ended.stdout
    assert any("slow_to_compile" in file.name for file in (tmp_path / "xla").iterdir())
    none = start(program, "--compilation_cache=")
    assert none.returncode == 0 and "cache None" in none.stdout


@pytest.mark.parametrize("when", ["first", "after a higher peak"])
def test_a_phase_records_wall_cpu_and_its_own_peak_memory(when):
    before = len(phase_records())
    if when != "first":
        higher = bytearray(b"x") * (400 * 2**20)
        del higher
    with phase("outer", quiet=True):
        with phase("large", quiet=True):
            block = bytearray(200 * 2**20)
            block[:: 2**12] = b"x" * len(block[:: 2**12])
            time.sleep(0.3)  # it may not be the process's highest so far: then it is sampled
            del block
        with phase("small", quiet=True):
            time.sleep(0.05)
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    large, small, outer = phase_records()[before:]
    assert [large["name"], small["name"], outer["name"]] == ["large", "small", "outer"]
    assert large["peak_mb"] > small["peak_mb"] + 150
    assert outer["peak_mb"] >= large["peak_mb"]
    assert small["wall_s"] >= 0.05 > small["cpu_s"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 >= large["peak_mb"] - 1
    assert outer["cpu_s"] >= 0.2 and outer["wall_s"] >= large["wall_s"] + small["wall_s"]


def test_the_cpu_time_of_ended_children_counts(capfd):
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    with phase("child") as record:
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert record["cpu_s"] >= 0.4
    printed = capfd.readouterr().out.splitlines()
    assert printed[0] == "== child" and printed[1].startswith("== child: ")


def test_a_phase_that_fails_is_still_recorded():
    with pytest.raises(RuntimeError), phase("fails", quiet=True):
        raise RuntimeError
    assert phase_records()[-1]["name"] == "fails"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def tool(:\n", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("raise RuntimeError('no\\nkey')\n", "RuntimeError: no key"),
        ("import not_there_at_all\n", "ModuleNotFoundError: No module named 'not_there_at_all'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_its_error(
    tmp_path, monkeypatch, code, error
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(InputError) as caught:
        import_path("broken:Tool", "config.tools.extra", "class")
    expected = f"expected a module that can be imported ({error})"
    assert str(caught.value) == f"config.tools.extra: found 'broken:Tool', {expected}"
    assert type(caught.value.__cause__).__name__ == error.partition(":")[0]


@pytest.mark.parametrize("names", [[], ["train"], ["test", "test"], [""]])
def test_a_list_flag_has_different_known_names(names):
    known = ("policy", "valid", "test")
    assert app.some_of("parts", ["test", "policy"], known) == ["test", "policy"]
    said = refused(app.some_of, "parts", names, known)
    assert f"flag --parts: found {','.join(names)!r}, expected some of policy, valid" in said
