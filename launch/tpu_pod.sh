#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice: the same command on every host, which jax lets find each other.
#
#   export TPU_NAME=cogview ZONE=us-east5-a TYPE=v5p-256 RUNTIME=v2-alpha-tpuv5
#   launch/tpu_pod.sh create            # SPOT=1 for a spot slice
#   launch/tpu_pod.sh setup             # copies the repository, installs jax[tpu] and the extra [remote]
#   launch/tpu_pod.sh run --config configs/cogview_4b.py --workdir /mnt/shared/run
#   launch/tpu_pod.sh logs | stop | delete
#
# `run` starts the supervisor on all hosts in the background: it goes on when this shell is closed,
# and restarts the training when it fails. A preempted spot slice is gone: `create`, `setup` and
# `run` again, and the run continues from the workdir, which has to outlive the slice: an address in a
# bucket, gs://BUCKET/DIR (docs/guides/remote_workdirs.md), or a Filestore at the same path on every host.
set -euo pipefail

usage() {
    sed -n '2,/^[^#]/s/^#//p' "$0" | cut -c 2-
    exit 2
}

TPU_NAME=${TPU_NAME:-cogview}
ZONE=${ZONE:-}
TYPE=${TYPE:-v5p-256}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}
SPOT=${SPOT:-}
FOLDER=${FOLDER:-cogview_jax}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

[ $# -ge 1 ] || usage
[ -n "$ZONE" ] || { echo "error: ZONE is not set, such as ZONE=us-east5-a" >&2; exit 2; }

everywhere() {
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$ZONE" --worker=all --command "$1"
}

action=$1
shift
case "$action" in
    create)
        gcloud compute tpus tpu-vm create "$TPU_NAME" --zone "$ZONE" \
            --accelerator-type "$TYPE" --version "$RUNTIME" ${SPOT:+--spot}
        ;;
    setup)
        archive=$(mktemp --suffix .tar.gz)
        trap 'rm -f "$archive"' EXIT
        git -C "$HERE" archive --format tar.gz --output "$archive" HEAD
        gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:cogview.tar.gz" --zone "$ZONE" --worker=all
        everywhere "mkdir -p $FOLDER && tar -xzf cogview.tar.gz -C $FOLDER && cd $FOLDER && make .venv \
            && .venv/bin/pip install -e '.[remote]' \"jax[tpu]==\$(.venv/bin/python -c 'import jax; print(jax.__version__)')\""
        ;;
    run)
        [ $# -ge 1 ] || usage
        arguments=$(printf '%q ' "$@")
        # --detect: jax asks the metadata server which host this is, and of how many. In braces, or
        # the number would be that of a shell, which passes no signal on.
        everywhere "cd $FOLDER && { nohup .venv/bin/python launch/local.py --detect -n 1 -- \
            .venv/bin/python -m cogview_jax.train $arguments >> train.log 2>&1 & echo \$! > supervisor.pid; }"
        ;;
    logs)
        gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$ZONE" --worker=0 \
            --command "tail -n 100 -f $FOLDER/train.log"
        ;;
    stop)
        # Each supervisor passes SIGTERM on; the state is saved and the same `run` continues.
        everywhere "kill -TERM \$(cat $FOLDER/supervisor.pid)"
        ;;
    delete)
        gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone "$ZONE"
        ;;
    *)
        echo "error: unknown action '$action': expected create, setup, run, logs, stop or delete" >&2
        exit 2
        ;;
esac
