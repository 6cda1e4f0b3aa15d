#!/usr/bin/env bash
# Trains on one or several nodes under Slurm; the arguments go to main.py. From the folder of the code:
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 scripts/slurm_train.sh \
#       --config configs/mevis.yaml --output_dir /shared/runs/mevis
# Ten minutes before the time is over Slurm signals this script: the run saves, ends, is queued again and goes on. To
# end a run with a checkpoint and not queue it again: scancel --batch --signal=TERM JOB (without --signal it has 30 s).
#SBATCH --job-name=flowrvs
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flowrvs-%j.log
#SBATCH --signal=B:USR1@600
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?is set by sbatch; on a single machine use torchrun, see docs/training.md}"
# A save of the 1.3B model writes 21 GiB: 540 s suffice at 40 MB/s. Less than the 600 s of --signal above.
save_seconds=540
if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not read sbatch's --cpus-per-task

# One torchrun a node. exec: Slurm signals the process that it started, which must be torchrun itself.
# A node whose torchrun fails ends the others, which would wait for it.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'exec torchrun --node_rank="$SLURM_NODEID" "$@"' torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${NUM_PROCESSES:-gpu}" \
    --master_addr="$first_node" --master_port="$((20000 + SLURM_JOB_ID % 10000))" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout="$save_seconds" \
    main.py "$@" --resume auto &
srun_pid=$!
received=
pass_on() { # SIGNAL: srun forwards it to the torchrun of every node
    received=$1
    kill -s "$1" "$srun_pid"
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

code=0
wait "$srun_pid" || code=$?
while kill -0 "$srun_pid" 2>/dev/null; do # a signal ended the wait, not srun
    code=0
    wait "$srun_pid" || code=$?
done
if [ "$received" = USR1 ] && [ "$code" -ne 0 ]; then # 0: the run was done just then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
