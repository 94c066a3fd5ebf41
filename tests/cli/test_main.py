"""The console script: every program by its name."""

import sys

import pytest

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli import main


def test_the_programs_are_those_of_the_folder():
    assert set(main.jobs()) == {
        path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__"
    }
    assert {"quickstart", "train_policy", "evaluate", "recommend"} <= set(main.jobs())


def test_without_a_job_all_are_listed_with_their_first_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["agenticrec"])
    main.main()
    printed = capsys.readouterr().out
    assert "train_policy" in printed and "Trains a policy, stage by stage." in printed


def test_an_unknown_job_is_refused_with_status_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["agenticrec", "trian"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    sentence = capsys.readouterr().err
    assert "'trian'" in sentence and "train_policy" in sentence


def test_modules_in_the_current_directory_can_be_imported(monkeypatch, tmp_path, capsys):
    """As with ``python -m``: the tools, rewards and losses that settings name lie there."""
    (tmp_path / "programs").mkdir()
    program = tmp_path / "programs" / "uses.py"
    program.write_text("import module_of_a_user\nprint(module_of_a_user.NAME)\n")
    (tmp_path / "module_of_a_user.py").write_text("NAME = 'mine'\n")
    monkeypatch.setattr(main, "DIRECTORY", program.parent)
    monkeypatch.setattr("sys.argv", ["agenticrec", "uses"])
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    main.main()
    monkeypatch.delitem(sys.modules, "module_of_a_user")
    assert capsys.readouterr().out == "mine\n"


def test_a_job_runs_with_its_flags(monkeypatch, tmp_path, capsys):
    program = tmp_path / "echo.py"
    program.write_text("import sys\nif __name__ == '__main__':\n    print(*sys.argv)\n")
    monkeypatch.setattr(main, "DIRECTORY", tmp_path)
    monkeypatch.setattr("sys.argv", ["agenticrec", "echo", "--seed=3"])
    monkeypatch.setattr("sys.path", [*sys.path])
    main.main()
    assert capsys.readouterr().out == f"{program} --seed=3\n"
