#!/usr/bin/env bash
# Trains on one or several nodes under Slurm; passes its arguments to main.py. Submit it from the folder of the code:
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 scripts/slurm_train.sh \
#       --config configs/mevis.yaml --output_dir /shared/runs/mevis
# Ten minutes before the time limit Slurm signals this script: the run saves and ends, the job is queued again, and the
# run resumes. To save and end a run without queueing it again: scancel --batch --signal=TERM JOB (without --signal
# Slurm kills it after 30 s).
#SBATCH --job-name=flowrvs
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flowrvs-%j.log
#SBATCH --signal=B:USR1@600
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?must be set by sbatch; without Slurm use torchrun, see docs/training.md}"
# A checkpoint of the 1.3B has 21 GiB: at 40 MB/s it is written in 540 s. Must be less than the 600 s of --signal above.
save_seconds=540
if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not read sbatch's --cpus-per-task

# Start one torchrun per node. Slurm signals the process that it started; exec makes that process torchrun itself.
# If torchrun fails on one node, --kill-on-bad-exit ends it on the others, which would wait forever.
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
while kill -0 "$srun_pid" 2>/dev/null; do # a signal interrupted the wait, and srun still runs
    code=0
    wait "$srun_pid" || code=$?
done
if [ "$received" = USR1 ] && [ "$code" -ne 0 ]; then # 0: the run was finished
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
