"""Each sub-command at its smallest, and what it says about mistakes."""

import pytest

from dyn_jax import cli


def test_list_prints_every_name(capsys):
    assert cli.main(["list"]) == 0
    assert "skipnet-rl-rnn-110-cifar10" in capsys.readouterr().out.split()


def test_unknown_network_names_the_nearest(capsys, tmp_path):
    assert cli.main(["train", "skipnet-digit", "--output", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "skipnet-digit" in error and "skipnet-digits" in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", ["0", "-3"])
def test_demo_refuses_no_examples(capsys, count):
    assert cli.main(["demo", f"--examples={count}"]) == 2
    assert "examples" in capsys.readouterr().err
