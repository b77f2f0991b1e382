"""Figures by class against a count by hand."""

from __future__ import annotations

import torch

from pyrobnn.report.report import per_class


def test_recall_of_every_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (60,), generator=generator)  # class 3 has no image
    logits = {name: torch.randn(60, 4, generator=generator) for name in ("dense", "compact")}
    found = per_class(logits, labels, ("a", "b", "c", "d"))
    assert [entry["class"] for entry in found] == ["a", "b", "c", "d"]
    for k in range(3):
        rows = [n for n in range(60) if labels[n] == k]
        assert found[k]["images"] == len(rows)
        for name in logits:
            right = sum(int(logits[name][n].argmax()) == k for n in rows)
            assert abs(found[k][name] - right / len(rows)) < 1e-12
    assert found[3] == {"class": "d", "images": 0, "dense": None, "compact": None}
