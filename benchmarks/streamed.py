"""ResNet-50 on a streamed folder in two processes: memory while it goes on, and the plan of a run that was killed.

2,000 generated pictures of 64 to 500 pixels (some grey, CMYK, rotated by EXIF, of 16 bits; `examples/imagenet/pictures.py`),
random weights, `--stream --target-macs 0.5 --epochs 2` under torchrun with gloo. The resident memory of every process is
read each second. The same command is then killed (SIGKILL to the second process) and resumed. Writes
benchmarks/results/streamed.json.

    python benchmarks/streamed.py [IMAGE SIZE]
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import pyrobnn as pb
from pyrobnn.nets import save_weights

HERE = Path(__file__).parent
FOLDER = HERE.parent / "runs" / "bench" / "streamed"
PICTURES, WEIGHTS = FOLDER / "pictures", FOLDER / "resnet50.safetensors"
COUNT, PROCESSES = 2000, 2


def command(out: Path, size: int, *more: str) -> list[str]:
    """The one that is measured."""
    words = f"--model resnet50 --data {PICTURES} --weights {WEIGHTS} --stream --workers 1 --image-size {size} --batch-size 64"
    target = f"--target-macs 0.5 --epochs 2 --out {out}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    return [*launch, "-m", "pyrobnn", "compress", *words.split(), *target.split(), *more]


def prepare() -> None:
    """Pictures and weights, once."""
    if not PICTURES.exists():
        script = HERE.parent / "examples" / "imagenet" / "pictures.py"
        subprocess.run([sys.executable, script, PICTURES, "--count", str(COUNT)], check=True)
    if not WEIGHTS.exists():
        torch.manual_seed(0)
        net = pb.nets.build("resnet50", num_classes=4)
        half = (0.5, 0.5, 0.5)
        save_weights(net, WEIGHTS, mean=half, std=half, trained_on="train")


def below(process: int) -> list[int]:
    """Numbers of the processes that this one started, those started by them too."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if folder.name.isdigit() and parent == process:
            found += [int(folder.name), *below(int(folder.name))]
    return found


def ranks(launcher: int) -> list[int]:
    """The processes that share the run, in their order."""
    found = {}
    for number in below(launcher):
        try:
            told = dict(
                part.split("=", 1) for part in Path(f"/proc/{number}/environ").read_text().split("\0") if "=" in part
            )
            parent = int(Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == launcher and "RANK" in told:
            found[int(told["RANK"])] = number
    return [found[rank] for rank in sorted(found)]


def resident(process: int) -> float:
    """Resident memory of a process and of the workers that read for it, MB; pages that they share count once."""
    total = 0.0
    for number in (process, *below(process)):
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def watched(
    words: list[str], kill_after: float | None = None
) -> tuple[int, float, list[tuple[float, list[float]]], str]:
    """Run a command; its exit code, seconds, memory over time, and what it said. The second process may be killed."""
    start, samples = time.monotonic(), []
    log = FOLDER / "log.txt"
    with log.open("w") as file:
        child = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        while child.poll() is None:
            time.sleep(1)
            there, now = ranks(child.pid), time.monotonic() - start
            if len(there) == PROCESSES:
                samples.append((now, [resident(number) for number in there]))
                if kill_after is not None and now > kill_after:
                    os.kill(there[1], signal.SIGKILL)
                    kill_after = None
    return child.returncode, time.monotonic() - start, samples, log.read_text()


def main() -> None:
    """The run, and the run that is killed."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 224
    prepare()
    for name in ("whole", "killed"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    code, seconds, samples, said = watched(command(FOLDER / "whole", size))
    assert code == 0, said
    code, _, _, said = watched(command(FOLDER / "killed", size), kill_after=0.6 * seconds)
    assert code != 0, "the run had ended before it was killed"
    told = [line for line in said.splitlines() if line.startswith("error:")]
    code, again, _, said = watched(command(FOLDER / "killed", size, "--resume"))
    assert code == 0, said
    plans, reports = [], []
    for name in ("whole", "killed"):
        plans.append(json.loads((FOLDER / name / "plan.json").read_text()))
        reports.append(json.loads((FOLDER / name / "report.json").read_text()))
    # From the middle on everything has been done at least once: reading, steps, a cut.
    middle = len(samples) // 2
    rows: list[dict[str, Any]] = []
    for rank in range(PROCESSES):
        early, late = (
            [memory[rank] for _, memory in part] for part in (samples[middle // 2 : middle], samples[middle:])
        )
        rows.append(
            {
                "rank": rank,
                "median_mb_second_quarter": statistics.median(early),
                "median_mb_second_half": statistics.median(late),
                "peak_mb": max(memory[rank] for _, memory in samples),
            }
        )
    result = {
        "script": "streamed",
        "pictures": COUNT,
        "image_size": size,
        "processes": PROCESSES,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "seconds": seconds,
        "seconds_resumed": again,
        "memory": rows,
        "samples_mb": [
            [round(now), *(round(value) for value in memory)] for now, memory in samples[:: max(1, len(samples) // 60)]
        ],
        "macs_left": reports[0]["compact"]["macs"] / reports[0]["dense"]["macs"],
        "said_when_killed": told,
        "same_plan": plans[0] == plans[1],
        "same_figures": reports[0]["compact"]["nll"] == reports[1]["compact"]["nll"],
    }
    (HERE / "results" / "streamed.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
