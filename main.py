"""Train FlowRVS.

    python main.py --config configs/mevis.yaml --wan_path Wan2.1-T2V-1.3B-Diffusers --output_dir runs/mevis
    python main.py --config configs/toy.yaml --output_dir runs/toy

--task flow trains the DiT to predict the velocity; --task mask_vae tunes the VAE's decoder to one mask channel.
"""

import argparse

from datasets.registry import GROUPS, TRAINED, add_dataset_flags
from util.errors import did_you_mean, exit_on_user_error, interruptible_imports
from util.flags import (
    DEVICE_HELP,
    DTYPE_NAMES,
    MAX_BOX,
    MAX_SEED,
    MIN_BOX,
    OBJECTIVES,
    OPTIMIZERS,
    SAMPLINGS,
    TRACKERS,
    add_weight_flags,
    device_name,
)
from util.options import OptionParser, add_flag, float_in, int_in

PROGRAM = "main.py"
DATASET_NAMES = (*TRAINED, *GROUPS)
REMOVED_FLAGS = {
    "--eval": "use inference_mevis.py",
    "--start_epoch": "leave it out, --resume reads it from the checkpoint",
    "--ngpu": "start with torchrun --nproc_per_node=N",
    "--save_period": "use --save_steps",
    "--max_size": "use --reso_w",
    "--max_skip": "use --sampling sparse, which has the original's distances",
    "--combined_dataset": "use --mixture",
    "--use_gradient_ckpt": "use --checkpoint_every: 1 every block, 2 every second, 0 none",
}


def weighted_name(text: str) -> tuple[str, float]:
    """Parses ``mevis=0.5``; the weight is 1 if it is left out."""
    name, _, weight = text.partition("=")
    if name not in DATASET_NAMES:
        raise argparse.ArgumentTypeError(
            f"must name one of {', '.join(DATASET_NAMES)}, got '{name}'{did_you_mean(name, DATASET_NAMES)}"
        )
    return name, float_in(0, 100, exclusive=True)(weight or "1")


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Train FlowRVS.", removed=REMOVED_FLAGS)
    parser.add_argument(
        "--task",
        choices=("flow", "mask_vae"),
        default="flow",
        help="train the DiT (flow) or the VAE decoder (mask_vae)",
    )
    parser.add_argument("--output_dir", default="runs/flowrvs", metavar="DIR", help="run folder")
    parser.add_argument(
        "--resume", metavar="RUN", help="continue from a checkpoint: auto (the latest in --output_dir), a run or a step"
    )
    parser.add_argument(
        "--init_from", metavar="PATH", help="start a new run from weights: a run, a saved pipeline or a weight file"
    )
    add_flag(parser, "--dry_run", False, "check options and data, print steps and GPU memory, and exit")
    parser.add_argument("--device", type=device_name, default="auto", help=DEVICE_HELP)
    parser.add_argument("--seed", type=int_in(0, MAX_SEED), default=42, help="random seed")
    add_weight_flags(parser)
    _add_data_flags(parser)
    _add_method_flags(parser)
    _add_optimizer_flags(parser)
    _add_memory_flags(parser)
    _add_log_flags(parser)
    return parser


def _add_data_flags(parser: OptionParser) -> None:
    add_dataset_flags(parser, TRAINED)
    group = parser.add_argument_group("clips")
    group.add_argument("--dataset_file", choices=DATASET_NAMES, default="mevis", help="dataset to train on")
    group.add_argument(
        "--mixture", nargs="+", type=weighted_name, metavar="NAME=WEIGHT",
        help="train on several datasets instead; the weight is how often an epoch visits each item: mevis=1 ytvos=0.5",
    )  # fmt: skip
    group.add_argument("--num_frames", type=int_in(1), default=17, metavar="N", help="frames per clip, 4n+1")
    group.add_argument(
        "--reso_h", type=int_in(MIN_BOX, MAX_BOX), metavar="PIXELS",
        help="short side of clips; by default the model's own",
    )  # fmt: skip
    group.add_argument(
        "--reso_w", type=int_in(MIN_BOX, MAX_BOX), metavar="PIXELS",
        help="longest long side of clips; by default the model's own",
    )  # fmt: skip
    group.add_argument(
        "--sampling", choices=SAMPLINGS, default="sparse",
        help="frames of a clip: from the whole video (sparse), evenly spaced (dense), or either (mixed)",
    )  # fmt: skip
    add_flag(group, "--augm_resize", True, "resize and crop every second clip at random")
    group.add_argument(
        "--flip_prob", type=float_in(0, 1), default=0.5,
        help="probability to mirror a clip and swap left and right in its caption",
    )  # fmt: skip
    group.add_argument(
        "--jitter", type=float_in(0, 1), default=0.0,
        help="largest relative change of brightness, contrast and saturation; 0 disables it",
    )  # fmt: skip
    group.add_argument(
        "--no_target_prob", type=float_in(0, 1), default=1.0,
        help="probability to keep an expression that has no target in its video",
    )  # fmt: skip
    group.add_argument("--batch_size", type=int_in(1), default=1, metavar="N", help="clips per process and batch")
    group.add_argument("--num_workers", type=int_in(0), default=4, metavar="N", help="worker processes that read clips")


def _add_method_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="flow",
        help="what the DiT predicts: flow, or a baseline of the paper",
    )
    group.add_argument(
        "--bbs_prob", type=float_in(0, 1), default=0.5,
        help="boundary-biased sampling: probability of timestep 1000; 0 samples uniformly",
    )  # fmt: skip
    group.add_argument(
        "--timestep_beta", type=float_in(-100, 100), default=0.0,
        help="bias of the other timesteps: above 0 towards the video, below 0 towards the mask, 0 uniform",
    )  # fmt: skip
    add_flag(group, "--use_spa", True, "start-point augmentation: sample the video latents from their posterior")
    add_flag(group, "--use_dvi", True, "direct video injection: the video latents as further input channels")
    group.add_argument(
        "--lora_rank", type=int_in(0, 1024), default=0, metavar="RANK",
        help="train low-rank adapters of this rank; 0 trains all weights",
    )  # fmt: skip
    group.add_argument(
        "--crop", type=int_in(0), default=256, metavar="PIXELS",
        help="mask_vae: side of the square crops; 0 uses whole frames",
    )  # fmt: skip
    group.add_argument(
        "--latent_noise", type=float_in(0), default=0.0,
        help="mask_vae: standard deviation of the noise added to the mask latents",
    )  # fmt: skip


def _add_optimizer_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="adamw", help="optimizer; adamw8bit needs torchao or bitsandbytes"
    )
    group.add_argument(
        "--accumulate", type=int_in(1), default=1, metavar="N", help="batches per step: accumulate their gradients"
    )
    group.add_argument("--lr", type=float_in(0, exclusive=True), default=5e-5, help="peak learning rate")
    group.add_argument(
        "--weight_decay", type=float_in(0), default=5e-4, help="weight decay of matrices and convolution kernels"
    )
    add_flag(group, "--decay_all", False, "let biases, norms and embeddings decay too, as in the original")
    group.add_argument(
        "--adam_betas", type=float_in(0, 1, exclusive=True), nargs=2, default=(0.9, 0.999), metavar="BETA",
        help="decay rates of AdamW's first and second moment",
    )  # fmt: skip
    group.add_argument(
        "--adam_eps", type=float_in(0, exclusive=True), default=1e-8, metavar="EPS",
        help="added to the root of AdamW's second moment",
    )  # fmt: skip
    group.add_argument(
        "--lr_schedule", choices=("multistep", "cosine", "constant"), default="multistep",
        help="learning rate after the warm-up",
    )  # fmt: skip
    group.add_argument(
        "--lr_drop", type=int_in(1), default=30, metavar="EPOCHS",
        help="multistep: multiply the learning rate by 0.9 every so many epochs",
    )  # fmt: skip
    group.add_argument(
        "--warmup_steps", type=int_in(0), default=0, metavar="N", help="steps of linear warm-up of the learning rate"
    )
    group.add_argument("--epochs", type=int_in(1), default=50, metavar="N", help="passes over the data")
    group.add_argument("--max_steps", type=int_in(1), metavar="N", help="number of steps, instead of --epochs")
    group.add_argument(
        "--clip_max_norm", type=float_in(0), default=1.0,
        help="clip the gradient norm to this value; 0 disables clipping",
    )  # fmt: skip
    group.add_argument(
        "--ema_decay",
        type=float_in(0, 1),
        default=0.9999,
        help="decay of the exponential moving average of the weights",
    )
    group.add_argument(
        "--max_bad_steps", type=int_in(1), default=10, metavar="N",
        help="stop after this many successive steps without a finite gradient",
    )  # fmt: skip


def _add_memory_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("memory and speed")
    add_flag(group, "--amp", None, "compute in bf16 by autocast; by default on CUDA only")
    group.add_argument(
        "--weights_dtype", choices=DTYPE_NAMES, default="fp32",
        help="number format of the trained weights; bf16 halves their memory, with stochastic rounding",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint_every", type=int_in(0), default=1, metavar="N",
        help="recompute the activations of every N-th block in the backward pass to save memory; 0 keeps all",
    )  # fmt: skip
    add_flag(group, "--compile", False, "compile the blocks of the DiT; takes minutes at the start")
    add_flag(group, "--fsdp", False, "shard weights, gradients and optimizer state over the GPUs of torchrun")
    group.add_argument(
        "--ema_device", choices=("cpu", "cuda"), help="device of the EMA weights; by default that of the weights"
    )
    group.add_argument(
        "--text_cache", metavar="DIR",
        help="folder for embedded captions, which several runs may share; by default inside --output_dir",
    )  # fmt: skip
    group.add_argument(
        "--latent_cache", metavar="DIR",
        help="folder for latents, encoded once instead of at each step; needs --sampling dense --no-augm_resize "
        "--flip_prob 0",
    )  # fmt: skip


def _add_log_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("checkpoints and log")
    group.add_argument("--save_steps", type=int_in(1), default=1000, metavar="N", help="steps between checkpoints")
    group.add_argument("--keep_last", type=int_in(1), default=3, metavar="N", help="number of checkpoints to keep")
    group.add_argument("--print_freq", type=int_in(1), default=100, metavar="N", help="steps between log lines")
    group.add_argument(
        "--eval_steps", type=int_in(0), default=0, metavar="N",
        help="steps between validations on the dataset's validation split; 0 disables validation",
    )  # fmt: skip
    group.add_argument(
        "--report_to", choices=TRACKERS, default="tensorboard", help="experiment tracker for curves and images"
    )


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        with interruptible_imports(PROGRAM):
            from engine.training.run import run  # noqa: PLC0415, heavy: --help and refused flags answer without it

        run(options)


if __name__ == "__main__":
    main()
