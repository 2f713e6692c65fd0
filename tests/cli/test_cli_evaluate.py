"""From a name or a file, and images, to a report; and what is said about mistakes in the first second."""

import json

import numpy as np
import pytest
from PIL import Image

from dyn_jax import cli
from dyn_jax.networks.checkpoint import save_variables
from tests.evaluation import toy

pytestmark = pytest.mark.usefixtures("quick_programs")
OWN = """
from tests.evaluation import toy

def net(variables, x, *, occupancy=None):
    return toy.gated(variables["params"], x, occupancy=occupancy)

def make():
    return net

def static(variables, x):
    return toy.static(variables["params"], x)

def one(variables, x):
    return static(variables, x)[:, :1]

def few(variables, x):
    return static(variables, x)[:, :3]
"""
FAST = ["--steps", "3", "--lambdas", "1,8", "--batch-size", "7"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a network of one's own, its weights and images."""
    (tmp_path / "mine.py").write_text(OWN)
    save_variables(tmp_path / "mine.msgpack", {"params": toy.weights()})
    images, labels = toy.data()
    np.savez(tmp_path / "test.npz", image=np.round(images * 255).astype(np.uint8), label=labels)
    monkeypatch.chdir(tmp_path)
    yield ["mine:net", "--weights", "mine.msgpack", "--data", "test.npz"]
    import sys

    sys.modules.pop("mine", None)


def complaint(capsys, argv) -> str:
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("dyn-jax: ") and error.count("\n") == 1
    return error


def test_from_a_file_to_a_report(own, tmp_path, capsys):
    argv = ["evaluate", *own, "--attacks", "fgsm,energy-apgd@straight-through", "--eps", "16/255", "--output", "run"]
    assert cli.main([*argv, *FAST]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"robust {result['robust_acc']} %" in said and "run/report.html" in said
    assert (result["name"], result["dataset"], result["eps"]) == ("mine:net", "test.npz", "16/255")
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert len(list((tmp_path / "run" / "png").glob("*.png"))) == result["broken"] > 0
    page = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    assert cli.main(["report", "run"]) == 0 and (tmp_path / "run" / "report.html").read_bytes() == page
    assert cli.main([*argv, *FAST, "--resume"]) == 0
    assert "eps is" in complaint(capsys, [*argv[:-4], "--eps", "2/255", "--output", "run", *FAST])


def test_one_attack(own, tmp_path, capsys):
    argv = ["attack", "mine:make", *own[1:], "--attack", "bim@soft", "--eps", "16/255", *FAST, "--output", "out.npz"]
    assert cli.main(argv) == 0
    with np.load(tmp_path / "out.npz") as got:
        _, labels = toy.data()
        wrong = np.asarray(toy.gated(toy.weights(), got["adversarial"]).logits).argmax(1) != labels
        np.testing.assert_array_equal(wrong[np.arange(21) != 3], got["success"][np.arange(21) != 3])
    assert "bim@soft" in capsys.readouterr().out
    argv[argv.index("bim@soft")] = " fmn"  # a blank is no other attack; what it finds leaves the ball
    assert cli.main(argv) == 0
    with np.load(tmp_path / "out.npz") as got, np.load(tmp_path / "test.npz") as clean:
        moved = np.abs(got["adversarial"] - clean["image"] / np.float32(255)).max((1, 2, 3))
        found = np.isfinite(got["distance"])
        assert found.sum() > 3
        np.testing.assert_allclose(moved[found], got["distance"][found], atol=1e-6)
    assert "expected one attack" in complaint(capsys, [*argv[:-8], "--attack", "standard"])


def test_a_folder_of_classes(own, tmp_path, capsys):
    images, labels = toy.data(6)
    for number, (image, label) in enumerate(zip(images, labels)):
        (tmp_path / "photos" / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * 255).astype(np.uint8)).save(tmp_path / f"photos/class{label}/{number}.png")
    argv = ["attack", *own[:-1], "photos", "--attack", "fgsm", *FAST]
    assert cli.main(argv) == 0 and "6 images" in capsys.readouterr().out
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(tmp_path / f"photos/class{labels[0]}/odd.png")
    assert "odd.png: got an image of (5, 4, 3)" in complaint(capsys, argv)


MISTAKES = {
    "another network's weights": (["resnet-20-cifar10", "--weights", "mine.msgpack"], "mine.msgpack"),
    "no weights": (["resnet-20-cifar10"], "--weights: got none for resnet-20-cifar10"),
    "own network without weights": (["mine:net"], "--weights: got none"),
    "unknown network": (["resnet-21-cifar10"], "did you mean"),
    "no such module": (["nowhere:net", "--weights", "mine.msgpack"], "nowhere"),
    "no such attribute": (["mine:nothing", "--weights", "mine.msgpack"], "no 'nothing'"),
    "no such data": (["mine:net", "--weights", "mine.msgpack", "--data", "absent.npz"], "absent.npz"),
    "no data at all": (["mine:net", "--weights", "mine.msgpack", "--data", "photos"], "expected an npz file, a folder"),
    "too many examples": (["mine:net", "--weights", "mine.msgpack", "--examples", "22"], "at most 21"),
    "unknown attack": (["mine:net", "--weights", "mine.msgpack", "--attacks", "apgd-cee"], "did you mean apgd-ce"),
    "one output": (["mine:one", "--weights", "mine.msgpack"], "got one output"),
    "too few classes": (["mine:few", "--weights", "mine.msgpack", "--data", "two.npz"], "expected at least 4"),
    "labels beyond the outputs": (["mine:few", "--weights", "mine.msgpack"], "labels: got labels in [0, 4]"),
    "bright images": (["mine:net", "--weights", "mine.msgpack", "--data", "bright.npz"], "[0.0, 1.0]"),
    "energy without units": (["mine:static", "--weights", "mine.msgpack", "--attacks", "energy"], "adaptive units"),
    "lambdas": (["mine:net", "--weights", "mine.msgpack", "--lambdas", "1;2"], "--lambdas"),
    "an entry of no checkpoint": (["mine:net", "--weights", "mine.msgpack", "--entry", "ema"], "--entry: got 'ema'"),
    "weights with other keys": (["mine:net", "--weights", "other.msgpack"], "net, variables: got some that fail"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, own, tmp_path, capsys):
    given, words = MISTAKES[case]
    images, labels = toy.data()
    np.savez(tmp_path / "two.npz", image=images, label=labels % 2)
    np.savez(tmp_path / "bright.npz", image=images * 255, label=labels)
    save_variables(tmp_path / "other.msgpack", {"params": {"x": np.zeros(3, np.float32)}})
    data = [] if "--data" in given else ["--data", "test.npz"]
    assert words in complaint(capsys, ["evaluate", *given, *data, "--output", "run"])
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_process_writes_to(own, tmp_path, capsys):
    held = tmp_path / "run" / "shards" / "1-of-1"
    held.mkdir(parents=True)
    import fcntl

    with open(held / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        argv = ["evaluate", *own, "--attacks", "fgsm", "--output", "run", *FAST]
        assert "another process is writing to 'run'" in complaint(capsys, argv)


def test_a_folder_of_another_run_is_left_alone(own, tmp_path, capsys):
    command = ["evaluate", *own, "--attacks", "fgsm", "--output", "run", *FAST]
    assert cli.main(command) == 0
    before = toy.files("run")
    capsys.readouterr()
    assert "eps" in complaint(capsys, [*command, "--eps", "4/255"])
    assert toy.files("run") == before


def test_npz_files_that_are_no_images(own, tmp_path, capsys):
    images, labels = toy.data()
    for arrays, words in (
        ({"picture": images}, "expected 'image'"),
        ({"image": images.transpose(0, 3, 1, 2), "label": labels}, "channels first"),
        ({"image": images, "label": labels[:3]}, "one label per image"),
        ({"image": images * 255, "label": labels}, r"[0.0, 1.0]"),
    ):
        np.savez(tmp_path / "test.npz", **arrays)
        assert words in complaint(capsys, ["attack", *own, "--attack", "fgsm"])
    (tmp_path / "test.npz").write_bytes(b"PK\3\4 no")
    assert "not an npz file" in complaint(capsys, ["attack", *own, "--attack", "fgsm"])


def test_convert_is_the_converter(capsys):
    assert cli.main(["convert", "--list"]) == 0
    assert "resnet-20-cifar10" in capsys.readouterr().out.split()
    assert cli.main(["convert", "resnet-20-cifar10", "absent.th", "out.msgpack"]) == 2
    assert "absent.th" in capsys.readouterr().err


def test_help_teaches(capsys):
    for command in ("evaluate", "attack"):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--help"])
        said = capsys.readouterr().out
        assert end.value.code == 0 and f"dyn-jax {command} dynconv-digits" in said
