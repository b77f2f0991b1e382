"""Scores and histories: `bayes-l1` and `hbfp` at the budgets that were published, and `hbfp`'s options.

LeNet rows take 40 epochs after 10 of dense training (one network per seed), the others start from given weights. The
published pair of `bayes-l1` is a budget on both MACs and parameters. `hbfp` follows the authors' code in
more rows: its regulariser without a gradient, the filter with the larger norm dropped, and every layer
losing the same share.
"""

from rows import Row, run

from pyrobnn.methods.hbfp import hbfp

LENET = {"target_macs": 0.021, "epochs": 40}
SEEDS = (0, 1, 2)
OPTIONS = {
    "hbfp-constant": hbfp(gradient=False, name="hbfp, constant regulariser"),
    "hbfp-higher": hbfp(drop="higher", name="hbfp, larger norm dropped"),
    "hbfp-even": hbfp(even=True, name="hbfp, even widths"),
    "hbfp-kl": hbfp(bayesian=True, distance="kl", name="hbfp-bayes, pairs by KL"),
}
PAIR = {"target_macs": 0.30, "target_params": 0.24}
BAYES_L1_ROWS = {
    "m30": {"method": "bayes-l1", "epochs": 20},
    # That one fell 0.5 short of the dense network; this one is tuned by Muon, in 15 epochs.
    "m30-muon": {"method": "bayes-l1", "recipe": {"infer_share": 0.2}, "epochs": 15},
    # As many epochs as the first, 18 of them for tuning by Muon.
    "m30-muon-e20": {"method": "bayes-l1", "recipe": {"infer_share": 0.1}, "epochs": 20},
    # The same (the finished one went on from the same inference), with an 8 x 8 square of every image hidden while tuning.
    "m30-cutout": {"method": "bayes-l1", "recipe": {"infer_share": 0.1, "cutout": 0.25}, "epochs": 20},
}

ROWS = [
    Row("hbfp-lenet5-mnist-m021", "lenet5", "mnist", {"method": "hbfp", **LENET}, dense=10, seeds=SEEDS),
    Row("hbfp-bayes-lenet5-mnist-m021", "lenet5", "mnist", {"method": "hbfp-bayes", **LENET}, dense=10, seeds=SEEDS),
    *(
        Row(f"{name}-lenet5-mnist-m021", "lenet5", "mnist", {"method": method, **LENET}, dense=10, seeds=SEEDS)
        for name, method in OPTIONS.items()
    ),
    *(
        Row(
            f"bayes-l1-vgg16-cifar10-{name}",
            "vgg16",
            "cifar10",
            {**PAIR, **options},
            weights="vgg16_cifar10.safetensors",
        )
        for name, options in BAYES_L1_ROWS.items()
    ),
    Row(
        "hbfp-vgg16-cifar10-m166",
        "vgg16",
        "cifar10",
        {"method": "hbfp", "target_macs": 0.166, "epochs": 20},
        weights="vgg16_cifar10.safetensors",
    ),
    # Two other ways, since the first fell 1.8 points short of the dense network: every layer loses the same share; and
    # parameters get a budget as well, so that the late layers, which cost few MACs, are cut too. Both tune for 15 epochs.
    Row(
        "hbfp-even-vgg16-cifar10-m166",
        "vgg16",
        "cifar10",
        {"method": OPTIONS["hbfp-even"], "recipe": {"infer_share": 0.25}, "target_macs": 0.166, "epochs": 20},
        weights="vgg16_cifar10.safetensors",
    ),
    Row(
        "hbfp-vgg16-cifar10-m166-p09",
        "vgg16",
        "cifar10",
        {"method": "hbfp", "recipe": {"infer_share": 0.25}, "target_macs": 0.166, "target_params": 0.09, "epochs": 20},
        weights="vgg16_cifar10.safetensors",
    ),
    Row(
        "hbfp-resnet56-cifar10-m216",
        "resnet56",
        "cifar10",
        {"method": "hbfp", "recipe": {"infer_share": 0.2}, "target_macs": 0.216, "epochs": 32},
        weights="resnet56_cifar10.safetensors",
    ),
    # 32 epochs ended at 90.96 %; this is the row with the epochs that others are given, 34 of them for tuning.
    Row(
        "hbfp-resnet56-cifar10-m216-e40",
        "resnet56",
        "cifar10",
        {"method": "hbfp", "recipe": {"infer_share": 0.15}, "target_macs": 0.216, "epochs": 40},
        weights="resnet56_cifar10.safetensors",
    ),
]

if __name__ == "__main__":
    run(ROWS)
