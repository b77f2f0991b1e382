"""Loading a run directory: nothing in it is run, nothing explodes, nothing damaged passes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pyrobnn as pb
from pyrobnn.io.manifest import MANIFEST, write_manifest
from pyrobnn.io.sparse import save_sparse
from pyrobnn.nets.storage import save_compact


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, few_digits: Callable[[Path, int, int], Path]) -> Path:
    """A small finished run with a Bayesian network, and the data it was made from."""
    folder = few_digits(tmp_path_factory.mktemp("made"), 120, 60)
    pb.compress(
        "small_cnn", folder / "few.npz", "l1", target_macs=0.5, epochs=3, bayesian_epochs=1, out=folder / "run",
        progress=False,
    )  # fmt: skip
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def describe(run: Path, **changes: Any) -> None:
    """Change `compact.json` as a stranger would, with a manifest that fits."""
    path = run / "compact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest(run)


def test_every_file_is_listed(run: Path) -> None:
    listed = json.loads((run / MANIFEST).read_text())["files"]
    assert set(listed) == {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()} - {MANIFEST}


@pytest.mark.parametrize("name", ["compact.json", "compact.safetensors", "bayesian.safetensors"])
def test_one_flipped_bit(name: str, run: Path) -> None:
    whole = (run / name).read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 10):
        broken = bytearray(whole)
        broken[place] ^= 1
        (run / name).write_bytes(bytes(broken))
        with pytest.raises(pb.CheckpointError, match=f"{name} is damaged or was edited"):
            pb.load_bayesian(run)


@pytest.mark.filterwarnings("error")
def test_a_run_without_a_manifest_warns_once(run: Path) -> None:
    pb.load_compact(run)
    (run / MANIFEST).unlink()
    for load in (pb.load_compact, pb.load_bayesian):
        with pytest.warns(UserWarning, match=r"has no manifest\.json") as caught:
            load(run)
        assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("kind", ["nan", "double", "integer", "larger", "more axes", "missing", "unexpected"])
@pytest.mark.parametrize("name", ["compact.safetensors", "bayesian.safetensors"])
def test_tensors_of_another_network(kind: str, name: str, run: Path) -> None:
    tensors = load_file(run / name)
    key = "conv2.weight"
    value = tensors[key]
    changed = {
        "nan": torch.where(value == value.max(), torch.nan, value),
        "double": value.double(),
        "integer": value.int(),
        "larger": value.repeat(40, 1, 1, 1),
        "more axes": value[None],
    }
    if kind in changed:
        tensors[key] = changed[kind]
    elif kind == "missing":
        del tensors[key]
    else:
        tensors["extra"] = torch.ones(2)
    save_file(tensors, run / name, metadata={"data_size": "100"})
    write_manifest(run)
    with pytest.raises((pb.CheckpointError, pb.NetError)) as raised:
        pb.load_bayesian(run)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [float("nan")]}, {"std": [0.0]}, {"std": [-1.0]}, {"std": ["a"]}, {"mean": [1e999]}, {"mean": [0.1, 0.2]},
        {"mean": [True]}, {"widths": []}, {"classes": [1]}, {"classes": "ab"}, {"spec": []}, {"spec": "small_cnn"}, {"spec": {}},
        {"spec": {"model": ["small_cnn"]}}, {"spec": {"model": "small_cnn", "kwargs": []}},
    ],
    ids=str,
)  # fmt: skip
def test_descriptions_that_are_none(changes: dict[str, Any], run: Path) -> None:
    describe(run, **changes)
    with pytest.raises((pb.CheckpointError, pb.NetError)):
        pb.load_compact(run)


def test_a_factory_of_the_caller(run: Path) -> None:
    whole = pb.load_compact(run)
    x = torch.randn(3, 1, 8, 8)
    describe(run, spec=None)
    with pytest.raises(pb.NetError, match="pass factory="):
        pb.load_compact(run)
    describe(run, spec={"model": "mine:make", "kwargs": {}})
    with pytest.raises(pb.NetError, match="was made with --model mine:make.*pass factory="):
        pb.load_compact(run)
    again = pb.load_compact(run, factory=lambda: pb.nets.build("small_cnn", in_channels=1, image_size=8))
    assert torch.equal(again(x), whole(x))
    with pytest.raises(pb.NetError, match="factory must return"):
        pb.load_compact(run, factory=lambda: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(pb.NetError, match="do not fit this network|another network"):
        pb.load_compact(run, factory=pb.nets.lenet5)


def test_pixels_in(run: Path) -> None:
    description = json.loads((run / "compact.json").read_text())
    pixels = torch.rand(4, 1, 8, 8)
    inner, outer = pb.load_compact(run), pb.load_compact(run, normalise=True)
    with torch.no_grad():
        expected = inner((pixels - description["mean"][0]) / description["std"][0])
        torch.testing.assert_close(outer(pixels), expected)
    assert not outer.training and outer.classes == ()
    describe(run, classes=["a", "b"])
    assert pb.load_compact(run, normalise=True).classes == ("a", "b")  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "torchvision.models:squeezenet1_1", "lenet300"]
)
def test_networks_by_name_take_only_what_was_saved(name: str, tmp_path: Path) -> None:
    spec = pb.nets.net_spec(name, num_classes=3, image_size=8)
    if name.startswith("torchvision.models:"):
        spec["kwargs"] = {"num_classes": 3}
    torch.manual_seed(0)
    dense = pb.nets.build_spec(spec).eval()
    size = 32 if name != "lenet300" else 8
    x = torch.randn(2, 3, size, size)
    table = pb.channel_groups(dense, x, try_cut=False) if name == "resnet18" else None
    plan = table and pb.PruningPlan({g.name: list(range(0, g.channels, 4)) for g in table}, table.widths())
    small = pb.compact(dense, plan, None, table) if plan else dense
    save_compact(small, tmp_path / "compact.safetensors")
    (tmp_path / "compact.json").write_text(
        json.dumps({"schema": 1, "spec": spec, "mean": [0.5], "std": [1], "widths": {}})
    )
    write_manifest(tmp_path)
    loaded = pb.load_compact(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x), small.eval()(x))
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
    assert all(p.requires_grad for p in loaded.parameters())


HOSTILE = [
    {"model": "os:system", "kwargs": {"command": "touch CANARY"}},
    {"model": "subprocess:call", "kwargs": {"args": ["touch", "CANARY"]}},
    {"model": "shutil:rmtree", "kwargs": {"path": "victim"}},
    {"model": "builtins:eval", "kwargs": {}},
    {"model": "evil:make", "kwargs": {}},
    {"model": "evil", "kwargs": {}},
    {"model": ":make", "kwargs": {}},
    {"model": "pyrobnn.nets:build", "kwargs": {"name": "evil:make"}},
    {"model": "pyrobnn.nets.registry:build_spec", "kwargs": {"spec": {"model": "evil:make"}}},
    {"model": "torchvision.models:get_model", "kwargs": {"name": "resnet18"}},
    {"model": "torchvision.models:resnet18", "kwargs": {"weights": "DEFAULT"}},
    {"model": "resnet18", "kwargs": {"weights": "IMAGENET1K_V1"}},
    {"model": "resnet18", "kwargs": {"num_classes": 10, "norm_layer": "evil:make"}},
    {"model": "torch.hub:load", "kwargs": {"repo_or_dir": "a/b", "model": "c"}},
    {"model": "../../evil:make", "kwargs": {}},
]
AUDIT = """
import json, sys, warnings
import torchvision  # whose networks a loader may build
from pathlib import Path
warnings.simplefilter("ignore")
import pyrobnn as pb
from pyrobnn.cli.main import main
from pyrobnn.io.manifest import write_manifest
run, hostile = Path(sys.argv[1]), json.loads(sys.argv[2])
text = json.loads((run / "compact.json").read_text())

def load_all(tried):
    said = []
    for load in (pb.load_compact, pb.load_bayesian):
        try:
            load(run)
        except pb.PyrobnnError as error:
            said.append(str(error))
    if tried:
        try:
            main(["evaluate", str(run)])
        except SystemExit as stop:
            said.append(stop.code)
    return said

assert load_all(True) == [0], "the run as it is must load"  # and every module that is needed is loaded now
seen, watching = [], False
def hook(event, args):
    if not watching:
        return
    writes = event == "open" and (set(str(args[1] or "r")) & set("wax+") or (args[2] or 0) & 3)
    if writes or event in ("import", "os.remove", "os.rename", "os.rmdir", "os.mkdir"):
        seen.append((event, str(args[:2])))
    if event.startswith(("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "socket.",
                         "shutil.", "urllib.", "ftplib.", "http.", "pty.", "webbrowser.", "ctypes.dlopen")):
        seen.append((event, str(args[:2])))
sys.addaudithook(hook)
path = list(sys.path)
for spec in hostile:
    (run / "compact.json").write_text(json.dumps({**text, "spec": spec}))
    write_manifest(run)
    watching = True
    said = load_all(True)
    watching = False
    assert len(said) == 3 and said[2] == 2, (spec, said)
assert sys.path == path and "evil" not in sys.modules
allowed = [s for s in seen if not (s[0] == "import" and s[1].startswith(("('torchvision", "('torch.")))]
assert not allowed, allowed[:5]
"""


def test_nothing_that_a_file_names_is_imported_called_or_written(made: Path, run: Path) -> None:
    """Under an audit hook, in a folder where a module of the named kind lies in wait."""
    here = run.parent
    (here / "evil.py").write_text("open('CANARY', 'w')\ndef make(**_): open('CANARY', 'w')\n")
    (here / "victim").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", AUDIT, str(run), json.dumps(HOSTILE)], cwd=here, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert not (here / "CANARY").exists() and (here / "victim").is_dir()


GREEDY = [
    {"model": "torchvision.models:vgg16", "kwargs": {"num_classes": 10**6}},
    {"model": "vit_h_14", "kwargs": {"num_classes": 10, "image_size": 14 * 5000}},
    {"model": "lenet300", "kwargs": {"num_classes": 10, "in_channels": 10**6, "image_size": 10**6}},
    {"model": "small_cnn", "kwargs": {"num_classes": 10**12}},
    {"model": "regnet_y_128gf", "kwargs": {"num_classes": 10**6}},
]
MEMORY = """
import json, resource, sys, time
from pathlib import Path
import pyrobnn as pb
from pyrobnn.io.manifest import write_manifest
run, greedy = Path(sys.argv[1]), json.loads(sys.argv[2])
text = json.loads((run / "compact.json").read_text())
pb.load_compact(run), pb.nets.build_saved({"model": "resnet18", "kwargs": {}})
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for spec in greedy:
    (run / "compact.json").write_text(json.dumps({**text, "spec": spec}))
    write_manifest(run)
    try:
        pb.load_compact(run)
        raise SystemExit(f"loaded as {spec}")
    except pb.PyrobnnError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, time.process_time() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_and_time_do_not_follow_what_a_file_asks_for(run: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(run), json.dumps(GREEDY)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    megabytes, seconds = map(float, result.stdout.split())
    assert megabytes < 100 and seconds < 20


@pytest.mark.parametrize("form", ["blocks", "bitmap", "gaps", "dense"])
def test_sparse_headers_that_ask_for_all_memory(form: str, run: Path) -> None:
    path = run / "compact.safetensors"
    tensors = load_file(path)
    tensors["fc1.weight"] = torch.zeros_like(tensors["fc1.weight"])
    save_sparse(tensors, path)
    for shape in ([10**6, 10**6], [10**12], [2**40, 2**40], [-1, 4], [1.5], ["a"], [[]], None):
        rewrite(path, "fc1.weight", form=form, shape=shape)
        write_manifest(run)
        with pytest.raises((pb.CheckpointError, pb.NetError)) as raised:
            pb.load_compact(run)
        assert len(str(raised.value).splitlines()) == 1
        with pytest.raises(pb.CheckpointError):  # nor without a network that says what to expect
            pb.nets.read_weights(path)


def rewrite(path: Path, name: str, **changes: Any) -> None:
    """Change the table of a compressed file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    table = json.loads(header["__metadata__"]["pyrobnn.sparse"])
    table["tensors"][name].update(changes)
    header["__metadata__"]["pyrobnn.sparse"] = json.dumps(table)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def test_a_directory_in_use(made: Path, tmp_path: Path) -> None:
    from pyrobnn.compression.store import claim

    out = tmp_path / "out"
    with claim(out, resume=False), pytest.raises(pb.CheckpointError, match="in use by another run"):
        pb.compress("small_cnn", made / "few.npz", "l1", target_macs=0.5, epochs=3, out=out, progress=False)
    (out / ".report.json.1.tmp").write_text("half")
    pb.compress("small_cnn", made / "few.npz", "l1", target_macs=0.5, epochs=3, out=out, resume=True, progress=False)
    assert not list(out.glob(".*"))
