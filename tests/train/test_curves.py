"""The script that draws a run's curves: its labels, and what it says of a picture that it cannot write."""

from __future__ import annotations

import json

import pytest
from matplotlib.figure import Figure

import plot_training


def test_labels_of_losses_do_not_overlap():
    axes = Figure().subplots()
    axes.set_ylim(0.6, 7)
    assert [plot_training.between_decades(axes, tick) for tick in (0.6, 0.9, 2.0)] == ["", "", "2"]
    axes.set_ylim(1, 7)
    assert [plot_training.between_decades(axes, tick) for tick in (2.0, 3.0, 6.0)] == ["2", "3", "6"]


@pytest.mark.parametrize(("name", "why"), [("none/curves.png", "No such file"), ("curves.txt", "Format 'txt'")])
def test_a_picture_that_cannot_be_written_is_said_in_a_line(tmp_path, monkeypatch, capsys, name, why):
    losses = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in (1, 2)]
    (tmp_path / "report.json").write_text(json.dumps({"losses": losses}))
    monkeypatch.setattr("sys.argv", ["plot", str(tmp_path), "--output", str(tmp_path / name)])
    with pytest.raises(SystemExit, match="2"):
        plot_training.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--output: expected a picture that can be written: " in said
    assert why in said
