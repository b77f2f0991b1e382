"""ResNet-50 on a streamed folder in two processes: memory while it goes on, and the plan of a run that was killed.

2,000 generated pictures of 64 to 500 pixels (some grey, CMYK, rotated by EXIF, of 16 bits; `examples/imagenet/pictures.py`),
random weights, `--stream --target-macs 0.5 --epochs 2` under torchrun with gloo. The resident memory of every process is
read every few seconds. The same command is killed (SIGKILL to the second process, once it tunes) and resumed. Writes
benchmarks/results/streamed.json.

    python benchmarks/streamed.py [IMAGE SIZE [whole] [killed]]
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
from pyrobnn.report.report import versions

HERE = Path(__file__).parent
FOLDER = HERE.parent / "runs" / "bench" / "streamed"
PICTURES, WEIGHTS = FOLDER / "pictures", FOLDER / "resnet50.safetensors"
COUNT, PROCESSES = 2000, 2
EVERY = 5  # seconds between two looks at the memory


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


def watched(name: str, words: list[str], kill_after: float | None = None) -> dict[str, Any]:
    """Run a command: its exit code, seconds, memory over time, and its lines. After a first checkpoint and so many seconds
    the second process is killed."""
    start, samples, log = time.monotonic(), [], FOLDER / f"{name}.txt"
    with log.open("w") as file:
        child = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        while child.poll() is None:
            time.sleep(EVERY)
            there, now = ranks(child.pid), time.monotonic() - start
            if len(there) == PROCESSES:
                samples.append((round(now), *(round(resident(number)) for number in there)))
                if kill_after is not None and now > kill_after and "cut 1" in log.read_text():
                    os.kill(there[1], signal.SIGKILL)
                    kill_after = None
    return {
        "code": child.returncode,
        "seconds": time.monotonic() - start,
        "samples": samples,
        "said": log.read_text().splitlines(),
    }


def whole(size: int) -> None:
    """The run that nothing stops."""
    shutil.rmtree(FOLDER / "whole", ignore_errors=True)
    found = watched("whole", command(FOLDER / "whole", size))
    assert found["code"] == 0, found["said"]
    (FOLDER / "whole.json").write_text(json.dumps(found))


def killed(size: int) -> None:
    """The run that is killed while it tunes, and resumed."""
    shutil.rmtree(FOLDER / "killed", ignore_errors=True)
    first = watched("killed", command(FOLDER / "killed", size), kill_after=0.0)
    assert first["code"] != 0, "the run had ended before it was killed"
    second = watched("resumed", command(FOLDER / "killed", size, "--resume"))
    assert second["code"] == 0, second["said"]
    (FOLDER / "killed.json").write_text(json.dumps({"killed": first, "resumed": second}))


def result(size: int) -> dict[str, Any]:
    """What both runs say."""
    found, stopped = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("whole", "killed"))
    plans, reports = [], []
    for name in ("whole", "killed"):
        plans.append(json.loads((FOLDER / name / "plan.json").read_text())["keep"])
        reports.append(json.loads((FOLDER / name / "report.json").read_text()))
    samples = found["samples"]
    half = len(samples) // 2  # from here on everything has been done once: reading, steps, a cut
    rows = []
    for rank in range(PROCESSES):
        quarter, rest = ([sample[1 + rank] for sample in part] for part in (samples[half // 2 : half], samples[half:]))
        rows.append(
            {
                "rank": rank,
                "median_mb_second_quarter": statistics.median(quarter),
                "median_mb_second_half": statistics.median(rest),
                "peak_mb": max(sample[1 + rank] for sample in samples),
            }
        )
    return {
        "script": "streamed",
        "pictures": COUNT,
        "image_size": size,
        "processes": PROCESSES,
        "cores": os.cpu_count(),
        "versions": versions(),
        "seconds": found["seconds"],
        "seconds_until_killed": stopped["killed"]["seconds"],
        "seconds_resumed": stopped["resumed"]["seconds"],
        "memory": rows,
        "samples": samples[:: max(1, len(samples) // 60)],
        "macs_left": reports[0]["compact"]["macs"] / reports[0]["dense"]["macs"],
        "said_when_killed": [line for line in stopped["killed"]["said"] if line.startswith("error:")],
        "same_plan": plans[0] == plans[1],
        "nll": [report["compact"]["nll"] for report in reports],
    }


def main() -> None:
    """Each part that is not done yet; with names of parts, those."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 224
    wanted = sys.argv[2:] or [name for name in ("whole", "killed") if not (FOLDER / f"{name}.json").exists()]
    prepare()
    for name in wanted:
        {"whole": whole, "killed": killed}[name](size)
    if all((FOLDER / f"{name}.json").exists() for name in ("whole", "killed")):
        found = result(size)
        (HERE / "results" / "streamed.json").write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
