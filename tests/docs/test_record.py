"""The helper that keeps results: what a record names, what is refused, and that no machine's folders get in."""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from experiments import _record


def test_a_record_names_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/x/experiments/some.py", "--data", "/home/me/data/", "--eps", "8/255", "--n", "3"]
    )
    arguments = argparse.Namespace(data="/home/me/data", eps="8/255", n=3, results=str(tmp_path), output=None)
    path = _record.save(
        "some", [{"a": 1.0}], folder=tmp_path, arguments=arguments, seed=4, packages=("no-such-thing",),
        network="net", claimed={"x": 1}, seconds=2.0,
    )  # fmt: skip
    record = json.loads(path.read_text())
    assert record["command"] == "python -m experiments.some --data data --eps 8/255 --n 3"
    assert record["settings"] == {"eps": "8/255", "n": 3, "network": "net"}
    assert record["seeds"] == [4] and record["claimed"] == {"x": 1} and record["seconds"] == 2.0
    assert (
        set(record["versions"]) == {*_record.VERSIONS, "no-such-thing"} and record["versions"]["no-such-thing"] is None
    )
    assert all(record["versions"][name] for name in _record.VERSIONS)
    assert record["device"]["platform"] and record["device"]["cores"] >= 1
    assert not _record.faults(record)


def test_without_a_repository_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(_record, "__file__", str(tmp_path / "_record.py"))
    assert _record.commit() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "rows: none"),
        ({"rows": [{"file": "/home/me/x.npz"}]}, "a folder of one machine"),
        ({"commit": "abc"}, "commit: got 'abc'"),
        ({"date": "yesterday"}, "date: got 'yesterday'"),
        ({"seeds": 3}, "seeds: got int, expected list"),
        ({"versions": {}}, "versions.python: missing"),
    ],
)
def test_faults(change, message):
    whole = {
        "command": "python -m experiments.some", "commit": None, "date": "2026-01-31", "seeds": [], "settings": {},
        "versions": dict.fromkeys(_record.VERSIONS), "device": dict.fromkeys(_record.DEVICE), "rows": [{"a": 1}],
    }  # fmt: skip
    assert not _record.faults(whole)
    assert message in "; ".join(_record.faults(whole | change))
    assert _record.faults({}) == [f"{field}: missing" for field in _record.FIELDS]


def test_a_record_with_a_fault_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"bad\.json: rows: none"):
        _record.save("bad", [], folder=tmp_path)
    assert not list(tmp_path.iterdir())
