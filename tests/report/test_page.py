"""The report page: complete, self-contained, escaped, written in one go."""

from __future__ import annotations

import base64
import html.parser
import importlib
import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from pyrobnn.cli.main import main
from pyrobnn.errors import DataError
from pyrobnn.metrics.evaluate import Tally
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.report import page as pages
from pyrobnn.report.sections import command


def report(**changes: Any) -> dict[str, Any]:
    net = {"accuracy": 0.9947, "nll": 0.0171, "ece": 0.0021, "params": 431_080, "nonzero_params": 431_080}
    size = {"macs": 2_293_000, "bytes": 1_724_320, "latency_ms": 0.42}
    dense = net | size | {"widths": {"conv1": 20, "conv2": 50}}
    small = {"accuracy": 0.9930, "params": 4_310, "macs": 152_000, "ece": float("nan")}
    return {
        "schema": 1,
        "method": "rbp",
        "model": "lenet5",
        "data": "mnist",
        "seed": 3,
        "rule": "snr",
        "target": {"macs": 0.07, "params": None},
        "validation_clean": True,
        "epochs": 24,
        "epochs_by_phase": {"dense": 0, "infer": 12, "tune": 12},
        "seconds": 81.25,
        "precision": "bf16",
        "device": "cpu",
        "versions": {"torch": "2.14.1"},
        "dense": dense,
        "compact": dense | small | {"widths": {"conv1": 4, "conv2": 9}},
        "reduction": {"params": 0.99, "macs": 0.9337},
        "rounds": [{"macs": 900_000, "valid_accuracy": 0.991}],
    } | changes


class Outline(html.parser.HTMLParser):
    """Collects tags, links and text; complains about tags that do not close."""

    VOID = frozenset({"meta", "img", "br", "hr", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def figure() -> Figure:
    fig = Figure(figsize=(4, 2))
    fig.add_subplot().plot([1, 2])
    return fig


def test_numbers_stand_beside_each_other() -> None:
    text = pages.page(report()).replace("\N{NO-BREAK SPACE}", " ")
    rows = {
        cells[0]: cells[1:]
        for row in re.findall(r"<tr>(.*?)</tr>", text)
        if (cells := re.findall(r"<td[^>]*>(.*?)</td>", row))
    }
    assert rows["Test accuracy"] == ["99.47 %", "99.30 %", "−0.17 points"]
    assert rows["Parameters"] == ["431,080", "4,310", "−99.0 %"]
    assert rows["Expected calibration error, 15 bins"] == ["0.21 %", "–", "–"]  # NaN is not a number to show
    assert rows["conv2"][:2] == ["50", "9"] and "width:18.0%" in rows["conv2"][2]
    assert rows["Target"] == ["macs 0.07"]
    assert rows["Epochs by phase"] == ["dense 0, infer 12, tune 12"]
    assert rows["1"] == ["900,000", "99.10 %"]
    assert "−93.4 % multiply-accumulates" in text


def test_page_is_well_formed_and_needs_no_network() -> None:
    outline = Outline(pages.page(report(), {"A": figure(), "B": figure()}))
    assert outline.tags.count("img") == 2
    assert not {"link", "iframe", "object"} & set(outline.tags) and outline.tags.count("script") == 1
    for name, value in outline.attributes:
        if name in ("src", "href", "action", "data"):
            assert value is not None and value.startswith(("data:image/png;base64,", "#"))
        assert not name.startswith("on")
    assert any(
        name == "content" and value and value.startswith("default-src 'none'") for name, value in outline.attributes
    )
    text = pages.page(report())
    assert "url(" not in text and "@import" not in text


def test_everything_from_outside_is_escaped() -> None:
    evil = '"><script>alert(1)</script>&'
    text = pages.page(
        report(
            method=evil,
            model=evil,
            data=evil,
            rule=evil,
            device=evil,
            schema=evil,
            seed=evil,
            target={evil: evil},
            versions={evil: evil},
            rounds=[{evil: evil, "macs": evil}],
        ),
        {evil: figure()},
        {evil: (2, 1)},
        load_path=evil,
    )
    outline = Outline(text)
    assert text.count("<script") == 1 == outline.tags.count("script")  # the page's own
    assert outline.text.count("<script>alert(1)</script>") >= 15


@pytest.mark.parametrize("missing", [{}, {"dense": None, "compact": {}, "rounds": None}])
def test_an_incomplete_report_still_makes_a_page(missing: dict[str, Any]) -> None:
    outline = Outline(pages.page(missing))
    assert "–" in outline.text and "nan" not in outline.text and "None" not in outline.text


def test_the_validation_warning_shows_only_when_it_is_due() -> None:
    assert "biased" in pages.page(report(validation_clean=False))
    assert "biased" not in pages.page(report()) and "biased" not in pages.page({})


def test_pictures_are_png_at_double_density() -> None:
    text = pages.page({}, {"A": figure()})
    data = base64.b64decode(re.findall(r"base64,([^\"]+)", text)[0])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 4 * pages.DPI and 'width="384"' in text
    assert pages.page({}, {"A": data}).count("<img") == 1
    with pytest.raises(DataError, match="PNG bytes for 'A'"):
        pages.page({}, {"A": b"GIF89a"})


def test_written_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pages.write_page(tmp_path / "run" / "report.html", report())
    text = path.read_text(encoding="utf-8")
    assert os.listdir(path.parent) == ["report.html"] and str(path.parent) in text

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        pages.write_page(path, {})
    assert path.read_text(encoding="utf-8") == text and os.listdir(path.parent) == ["report.html"]


def test_the_code_example_is_python() -> None:
    code = Outline(pages.page({}, load_path="runs/o'neil")).text
    lines = code[code.index("import pyrobnn") : code.index("For a class")]
    compile(lines, "example", "exec")


TARGETS: dict[str, tuple[dict[str, Any], str, str]] = {
    "only asked": ({"target_macs": 0.07}, "Asked for:", "at most 7 % of the MACs left"),
    "met": (
        {"target_macs": 0.07, "met": True, "reached": {"target_macs": 0.066}},
        "Target met.",
        "6.6 % of the MACs left",
    ),
    "missed": (
        {"max_drop": 1.0, "met": False, "reached": {"max_drop": 2.5}, "interval": [0.1, 4.9]},
        "Target missed.",
        "2.50 points lost (95 % interval 0.10 to 4.90)",
    ),
}


@pytest.mark.parametrize("case", TARGETS)
def test_the_page_says_whether_the_target_was_met(case: str) -> None:
    target, head, words = TARGETS[case]
    text = Outline(pages.page(report(target=target))).text.replace("\N{NO-BREAK SPACE}", " ")
    assert head in text and words in text
    assert ('class="target bad"' in pages.page(report(target=target))) == (case == "missed")


def test_validation_stands_beside_test_with_what_may_be_claimed() -> None:
    comparison = {"claim": "no difference was found", "interval": [-0.004, 0.001], "p_value": 0.21}
    text = Outline(pages.page(report(validation={"dense": 0.99, "compact": 0.985}, comparison=comparison))).text
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "99.00 %",
        "98.50 %",
        "−0.50 points",
        "no difference was found",
        "−0.40 points to +0.10 points",
        "p = 0.21",
    ):
        assert words in text


def test_every_class_has_a_row() -> None:
    classes = [{"class": "<cat>", "images": 10, "dense": 0.9, "compact": 0.2}]
    text = Outline(pages.page(report(per_class=classes))).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "<cat>" in text and "−70.00 points" in text
    many = [{"class": f"class {k}", "images": 10, "dense": 0.9, "compact": 0.9 - k / 1000} for k in range(100)]
    text = Outline(
        pages.page(report(per_class=[*many, {"class": "none", "images": 0, "dense": None, "compact": None}]))
    ).text
    assert "30 of 100 classes" in text and "class 99" in text and "class 69" not in text


def test_the_command_makes_the_run_again() -> None:
    line = command(report(target={"target_macs": 0.07}, epochs_by_phase={"dense": 12, "infer": 6, "tune": 6}))
    assert line == (
        "pyrobnn compress --model lenet5 --data mnist --method rbp --target-macs 0.07 --epochs 24 --seed 3 "
        "--precision bf16 --out runs/again"
    )
    assert command(report(data="a b; rm -rf /")).count("'a b; rm -rf /'") == 1
    assert "--weights" in command(report())  # no dense epochs: weights were given


def test_the_command_has_all_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line makes of the line is the configuration of the run."""
    options: dict[str, Any] = {
        "max_drop": 1.5, "protect": ["fc1", "a *"], "min_channels": 2, "round_to": 4, "batch_size": 64, "augment": "shift=1",
        "recipe": {"tune.lr": 0.02, "cutout": 0.25}, "valid_fraction": 0.3, "bayesian_epochs": 3, "same_noise": True,
    }  # fmt: skip
    config = CompressionConfig.make(options)
    made = report(
        options=json.loads(json.dumps(config.told())), target={"max_drop": 1.5}, method="ard", seed=0, precision="fp32",
        epochs_by_phase={"dense": 3, "infer": 3, "tune": 6, "bayesian": 3},
    )  # fmt: skip
    line = shlex.split(command(made))
    assert "--epochs" not in line and line[:2] == ["pyrobnn", "compress"]
    seen: dict[str, Any] = {}
    module = importlib.import_module("pyrobnn.compression.compress")
    monkeypatch.setattr(module, "compress", lambda model, data, **given: (seen.update(given), stop()))
    with pytest.raises(SystemExit):
        main(line[1:])
    seen.pop("out")
    again = CompressionConfig.make(seen)
    assert again.identity() == replace(config, precision="fp32").identity() and again.bayesian_epochs == 3
    assert again.data_settings == config.data_settings
    timed = report(options={"minutes": 5.0}, epochs_by_phase={"dense": 3, "tune": 6, "bayesian": 3})
    assert "--epochs 9" in command(timed) and "--minutes" not in command(timed)
    assert "--from-scratch --plan plan.json" in command(report(method="from-scratch", options={"epochs": 3}))


def stop() -> None:
    raise SystemExit(0)


def test_standard_figures_are_those_with_data() -> None:
    def channel(statistic: str) -> SimpleNamespace:
        score = torch.rand(8)
        return SimpleNamespace(
            group="a", snr=score, statistic=statistic, kept=score > 0.5, threshold=0.5, loc=None, scale=None
        )

    weight = torch.randn(8, 3, 3, 3)
    site = SimpleNamespace(name="a.weight", loc=weight, scale=weight.abs(), kind="weight", group=None)
    tally = Tally()
    tally.add_logits(torch.randn(9, 3), torch.arange(9) % 3)

    def posterior(statistic: str, **sites: Any) -> Any:
        found = channel(statistic)
        return SimpleNamespace(
            channels={"a": found},
            sites=sites,
            draws={},
            history=[{"a": found.snr}] * 3,
            net_widths={"a": (8, 4)},
            trajectories=[],
        )

    gates = pages.standard_figures(posterior("inclusion"), {})
    assert list(gates) == [
        "What the cut was read from",
        "Channels before and after",
        "Inclusion probabilities",
        "Lowest and highest channels",
    ]
    bins = {"compact": tally.reliability(), "dense": tally.reliability()}
    everything = pages.standard_figures(posterior("snr", w=site), report(), bins)
    assert {"SNR during the fit", "First filters", "Accuracy against MACs, round by round"} < set(everything)
    assert {"Calibration of the compact net", "Calibration of the dense net"} < set(everything)
    # validation accuracy of the rounds is not drawn against test accuracy of the dense net
    curve = everything["Accuracy against MACs, round by round"].axes[0]
    assert curve.get_ylabel() == "validation accuracy (%)" and len(curve.lines) == 1
    nothing = SimpleNamespace(channels={}, sites={}, draws={}, history=[], net_widths={}, trajectories=[])
    assert pages.standard_figures(nothing, {}) == {}  # type: ignore[arg-type]


def test_other_figures_than_accuracy_are_named() -> None:
    figures = {"metric": "RMSE", "value": 0.5, "params": 10, "macs": 20}
    made = report(
        dense=figures, compact={**figures, "value": 0.625}, validation={"dense": 0.51, "compact": 0.62},
        target={"max_drop": 0.25}, comparison={"claim": "worse", "interval": [0.1, 0.2], "p_value": 0.01, "share": False},
    )  # fmt: skip
    text = Outline(pages.page(made)).text.replace("\N{NO-BREAK SPACE}", " ")
    for words in ("Test RMSE", "RMSE on", "0.625", "validation RMSE worse by at most 0.25", "+0.1000 to +0.2000"):
        assert words in text, words
    shares = report(
        dense={**figures, "metric": "mean IoU"}, compact=figures, comparison={"share": True}, target={"max_drop": 2}
    )
    text = Outline(pages.page(shares)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Test mean IoU" in text and "50.00 %" in text and "2 points of validation mean IoU lost" in text
