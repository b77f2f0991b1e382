#!/bin/sh
# The commands of README.md on generated pictures: three networks, or those named, in two processes each.
set -eu
folder=${1:?usage: try.sh FOLDER [IMAGE SIZE [MODEL]...]}
size=${2:-32}
models="resnet50 vgg16_bn mobilenet_v2"
if [ $# -gt 2 ]; then shift 2; models=$*; fi
here=$(dirname "$0")
[ -d "$folder/pictures" ] || python "$here/pictures.py" "$folder/pictures" --count 120
for model in $models; do
    python "$here/weights.py" "$model" "$folder/$model.safetensors" --random 4
    python -m torch.distributed.run --standalone --nproc-per-node 2 -m pyrobnn compress --model "$model" \
        --data "$folder/pictures" --stream --workers 1 --image-size "$size" --weights "$folder/$model.safetensors" \
        --batch-size 16 --target-macs 0.5 --epochs 2 --out "$folder/runs/$model"
    python -m pyrobnn evaluate "$folder/runs/$model"
done
